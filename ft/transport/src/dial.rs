//! Calls another host: connects, says hello, waits for the answer.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ft_proto::{Epoch, Term};
use ft_wire::session::{Header, Hello, Kind, Refusal, Standing, Welcome, WireError, decode_body, encode_body};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connection::Connection;
use crate::frames::{FrameReader, Stamp, TransportError, write_frame};
use crate::stream::{OpenError, Stream};
use crate::tls::credentials::Credentials;

/// What a host answers to a greeting.
#[derive(Debug)]
pub enum Answer {
    /// The stream goes on as what the greeting was for.
    Welcome(Welcome),
    /// It does not, for these reasons.
    Refused(Vec<String>),
    /// What the host does about the VM, since it was only asked.
    Standing(Standing),
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// The greeting was not sent, or what came is no answer to it.
    #[error(transparent)]
    Failed(#[from] TransportError),
    /// The other host has accepted the connection and said nothing; why, for people.
    #[error("no answer: {0}")]
    Unanswered(String),
}

/// Connects to a host that has `patience` to accept, and as much for each step of the greeting. Without `tls`
/// neither host proves who it is.
///
/// # Errors
/// When it does not accept, or is not of this host's pair.
pub fn connect(peer: SocketAddr, patience: Duration, tls: Option<&Credentials>) -> Result<Stream, OpenError> {
    Stream::dialled(TcpStream::connect_timeout(&peer, patience)?, patience, tls)
}

/// Says `hello` and waits for the answer.
///
/// # Errors
/// When there is none within `patience`.
pub fn greet(stream: &mut Stream, hello: &Hello, term: Term, patience: Duration) -> Result<Answer, GreetError> {
    let (hello, called) = (encode_body(hello), Instant::now());
    write_frame(stream, Stamp { kind: Kind::Hello, term, epoch: Epoch(0) }, &[&hello])?;
    let unanswered = |error| {
        // A host that has waited in vain for the rest of a greeting closes the connection, perhaps a moment
        // before we give up: it has as much patience.
        let in_vain = called.elapsed() >= patience * 4 / 5;
        let error = if in_vain && matches!(error, TransportError::Closed) { TransportError::Late } else { error };
        GreetError::Unanswered(stream.explain(&error, Some(hello.len())))
    };
    let (header, body) = match read_message(stream, patience) {
        // It does not take us for a host of its pair, and says so only now.
        Err(error @ TransportError::Tls(_)) => return Err(error.into()),
        answer => answer.map_err(unanswered)?,
    };
    Ok(understand(stream, header, &body)?)
}

/// What a frame says that answers a greeting. The greeting is over if it is welcome.
///
/// # Errors
/// When it is no answer.
pub fn understand(stream: &impl Connection, header: Header, body: &[u8]) -> Result<Answer, TransportError> {
    match header.kind {
        Kind::Welcome => {
            let welcome = decode_body(header.kind, body)?;
            stream.end_greeting().map_err(TransportError::Io)?;
            Ok(Answer::Welcome(welcome))
        }
        Kind::Refuse => {
            let Refusal { reasons } = decode_body(header.kind, body)?;
            Ok(Answer::Refused(reasons))
        }
        Kind::Standing => Ok(Answer::Standing(decode_body(header.kind, body)?)),
        got => Err(WireError::Unexpected { got, expected: "an answer to hello" }.into()),
    }
}

/// Reads one short frame, blocking, and all of it within `limit`, however slowly it comes.
///
/// # Errors
/// When the stream breaks, the frame is not right, or does not come in time.
pub(crate) fn read_message(stream: &Stream, limit: Duration) -> Result<(Header, Vec<u8>), TransportError> {
    let deadline = Instant::now() + limit;
    let mut reader = FrameReader::default();
    loop {
        if let Some(frame) = reader.poll(stream)? {
            return Ok(frame);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TransportError::Late);
        }
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use ft_proto::NodeId;
    use ft_wire::session::Purpose;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// What a host sends, and the stream of whoever has called it.
    fn connected() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap(), LONG, None).unwrap();
        (listener.accept().unwrap().0, stream)
    }

    #[test]
    fn a_message_that_announces_pages_is_not_waited_for() {
        let (mut out, stream) = connected();
        let header =
            Header { kind: Kind::Pages, term: Term(1), epoch: Epoch(1), len: 1 << 20, raw: 1 << 20, body_hash: 0 };
        out.write_all(&header.encode()).unwrap();
        let error = read_message(&stream, LONG).unwrap_err();
        assert!(matches!(error, TransportError::Wire(WireError::Unexpected { got: Kind::Pages, .. })), "{error}");
    }

    /// Why a greeting is not answered by a host that closes the connection after `wait`.
    fn closed_after(wait: Duration, patience: Duration) -> String {
        let (mut other, mut stream) = connected();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // What is left unread would be a reset.
                assert!(other.read(&mut [0; 4096]).unwrap() > 0);
                std::thread::sleep(wait);
            });
            let hello = Hello { vm: None, node: NodeId::numbered(1, 1), purpose: Purpose::Ask };
            greet(&mut stream, &hello, Term(1), patience).unwrap_err().to_string()
        })
    }

    #[test]
    fn a_greeting_that_was_waited_for_in_vain_is_told_like_one_without_an_answer() {
        let late = closed_after(Duration::from_millis(450), Duration::from_millis(500));
        assert!(late.contains("no answer in time") && late.contains("MTU"), "{late}");
        let at_once = closed_after(Duration::ZERO, LONG);
        assert!(at_once.contains("closed the connection") && !at_once.contains("MTU"), "{at_once}");
    }

    #[test]
    fn a_message_that_drips_is_late_as_a_whole() {
        let (mut out, stream) = connected();
        let mut wire = Vec::new();
        write_frame(&mut wire, Stamp { kind: Kind::Bye, term: Term(2), epoch: Epoch(3) }, &[&[7; 4096]]).unwrap();
        let dripping = std::thread::spawn(move || {
            // A byte each time, long before a reader would lose patience between two of them.
            wire.chunks(1).take_while(|byte| out.write_all(byte).is_ok()).for_each(|_| {
                std::thread::sleep(Duration::from_millis(5));
            });
        });
        let error = read_message(&stream, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, TransportError::Late), "{error}");
        drop(stream);
        dripping.join().unwrap();
    }
}
