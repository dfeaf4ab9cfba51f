//! The etcd witness against real etcd processes (Debian package etcd-server).
#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod rig;

use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmType, Client, Permission, PermissionType, PutOptions, UserAddOptions};
use ft::Stored;
use ft::witness::{EtcdAddress, EtcdWitness, Witness, WitnessError};
use ft_proto::witness::{Claim, DiskState, Record, Replicas, Verdict};
use ft_proto::{NodeId, Term, VmId};
use host_kit::error::chain;
use nix::sys::signal::Signal;

use rig::Cluster;

const A: NodeId = NodeId::numbered(1, 1);
const B: NodeId = NodeId::numbered(2, 1);
const T: Term = Term(1);
const VM: VmId = VmId(7);
const OWN: Claim = Claim::Own { node: A, term: Term(0), first: true };
const REGISTER: Claim = Claim::Register { primary: A, standby: B, term: T };
const ALONE: Claim = Claim::GoAlone { primary: A, in_sync: Replicas::one(B), term: T };
const OVER: Claim = Claim::TakeOver { primary: A, standby: B, term: T };

/// What the witness promises (2 s), and what a busy machine may add.
const BOUND: Duration = Duration::from_secs(6);
const LATE: &str = "no answer within 2 s";
/// Whatever a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer; asked for again, as the protocol does, when a busy machine is too slow.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, WitnessError>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{}", chain(&error)),
        }
    }
}

/// Whether a claim is granted.
fn granted(witness: &mut EtcdWitness, claim: Claim) -> bool {
    matches!(patiently(|| witness.ask(VM, claim)), Verdict::Granted(_))
}

/// The reason why there is no answer, which must come within the bound.
fn no_answer(witness: &mut EtcdWitness) -> String {
    let asked = Instant::now();
    let error = witness.read().unwrap_err();
    assert!(asked.elapsed() < BOUND, "took {:?}", asked.elapsed());
    chain(&error)
}

/// As [`no_answer`], when something else is wrong than that etcd is slow.
fn refusal(address: EtcdAddress) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reason = no_answer(&mut EtcdWitness::new(address.clone()));
        if !reason.contains(LATE) || Instant::now() > deadline {
            return reason;
        }
    }
}

fn etcd<T>(cluster: &Cluster, job: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { job(Client::connect([cluster.endpoint(0)], None).await.unwrap()).await })
}

fn stored(record: Record) -> Option<Stored> {
    Some(Stored { vm: Some(VM), record })
}

#[test]
fn who_has_old_disks_may_not_start_the_vm() {
    let cluster = Cluster::one();
    let mut witness = cluster.witness("/disks");
    let start = |node, disks| Claim::Start { node, disks, waited: false };
    assert!(granted(&mut witness, start(A, DiskState::Fresh)));
    assert!(granted(&mut witness, Claim::Stop { node: A, term: T, disks: T }));
    assert!(!granted(&mut witness, start(B, DiskState::Fresh)));
    assert!(granted(&mut witness, start(B, DiskState::Ended(T))));
}

#[test]
fn of_two_hosts_that_race_one_is_granted_every_time() {
    let cluster = Cluster::one();
    for round in 0..100 {
        let key = format!("/race/{round}");
        let mut setup = cluster.witness(&key);
        assert!(granted(&mut setup, OWN) && granted(&mut setup, REGISTER));
        let wins = thread::scope(|scope| {
            let race = |claim| {
                let mut witness = cluster.witness(&key);
                scope.spawn(move || granted(&mut witness, claim))
            };
            [race(ALONE), race(OVER)].map(|racer| racer.join().unwrap())
        });
        let owner = if wins[0] { A } else { B };
        assert_eq!(wins.map(usize::from).iter().sum::<usize>(), 1, "round {round}: {wins:?}");
        assert_eq!(
            patiently(|| setup.read()),
            stored(Record::Solo { owner, term: T.next(), since: T.next() }),
            "round {round}"
        );
    }
}

#[test]
fn of_many_hosts_that_start_at_once_one_owns_the_vm() {
    let cluster = Cluster::one();
    let wins: usize = thread::scope(|scope| {
        let race = |node| {
            let mut witness = cluster.witness("/pollux/vm1");
            let claim = Claim::Own { node: NodeId::numbered(node, 1), term: Term(0), first: true };
            scope.spawn(move || usize::from(granted(&mut witness, claim)))
        };
        let racers: Vec<_> = (1..=8).map(race).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(wins, 1);
}

#[test]
fn an_etcd_that_hangs_or_is_dead_is_unreachable_in_time_and_then_back() {
    let mut cluster = Cluster::one();
    let mut witness = cluster.witness("/pollux/vm1");
    assert!(granted(&mut witness, OWN));

    cluster.freeze(0);
    let reason = no_answer(&mut witness);
    assert!(reason.contains(LATE) && reason.contains(&cluster.endpoint(0)), "{reason}");
    cluster.signal(0, Signal::SIGCONT);
    assert!(granted(&mut witness, REGISTER));

    cluster.kill(0);
    let reason = refusal(cluster.address("/pollux/vm1"));
    assert!(reason.contains("refused"), "{reason}");
    cluster.launch(0);
    cluster.wait();
    assert_eq!(
        patiently(|| witness.read()),
        stored(Record::Protected { primary: A, in_sync: Replicas::one(B), term: T })
    );
}

#[test]
fn a_claim_whose_answer_is_lost_can_be_asked_for() {
    let cluster = Cluster::one();
    let mut witness = cluster.witness("/pollux/vm1");
    assert!(granted(&mut witness, OWN) && granted(&mut witness, REGISTER));
    cluster.freeze(0);
    assert!(matches!(witness.ask(VM, OVER), Err(WitnessError::Etcd { .. })));
    cluster.signal(0, Signal::SIGCONT);
    // Whether the first one took effect or not: the owner is granted, the other one is not.
    assert!(granted(&mut witness, OVER));
    assert!(!granted(&mut witness, ALONE));
}

#[test]
fn one_member_of_three_may_hang() {
    let cluster = Cluster::of(3);
    let mut witness = cluster.witness("/pollux/vm1");
    assert!(granted(&mut witness, OWN));
    for at in 0..3 {
        cluster.freeze(at);
        // Another leader is elected in the meantime if it was this one.
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut answer = witness.read();
        while answer.is_err() && Instant::now() < deadline {
            answer = witness.read();
        }
        assert!(answer.unwrap().is_some());
        cluster.signal(at, Signal::SIGCONT);
    }
    // One member alone must not judge.
    cluster.freeze(0);
    cluster.freeze(1);
    assert!(matches!(witness.ask(VM, REGISTER), Err(WitnessError::Etcd { .. })));
}

#[test]
fn tls_asks_for_the_right_certificates() {
    let cluster = Cluster::with_tls();
    let address = cluster.address("/pollux/vm1");
    assert!(granted(&mut EtcdWitness::new(address.clone()), OWN));

    let reason = refusal(EtcdAddress { identity: None, ..address.clone() });
    // The member may be gone before it has said why.
    assert!(reason.contains(&cluster.endpoint(0)), "no client certificate: {reason}");
    let reason = refusal(EtcdAddress { cacert: Some(cluster.certificates().other_ca.clone()), ..address.clone() });
    assert!(reason.contains("invalid peer certificate"), "another CA: {reason}");
    let reason = refusal(EtcdAddress { cacert: Some("/no/ca.pem".into()), ..address.clone() });
    assert!(reason.contains("cannot read /no/ca.pem"), "no CA file: {reason}");
    let reason = refusal(EtcdAddress { cacert: None, identity: None, ..address });
    assert!(reason.contains(&cluster.endpoint(0)), "no TLS: {reason}");
}

#[test]
fn a_user_needs_the_password_and_the_permission() {
    let cluster = Cluster::one();
    etcd(&cluster, async |mut client| {
        client.user_add("root", "secret", None).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.user_add("vm1", "word", None::<UserAddOptions>).await.unwrap();
        client.role_add("vm1").await.unwrap();
        let own_key = Permission::new(PermissionType::Readwrite, "/pollux/vm1");
        client.role_grant_permission("vm1", own_key).await.unwrap();
        client.user_grant_role("vm1", "vm1").await.unwrap();
        client.auth_enable().await.unwrap();
    });
    let password = cluster.folder().join("password");
    std::fs::write(&password, "word\n").unwrap();
    let as_user = |key, file| EtcdAddress { user: Some(("vm1".to_owned(), file)), ..cluster.address(key) };
    let mut own = EtcdWitness::new(as_user("/pollux/vm1", password.clone()));
    assert!(granted(&mut own, OWN));

    assert!(refusal(cluster.address("/pollux/vm1")).contains("user name is empty"));
    let reason = refusal(as_user("/pollux/vm2", password.clone()));
    assert!(reason.contains("permission denied"), "{reason}");
    let reason = refusal(as_user("/pollux/vm1", "/no/password".into()));
    assert!(reason.contains("cannot read the password in /no/password"), "{reason}");
    std::fs::write(&password, "wrong").unwrap();
    let reason = refusal(as_user("/pollux/vm1", password));
    assert!(reason.contains("authentication failed"), "{reason}");
}

#[test]
fn what_is_no_record_is_not_overwritten() {
    let cluster = Cluster::one();
    let put = async |mut client: Client| client.put("/pollux/vm1", "hello", None::<PutOptions>).await.unwrap();
    etcd(&cluster, put);
    let reads = || cluster.witness("/pollux/vm1").ask(VM, OWN).unwrap_err();
    let error = std::iter::repeat_with(reads).take(30).find(|error| !chain(error).contains(LATE)).unwrap();
    assert!(matches!(error, WitnessError::Corrupt { .. }), "{error}");
    assert!(chain(&error).starts_with("/pollux/vm1 is not a witness record"), "{error}");
    let got = async |mut client: Client| client.get("/pollux/vm1", None).await.unwrap();
    assert_eq!(etcd(&cluster, got).kvs()[0].value(), b"hello");
}

#[test]
fn another_witness_under_the_key_is_not_asked() {
    let cluster = Cluster::one();
    let key = "/pollux/vm1";
    let mut witness = cluster.witness(key);
    assert!(granted(&mut witness, OWN));
    let taken = etcd(&cluster, async |mut client| client.get(key, None).await.unwrap().take_kvs().remove(0));
    let put = async |mut client: Client| client.put(key, taken.value(), None::<PutOptions>).await.unwrap();
    assert!(granted(&mut witness, REGISTER));
    // A backup of etcd is restored.
    etcd(&cluster, put);
    let error = witness.ask(VM, OVER).unwrap_err();
    assert!(matches!(error, WitnessError::Older { .. }), "{error}");
    // The key is made anew behind our back, for another pair of hosts.
    etcd(&cluster, async |mut client| client.delete(key, None).await.unwrap());
    assert!(granted(&mut cluster.witness(key), OWN));
    for error in [witness.read().unwrap_err(), witness.ask(VM, OVER).unwrap_err()] {
        assert!(error.to_string().contains("/pollux/vm1 is not the witness it was"), "{error}");
    }
    // It is lost before our eyes: then whoever makes it anew may do so.
    etcd(&cluster, async |mut client| client.delete(key, None).await.unwrap());
    assert_eq!(patiently(|| witness.read()), None);
    let made = Stored { vm: Some(VM), record: Record::Solo { owner: A, term: T, since: T } };
    assert_eq!(patiently(|| cluster.witness(key).create(made)), Verdict::Granted(made.record));
    assert!(granted(&mut witness, REGISTER));
}

#[test]
fn a_full_database_is_told_as_such_and_refuses_nothing() {
    let cluster = Cluster::one();
    let mut witness = cluster.witness("/pollux/vm1");
    assert!(granted(&mut witness, OWN));
    etcd(&cluster, async |mut client| {
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
    });
    let reasons = std::iter::repeat_with(|| chain(&witness.ask(VM, REGISTER).unwrap_err())).take(30);
    let reason = { reasons }.find(|reason| !reason.contains(LATE)).unwrap();
    assert!(reason.contains("NOSPACE alarm: the database is full"), "{reason}");
    etcd(&cluster, async |mut client| {
        client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.unwrap();
    });
    assert!(granted(&mut witness, REGISTER));
}

#[test]
fn what_is_too_large_for_a_record_is_not_parsed() {
    let cluster = Cluster::one();
    let large = vec![b' '; 1 << 20];
    etcd(&cluster, async |mut client| client.put("/pollux/vm1", large, None::<PutOptions>).await.unwrap());
    let reads = || cluster.witness("/pollux/vm1").read().unwrap_err();
    let error = std::iter::repeat_with(reads).take(30).find(|error| !chain(error).contains(LATE)).unwrap();
    assert_eq!(error.to_string(), "/pollux/vm1 is too large: that is no witness record");
}
