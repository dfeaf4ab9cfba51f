//! A primary played by hand, for what no primary of ours would say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ft_proto::{Epoch, Term, VmId};
use ft_wire::mirror::{Begin, Digest, Frame, Greeting, HEADER_LEN, Kind, ResyncKind, decode, encode, encode_fields};

use super::hosts::{BOUND, Host};
use super::{release, tcp_pair};

pub fn greeting(serial: &str, vm: Option<VmId>) -> Vec<u8> {
    encode_fields(&Greeting { serial: serial.to_owned(), vm, term: Term(1) })
}

/// Plays the primary by hand.
pub struct Peer {
    pub stream: TcpStream,
    digest: Digest,
    size: u64,
}

impl Peer {
    pub fn new(fd: OwnedFd, size: usize) -> Self {
        let stream = TcpStream::from(fd);
        // Whoever refuses a stream does not read it to its end.
        stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
        Self { stream, digest: Digest::default(), size: size as u64 }
    }

    pub fn bytes(&mut self, kind: Kind, epoch: u64, offset: u64, len: u64, body: &[u8]) -> Vec<u8> {
        let (header, checksum) = encode(&Frame { kind, epoch: Epoch(epoch), offset, len }, body);
        if matches!(kind, Kind::Write | Kind::Zeroes) {
            self.digest.add(checksum);
        }
        [&header[..], body].concat()
    }

    pub fn send(&mut self, kind: Kind, epoch: u64, offset: u64, len: u64, body: &[u8]) {
        let bytes = self.bytes(kind, epoch, offset, len, body);
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn write(&mut self, epoch: u64, sector: u64, byte: u8) {
        self.send(Kind::Write, epoch, sector * 512, 512, &[byte; 512]);
    }

    pub fn end(&mut self, epoch: u64) {
        let digest = std::mem::take(&mut self.digest);
        self.send(Kind::End, epoch, digest.count, digest.sum, &[]);
    }

    /// Ends an epoch, if the stream is still taken.
    pub fn end_if_open(&mut self, epoch: u64) {
        let digest = std::mem::take(&mut self.digest);
        let bytes = self.bytes(Kind::End, epoch, digest.count, digest.sum, &[]);
        let _ = self.stream.write_all(&bytes);
    }

    pub fn greet(&mut self, epoch: u64) {
        self.send(Kind::Hello, epoch, 0, self.size, &greeting("disk-1", None));
    }

    /// Greets, and begins a copy of everything.
    pub fn begin(&mut self, epoch: u64) {
        self.greet(epoch);
        assert_eq!(self.hear().0, Kind::Answer);
        let begin = Begin { kind: ResyncKind::Full, disk: 1, common: None, marks: vec![], base: 2, generation: 3 };
        self.send(Kind::Begin, 0, 0, 0, &encode_fields(&begin));
    }

    pub fn hear(&mut self) -> (Kind, Vec<u8>) {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header).unwrap();
        let pending = decode(&header).unwrap();
        let mut body = vec![0; pending.body_len()];
        self.stream.read_exact(&mut body).unwrap();
        (pending.finish(&body).unwrap().0.kind, body)
    }

    pub fn refusal(mut self) -> String {
        loop {
            match self.hear() {
                (Kind::Durable, _) => {}
                (kind, body) => {
                    assert_eq!(kind, Kind::Refused);
                    return String::from_utf8(body).unwrap();
                }
            }
        }
    }
}

/// A standby with a hand-made primary: in sync, epoch 1 released with sector 0 = 1, epoch 2 complete, epoch 3
/// open.
pub fn standby_with_peer(size: usize) -> (Host, Peer) {
    let standby = Host::new(&vec![0; size]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, size);
    peer.begin(1);
    peer.send(Kind::CopyZero, 1, 0, size as u64, &[]);
    peer.send(Kind::SyncDone, 1, 0, 0, &[]);
    peer.write(1, 0, 1);
    peer.end(1);
    peer.write(2, 1, 2);
    peer.end(2);
    standby.vmm.complete(1);
    standby.vmm.complete(2);
    standby.vmm.send(&release(1));
    peer.write(3, 2, 3);
    (standby, peer)
}
