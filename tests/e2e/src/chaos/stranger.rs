//! Somebody who does not belong to the pair speaks to all its ports: noise, beats of another session and of
//! another VM, greetings that are forged, broken off or never finished.
//!
//! In: a protected pair. Out: how much was said. Never: anything that only the two ends of the session know.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ft_proto::{Epoch, NodeId, Term, VmId};
use ft_wire::hash::hash_of_parts;
use ft_wire::nonce::Nonce;
use ft_wire::session::{Header, Hello, Kind, Purpose, encode_body};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::pair::Pair;
use crate::host::{beat_address, letter, stream_address};
use crate::namespace::Entrance;
use crate::topology::Topology;
use crate::{Error, Result};

/// Between two bursts, and datagrams to each port in each: a busy network, not the end of an emulated one.
const REST: Duration = Duration::from_millis(10);
const BURST: usize = 10;
/// Connections that are kept open without a word.
const SILENT: usize = 32;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// What a host may say about all of it, in bytes.
const LOG_MAX: u64 = 64 << 10;
/// How much memory may be taken by it, in KiB: allocators keep some.
const MEMORY_MAX: u64 = 32 << 10;

/// How much was said to both hosts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// Datagrams.
    pub datagrams: u64,
    /// Connections.
    pub connections: u64,
}

/// What anybody can find out: whom it is about.
#[derive(Clone, Copy)]
struct Known {
    vm: VmId,
    /// The two nodes' names.
    nodes: [NodeId; 2],
    term: u64,
}

/// Speaks to both hosts for a time, from the other one's side of the links and from its own. Nothing may
/// move, and neither log nor memory grow without bound; that the VM is protected as before is for the run to
/// see.
///
/// # Errors
/// When something is not as it was.
pub fn speak(pair: &Pair, topology: &Topology, span: Duration, seed: u64) -> Result<Said> {
    let known = Known::of(pair)?;
    let doors = [Doors::of(&topology.hosts[0])?, Doors::of(&topology.hosts[1])?];
    let before = [Trace::of(pair, 0)?, Trace::of(pair, 1)?];
    let said = thread::scope(|scope| {
        let speakers: Vec<_> = [(0_u8, 0_u8), (0, 1), (1, 0), (1, 1)]
            .into_iter()
            .map(|(from, to)| {
                let (hosts, doors) = (&topology.hosts, &doors[usize::from(to)]);
                scope.spawn(move || {
                    let seed = seed ^ (u64::from(from) << 1) ^ u64::from(to);
                    let mut speaker =
                        Speaker { known, chance: Xoshiro256PlusPlus::seed_from_u64(seed), said: Said::default() };
                    speaker.speak(&hosts[usize::from(from)], to, doors, span).map(|()| speaker.said)
                })
            })
            .collect();
        let said =
            speakers.into_iter().map(|speaker| speaker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        said.collect::<Result<Vec<Said>>>()
    })?;
    for (host, before) in [0, 1].into_iter().zip(before) {
        before.compare(&Trace::of(pair, host)?, host)?;
    }
    let datagrams = said.iter().map(|said| said.datagrams).sum();
    Ok(Said { datagrams, connections: said.iter().map(|said| said.connections).sum() })
}

/// All ports of a host: one that runs the VM hears beats where the kernel has given it a port.
#[derive(Debug)]
struct Doors {
    datagrams: Vec<SocketAddr>,
    connections: Vec<SocketAddr>,
}

impl Doors {
    fn of(host: &Entrance) -> Result<Self> {
        let read = |name: &str| {
            let path = Path::new("/proc/thread-self/net").join(name);
            host.run(|| fs::read_to_string(&path).map_err(Error::file("read", &path)))
        };
        // The state of a socket that listens; others are connections.
        let (udp, tcp) = (read("udp")?, read("tcp")?);
        let datagrams: Vec<_> = udp.lines().filter_map(|line| bound(line, "07")).collect();
        let connections: Vec<_> = tcp.lines().filter_map(|line| bound(line, "0A")).collect();
        if datagrams.len() < 2 || connections.is_empty() {
            return Err(Error::Protocol { from: "ports of a host".into(), answer: format!("{udp}{tcp}") });
        }
        Ok(Self { datagrams, connections })
    }
}

/// The local address in a line of the kernel's table of sockets, if the socket is in `state`.
fn bound(line: &str, state: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // In the memory order of the machine, which is the network's.
    (fields.nth(1)? == state).then(|| SocketAddr::from((address.to_ne_bytes(), port)))
}

/// What must not grow or change.
struct Trace {
    log: u64,
    memory: u64,
    ignored: u64,
    moves: usize,
}

impl Trace {
    fn of(pair: &Pair, index: u8) -> Result<Self> {
        let host = pair.host(index);
        let log = fs::metadata(host.vmm.log()).map_err(Error::file("look at", host.vmm.log()))?.len();
        let path = format!("/proc/{}/status", host.vmm.pid());
        let text = fs::read_to_string(&path).map_err(Error::file("read", Path::new(&path)))?;
        // What it has allocated, not the guest's memory, which is shared.
        let memory =
            text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok());
        let memory = memory.ok_or(Error::Protocol { from: path, answer: "no RssAnon".into() })?;
        let ignored = host.ft_status()?["ignored_beats"].as_u64().unwrap_or_default();
        let told = host.ft_events()?;
        let moved = |event: &&serde_json::Value| {
            ["takeover-completed", "protection-lost", "fenced"].contains(&event["event"].as_str().unwrap_or_default())
        };
        Ok(Self { log, memory, ignored, moves: told.iter().filter(moved).count() })
    }

    fn compare(&self, now: &Self, host: u8) -> Result<()> {
        let (log, memory) = (now.log.saturating_sub(self.log), now.memory.saturating_sub(self.memory));
        if log < LOG_MAX && memory < MEMORY_MAX && now.ignored > self.ignored && now.moves == self.moves {
            return Ok(());
        }
        let answer = format!(
            "after strangers spoke: {log} bytes of log, {memory} KiB of memory, {} beats ignored, {} moves",
            now.ignored - self.ignored,
            now.moves - self.moves
        );
        Err(Error::Protocol { from: format!("host {}", letter(host)), answer })
    }
}

impl Known {
    fn of(pair: &Pair) -> Result<Self> {
        let wrong = |answer: String| Error::Protocol { from: "what anybody can see".into(), answer };
        let tool = pair.artifacts().path("vhost-user-blk-repl");
        let output = Command::new(tool).arg("record").arg(pair.host(0).image()).arg("--json").output();
        let text =
            String::from_utf8_lossy(&output.map_err(Error::io("cannot ask for a disk's record"))?.stdout).into_owned();
        let record: serde_json::Value = serde_json::from_str(&text).map_err(|_| wrong(text.clone()))?;
        let vm = record["vm"].as_str().and_then(|vm| vm.parse().ok()).ok_or_else(|| wrong(text))?;
        let statuses = [pair.host(0).ft_status()?, pair.host(1).ft_status()?];
        let node = |at: usize| {
            let name = statuses[at]["node"].as_str().unwrap_or_default();
            name.parse().map_err(|_| wrong(statuses[at].to_string()))
        };
        Ok(Self { vm, nodes: [node(0)?, node(1)?], term: statuses[0]["term"].as_u64().unwrap_or_default() })
    }
}

struct Speaker {
    known: Known,
    chance: Xoshiro256PlusPlus,
    said: Said,
}

impl Speaker {
    fn speak(&mut self, from: &Entrance, to: u8, doors: &Doors, span: Duration) -> Result<()> {
        from.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").map_err(Error::io("cannot open a socket"))?;
            let mut silent = VecDeque::new();
            let start = Instant::now();
            while start.elapsed() < span {
                for port in &doors.datagrams {
                    for _ in 0..BURST {
                        let datagram = self.datagram(to);
                        self.said.datagrams += u64::from(socket.send_to(&datagram, port).is_ok());
                    }
                }
                for door in &doors.connections {
                    silent.extend(self.connect(*door, to));
                }
                while silent.len() > SILENT {
                    silent.pop_front();
                }
                thread::sleep(REST);
            }
            Ok(())
        })
    }

    /// Noise, or a beat that is well-formed and not of this session.
    fn datagram(&mut self, to: u8) -> Vec<u8> {
        let mut noise = vec![0; self.chance.random_range(0..200)];
        self.chance.fill_bytes(&mut noise);
        let foreign = match self.chance.random_range(0..4) {
            0 => return noise,
            1 => true,
            _ => false,
        };
        let vm = if foreign { self.chance.random() } else { self.known.vm.0 };
        let from = self.known.nodes[usize::from(1 - to)];
        let (host, term) = (from.host.as_str().as_bytes(), self.known.term + self.chance.random_range(0..10));
        let mut name = [0; 32];
        name[..host.len()].copy_from_slice(host);
        let (session, nonce) = (self.chance.random::<u64>(), self.chance.random::<u128>());
        let runs = self.chance.random_range(0..=1);
        let mut beat =
            [b"PLXB", [2, 0, runs, 0].as_slice(), &vm.to_le_bytes(), &session.to_le_bytes(), &nonce.to_le_bytes()]
                .concat();
        beat.extend([name.as_slice(), &from.incarnation.to_le_bytes(), &term.to_le_bytes()].concat());
        beat.extend(hash_of_parts(&[&beat]).to_le_bytes());
        beat
    }

    /// A connection with something in it that does not count; given back if it is to stay open.
    fn connect(&mut self, door: SocketAddr, to: u8) -> Option<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&door, CONNECT_LIMIT).ok()?;
        self.said.connections += 1;
        let words = match self.chance.random_range(0..6) {
            0 => vec![],
            1 => {
                let mut noise = vec![0; self.chance.random_range(0..4096)];
                self.chance.fill_bytes(&mut noise);
                noise
            }
            2 => self.greeting(to, Purpose::Ask),
            3 => {
                let purpose =
                    Purpose::Disk { index: 0, session: self.chance.random(), nonce: Nonce::new(self.chance.random()) };
                self.greeting(to, purpose)
            }
            4 => {
                let mut words = self.session(to);
                words.truncate(self.chance.random_range(0..words.len()));
                words
            }
            _ => self.session(to),
        };
        // It may have been shown the door.
        let _ = stream.write_all(&words);
        self.chance.random_bool(0.5).then_some(stream)
    }

    /// As if the primary called, or somebody who has become it.
    fn session(&mut self, to: u8) -> Vec<u8> {
        let beats = [stream_address(1 - to), beat_address(1 - to)].map(|address| address.to_string());
        let (detect_ms, disk_buffer, previous) = (1000, 1 << 20, Nonce::new(self.chance.random()));
        let check = self.chance.random_bool(0.3);
        let (shape, took_over, on_partition, base) = (vec![], None, None, None);
        let purpose =
            Purpose::Session { check, shape, beats, detect_ms, disk_buffer, took_over, on_partition, base, previous };
        self.greeting(to, purpose)
    }

    fn greeting(&mut self, to: u8, purpose: Purpose) -> Vec<u8> {
        let foreign = self.chance.random_bool(0.3);
        let vm = Some(if foreign { VmId(self.chance.random()) } else { self.known.vm });
        let node = self.known.nodes[usize::from(1 - to)];
        let body = encode_body(&Hello { vm, node, purpose });
        let len = u32::try_from(body.len()).unwrap_or_default();
        let term = Term(self.known.term + self.chance.random_range(0..10));
        let header =
            Header { kind: Kind::Hello, term, epoch: Epoch(0), len, raw: len, body_hash: hash_of_parts(&[&body]) };
        [header.encode().as_slice(), &body].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_sockets_are_found_in_the_kernels_table() {
        let line = "   0: 0100470A:1C03 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert_eq!(bound(line, "0A"), Some(SocketAddr::from(([10, 71, 0, 1], 7171))));
        assert_eq!(bound(line, "07"), None);
        assert_eq!(bound("  sl  local_address rem_address   st tx_queue rx_queue", "0A"), None);
    }
}
