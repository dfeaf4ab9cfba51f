//! One request to the VMM at a time, each on a connection of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use pollux_api::problem::{MEDIA_TYPE, Problem};
use pollux_api::routes::{Method as RouteMethod, Route};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::plain;

/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 16 << 20;
/// A VMM answers queries at once, whatever else it does.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
/// What it is asked to do may take as long as its slowest host, disk or witness; but not for ever.
const CHANGE_LIMIT: Duration = Duration::from_secs(600);

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No VMM listens there.
    #[error("cannot connect to the API socket {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The VMM does not answer.
    #[error("the VMM has not answered within {} s", .0.as_secs())]
    Silent(Duration),
    /// Nor when it was to do something.
    #[error("the VMM has not answered within {} s: whether it has done what it was asked for is unknown", .0.as_secs())]
    Undecided(Duration),
    /// The connection broke.
    #[error("the connection to the VMM broke: {0}")]
    Broken(String),
    /// The VMM refuses.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer is not what it should be.
    #[error("the VMM's answer is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    /// This machine does not let us.
    #[error("cannot start: {0}")]
    Local(io::Error),
}

/// A client of one API socket.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
    query_limit: Duration,
    change_limit: Duration,
}

impl Client {
    /// A client of the socket at `path`; connects with the first request.
    ///
    /// # Errors
    /// When the system has no epoll for us.
    pub fn new(path: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Local)?;
        Ok(Self { socket: path.to_owned(), runtime, query_limit: QUERY_LIMIT, change_limit: CHANGE_LIMIT })
    }

    /// The JSON that a route answers.
    ///
    /// # Errors
    /// When the VMM is not there or refuses.
    pub fn get(&self, route: Route) -> Result<Value, ClientError> {
        let limit = self.query_limit;
        let answer = self.exchange_within(limit, route, Vec::new());
        Ok(serde_json::from_slice(&answer.unwrap_or(Err(ClientError::Silent(limit)))?)?)
    }

    /// As [`Self::get`], for people: without anything that a terminal obeys.
    ///
    /// # Errors
    /// When the VMM is not there or refuses.
    pub fn look(&self, route: Route) -> Result<Value, ClientError> {
        self.get(route).map(plain::value)
    }

    /// Has a route do something; waits until it is done.
    ///
    /// # Errors
    /// When the VMM is not there, refuses, or takes too long.
    pub fn put(&self, route: Route, body: Vec<u8>) -> Result<(), ClientError> {
        let limit = self.change_limit;
        let answer = self.exchange_within(limit, route, body);
        answer.unwrap_or(Err(ClientError::Undecided(limit))).map(|_| ())
    }

    /// `None`: the answer has not come in time.
    fn exchange_within(&self, limit: Duration, route: Route, body: Vec<u8>) -> Option<Result<Bytes, ClientError>> {
        self.runtime.block_on(async { tokio::time::timeout(limit, self.exchange(route, body)).await.ok() })
    }

    async fn exchange(&self, route: Route, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let method = match route.method() {
            RouteMethod::Get => Method::GET,
            RouteMethod::Put => Method::PUT,
        };
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let connect = |source| ClientError::Connect { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(route.path()).header(HOST, "localhost");
        let request = request.header(ACCEPT, format!("application/json, {MEDIA_TYPE}"));
        let request = request.header(CONTENT_LENGTH, body.len()).body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| ClientError::Broken(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let is_problem = answer.headers().get(CONTENT_TYPE).is_some_and(|media_type| media_type == MEDIA_TYPE);
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes();
        driver.abort();
        if status.is_success() { Ok(body) } else { Err(refused(status, is_problem, &body)?) }
    }
}

/// What the body of an error says: a [`Problem`], a JSON array of strings, or any text.
fn refused(status: StatusCode, is_problem: bool, body: &[u8]) -> Result<ClientError, ClientError> {
    let problem = if is_problem {
        serde_json::from_slice(body)?
    } else {
        let sentences = serde_json::from_slice::<Vec<String>>(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(body).trim().to_owned();
            let number = format!("status {}", status.as_u16());
            if text.is_empty() { vec![number] } else { vec![number, text] }
        });
        Problem::from_sentences(status.as_u16(), sentences)
    };
    Ok(ClientError::Refused(Box::new(made_plain(problem))))
}

/// Without anything that a terminal obeys.
fn made_plain(problem: Problem) -> Problem {
    Problem {
        title: plain::text(&problem.title),
        code: plain::text(&problem.code),
        reasons: problem.reasons.iter().map(|reason| plain::text(reason)).collect(),
        blockers: problem.blockers.iter().map(plain::blocker).collect(),
        hint: problem.hint.as_deref().map(plain::text),
        ..problem
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_vmm_that_does_not_answer_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        // It accepts, and says nothing.
        let _silent = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path).unwrap();
        let limit = Duration::from_millis(10);
        let client = Client { query_limit: limit, change_limit: limit, ..client };
        assert!(matches!(client.put(Route::VmPause, Vec::new()), Err(ClientError::Undecided(_))));
        assert!(matches!(client.get(Route::VmInfo), Err(ClientError::Silent(_))));
    }
}
