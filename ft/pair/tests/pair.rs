//! Two hosts become a pair: by a token, by a file; and what does not come of it.
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ft_pair::PairError;
use ft_pair::authority::Authority;
use ft_pair::bundle::{export, import};
use ft_pair::folder::Folder;
use ft_pair::invitation::Invitation;
use ft_pair::joining::join;

const LONG: Duration = Duration::from_secs(60);

fn anywhere() -> Option<SocketAddr> {
    Some(([127, 0, 0, 1], 0).into())
}

fn first_host(path: &Path) -> Folder {
    let folder = Folder::of("east", Some(path));
    let authority = Authority::create("east").unwrap();
    folder.create(&authority, &authority.issue("host-a").unwrap()).unwrap();
    folder
}

#[test]
fn a_second_host_joins_by_a_token_once() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (first_host(&dir.path().join("a")), dir.path().join("b"));
    let invitation = Invitation::open(a.authority().unwrap(), "host-a", anywhere()).unwrap();
    let token = invitation.token().clone();
    let waiting = thread::spawn(move || invitation.wait(LONG));
    let mut wrong = token.clone();
    wrong.secret[3] ^= 1;
    let error = join(&wrong, Some(&b), "host-b").unwrap_err();
    assert!(matches!(error, PairError::Refused(..)), "{error:?}");
    wrong.authority = blake3_of("another authority");
    let error = join(&wrong, Some(&b), "host-b").unwrap_err();
    assert!(error.to_string().contains("not the host that made the token"), "{error:?}");
    assert!(!b.exists(), "nothing is left of a failure");
    let folder = join(&token, Some(&b), "host-b").unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), "host-b");
    folder.credentials().unwrap();
    assert_eq!(folder.authority().unwrap().certificate(), a.authority().unwrap().certificate());
    assert!(join(&token, Some(&dir.path().join("c")), "host-c").is_err(), "a token is good for one host");
}

fn blake3_of(text: &str) -> ft_pair::token::Hash {
    ft_pair::token::hash(text.as_bytes())
}

#[test]
fn a_token_expires() {
    let dir = tempfile::tempdir().unwrap();
    let a = first_host(dir.path());
    let invitation = Invitation::open(a.authority().unwrap(), "host-a", anywhere()).unwrap();
    let error = invitation.wait(Duration::from_millis(1)).unwrap_err();
    assert!(error.to_string().contains("not valid any more"), "{error}");
}

#[test]
fn a_second_host_joins_by_a_file_that_nobody_else_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let (a, file) = (first_host(&dir.path().join("a")), dir.path().join("bundle"));
    export(&a, &file).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    let b = import(&file, Some(&dir.path().join("b")), "host-b").unwrap();
    b.credentials().unwrap();
    assert!(matches!(import(&file, Some(b.path()), "host-b"), Err(PairError::Exists(_))));
}

#[test]
fn keys_are_for_their_owner_only_and_a_renewed_certificate_counts() {
    let dir = tempfile::tempdir().unwrap();
    let a = first_host(dir.path());
    for key in ["ca-key.pem", "server-key.pem", "client-key.pem"] {
        assert_eq!(a.path().join(key).metadata().unwrap().mode() & 0o777, 0o600, "{key}");
    }
    let before = std::fs::read(a.path().join("server-cert.pem")).unwrap();
    a.put_host(&a.authority().unwrap().issue("host-a").unwrap()).unwrap();
    a.credentials().unwrap();
    assert_ne!(std::fs::read(a.path().join("server-cert.pem")).unwrap(), before);
}

#[test]
fn renewed_files_belong_to_whom_the_old_ones_did() {
    if !nix::unistd::Uid::effective().is_root() {
        return println!("SKIPPED: needs root, to give files to somebody else");
    }
    const OTHER: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let a = first_host(dir.path());
    for entry in a.path().read_dir().unwrap() {
        std::os::unix::fs::chown(entry.unwrap().path(), Some(OTHER), Some(OTHER)).unwrap();
    }
    a.put_host(&a.authority().unwrap().issue("host-a").unwrap()).unwrap();
    for entry in a.path().read_dir().unwrap() {
        let entry = entry.unwrap();
        let owner = entry.metadata().unwrap();
        assert_eq!((owner.uid(), owner.gid()), (OTHER, OTHER), "{:?}", entry.path());
    }
}

#[test]
fn a_name_that_is_a_path_is_none() {
    for name in ["", "../east", "a b", "ä"] {
        assert!(matches!(Authority::create(name), Err(PairError::Name(_))), "{name}");
    }
}
