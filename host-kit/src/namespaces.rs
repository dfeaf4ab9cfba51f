//! Takes a process out of what all processes of its host see: files, networks, IPC and the host's name.
//!
//! In: places, and the capabilities that the process goes on with. Out: a process in namespaces of its own,
//! whose root has these places and nothing else. What is open stays open; a socket stays in the network that
//! it was made in. Never: a process that ends because its host does not allow that. It goes on as it was, and
//! the log says so.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf, absolute};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};

use crate::capabilities::{Capability, holds};
use crate::landlock::Place;
use crate::sched;

const KINDS: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Where the new root is put together: a folder that every root has.
const STAGE: &str = "/dev";
/// Folders, and files that places are mounted on; nothing is ever written there.
const ROOT_OPTIONS: &str = "size=1m,nr_inodes=1k,mode=0755";
const NOTHING_SPECIAL: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// The users that a process knows by name in its user namespace.
const USERS: &str = "/proc/self/uid_map";

/// What a process has become.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Left {
    /// It is in a user namespace of its own as well. Capabilities are worth nothing outside of it.
    AsAnotherUser,
    /// It is in its own namespaces, as the user that it was.
    AsTheSameUser,
    /// It is where it was.
    Nothing,
}

/// Leaves the host's namespaces, all but that of processes, which a process is born in. To be called before
/// there are threads; a process that has some stays where it is. Without CAP_SYS_ADMIN it takes a user
/// namespace, unless capabilities of `kept` would be lost by that.
///
/// # Errors
/// When the process is neither here nor there: its user has no name in its new namespace.
pub fn leave(places: &[Place], kept: &[Capability]) -> io::Result<Left> {
    let user = match user_namespace(kept) {
        Ok(user) => user,
        Err(why) => return Ok(stay(&why)),
    };
    let (uid, gid) = (geteuid(), getegid());
    if let Err(error) = unshare(if user { KINDS | CloneFlags::CLONE_NEWUSER } else { KINDS }) {
        return Ok(stay(&format!("this host does not allow it: {error}")));
    }
    if user {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write(USERS, format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    if let Err(error) = see_only(places) {
        tracing::info!("the host's files stay in sight, as its root cannot be replaced: {error}");
    }
    Ok(if user { Left::AsAnotherUser } else { Left::AsTheSameUser })
}

fn stay(why: &str) -> Left {
    tracing::info!("no namespaces of its own: {why}");
    Left::Nothing
}

/// Whether the other namespaces need one of users; or why there can be none at all.
fn user_namespace(kept: &[Capability]) -> Result<bool, String> {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(format!("the process has {threads} threads"));
    }
    if holds(Capability::CAP_SYS_ADMIN) {
        return Ok(false);
    }
    // Not if it was of another user, has gained something by its program's file, or is limited by Landlock.
    File::options().write(true).open(USERS).map_err(|error| format!("{USERS}: {error}"))?;
    let needed = |one: &Capability| *one != Capability::CAP_SYS_NICE || !sched::realtime_needs_no_capability();
    match kept.iter().find(|one| holds(**one) && needed(one)) {
        Some(lost) => Err(format!("without CAP_SYS_ADMIN, {lost} would be lost by them")),
        None => Ok(true),
    }
}

/// Replaces the root by one with nothing but `places`, at the paths that they have now.
fn see_only(places: &[Place]) -> io::Result<()> {
    let here = std::env::current_dir().ok();
    // Nothing that is mounted here is seen by others; what they unmount below a place is unmounted here, too.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    // Opened first, as the stage may hide them. Outer folders before what is in them.
    let mut sources = places.iter().filter_map(|(path, _)| source(path)).collect::<Vec<_>>();
    sources.sort_by(|a, b| a.0.cmp(&b.0));
    mount(Some("pollux"), STAGE, Some("tmpfs"), NOTHING_SPECIAL, Some(ROOT_OPTIONS))?;
    let moved = sources.iter().try_for_each(|(path, opened)| show(path, opened)).and_then(|()| move_in());
    if moved.is_err() {
        // So that the root is what it was.
        umount2(STAGE, MntFlags::MNT_DETACH)?;
    }
    moved?;
    // Paths that were given relative to it lead to the same files.
    let _ = here.map(|here| chdir(&here));
    Ok(())
}

/// A place that exists, by its absolute path.
fn source(path: &Path) -> Option<(PathBuf, File)> {
    let opened = File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).ok()?;
    Some((absolute(path).ok()?, opened))
}

/// Mounts what is `opened` in the new root.
fn show(path: &Path, opened: &File) -> io::Result<()> {
    let at = Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path));
    if opened.metadata()?.is_dir() {
        fs::create_dir_all(&at)?;
    } else {
        fs::create_dir_all(at.parent().unwrap_or(Path::new(STAGE)))?;
        File::options().create(true).append(true).open(&at)?;
    }
    let from = format!("/proc/self/fd/{}", opened.as_raw_fd());
    Ok(mount(Some(from.as_str()), &at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

fn move_in() -> io::Result<()> {
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | NOTHING_SPECIAL;
    mount(None::<&str>, STAGE, None::<&str>, read_only, None::<&str>)?;
    chdir(STAGE)?;
    // The old root comes to lie on the new one, and goes.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use nix::sys::prctl::set_dumpable;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Gid, Uid, fork, setgid, setgroups, setuid};

    use super::*;
    use crate::landlock::Access;

    const NOBODY: u32 = 65534;

    /// Runs it in a process of its own, as the only thread of that.
    fn alone(body: impl FnOnce()) {
        // SAFETY: the child goes on as the only thread of its process, where the C library's locks are free.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let result = catch_unwind(AssertUnwindSafe(body));
                // SAFETY: the process ends, and nothing that belongs to its parent is cleaned up.
                unsafe { libc::_exit(i32::from(result.is_err())) }
            }
            ForkResult::Parent { child } => assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0))),
        }
    }

    /// Leaves, with a folder of its own and one file of others, and looks around.
    fn look_around(expected: Left) {
        let (mine, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [file, shown, hidden] = [mine.path().join("file"), others.path().join("s"), others.path().join("h")];
        for path in [&file, &shown, &hidden] {
            fs::write(path, "text").unwrap();
        }
        std::env::set_current_dir(mine.path()).unwrap();
        let open = File::open(&hidden).unwrap();
        let places = [(".".into(), Access::Write), (shown.clone(), Access::Read), ("/nowhere".into(), Access::Write)];

        assert_eq!(leave(&places, &[]).unwrap(), expected);
        assert_eq!(fs::read_to_string("file").unwrap(), "text", "by a relative path");
        fs::rename("file", mine.path().join("renamed")).unwrap();
        assert_eq!(fs::read_to_string(&shown).unwrap(), "text");
        assert!(!hidden.exists() && !Path::new("/etc").exists() && fs::write("/new", "").is_err());
        assert_eq!(io::read_to_string(&open).unwrap(), "text", "what is open stays so");
        let interfaces = nix::net::if_::if_nameindex().unwrap();
        assert!(interfaces.iter().all(|one| one.name() == c"lo"), "{interfaces:?}");
        assert_eq!(geteuid().as_raw() == NOBODY, expected == Left::AsAnotherUser);
    }

    #[test]
    fn root_has_its_places_and_nothing_else() {
        if !holds(Capability::CAP_SYS_ADMIN) {
            return println!("SKIPPED: needs CAP_SYS_ADMIN");
        }
        alone(|| look_around(Left::AsTheSameUser));
    }

    #[test]
    fn a_user_has_its_places_and_nothing_else() {
        if !Uid::effective().is_root() {
            return println!("SKIPPED: needs root, to be somebody else");
        }
        alone(|| {
            setgroups(&[]).unwrap();
            setgid(Gid::from_raw(NOBODY)).unwrap();
            setuid(Uid::from_raw(NOBODY)).unwrap();
            assert_eq!(leave(&[], &[]).unwrap(), Left::Nothing, "a process that was root's a moment ago");
            set_dumpable(true).unwrap();
            look_around(Left::AsAnotherUser);
        });
    }

    #[test]
    fn a_process_with_threads_stays_where_it_is() {
        let thread = std::thread::spawn(|| leave(&[], &[]).unwrap());
        assert_eq!(thread.join().unwrap(), Left::Nothing);
    }

    #[test]
    fn a_capability_that_is_needed_is_not_given_up_for_it() {
        let one = [Capability::CAP_FOWNER];
        if !holds(one[0]) {
            return println!("SKIPPED: needs a capability");
        }
        alone(|| {
            crate::capabilities::keep(&one).unwrap();
            assert_eq!(leave(&[], &one).unwrap(), Left::Nothing);
        });
    }
}
