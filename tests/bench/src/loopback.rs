//! The floor of the transfer: so many bytes over TCP on the loopback, in one stream or several at once, and
//! eight back in each.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpCongestion;

/// Before the times count.
const WARM_UP: usize = 10;

/// Times of `rounds` transfers of `bytes`, shared among `streams`.
pub fn measure(bytes: usize, rounds: usize, streams: usize) -> Vec<Duration> {
    let barrier = Barrier::new(streams);
    let share = bytes / streams;
    thread::scope(|scope| {
        for _ in 1..streams {
            scope.spawn(|| {
                let mut ends = Ends::new(share);
                for _ in 0..WARM_UP + rounds {
                    barrier.wait();
                    ends.pass();
                    barrier.wait();
                }
            });
        }
        let mut ends = Ends::new(share);
        let mut one = || {
            barrier.wait();
            let start = Instant::now();
            ends.pass();
            barrier.wait();
            start.elapsed()
        };
        (0..WARM_UP).for_each(|_| _ = one());
        (0..rounds).map(|_| one()).collect()
    })
}

/// One stream: our end, what goes through it, and the thread at its other end, which ends with it.
struct Ends {
    stream: TcpStream,
    body: Vec<u8>,
}

impl Ends {
    fn new(bytes: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen on the loopback");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect to the loopback");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        // As the session does, if the host has it: BBR would pace the pages.
        let _ = setsockopt(&stream, TcpCongestion, &OsString::from("cubic"));
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept on the loopback");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let mut body = vec![0; bytes];
            while stream.read_exact(&mut body).is_ok() && stream.write_all(&[0; 8]).is_ok() {}
        });
        Self { stream, body: vec![1; bytes] }
    }

    fn pass(&mut self) {
        self.stream.write_all(&self.body).expect("send on the loopback");
        self.stream.read_exact(&mut [0; 8]).expect("receive on the loopback");
    }
}
