//! The thread that asks the witness: calls one after the other, answers by callback, each within [`LIMIT`].
//!
//! Asking may block for as long as a dead file server likes. So a second thread does it, and the first one
//! gives up waiting; what is asked next waits its turn, so the witness sees everything in the order in which
//! it was asked.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ft_proto::witness::{Claim, Record, Verdict};
use ft_proto::{VmId, WitnessAnswer};
use ft_wire::text::clean;
use host_kit::error::chain;
use host_kit::sandbox::Needs;
use pollux_api::status::WitnessStatus;

use super::{AskWitness, Stored, Witness, WitnessAddress};
use crate::needs;
use crate::start::describe;

/// How long the witness may take to answer; then it counts as unreachable.
const LIMIT: Duration = Duration::from_secs(3);
/// How long the last claims may take when the engine ends: a file server that hangs must not keep a process
/// alive.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The thread that asks. It ends when its last clone is gone and everything is asked.
#[derive(Clone, Debug)]
pub struct WitnessClient {
    address: WitnessAddress,
    calls: Sender<Call>,
    last: Last,
}

/// What is known of the witness.
type Last = Arc<Mutex<Seen>>;

#[derive(Clone, Debug, Default)]
struct Seen {
    /// Whether the last question was answered, and why not.
    answer: Option<Result<(), String>>,
    /// The record, when it was last seen; or that there was none.
    record: Option<Option<Record>>,
}

impl Seen {
    fn note(&mut self, told: &Answer) {
        self.answer = Some(told.as_ref().map(|_| ()).map_err(String::clone));
        match told {
            Ok(Response::Verdict(Verdict::Granted(record))) => self.record = Some(Some(*record)),
            Ok(Response::Verdict(Verdict::Refused(record))) => self.record = Some(*record),
            Ok(Response::Record(stored)) => self.record = Some(stored.map(|stored| stored.record)),
            Err(_) => {}
        }
    }
}

/// What the witness is asked.
#[derive(Clone, Copy, Debug)]
enum Request {
    Claim(VmId, Claim),
    Read,
}

/// What it answers.
#[derive(Debug)]
enum Response {
    Verdict(Verdict),
    Record(Option<Stored>),
}

type Answer = Result<Response, String>;

/// A claim that is made: what is asked later is judged after it.
#[derive(Debug)]
pub struct Asked {
    claim: Claim,
    answer: Receiver<WitnessAnswer>,
}

impl Asked {
    /// The answer, if it comes in time.
    #[must_use]
    pub fn wait(self, patience: Duration) -> WitnessAnswer {
        let late = |_| WitnessAnswer::Unreachable(self.claim, late(patience));
        self.answer.recv_timeout(patience).unwrap_or_else(late)
    }
}

struct Call {
    request: Request,
    answer: Box<dyn FnOnce(Answer) + Send>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)
    }
}

impl WitnessClient {
    /// Starts the threads; nothing is asked yet.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(address: &WitnessAddress) -> io::Result<Self> {
        let worker = Worker::start(address.keeper())?;
        let (sender, calls) = unbounded();
        let last = Last::default();
        let told = last.clone();
        host_kit::thread::spawn("ft-witness", Needs::NOTHING, move || serve(&calls, worker, &told))?;
        Ok(Self { address: address.clone(), calls: sender, last })
    }

    /// Whom it asks.
    #[must_use]
    pub fn address(&self) -> &WitnessAddress {
        &self.address
    }

    /// Has `claim` of `vm` judged and hands the answer to `answer`, on the asking thread.
    pub fn ask(&self, vm: VmId, claim: Claim, answer: impl FnOnce(WitnessAnswer) + Send + 'static) {
        self.call(Request::Claim(vm, claim), move |told| match told {
            Ok(Response::Verdict(verdict)) => answer(WitnessAnswer::Judged(claim, verdict)),
            Ok(Response::Record(_)) => {}
            Err(reason) => answer(WitnessAnswer::Unreachable(claim, reason)),
        });
    }

    /// Has the record read and hands it, or why it could not be, to `answer`, on the asking thread.
    pub fn read(&self, answer: impl FnOnce(Result<Option<Stored>, String>) + Send + 'static) {
        self.call(Request::Read, move |told| match told {
            Ok(Response::Record(record)) => answer(Ok(record)),
            Ok(Response::Verdict(_)) => {}
            Err(reason) => answer(Err(reason)),
        });
    }

    /// As [`Self::ask`], for a thread that waits for the answer.
    #[must_use]
    pub fn ask_for(&self, vm: VmId, claim: Claim) -> Asked {
        let (sender, answer) = bounded(1);
        // Nobody listens any more when the answer comes too late.
        self.ask(vm, claim, move |answer| drop(sender.send(answer)));
        Asked { claim, answer }
    }

    /// As [`Self::ask`], for a thread that has nothing else to do for so long.
    #[must_use]
    pub fn ask_and_wait(&self, vm: VmId, claim: Claim, patience: Duration) -> WitnessAnswer {
        self.ask_for(vm, claim).wait(patience)
    }

    /// As [`Self::read`], for a thread that has nothing else to do for so long.
    ///
    /// # Errors
    /// Why it could not be read.
    pub fn read_and_wait(&self, patience: Duration) -> Result<Option<Stored>, String> {
        let (sender, answer) = bounded(1);
        self.read(move |answer| drop(sender.send(answer)));
        answer.recv_timeout(patience).unwrap_or_else(|_| Err(late(patience)))
    }

    /// For `ft status`.
    #[must_use]
    pub fn status(&self) -> WitnessStatus {
        let Seen { answer, record } = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        WitnessStatus {
            name: self.address.to_string(),
            answered: answer.as_ref().map(Result::is_ok),
            error: answer.and_then(Result::err),
            record: record.map(describe),
        }
    }

    /// Waits until everything is asked, within reason.
    pub fn finish(&self) {
        let (through, asked) = bounded::<()>(0);
        // Nothing is ever sent here; the last answer drops its end.
        self.call(Request::Read, move |_| drop(through));
        let _ = asked.recv_timeout(FINISH_TIMEOUT);
    }

    fn call(&self, request: Request, answer: impl FnOnce(Answer) + Send + 'static) {
        // The thread ends only after the senders are gone.
        let _ = self.calls.send(Call { request, answer: Box::new(answer) });
    }
}

impl AskWitness for WitnessClient {
    fn address(&self) -> &WitnessAddress {
        self.address()
    }

    fn ask(&self, vm: VmId, claim: Claim, answer: impl FnOnce(WitnessAnswer) + Send + 'static) {
        self.ask(vm, claim, answer);
    }

    fn read(&self, answer: impl FnOnce(Result<Option<Stored>, String>) + Send + 'static) {
        self.read(answer);
    }

    fn status(&self) -> WitnessStatus {
        self.status()
    }

    fn finish(&self) {
        self.finish();
    }
}

fn serve(calls: &Receiver<Call>, mut worker: Worker, last: &Last) {
    for Call { request, answer } in calls {
        let told = worker.ask(request);
        last.lock().unwrap_or_else(PoisonError::into_inner).note(&told);
        answer(told);
    }
}

/// The thread that asks, and may hang.
struct Worker {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
    /// It still works on something that was given up.
    behind: bool,
}

impl Worker {
    fn start(mut witness: Box<dyn Witness>) -> io::Result<Self> {
        let (sender, requests) = unbounded();
        let (answer, answers) = unbounded();
        host_kit::thread::spawn("ft-keeper", needs::KEEPER, move || {
            for request in requests {
                let told = match request {
                    Request::Claim(vm, claim) => witness.ask(vm, claim).map(Response::Verdict),
                    Request::Read => witness.read().map(Response::Record),
                };
                // Nobody listens any more when the process ends.
                let _ = answer.send(told.map_err(|error| clean(&chain(&error))));
            }
        })?;
        Ok(Self { requests: sender, answers, behind: false })
    }

    fn ask(&mut self, request: Request) -> Answer {
        let deadline = Instant::now() + LIMIT;
        if self.behind && self.answers.recv_deadline(deadline).is_err() {
            return Err(late(LIMIT));
        }
        let _ = self.requests.send(request);
        let told = self.answers.recv_deadline(deadline);
        self.behind = told.is_err();
        told.unwrap_or_else(|_| Err(late(LIMIT)))
    }
}

fn late(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

#[cfg(test)]
mod tests {
    use ft_proto::{NodeId, Term};

    use super::*;

    const VM: VmId = VmId(7);
    const OWN: Claim = Claim::Own { node: NodeId::numbered(1, 1), term: Term(0), first: true };
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_status_tells_the_last_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let client = WitnessClient::start(&path.as_path().into()).unwrap();
        assert_eq!(client.status().answered, None);
        let answer = client.ask_and_wait(VM, OWN, LONG);
        assert!(matches!(answer, WitnessAnswer::Judged(OWN, Verdict::Granted(_))), "{answer:?}");
        assert_eq!((client.status().answered, client.status().error), (Some(true), None));
        std::fs::write(&path, "hello").unwrap();
        assert!(matches!(client.ask_and_wait(VM, OWN, LONG), WitnessAnswer::Unreachable(OWN, _)));
        let status = client.status();
        assert_eq!(status.answered, Some(false));
        assert!(status.error.unwrap().contains("is not a witness record"));
        assert!(status.record.unwrap().contains("runs this VM in term 1"), "as it was seen last");
    }

    #[test]
    fn a_keeper_that_hangs_is_unreachable_and_does_what_it_was_asked_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        // A lock that somebody else holds is what a file server that hangs looks like.
        let lock = std::fs::File::create(path.with_added_extension("lock")).unwrap();
        lock.lock().unwrap();
        let client = WitnessClient::start(&path.as_path().into()).unwrap();
        for _ in 0..2 {
            let WitnessAnswer::Unreachable(OWN, reason) = client.ask_and_wait(VM, OWN, LONG) else {
                panic!("no answer")
            };
            assert_eq!(reason, "no answer within 3 s");
        }
        lock.unlock().unwrap();
        // The first one has been judged by now, the second one was never asked.
        let other = Claim::Own { node: NodeId::numbered(2, 1), term: Term(0), first: true };
        let answer = client.ask_and_wait(VM, other, LONG);
        let first = Record::Solo { owner: NodeId::numbered(1, 1), term: Term(1), since: Term(1) };
        assert!(matches!(answer, WitnessAnswer::Judged(_, Verdict::Refused(Some(record))) if record == first));
    }
}
