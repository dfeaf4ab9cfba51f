//! The standby's open door: accepts connections, reads their greeting, passes them to the engine, which answers.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use ft_proto::wire::{Hello, Kind, Refusal, Welcome, WireError, decode_body, encode_body};
use ft_proto::{Epoch, Term};

use crate::transport::{Stamp, TransportError, read_frame, write_frame};
use crate::witness::chain;

/// How long a caller may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somebody who said hello.
#[derive(Debug)]
pub struct Caller {
    /// The connection.
    pub stream: TcpStream,
    /// Where from.
    pub address: SocketAddr,
    /// Its term.
    pub term: Term,
    /// Who and what for.
    pub hello: Hello,
}

impl Caller {
    /// Accepts; the connection goes on as what the caller wanted.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn welcome(mut self, welcome: &Welcome) -> Result<TcpStream, TransportError> {
        let stamp = Stamp { kind: Kind::Welcome, term: self.term, epoch: Epoch(0) };
        write_frame(&mut self.stream, stamp, &[&encode_body(welcome)])?;
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(self.stream)
    }

    /// Refuses, with every reason.
    pub fn refuse(mut self, reasons: Vec<String>) {
        refuse(&mut self.stream, self.term, reasons);
    }
}

/// The accepting thread; dropping it closes the door.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    thread: Option<thread::JoinHandle<()>>,
}

impl Door {
    /// Listens at `address`; callers go to `tell`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn open(address: SocketAddr, tell: impl Fn(Caller) + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let accepting = listener.try_clone()?;
        let thread = thread::Builder::new().name("ft-listen".to_owned()).spawn(move || {
            while let Ok((stream, address)) = accepting.accept() {
                match hear(stream, address) {
                    Ok(caller) => tell(caller),
                    Err(error) => tracing::warn!(target: "ft", "caller at {address}: {}", chain(&error)),
                }
            }
        })?;
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Shutting a listening socket down makes its accept return.
        let _ = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hear(mut stream: TcpStream, address: SocketAddr) -> Result<Caller, TransportError> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut body = Vec::new();
    let header = match read_frame(&mut stream, &mut body) {
        Ok(header) => header,
        Err(TransportError::Wire(error)) => {
            refuse(&mut stream, Term(0), vec![error.to_string()]);
            return Err(error.into());
        }
        Err(error) => return Err(error),
    };
    if header.kind != Kind::Hello {
        return Err(WireError::Unexpected { got: header.kind, expected: "hello" }.into());
    }
    let hello = decode_body(header.kind, &body)?;
    Ok(Caller { stream, address, term: header.term, hello })
}

fn refuse(stream: &mut TcpStream, term: Term, reasons: Vec<String>) {
    let stamp = Stamp { kind: Kind::Refuse, term, epoch: Epoch(0) };
    // The caller may be gone; it will find out by itself.
    let _ = write_frame(stream, stamp, &[&encode_body(&Refusal { reasons })]);
    let _ = stream.shutdown(Shutdown::Write);
}
