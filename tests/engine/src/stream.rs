//! One TCP stream to or from the guest, whose every byte is known.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use pollux_guest::pattern::{check_stream, fill_stream};
use pollux_guest::wire::{SINK_PORT, SOURCE_PORT};

use crate::Netns;

/// After this long without a byte the guest is dead.
const LIMIT: Duration = Duration::from_secs(60);
const PIECE: usize = 256 << 10;

/// The stream.
pub struct Stream {
    tcp: TcpStream,
    position: u64,
    buffer: Vec<u8>,
}

impl Stream {
    /// A stream that the guest at `ip` swallows and checks; a wrong byte shows in its replies.
    #[must_use]
    pub fn to_guest(netns: &Netns, ip: Ipv4Addr) -> Self {
        Self::connect(netns, ip, SINK_PORT)
    }

    /// A stream that the guest at `ip` sends.
    #[must_use]
    pub fn from_guest(netns: &Netns, ip: Ipv4Addr) -> Self {
        Self::connect(netns, ip, SOURCE_PORT)
    }

    fn connect(netns: &Netns, ip: Ipv4Addr, port: u16) -> Self {
        let tcp = netns.run(|| TcpStream::connect((ip, port)));
        let tcp = tcp.unwrap_or_else(|error| panic!("TCP to port {port} of the guest: {error}"));
        tcp.set_read_timeout(Some(LIMIT)).expect("timeout of a socket");
        tcp.set_write_timeout(Some(LIMIT)).expect("timeout of a socket");
        Self { tcp, position: 0, buffer: vec![0; PIECE] }
    }

    /// Sends some more; returns how many bytes.
    pub fn send(&mut self) -> u64 {
        fill_stream(self.position, &mut self.buffer);
        self.tcp.write_all(&self.buffer).unwrap_or_else(|error| panic!("TCP to the guest: {error}"));
        self.position += self.buffer.len() as u64;
        self.buffer.len() as u64
    }

    /// Receives and checks some more; returns how many bytes.
    ///
    /// # Panics
    /// If a byte is missing, repeated or wrong.
    pub fn receive(&mut self) -> u64 {
        let len = self.tcp.read(&mut self.buffer).unwrap_or_else(|error| panic!("TCP from the guest: {error}"));
        assert!(len > 0, "the guest ended the stream at {}", self.position);
        assert!(check_stream(self.position, &self.buffer[..len]), "a wrong byte after {}", self.position);
        self.position += len as u64;
        len as u64
    }
}
