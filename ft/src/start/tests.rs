//! Hosts that start with disks of all kinds, against a file witness.

use std::net::TcpListener;

use ft_proto::witness::Replicas;

use super::*;
use crate::options::StandbyOptions;
use crate::peers::tls::TlsChoice;
use crate::witness::Stored;

const VM: VmId = VmId(7);
const FRESH: Disks = Disks { vm: None, state: DiskState::Fresh };

fn options(role: StartRole, folder: &tempfile::TempDir) -> NodeOptions {
    let witness = Some(folder.path().join("witness").as_path().into());
    NodeOptions { role, witness, tls: TlsChoice::Off, ..NodeOptions::default() }
}

fn disks(state: DiskState) -> Disks {
    Disks { vm: Some(VM), state }
}

fn host(name: &str, disks: Disks) -> Candidate {
    Candidate { host: name.parse().unwrap(), disks, boots: false, waited: false }
}

fn put(folder: &tempfile::TempDir, record: Record) {
    let stored = Stored { vm: Some(VM), record };
    std::fs::write(folder.path().join("witness"), serde_json::to_vec(&stored).unwrap()).unwrap();
}

fn node(name: &str) -> NodeId {
    NodeId { host: name.parse().unwrap(), incarnation: 1 }
}

fn runs(options: &NodeOptions, me: Candidate) -> NodeTerm {
    match part(options, me).unwrap() {
        Part::Run(node_term) => node_term,
        Part::StandBy(why) => panic!("waits: {why:?}"),
    }
}

fn waits(options: &NodeOptions, me: Candidate) -> String {
    match part(options, me).unwrap() {
        Part::StandBy(Some(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_of_two_equals_runs_and_the_other_waits() {
    let folder = tempfile::tempdir().unwrap();
    let auto = options(StartRole::Auto, &folder);
    let first = runs(&auto, host("a", FRESH));
    let why = waits(&auto, host("b", FRESH));
    assert!(why.contains("host a runs this VM in term 1") && why.contains("have no record"), "{why}");
    give_back(&auto, first, FRESH);
    let next = runs(&auto, host("b", FRESH));
    assert!(next.term > first.term && next.vm == first.vm, "the VM's identity stays on record");
}

#[test]
fn a_primary_does_not_start_against_the_record_and_a_forced_one_does_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut primary = options(StartRole::Primary, &folder);
    runs(&primary, host("a", FRESH));
    let error = part(&primary, host("b", FRESH)).unwrap_err().to_string();
    assert!(error.contains("host a") && error.contains("force=1"), "{error}");
    primary.force = Some(Term(1));
    let forced = runs(&primary, host("b", FRESH));
    assert_eq!(forced.term, Term(2));
    let former = Disks { vm: Some(forced.vm), state: DiskState::Alone(Term(1)) };
    let error = part(&primary, host("a", former)).unwrap_err().to_string();
    assert!(error.contains("host b") && error.contains("force=2"), "what is left in a unit is used up: {error}");
}

#[test]
fn a_witness_that_is_not_mounted_starts_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let auto = options(StartRole::Auto, &folder);
    let term = Term(4);
    let states = [
        DiskState::Copy(term),
        DiskState::Protected(term),
        DiskState::Alone(term),
        DiskState::Ended(term),
        DiskState::Unusable,
    ];
    for state in states {
        let why = waits(&auto, host("b", disks(state)));
        assert!(why.contains("no record of this VM") && why.contains("mounted"), "{state:?}: {why}");
    }
    assert!(!folder.path().join("witness").exists(), "and nothing is written there");
}

#[test]
fn an_empty_image_starts_nothing_by_itself_where_there_are_other_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let empty = host("b", Disks { vm: None, state: DiskState::Hole });
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let mut options = options(StartRole::Auto, &folder);
    options.peers = vec![crate::ProtectOptions::by(nobody, nobody)];
    assert!(waits(&options, empty).contains("prepared for a copy"));
    options.role = StartRole::Primary;
    runs(&options, empty);
}

#[test]
fn after_a_blackout_the_last_runner_starts_and_its_standby_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let auto = options(StartRole::Auto, &folder);
    put(&folder, Record::Protected { primary: node("a"), in_sync: Replicas::one(node("b")), term: Term(6) });
    let standby = host("b", disks(DiskState::Copy(Term(6))));
    let why = waits(&auto, standby);
    assert!(why.contains("waiting for host a") && why.contains("force=6"), "{why}");
    let runner = runs(&auto, host("a", disks(DiskState::Protected(Term(6)))));
    assert_eq!((runner.vm, runner.term), (VM, Term(7)));
    assert!(waits(&auto, Candidate { waited: true, ..standby }).contains("host a"));
    // It ran alone when it died, before its disks had come to note the new term.
    assert_eq!(runs(&auto, host("a", disks(DiskState::Protected(Term(6))))).term, Term(8));
}

/// A host that answers everybody the same.
fn peer_that(part: ft_wire::session::Part, node: NodeId) -> std::net::SocketAddr {
    use ft_transport::frames::{Stamp, read_body, read_header, write_frame};
    use ft_wire::packing::Unpacker;
    use ft_wire::session::{Kind, Standing, encode_body};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let hello = read_header(&mut stream).unwrap();
            read_body(&mut stream, &hello, &mut Vec::new(), &mut Unpacker::new().unwrap()).unwrap();
            let standing = encode_body(&Standing { node, vm: Some(VM), term: Term(6), part });
            let stamp = Stamp { kind: Kind::Standing, term: Term(6), epoch: ft_proto::Epoch(0) };
            write_frame(&mut stream, stamp, &[&standing]).unwrap();
        }
    });
    address
}

#[test]
fn who_is_about_to_take_over_is_left_to_it_as_long_as_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let mut auto = options(StartRole::Auto, &folder);
    let peer = peer_that(ft_wire::session::Part::WillTakeOver(node("a")), node("b"));
    auto.peers = vec![crate::ProtectOptions::by(peer, peer)];
    let record = Record::Protected { primary: node("a"), in_sync: Replicas::one(node("b")), term: Term(6) };
    put(&folder, record);
    let me = host("a", disks(DiskState::Protected(Term(6))));
    assert!(waits(&auto, me).contains("will take over"));
    // It was never registered, so the witness gives it nothing: who waited for it would wait for ever.
    put(&folder, Record::Solo { owner: node("a"), term: Term(6), since: Term(5) });
    assert_eq!(runs(&auto, me).term, Term(7));
}

#[test]
fn a_host_that_runs_the_vm_is_believed_more_than_an_operator() {
    let folder = tempfile::tempdir().unwrap();
    let mut primary = options(StartRole::Primary, &folder);
    let peer = peer_that(ft_wire::session::Part::Runs, node("b"));
    primary.peers = vec![crate::ProtectOptions::by(peer, peer)];
    primary.force = Some(Term(6));
    put(&folder, Record::Solo { owner: node("b"), term: Term(6), since: Term(6) });
    let error = part(&primary, host("a", disks(DiskState::Alone(Term(5))))).unwrap_err().to_string();
    assert!(error.contains("host b") && error.contains("runs the VM"), "{error}");
}

#[test]
fn a_standby_that_has_waited_long_enough_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let auto = options(StartRole::Auto, &folder);
    put(&folder, Record::Protected { primary: node("a"), in_sync: Replicas::one(node("b")), term: Term(6) });
    let standby = Candidate { waited: true, ..host("b", disks(DiskState::Copy(Term(6)))) };
    assert_eq!(runs(&auto, standby).term, Term(7));
    assert!(waits(&auto, host("a", disks(DiskState::Protected(Term(6))))).contains("host b"));
}

#[test]
fn who_has_older_disks_waits_and_is_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let auto = options(StartRole::Auto, &folder);
    let first = runs(&auto, host("a", disks(DiskState::None)));
    give_back(&auto, first, disks(DiskState::Ended(first.term)));
    let why = waits(&auto, host("b", FRESH));
    assert!(why.contains("newer disks") && why.contains("start that host first"), "{why}");
    let error = part(&options(StartRole::Primary, &folder), host("b", FRESH)).unwrap_err().to_string();
    assert!(error.contains("newer disks") && error.contains("force=1"), "{error}");
    assert!(runs(&auto, host("a", disks(DiskState::Ended(first.term)))).term > first.term);
}

#[test]
fn the_disks_of_another_vm_are_named() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder, Record::Stopped { term: Term(1), disks: Term(0) });
    let other = Disks { vm: Some(VmId(8)), state: DiskState::Ended(Term(9)) };
    let error = part(&options(StartRole::Auto, &folder), host("a", other)).unwrap_err().to_string();
    assert!(error.contains(&VM.to_string()) && error.contains(&VmId(8).to_string()), "{error}");
}

#[test]
fn a_damaged_record_and_one_that_cannot_be_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let auto = options(StartRole::Auto, &folder);
    put(&folder, Record::Stopped { term: Term(u64::MAX), disks: Term(0) });
    assert!(waits(&auto, host("a", FRESH)).contains("is damaged"));
    let error = part(&options(StartRole::Primary, &folder), host("a", FRESH)).unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
}

#[test]
fn a_witness_that_hangs_is_named_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("witness");
    let lock = std::fs::File::create(path.with_added_extension("lock")).unwrap();
    lock.lock().unwrap();
    let error = part(&options(StartRole::Primary, &folder), host("a", FRESH)).unwrap_err().to_string();
    // Who may wait is asked again later.
    let why = waits(&options(StartRole::Auto, &folder), host("a", FRESH));
    for text in [error, why] {
        assert!(text.contains(&path.display().to_string()) && text.contains("no answer within 3 s"), "{text}");
    }
}

#[test]
fn a_standby_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let standby = options(StartRole::Standby, &folder);
    let me = host("a", FRESH);
    assert_eq!(part(&standby, me).unwrap(), Part::StandBy(None));
    assert!(!folder.path().join("witness").exists());
    runs(&standby, Candidate { boots: true, ..me });
}

#[test]
fn two_processes_of_one_host_are_one_too_many() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let standby = Some(StandbyOptions {
        listen,
        heartbeat: listen,
        witness: None,
        on_partition: None,
        detect_ms: None,
        keeps_data: false,
    });
    let options = NodeOptions { standby, ..NodeOptions::default() };
    let error = check_alone(&options).unwrap_err().to_string();
    assert!(error.contains(&listen.to_string()) && error.contains("running already"), "{error}");
    drop(listener);
    check_alone(&options).unwrap();
}
