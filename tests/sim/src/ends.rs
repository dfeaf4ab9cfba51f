//! The ends of a stream and of the way to the witness, as an engine has them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use ft::sim::{AskWitness, WitnessStatus};
use ft::{Stored, WitnessAddress};
use ft_proto::witness::Claim;
use ft_proto::{VmId, WitnessAnswer};
use ft_transport::connection::Connection;
use ft_transport::frames::{RecvNow, TransportError};

use crate::body::{Effect, Question, Said, Shared};
use crate::ids::VM;
use crate::network::StreamId;

/// One end of a stream. Dropped, it is closed, unless it was given to a device.
#[derive(Debug)]
pub(crate) struct SimStream {
    pub(crate) id: StreamId,
    shared: Shared,
    pub(crate) given: AtomicBool,
}

impl SimStream {
    pub(crate) fn new(id: StreamId, shared: Shared) -> Self {
        Self { id, shared, given: AtomicBool::new(false) }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if !self.given.load(Ordering::Relaxed) {
            self.shared.effect(Effect::Close(self.id));
        }
    }
}

impl io::Write for SimStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shared.effect(Effect::Write(self.id, bytes.to_vec()));
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.write(&bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RecvNow for SimStream {
    fn recv_now(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut body = self.shared.lock();
        let Some(received) = body.received.get_mut(&self.id) else { return Err(io::ErrorKind::WouldBlock.into()) };
        let len = received.bytes.len().min(into.len());
        if len == 0 && !received.closed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into.iter_mut().zip(received.bytes.drain(..len)).for_each(|(into, byte)| *into = byte);
        Ok(len)
    }
}

impl Connection for SimStream {
    fn end_greeting(&self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&self) {}

    fn limit_silence(&self) {}

    fn explain(&self, error: &TransportError) -> String {
        error.to_string()
    }
}

/// The way to the witness.
#[derive(Clone, Debug)]
pub(crate) struct SimWitness {
    pub(crate) address: WitnessAddress,
    pub(crate) shared: Shared,
}

impl AskWitness for SimWitness {
    fn address(&self) -> &WitnessAddress {
        &self.address
    }

    fn ask(&self, _: VmId, claim: Claim, answer: impl FnOnce(WitnessAnswer) + Send + 'static) {
        self.shared.effect(Effect::Ask(Question::Claim(claim), Box::new(move |told| answer(Said::to(claim, told)))));
    }

    fn read(&self, answer: impl FnOnce(Result<Option<Stored>, String>) + Send + 'static) {
        let stored = |said| match said {
            Said::Record(record) => record.map(|record| Stored { vm: Some(VM), record }),
            Said::Verdict(_) => None,
        };
        self.shared.effect(Effect::Ask(Question::Read, Box::new(move |told| answer(told.map(stored)))));
    }

    fn status(&self) -> WitnessStatus {
        let answered = self.shared.lock().answered;
        WitnessStatus { name: self.address.to_string(), answered, error: None, record: None }
    }

    fn finish(&self) {}
}
