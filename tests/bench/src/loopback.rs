//! The floor of the transfer: so many bytes over TCP on the loopback, and eight back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Times of `rounds` transfers of `bytes`.
pub fn measure(bytes: usize, rounds: usize) -> Vec<Duration> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen on the loopback");
    let mut stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect to the loopback");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept on the loopback");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut body = vec![0; bytes];
        while stream.read_exact(&mut body).is_ok() && stream.write_all(&[0; 8]).is_ok() {}
    });
    let body = vec![1; bytes];
    let mut one = || {
        let start = Instant::now();
        stream.write_all(&body).expect("send on the loopback");
        stream.read_exact(&mut [0; 8]).expect("receive on the loopback");
        start.elapsed()
    };
    (0..10).for_each(|_| _ = one());
    let times = (0..rounds).map(|_| one()).collect();
    drop(stream);
    echo.join().expect("thread of the loopback");
    times
}
