//! Two engines over loopback with toy guests: real sockets, threads and files, no KVM.
#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ft::{Control, EventRecord, Ft, NodeTerm, ProtectOptions, Refused, Setup, StandbyOptions, Status};
use ft_proto::OnPartition;
use nix::sys::socket::{Shutdown, shutdown};
use pollux_api::status::{ClaimKind, LinkState, Replica, Role, State};

mod moves;
mod output;
mod strangers;
mod toy;
mod waits;

use toy::{FIRST, PAGE, PAGES, ToyGuest};

/// More than a thread of a busy machine has to wait for a processor: nobody is to be taken for dead who is
/// not.
const SILENCE_MS: u64 = 3000;

/// A port for both TCP and UDP that nobody else has: at an address of this process alone, below those that
/// the kernel hands out.
fn address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, net, high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, net, high, low), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// How to be a standby at free addresses.
fn standby_options(witness: &Path) -> StandbyOptions {
    StandbyOptions {
        listen: address(),
        heartbeat: address(),
        witness: Some(witness.into()),
        on_partition: None,
        detect_ms: None,
        keeps_data: false,
    }
}

/// What an engine begins with that may protect its VM by `peers`.
fn setup(witness: &Path, peers: &[&StandbyOptions]) -> Setup {
    let peers = peers.iter().map(|standby| options(standby.listen, standby.heartbeat, witness)).collect();
    Setup { peers, witness: Some(witness.into()), ..Setup::default() }
}

fn wait_state(ft: &Ft, state: State) {
    wait(|| ft.status().state == state, || format!("{:?} {:?}", ft.status(), ft.events()));
}

struct Pair {
    folder: tempfile::TempDir,
    guest_a: ToyGuest,
    guest_b: ToyGuest,
    a: Option<Ft>,
    b: Ft,
    options: ProtectOptions,
}

impl Pair {
    fn new() -> Self {
        Self::with_witnesses("witness", "witness")
    }

    /// Files that the primary and the standby take for the witness's.
    fn with_witnesses(of_a: &str, of_b: &str) -> Self {
        Self::of_guests(ToyGuest::new(), ToyGuest::new(), of_a, of_b)
    }

    fn of_guests(guest_a: ToyGuest, guest_b: ToyGuest, of_a: &str, of_b: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [witness, of_b] = [of_a, of_b].map(|name| folder.path().join(name));
        let standby = standby_options(&of_b);
        let options = options(standby.listen, standby.heartbeat, &witness);
        Self::of(folder, [guest_a, guest_b], standby, options)
    }

    /// Without a witness.
    fn by_policy(policy: OnPartition) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut standby = standby_options(folder.path());
        (standby.witness, standby.on_partition) = (None, Some(policy));
        let mut options = options(standby.listen, standby.heartbeat, folder.path());
        (options.witness, options.on_partition) = (None, Some(policy));
        Self::of(folder, [ToyGuest::new(), ToyGuest::new()], standby, options)
    }

    fn of(
        folder: tempfile::TempDir,
        [guest_a, guest_b]: [ToyGuest; 2],
        standby: StandbyOptions,
        options: ProtectOptions,
    ) -> Self {
        let setup = Setup { witness: standby.witness.clone(), ..Setup::default() };
        let b = Ft::standby(Box::new(guest_b.clone()), standby, setup).unwrap();
        let a = Ft::solo(Box::new(guest_a.clone()), NodeTerm::unasked(), Setup::default()).unwrap();
        Self { folder, guest_a, guest_b, a: Some(a), b, options }
    }

    fn a(&self) -> &Ft {
        self.a.as_ref().unwrap()
    }

    fn protected() -> Self {
        let pair = Self::new();
        for page in 0..PAGES {
            pair.guest_a.write(FIRST + page, page as u8);
        }
        pair.a().protect(Some(pair.options.clone())).unwrap();
        wait(|| pair.a().status().state == State::Protected, || format!("{:?}", pair.a().status()));
        pair
    }
}

fn options(peer: SocketAddr, heartbeat: SocketAddr, witness: &Path) -> ProtectOptions {
    let json = serde_json::json!({ "peer": peer, "heartbeat": heartbeat, "witness": witness, "detect_ms": SILENCE_MS });
    serde_json::from_value(json).unwrap()
}

/// Waits until something is so; generous, since the machine may be busy.
fn wait(so: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "still not so: {}", otherwise());
        thread::sleep(Duration::from_millis(2));
    }
}

fn wait_same_memory(one: &ToyGuest, other: &ToyGuest) {
    wait(|| one.memory_copy() == other.memory_copy(), || "memories differ".to_owned());
}

fn committed(status: &Status) -> u64 {
    status.epochs
}

#[test]
fn memory_and_state_arrive_and_epochs_commit() {
    let pair = Pair::protected();
    while !pair.guest_a.write(FIRST + 7, 0xee) {}
    let before = committed(&pair.a().status());
    wait(|| committed(&pair.a().status()) > before + 3, || format!("{:?}", pair.a().status()));
    wait_same_memory(&pair.guest_a, &pair.guest_b);
    let status = pair.a().status();
    assert_eq!((status.role, status.term), (Role::Primary, 2));
    let green = || pair.a().status().links.iter().all(|link| link.state == LinkState::Green);
    wait(green, || format!("{:?}", pair.a().status().links));
    assert_eq!(pair.b.status().state, State::StandbyReady);
}

#[test]
fn a_guest_that_cannot_be_stopped_now_is_captured_later() {
    let pair = Pair::protected();
    pair.guest_a.0.lock().unwrap().busy = true;
    // What is cut now was begun before.
    let settled = || {
        let before = committed(&pair.a().status());
        thread::sleep(Duration::from_millis(300));
        committed(&pair.a().status()) == before
    };
    wait(settled, || "epochs go on".to_owned());
    // The engine does not wait for it.
    assert!(pair.a().protect(None).unwrap_err().to_string().contains("protected already"));
    assert!(pair.guest_a.write(FIRST + 7, 0xee));
    let before = committed(&pair.a().status());
    pair.guest_a.0.lock().unwrap().busy = false;
    wait(|| committed(&pair.a().status()) > before + 3, || format!("{:?}", pair.a().status()));
    wait_same_memory(&pair.guest_a, &pair.guest_b);
    // A cut that was put off does not outlive its session.
    pair.guest_a.0.lock().unwrap().busy = true;
    thread::sleep(Duration::from_millis(50));
    pair.a().stop().unwrap();
    pair.guest_a.0.lock().unwrap().busy = false;
    pair.a().protect(Some(pair.options.clone())).unwrap();
    wait_state(pair.a(), State::Protected);
    assert_eq!(pair.guest_a.0.lock().unwrap().paused, 0);
}

#[test]
fn a_session_that_does_not_come_about_leaves_no_tracking_on() {
    let pair = Pair::of_guests(ToyGuest::with_disk(), ToyGuest::with_disk(), "witness", "witness");
    // Its process takes no commands any more, and does not say so.
    let far = pair.guest_a.0.lock().unwrap().disk.as_ref().unwrap()[1].as_raw_fd();
    shutdown(far, Shutdown::Read).unwrap();
    let reasons = pair.a().protect(Some(pair.options.clone())).unwrap_err();
    assert!(reasons.to_string().contains("disk"), "{reasons:?}");
    assert!(!pair.guest_a.0.lock().unwrap().tracking, "the guest pays for a session that is none");
}

#[test]
fn whoever_waits_for_an_engine_is_told_that_it_has_ended() {
    let pair = Pair::new();
    // A host that accepts and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let options = ProtectOptions { peer: silent.local_addr().unwrap(), ..pair.options.clone() };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pair.a().protect(Some(options)));
        let (mut asked, _) = silent.accept().unwrap();
        pair.a().end();
        let told = waiting.join().unwrap();
        assert_eq!(told, Err(Refused::Ended));
        // Not because whoever asks has given up: the connection is still open.
        asked.set_nonblocking(true).unwrap();
        let end = std::io::copy(&mut asked, &mut std::io::sink()).unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn both_hosts_tell_of_the_first_copy() {
    let pair = Pair::protected();
    wait_state(&pair.b, State::StandbyReady);
    for ft in [pair.a(), &pair.b] {
        let events = ft.events();
        let bytes = |name| {
            let event = events.iter().find(|event| event.event == name);
            event.unwrap_or_else(|| panic!("no {name}: {events:?}")).detail["bytes"].as_u64().unwrap()
        };
        let all = PAGES * PAGE as u64;
        assert_eq!(bytes("memory-copy-started"), all);
        assert!(bytes("memory-copy-done") >= all, "what was written meanwhile comes on top");
        wait(|| ft.status().memory_sync.is_none(), || "it is over".to_owned());
    }
}

#[test]
fn a_vm_ends_although_the_witness_hangs() {
    let pair = Pair::protected();
    let lock = std::fs::File::create(pair.folder.path().join("witness.lock")).unwrap();
    lock.lock().unwrap();
    pair.a().vm_ended();
    assert_ne!(pair.a().status().state, State::Solo, "the witness has not said so");
    lock.unlock().unwrap();
}

#[test]
fn the_standby_takes_over_when_the_primary_is_gone() {
    let mut pair = Pair::protected();
    while !pair.guest_a.write(FIRST + 7, 0xee) {}
    wait_same_memory(&pair.guest_a, &pair.guest_b);
    drop(pair.a.take());
    wait(|| pair.guest_b.started().is_some(), || format!("{:?} {:?}", pair.b.status(), pair.b.events()));
    assert_eq!(pair.guest_b.started(), Some(vec![0xee]));
    assert_eq!(pair.guest_a.memory_copy(), pair.guest_b.memory_copy());
    wait(|| pair.b.status().state == State::Solo, || format!("{:?}", pair.b.status()));
    assert_eq!(pair.b.status().term, 3);
}

#[test]
fn stop_leaves_the_guest_running_alone_and_the_standby_empty() {
    let pair = Pair::protected();
    pair.a().stop().unwrap();
    wait(|| pair.b.status().state == State::StandbyEmpty, || format!("{:?}", pair.b.status()));
    assert_eq!((pair.guest_a.fenced(), pair.guest_b.started()), (None, None));
    // The status follows a moment after the answer.
    wait(|| pair.a().status().state == State::Solo, || format!("{:?}", pair.a().status()));
    pair.a().protect(Some(pair.options.clone())).unwrap();
    wait(|| pair.a().status().state == State::Protected, || format!("{:?}", pair.a().status()));
    assert_eq!(pair.a().status().term, 4);
}

#[test]
fn stop_is_no_partition_although_the_standby_is_to_go_on_in_one() {
    let pair = Pair::by_policy(OnPartition::Standby);
    pair.a().protect(Some(pair.options.clone())).unwrap();
    wait_state(pair.a(), State::Protected);
    pair.a().stop().unwrap();
    wait_state(&pair.b, State::StandbyEmpty);
    wait_state(pair.a(), State::Solo);
    assert_eq!((pair.guest_a.fenced(), pair.guest_b.started()), (None, None));
}

/// How the memory of the last session began.
fn memory_kind(ft: &Ft) -> String {
    let kind = |event: &EventRecord| event.detail["kind"].as_str().map(str::to_owned);
    ft.events().iter().rev().filter(|event| event.event == "memory-copy-started").find_map(kind).unwrap_or_default()
}

#[test]
fn a_suspended_copy_is_brought_up_to_date() {
    let pair = Pair::protected();
    for round in 0..3u8 {
        for page in 0..PAGES / 2 {
            pair.guest_a.write(FIRST + page, 100 + round);
        }
        pair.a().suspend().unwrap();
        wait_state(pair.a(), State::Suspended);
        wait_state(&pair.b, State::StandbyEmpty);
        assert!(pair.a().suspend().is_err(), "it is suspended already");
        assert_eq!(event_of(pair.a(), "protection-suspended")["memory_kept"], true);
        pair.guest_a.write(FIRST + 1, 200 + round);
        pair.a().resume().unwrap();
        wait_state(pair.a(), State::Protected);
        assert_eq!(memory_kind(pair.a()), "incremental");
        wait_same_memory(&pair.guest_a, &pair.guest_b);
    }
    assert!(pair.a().resume().is_err(), "it is not suspended");
}

#[test]
fn a_standby_that_was_started_anew_gets_everything() {
    let mut pair = Pair::protected();
    pair.a().suspend().unwrap();
    wait_state(pair.a(), State::Suspended);
    pair.guest_b = ToyGuest::new();
    let standby = StandbyOptions {
        listen: pair.options.peer,
        heartbeat: pair.options.heartbeat,
        witness: pair.options.witness.clone(),
        on_partition: None,
        detect_ms: None,
        keeps_data: false,
    };
    pair.b.end();
    let reasons = pair.a().resume().unwrap_err().to_string();
    assert!(reasons.contains("cannot reach a standby"), "{reasons}");
    wait_state(pair.a(), State::Suspended);
    let setup = Setup { witness: standby.witness.clone(), ..Setup::default() };
    pair.b = Ft::standby(Box::new(pair.guest_b.clone()), standby, setup).unwrap();
    pair.a().resume().unwrap();
    wait_state(pair.a(), State::Protected);
    assert_eq!(memory_kind(pair.a()), "full");
    wait_same_memory(&pair.guest_a, &pair.guest_b);
}

#[test]
fn what_is_ended_for_good_is_not_resumed() {
    let pair = Pair::protected();
    pair.a().suspend().unwrap();
    pair.a().stop().unwrap();
    wait_state(pair.a(), State::Solo);
    assert!(pair.a().resume().is_err());
    pair.guest_a.write(FIRST + 1, 99);
    pair.a().protect(Some(pair.options.clone())).unwrap();
    wait_state(pair.a(), State::Protected);
    assert_eq!(memory_kind(pair.a()), "full");
    wait_same_memory(&pair.guest_a, &pair.guest_b);
}

#[test]
fn hand_over_moves_the_guest_at_once() {
    let pair = Pair::protected();
    pair.a().hand_over("maintenance").unwrap();
    wait(|| pair.guest_b.started().is_some(), || format!("{:?}", pair.b.status()));
    assert_eq!(pair.guest_a.fenced().as_deref(), Some("maintenance"));
    let yielded = pair.b.events().into_iter().find(|event| event.event == "primary-yielded").unwrap();
    assert_eq!(yielded.detail["reason"], "maintenance");
}

#[test]
fn a_primary_whose_standby_is_gone_goes_on_alone() {
    let Pair { guest_a, a, b, folder: _folder, .. } = Pair::protected();
    drop(b);
    let a = a.unwrap();
    wait(|| a.status().state == State::Solo, || format!("{:?}", a.status()));
    assert_eq!(guest_a.fenced(), None);
    assert!(a.events().iter().any(|event| event.event == "protection-lost"));
}

#[test]
fn every_reason_is_told_at_once() {
    let pair = Pair::new();
    let mut options = pair.options.clone();
    options.witness = None;
    options.tuning.detect_ms = 1;
    options.peer = address();
    let reasons = pair.a().protect(Some(options)).unwrap_err();
    let all = reasons.to_string();
    for part in ["no witness", "detect_ms=1", "cannot reach a standby"] {
        assert!(all.contains(part), "{part} is not in:\n{all}");
    }
    assert_eq!(pair.a().status().state, State::Unprotected);
}

#[test]
fn an_unreachable_witness_is_one_of_the_reasons() {
    let pair = Pair::new();
    let mut options = pair.options.clone();
    options.witness = Some(format!("etcd://{}/vm1", address()).parse().unwrap());
    options.peer = address();
    let reasons = pair.a().protect(Some(options)).unwrap_err().to_string();
    for part in ["/vm1: cannot query etcd", "refused", "cannot reach a standby"] {
        assert!(reasons.contains(part), "{part} is not in:\n{reasons}");
    }
    let answered = || pair.a().status().witness.and_then(|witness| witness.answered);
    assert_eq!(answered(), Some(false));
}

#[test]
fn a_foreign_witness_record_is_respected() {
    let pair = Pair::new();
    let record = r#"{"state":"solo","owner":99,"term":5}"#;
    std::fs::write(pair.folder.path().join("witness"), record).unwrap();
    let reasons = pair.a().protect(Some(pair.options.clone())).unwrap_err().to_string();
    assert!(reasons.contains("host 0 runs this VM in term 5"), "{reasons}");
}

#[test]
fn a_vm_that_has_ended_leaves_its_name_to_others() {
    let mut pair = Pair::new();
    let record = || std::fs::read_to_string(pair.folder.path().join("witness")).unwrap();
    let mut nobody = pair.options.clone();
    nobody.peer = address();
    pair.a().protect(Some(nobody)).unwrap_err();
    assert!(record().contains("solo"), "{}", record());
    pair.a().vm_ended();
    let a = pair.a.take();
    drop(a);
    wait(|| record().contains("stopped"), record);
}

#[test]
fn a_witness_that_hangs_keeps_the_caller_waiting_and_nobody_else() {
    let pair = Pair::with_witnesses("witness", "another");
    // What a file server that hangs looks like: somebody holds the lock.
    let lock = std::fs::File::create(pair.folder.path().join("another.lock")).unwrap();
    lock.lock().unwrap();
    thread::scope(|scope| {
        let protect = scope.spawn(|| pair.a().protect(Some(pair.options.clone())).unwrap_err().to_string());
        // The primary has been at the witness, so it is on its way to the door.
        wait(|| pair.folder.path().join("witness").exists(), || format!("{:?}", pair.a().status()));
        thread::sleep(Duration::from_millis(100));
        let asked = Instant::now();
        assert!(pair.b.stop().is_err(), "a standby has no protection to end");
        assert!(asked.elapsed() < Duration::from_secs(3), "the engine hung for {:?}", asked.elapsed());
        assert!(!protect.is_finished());
        lock.unlock().unwrap();
        let reasons = protect.join().unwrap();
        assert!(reasons.contains("does not show the primary's record"), "{reasons}");
    });
}

#[test]
fn protection_comes_by_itself_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let sides = [standby_options(&witness), standby_options(&witness)];
    let peer_of = |side: usize| setup(&witness, &[&sides[1 - side]]);
    let mut guest = ToyGuest::new();
    let mut runner = Ft::solo(Box::new(guest.clone()), NodeTerm::unasked(), peer_of(0)).unwrap();
    runner.vm_started();
    // Nobody is there yet: said once, however often it was tried.
    wait(|| runner.status().search.is_some_and(|search| !search.waiting_for.is_empty()), || "no reason".to_owned());
    for round in 1..=4_u8 {
        let side = usize::from(round % 2);
        let standby_guest = ToyGuest::new();
        let standby = Ft::standby(Box::new(standby_guest.clone()), sides[side].clone(), peer_of(side)).unwrap();
        wait_state(&runner, State::Protected);
        while !guest.write(FIRST + u64::from(round), round) {}
        wait_same_memory(&standby_guest, &guest);
        if round == 1 {
            let looked = runner.events().iter().filter(|event| event.event == "standby-unavailable").count();
            assert_eq!(looked, 1, "{:?}", runner.events());
        }
        // It dies, and its place is free for the next one.
        drop(runner);
        wait(|| standby_guest.started().is_some(), || format!("{:?}", standby.status()));
        assert_eq!(standby_guest.started(), Some(vec![round]));
        assert_eq!(standby_guest.memory_copy(), guest.memory_copy());
        (guest, runner) = (standby_guest, standby);
    }
    assert!((1..=4).all(|round| guest.memory_copy()[round * PAGE] == round as u8), "a round is lost");
}

#[test]
fn an_operator_ends_the_search_and_begins_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let side = standby_options(&witness);
    let b = Ft::standby(Box::new(ToyGuest::new()), side.clone(), setup(&witness, &[])).unwrap();
    let a = Ft::solo(Box::new(ToyGuest::new()), NodeTerm::unasked(), setup(&witness, &[&side])).unwrap();
    a.vm_started();
    wait_state(&a, State::Protected);
    a.stop().unwrap();
    wait_state(&a, State::Solo);
    wait_state(&b, State::StandbyEmpty);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!((a.status().state, b.status().state), (State::Solo, State::StandbyEmpty), "nobody looks for a standby");
    a.protect(None).unwrap();
    wait_state(&a, State::Protected);
    drop(b);
    wait_state(&a, State::Solo);
    let _b = Ft::standby(Box::new(ToyGuest::new()), side.clone(), setup(&witness, &[])).unwrap();
    wait_state(&a, State::Protected);
}

#[test]
fn one_board_serves_one_engine_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let side = standby_options(&witness);
    let first = setup(&witness, &[]);
    let b = Ft::standby(Box::new(ToyGuest::new()), side.clone(), first.clone()).unwrap();
    let a = Ft::solo(Box::new(ToyGuest::new()), NodeTerm::unasked(), setup(&witness, &[&side])).unwrap();
    a.vm_started();
    wait_state(&a, State::Protected);
    wait_state(&b, State::StandbyReady);
    let seen = b.events();
    // What a VMM does when a part of its standby is dead.
    b.end();
    assert_eq!(b.protect(None), Err(Refused::Ended));
    let again = Ft::standby(Box::new(ToyGuest::new()), side, first).unwrap();
    wait_state(&again, State::StandbyReady);
    let events = again.events();
    assert!(events.len() > seen.len() && events.is_sorted_by_key(|event| event.seq), "{events:?}");
}

fn event_of(ft: &Ft, name: &str) -> serde_json::Value {
    let found = ft.events().into_iter().rev().find(|event| event.event == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", ft.events())).detail
}

#[test]
fn a_dead_standby_and_a_witness_that_hangs_are_not_called_protection() {
    let pair = Pair::protected();
    let status = pair.a().status();
    assert_eq!(
        (status.replica, status.claim.is_none(), pair.b.status().replica),
        (Replica::InSync, true, Replica::InSync)
    );
    let lock = std::fs::File::create(pair.folder.path().join("witness.lock")).unwrap();
    lock.lock().unwrap();
    let Pair { a, b, folder: _folder, .. } = pair;
    let a = a.unwrap();
    drop(b);
    wait_state(&a, State::AwaitingWitness);
    let unreachable =
        || a.status().claim.is_some_and(|claim| claim.kind == ClaimKind::GoAlone && claim.error.is_some());
    wait(unreachable, || format!("{:?}", a.status()));
    let status = a.status();
    assert_eq!((status.role, status.state, status.replica), (Role::Primary, State::AwaitingWitness, Replica::None));
    let witness = status.witness.unwrap();
    assert!(witness.answered == Some(false) && witness.record.is_some(), "{witness:?}");
    assert_eq!(a.hand_over("to nobody"), Err(Refused::AboutToGoAlone));
    lock.unlock().unwrap();
    wait_state(&a, State::Solo);
    assert!(a.status().claim.is_none() && a.status().witness.unwrap().record.unwrap().contains("runs this VM"));
}

#[test]
fn a_standby_that_cannot_load_a_checkpoint_is_asked_less_and_less_often() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let side = standby_options(&witness);
    let unlike = ToyGuest::new();
    unlike.0.lock().unwrap().unlike = Some("its queues are others");
    let _b = Ft::standby(Box::new(unlike.clone()), side.clone(), setup(&witness, &[])).unwrap();
    let a = Ft::solo(Box::new(ToyGuest::new()), NodeTerm::unasked(), setup(&witness, &[&side])).unwrap();
    let sessions = || a.events().iter().filter(|event| event.event == "sync-started").count();
    let begun = Instant::now();
    a.vm_started();
    wait(|| sessions() >= 3, || format!("{:?}", a.events()));
    // The first one at once, the others after one and two seconds.
    assert!(begun.elapsed() >= Duration::from_secs(3), "after {:?}", begun.elapsed());
    let status = a.status();
    let reasons = status.search.unwrap().waiting_for.join("");
    assert!(reasons.contains("its queues are others"), "{reasons}");
    let told = event_of(&a, "standby-unavailable")["reasons"].to_string();
    assert!(told.contains("its queues are others"), "{told}");
    // Whoever repairs it need not wait.
    unlike.0.lock().unwrap().unlike = None;
    // A session may be open already, and then goes well.
    let _ = a.protect(None);
    wait_state(&a, State::Protected);
    assert_eq!(a.status().search.unwrap().waiting_for, [""; 0]);
}

#[test]
fn a_witness_that_stops_answering_is_seen_before_it_is_needed() {
    let pair = Pair::protected();
    let lock = std::fs::File::create(pair.folder.path().join("witness.lock")).unwrap();
    lock.lock().unwrap();
    wait_state(pair.a(), State::Degraded);
    let status = pair.a().status();
    assert_eq!((status.role, status.replica), (Role::Primary, Replica::InSync));
    assert!(status.witness.unwrap().error.is_some());
    lock.unlock().unwrap();
    wait_state(pair.a(), State::Protected);
}
