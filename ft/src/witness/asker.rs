//! The thread that asks the witness: questions one after the other, answers by callback. Asking may block for as long as a
//! dead file server likes, so nobody else does it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use ft_proto::WitnessAnswer;
use ft_proto::witness::{Claim, Record};

use super::{Witness, WitnessAddress, WitnessError, chain};
use crate::status::WitnessStatus;

/// How long the last claims may take when the engine ends: a file server that hangs must not keep a process alive.
const FAREWELL: Duration = Duration::from_secs(2);

type Question = Box<dyn FnOnce(&mut dyn Witness) + Send>;

/// The thread that asks. It ends when its last clone is gone and everything is asked.
#[derive(Clone, Debug)]
pub struct Asker {
    address: WitnessAddress,
    questions: Sender<Question>,
    /// Whether the last question was answered, and why not.
    last: Arc<Mutex<Option<Result<(), String>>>>,
}

impl Asker {
    /// Starts the thread; nothing is asked yet.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(address: &WitnessAddress) -> io::Result<Self> {
        let mut keeper = address.keeper();
        let (sender, questions) = unbounded::<Question>();
        thread::Builder::new().name("ft-witness".to_owned()).spawn(move || {
            for question in questions {
                question(&mut *keeper);
            }
        })?;
        Ok(Self { address: address.clone(), questions: sender, last: Arc::default() })
    }

    /// Whom it asks.
    #[must_use]
    pub fn address(&self) -> &WitnessAddress {
        &self.address
    }

    /// Has `claim` judged and hands the answer to `answer`, on the asking thread.
    pub fn ask(&self, claim: Claim, answer: impl FnOnce(WitnessAnswer) + Send + 'static) {
        let finish = move |result| {
            answer(match result {
                Ok(verdict) => WitnessAnswer::Judged(claim, verdict),
                Err(reason) => WitnessAnswer::Unreachable(claim, reason),
            });
        };
        self.question(move |witness| witness.ask(claim), finish);
    }

    /// Has the record read and hands it, or why it could not be, to `answer`, on the asking thread.
    pub fn read(&self, answer: impl FnOnce(Result<Option<Record>, String>) + Send + 'static) {
        self.question(|witness| witness.read(), answer);
    }

    /// As [`Self::ask`], for a thread that has nothing else to do for so long.
    #[must_use]
    pub fn ask_and_wait(&self, claim: Claim, patience: Duration) -> WitnessAnswer {
        let (sender, answer) = bounded(1);
        // Nobody listens any more when the answer comes too late.
        self.ask(claim, move |answer| drop(sender.send(answer)));
        let late = || WitnessAnswer::Unreachable(claim, format!("no answer within {} s", patience.as_secs()));
        answer.recv_timeout(patience).unwrap_or_else(|_| late())
    }

    /// For `ft status`.
    #[must_use]
    pub fn status(&self) -> WitnessStatus {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answered = last.as_ref().map(Result::is_ok);
        WitnessStatus { name: self.address.to_string(), answered, error: last.and_then(Result::err) }
    }

    fn question<T: 'static>(
        &self,
        put: impl FnOnce(&mut dyn Witness) -> Result<T, WitnessError> + Send + 'static,
        answer: impl FnOnce(Result<T, String>) + Send + 'static,
    ) {
        let last = self.last.clone();
        let question = move |witness: &mut dyn Witness| {
            let result = put(witness).map_err(|error| chain(&error));
            *last.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(result.as_ref().map(|_| ()).map_err(String::clone));
            answer(result);
        };
        // The thread ends only after the senders are gone.
        let _ = self.questions.send(Box::new(question));
    }

    /// Waits until everything is asked, within reason.
    pub fn finish(&self) {
        let (through, last) = bounded::<()>(0);
        // Nothing is ever sent here; the question drops its end.
        let _ = self.questions.send(Box::new(move |_| drop(through)));
        let _ = last.recv_timeout(FAREWELL);
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::witness::Verdict;
    use ft_proto::{NodeId, Term};

    use super::*;

    const OWN: Claim = Claim::Own { node: NodeId(1), term: Term(0) };

    #[test]
    fn the_status_tells_the_last_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let asker = Asker::start(&path.as_path().into()).unwrap();
        assert_eq!(asker.status().answered, None);
        let answer = asker.ask_and_wait(OWN, Duration::from_secs(20));
        assert!(matches!(answer, WitnessAnswer::Judged(OWN, Verdict::Granted(_))), "{answer:?}");
        assert_eq!((asker.status().answered, asker.status().error), (Some(true), None));
        std::fs::write(&path, "hello").unwrap();
        assert!(matches!(asker.ask_and_wait(OWN, Duration::from_secs(20)), WitnessAnswer::Unreachable(OWN, _)));
        let status = asker.status();
        assert_eq!(status.answered, Some(false));
        assert!(status.error.unwrap().contains("is not a witness record"));
    }

    #[test]
    fn a_keeper_that_hangs_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        // A lock that somebody else holds is what a file server that hangs looks like.
        let lock = std::fs::File::create(path.with_added_extension("lock")).unwrap();
        lock.lock().unwrap();
        let asker = Asker::start(&path.as_path().into()).unwrap();
        let answer = asker.ask_and_wait(OWN, Duration::from_millis(50));
        assert!(matches!(answer, WitnessAnswer::Unreachable(OWN, _)), "{answer:?}");
        let asked = std::time::Instant::now();
        asker.finish();
        assert!(asked.elapsed() >= FAREWELL, "a keeper that hangs was not given its time");
    }
}
