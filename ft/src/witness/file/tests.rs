//! One keeper, several, and those that stop half-way.

use std::fs;
use std::mem;
use std::thread;

use ft_proto::witness::{DiskState, Record, Replicas};
use ft_proto::{NodeId, Term};
use host_kit::error::chain;

use super::*;

const A: NodeId = NodeId::numbered(1, 1);
const B: NodeId = NodeId::numbered(2, 1);
const T: Term = Term(1);
const VM: VmId = VmId(7);

#[test]
fn of_two_racing_hosts_one_is_granted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let mut setup = FileWitness::new(&path);
    for claim in
        [Claim::Own { node: A, term: Term(0), first: true }, Claim::Register { primary: A, standby: B, term: T }]
    {
        assert!(matches!(setup.ask(VM, claim), Ok(Verdict::Granted(_))));
    }
    let claims = [
        Claim::GoAlone { primary: A, in_sync: Replicas::one(B), term: T },
        Claim::TakeOver { primary: A, standby: B, term: T },
    ];
    let granted: usize = thread::scope(|scope| {
        let asks = claims.map(|claim| {
            let mut witness = FileWitness::new(&path);
            scope.spawn(move || usize::from(matches!(witness.ask(VM, claim), Ok(Verdict::Granted(_)))))
        });
        asks.into_iter().map(|ask| ask.join().unwrap()).sum()
    });
    assert_eq!(granted, 1);
    let stored = FileWitness::new(&path).read().unwrap().unwrap();
    assert!(matches!(stored.record, Record::Solo { term, .. } if term == T.next()));
    assert_eq!(stored.vm, Some(VM));
}

#[test]
fn a_record_of_before_there_were_disks_in_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    fs::write(&path, r#"{"state":"stopped","term":7}"#).unwrap();
    let mut witness = FileWitness::new(&path);
    let record = Record::Stopped { term: Term(7), disks: Term(0) };
    assert_eq!(witness.read().unwrap(), Some(Stored { vm: None, record }));
    let start = |node, disks| Claim::Start { node, disks, waited: false };
    assert!(matches!(witness.ask(VM, start(A, DiskState::Fresh)), Ok(Verdict::Granted(_))));
    let stop = Claim::Stop { node: A, term: Term(8), disks: Term(8) };
    assert!(matches!(witness.ask(VM, stop), Ok(Verdict::Granted(_))));
    assert!(matches!(witness.ask(VM, start(B, DiskState::Ended(Term(7)))), Ok(Verdict::Refused(_))));
}

#[test]
fn a_node_of_before_hosts_had_names_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    fs::write(&path, r#"{"state":"solo","owner":77,"term":7}"#).unwrap();
    let mut witness = FileWitness::new(&path);
    assert_eq!(witness.read().unwrap().unwrap().record.term(), Term(7));
    assert!(matches!(witness.ask(VM, Claim::Force { node: A, term: Term(7) }), Ok(Verdict::Granted(_))));
}

#[test]
fn one_vm_does_not_touch_the_record_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let mut witness = FileWitness::new(&path);
    let own = Claim::Own { node: A, term: T, first: true };
    assert!(matches!(witness.ask(VM, own), Ok(Verdict::Granted(_))));
    let error = witness.ask(VmId(8), own).unwrap_err();
    assert!(matches!(error, WitnessError::OtherVm { found: VM, .. }), "{error}");
}

#[test]
fn a_term_that_cannot_be_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let text = format!(r#"{{"state":"stopped","term":{}}}"#, u64::MAX);
    fs::write(&path, &text).unwrap();
    let force = Claim::Force { node: A, term: Term(u64::MAX) };
    assert!(matches!(FileWitness::new(&path).ask(VM, force), Err(WitnessError::Implausible { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn errors_name_the_file_and_a_foreign_file_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no/such/folder/vm");
    let error = FileWitness::new(&missing).read().unwrap_err();
    assert!(chain(&error).contains("no/such/folder/vm"), "{error}");
    let foreign = folder.path().join("foreign");
    fs::write(&foreign, "hello").unwrap();
    assert!(matches!(
        FileWitness::new(&foreign).ask(VM, Claim::Own { node: A, term: T, first: true }),
        Err(WitnessError::Corrupt { .. })
    ));
    assert_eq!(fs::read(&foreign).unwrap(), b"hello");
}

/// One keeper with the folder of another: what a host does that has lost its lock.
fn at<T>(witness: &mut FileWitness, act: impl Fn(&mut Memory, Files<'_>) -> Result<T, WitnessError>) -> T {
    witness.there(act).unwrap()
}

/// A claim that is granted whatever the record is, and makes a new term: the term before, and what came of
/// it.
fn force(witness: &mut FileWitness, node: NodeId) -> Verdict {
    let term = witness.read().unwrap().map_or(Term(0), |stored| stored.record.term());
    let claim = if term == Term(0) { Claim::Own { node, term, first: true } } else { Claim::Force { node, term } };
    witness.ask(VM, claim).unwrap()
}

fn term(witness: &mut FileWitness) -> Term {
    witness.read().unwrap().unwrap().record.term()
}

/// Does the first so many steps of a claim without a lock, then ends as a process that is killed does.
fn killed_after(steps: u32, witness: &mut FileWitness, claim: Claim) {
    at(witness, |memory, files| {
        let mut draft = files.draft()?;
        let look = look(memory, files)?;
        let (_, next) = Change::Claim(VM, claim).judge(look.top.map(|top| top.stored), String::new)?;
        let next = memory.follow(look.top.as_ref(), next.unwrap())?;
        if steps > 0 {
            files.write(&mut draft, &next)?;
        }
        if steps > 1 {
            assert!(files.link(&draft, next.n)?);
        }
        if steps > 2 {
            assert!(files.confirm(&draft, look.top.as_ref(), next.n)?);
        }
        if steps > 3 {
            files.publish(&draft)?;
        }
        mem::forget(draft);
        Ok(())
    });
}

#[test]
fn a_writer_that_is_killed_leaves_the_record_before_or_after() {
    for records in [0, 1, 3] {
        for steps in 0..=4 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("vm");
            let mut other = FileWitness::new(&path);
            for _ in 0..records {
                force(&mut other, B);
            }
            let last = Term(records);
            let claim = match records {
                0 => Claim::Own { node: A, term: last, first: true },
                _ => Claim::Force { node: A, term: last },
            };
            killed_after(steps, &mut FileWitness::new(&path), claim);
            let granted = steps > 1;
            let expected = if granted { Some(last.next()) } else { Some(last).filter(|term| *term > Term(0)) };
            for mut keeper in [FileWitness::new(&path), other] {
                let found = keeper.read().unwrap().map(|stored| stored.record.term());
                assert_eq!(found, expected, "{records} records, killed after step {steps}");
            }
            let verdict = FileWitness::new(&path).ask(VM, claim).unwrap();
            assert!(matches!(verdict, Verdict::Granted(record) if record.is_of(A)), "asked again, granted again");
            let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(!names.iter().any(|name| name.to_string_lossy().contains("new")), "{names:?}");
            assert!(fs::read_to_string(&path).unwrap().contains(&format!("\"term\":{}", last.next())));
        }
    }
}

/// What A is about to store when its host is frozen.
fn judged(witness: &mut FileWitness) -> (Look, Kept) {
    at(witness, |memory, files| {
        let look = look(memory, files)?;
        let term = look.top.unwrap().stored.record.term();
        let (_, next) =
            Change::Claim(VM, Claim::Force { node: A, term }).judge(look.top.map(|top| top.stored), String::new)?;
        let next = memory.follow(look.top.as_ref(), next.unwrap())?;
        Ok((look, next))
    })
}

#[test]
fn a_host_that_was_frozen_does_not_undo_what_others_were_granted() {
    for others in [0, 1, 2, 62, 63, 64, 65, 200] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut frozen = FileWitness::new(&path);
        force(&mut frozen, A);
        let (look, next) = judged(&mut frozen);
        let mut other = FileWitness::new(&path);
        for _ in 0..others {
            force(&mut other, B);
        }
        let stored = at(&mut frozen, |_, files| store(files, files.draft()?, look.top.as_ref(), &next));
        assert_eq!(stored, others == 0, "after {others} others");
        let owner = if others == 0 { A } else { B };
        let record = FileWitness::new(&path).read().unwrap().unwrap().record;
        assert!(record.is_of(owner) && record.term() == Term(1 + others.max(1)), "after {others} others: {record:?}");
    }
}

#[test]
fn a_host_that_was_frozen_before_its_rename_does_not_turn_the_clock_back() {
    for others in [1, 63, 200] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut frozen = FileWitness::new(&path);
        force(&mut frozen, A);
        let (look, next) = judged(&mut frozen);
        at(&mut frozen, |_, files| {
            let mut draft = files.draft()?;
            files.write(&mut draft, &next)?;
            assert!(files.link(&draft, next.n)? && files.confirm(&draft, look.top.as_ref(), next.n)?);
            let mut other = FileWitness::new(&path);
            for _ in 0..others {
                force(&mut other, B);
            }
            // The others have removed its draft, which is luck: as if they had not.
            let mut again = files.draft()?;
            files.write(&mut again, &next)?;
            files.publish(&again)
        });
        assert!(fs::read_to_string(&path).unwrap().contains("\"n\":2"));
        let last = Term(2 + others);
        assert_eq!(term(&mut FileWitness::new(&path)), last);
        let stale = Claim::Force { node: A, term: Term(2) };
        assert!(matches!(FileWitness::new(&path).ask(VM, stale), Ok(Verdict::Refused(_))));
        assert!(fs::read_to_string(&path).unwrap().contains(&format!("\"n\":{}", 2 + others)), "PATH is right again");
    }
}

#[test]
fn only_the_last_records_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let mut witness = FileWitness::new(&path);
    for _ in 0..STAY + 20 {
        force(&mut witness, A);
    }
    // The records, PATH and its lock.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count() as u64, STAY + 2);
    assert_eq!(term(&mut FileWitness::new(&path)), Term(STAY + 20));
}

#[test]
fn what_an_earlier_release_wrote_is_taken_over_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let plain = r#"{"state":"stopped","term":7}"#;
    for killed in [false, true] {
        fs::write(&path, plain).unwrap();
        let mut witness = FileWitness::new(&path);
        if killed {
            // Between the link and the rename.
            at(&mut witness, |memory, files| {
                let mut draft = files.draft()?;
                let look = look(memory, files)?;
                let first = memory.follow(None, look.top.unwrap().stored)?;
                files.write(&mut draft, &first)?;
                assert!(files.link(&draft, 1)?);
                mem::forget(draft);
                Ok(())
            });
        }
        let refused = Claim::GoAlone { primary: A, in_sync: Replicas::one(B), term: T };
        assert!(matches!(FileWitness::new(&path).ask(VM, refused), Ok(Verdict::Refused(Some(_)))));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"n\":1") && text.contains("\"term\":7") && text.contains("\"vm\":null"), "{text}");
        force(&mut witness, A);
        assert_eq!(term(&mut FileWitness::new(&path)), Term(8));
        // A release that knows nothing of numbers goes on.
        fs::remove_file(&path).unwrap();
        fs::write(&path, plain).unwrap();
        let error = FileWitness::new(&path).read().unwrap_err();
        assert!(matches!(error, WitnessError::Mixed { .. }), "{error}");
        for entry in fs::read_dir(folder.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn a_record_that_is_made_anew_is_that_of_the_witness_that_both_know() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let [mut primary, mut standby] = [FileWitness::new(&path), FileWitness::new(&path)];
    force(&mut primary, A);
    let register = Claim::Register { primary: A, standby: B, term: T };
    assert!(matches!(primary.ask(VM, register), Ok(Verdict::Granted(_))));
    let there = standby.read().unwrap();
    // PATH alone is one name of several.
    fs::remove_file(&path).unwrap();
    assert_eq!(standby.read().unwrap(), there);
    for entry in fs::read_dir(folder.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(standby.read().unwrap(), None);
    assert!(matches!(standby.ask(VM, Claim::TakeOver { primary: A, standby: B, term: T }), Ok(Verdict::Refused(None))));
    assert!(matches!(
        primary.ask(VM, Claim::Restore { primary: A, in_sync: Replicas::one(B), term: T }),
        Ok(Verdict::Granted(_))
    ));
    assert_eq!(standby.read().unwrap(), there);
    assert!(matches!(standby.ask(VM, Claim::TakeOver { primary: A, standby: B, term: T }), Ok(Verdict::Granted(_))));
}

#[test]
fn a_record_is_created_only_where_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let stored = Stored { vm: Some(VM), record: Record::Stopped { term: Term(7), disks: Term(7) } };
    assert_eq!(FileWitness::new(&path).create(stored).unwrap(), Verdict::Granted(stored.record));
    assert_eq!(FileWitness::new(&path).read().unwrap(), Some(stored));
    let other = Stored { vm: Some(VmId(8)), record: Record::Stopped { term: Term(9), disks: Term(9) } };
    assert_eq!(FileWitness::new(&path).create(other).unwrap(), Verdict::Refused(Some(stored.record)));
}

/// A writer without a lock, between two steps.
enum At<'a> {
    Idle,
    Judged(Draft<'a>, Option<Kept>, Kept),
    Written(Draft<'a>, Option<Kept>, Kept),
    Linked(Draft<'a>, Option<Kept>, Kept),
    Granted(Draft<'a>, Kept),
    Published(Draft<'a>, u64),
}

/// One step of a writer; the record that it was granted, if that is what the step was.
fn step<'a>(
    at: At<'a>,
    files: Files<'a>,
    memory: &mut Memory,
    node: NodeId,
    newest: Term,
) -> Result<(At<'a>, Option<Record>), WitnessError> {
    Ok(match at {
        At::Idle => {
            let mut draft = files.draft()?;
            let look = look(memory, files)?;
            let seen = look.top.map_or(Term(0), |top| top.stored.record.term());
            assert!(seen >= newest, "{node} sees term {seen} although {newest} was given to somebody");
            if !settle(memory, files, &look, &mut draft)? {
                return Ok((At::Idle, None));
            }
            let claim = match seen {
                Term(0) => Claim::Own { node, term: seen, first: true },
                term => Claim::Force { node, term },
            };
            let (_, next) = Change::Claim(VM, claim).judge(look.top.map(|top| top.stored), String::new)?;
            let next = memory.follow(look.top.as_ref(), next.unwrap())?;
            (At::Judged(draft, look.top, next), None)
        }
        At::Judged(mut draft, judged, next) => {
            files.write(&mut draft, &next)?;
            (At::Written(draft, judged, next), None)
        }
        At::Written(draft, judged, next) => match files.link(&draft, next.n)? {
            true => (At::Linked(draft, judged, next), None),
            false => (At::Idle, None),
        },
        At::Linked(draft, judged, next) => match files.confirm(&draft, judged.as_ref(), next.n)? {
            true => (At::Granted(draft, next), Some(next.stored.record)),
            false => (At::Idle, None),
        },
        At::Granted(draft, next) => {
            // Its draft may have been removed: then somebody else renames one.
            let _ = files.publish(&draft);
            (At::Published(draft, next.n), None)
        }
        At::Published(draft, n) => {
            files.clean(n, &draft);
            (At::Idle, None)
        }
    })
}

#[test]
fn writers_without_a_lock_take_turns_whatever_the_order_of_their_steps() {
    let mut grants = 0;
    for seed in 1..=300_u64 {
        let shm = Path::new("/dev/shm");
        let temp = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let path = temp.path().join("vm");
        let folder = Folder::find(&path).unwrap();
        // So few that a writer is left behind soon.
        let files = Files::new(&folder, &path, 2 + seed % 3);
        let nodes = [A, B, NodeId::numbered(3, 1)];
        let mut memories = [Memory::default(); 3];
        let mut writers = [At::Idle, At::Idle, At::Idle];
        let mut given: Vec<Record> = Vec::new();
        let mut random = seed;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (random >> 33) % below
        };
        while given.len() < 20 {
            // Each of them is frozen now and then, for longer than the others need for several records.
            let frozen = draw(4) as usize;
            for _ in 0..draw(40) {
                let who = draw(3) as usize;
                if who == frozen {
                    continue;
                }
                let newest = given.iter().map(Record::term).max().unwrap_or_default();
                let at = mem::replace(&mut writers[who], At::Idle);
                if draw(50) == 0 {
                    // Killed, or its host is.
                    mem::forget(at);
                    continue;
                }
                let (at, granted) = step(at, files, &mut memories[who], nodes[who], newest)
                    .unwrap_or_else(|error| panic!("seed {seed}: {}", chain(&error)));
                writers[who] = at;
                if let Some(granted) = granted {
                    let twice = given.iter().find(|given| given.term() == granted.term());
                    assert!(twice.is_none(), "seed {seed}: {granted:?} and {twice:?}");
                    given.push(granted);
                }
            }
        }
        grants += given.len();
    }
    assert!(grants >= 6000);
}

#[test]
fn a_file_server_that_has_forgotten_the_folder_is_asked_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let mut witness = FileWitness::new(&path);
    force(&mut witness, A);
    let stale = |files: Files<'_>| files.error("read")(Errno::ESTALE.into());
    let asked = std::cell::Cell::new(0);
    let found = at(&mut witness, |memory, files| {
        asked.set(asked.get() + 1);
        if asked.get() == 1 { Err(stale(files)) } else { Ok(look(memory, files)?.top.is_some()) }
    });
    assert!(found && asked.get() == 2);
    // But not if something else is there then.
    let away = folder.path().with_extension("away");
    fs::rename(folder.path(), &away).unwrap();
    fs::create_dir(folder.path()).unwrap();
    let error = witness.there(|_, files| Err::<(), _>(stale(files))).unwrap_err();
    fs::remove_dir_all(away).unwrap();
    assert!(matches!(error, WitnessError::NotTheSame { .. }), "{error}");
}
