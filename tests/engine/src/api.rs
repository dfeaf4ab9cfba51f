//! A client of the VMM's HTTP API on its unix socket, just enough for tests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// The API of one VMM.
#[derive(Clone)]
pub struct Api {
    socket: PathBuf,
}

/// What the API answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body; `Null` if there was none.
    pub body: Value,
}

impl Answer {
    /// The body of a success.
    ///
    /// # Panics
    /// With the whole answer if it is an error.
    pub fn ok(self) -> Value {
        assert!(self.status == 200 || self.status == 204, "API: {self:?}");
        self.body
    }
}

impl Api {
    /// The API at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// GET an endpoint such as `vm.info`.
    pub fn get(&self, endpoint: &str) -> Answer {
        self.request("GET", endpoint, None)
    }

    /// PUT to an endpoint such as `vm.pause`.
    pub fn put(&self, endpoint: &str, body: Option<&Value>) -> Answer {
        self.request("PUT", endpoint, body)
    }

    fn request(&self, method: &str, endpoint: &str, body: Option<&Value>) -> Answer {
        let mut stream =
            UnixStream::connect(&self.socket).unwrap_or_else(|error| panic!("{}: {error}", self.socket.display()));
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout of a socket");
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("send a request");
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            if let Some(answer) = parse(&answer) {
                return answer;
            }
            let len = stream.read(&mut part).unwrap_or_else(|error| panic!("{method} {endpoint}: {error}"));
            assert!(len > 0, "{method} {endpoint}: the API hung up: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..len]);
        }
    }
}

/// The answer in `bytes`, once it is complete.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let len =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |len| len.parse().unwrap_or(0));
    let body = body.get(..len)?;
    Some(Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null) })
}
