//! The HTTP side of the API: a unix socket, the routes, and the answers in the exact shape that clients of
//! Cloud Hypervisor parse.
//!
//! In: HTTP/1.1 requests. Out: [`ApiRequest`]s, and answers. Never: a decision about the VM.
//!
//! The shape, all of it checked by `tests/http.rs`: empty reason phrase, title-case header names, exact
//! Content-Length, no length and no type on 204, a JSON array of strings (outermost to root cause) as the
//! body of an error, unless a client asks for another one.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use host_kit::sandbox::Needs;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use pollux_api::problem::{Blame, Problem};
use pollux_api::routes::{self, BASE, Body, Route};
use pollux_api::vm::{CH_VERSION, Ping};
use tokio::sync::oneshot;
use tokio::time::error::Elapsed;

use super::answer::{Answer, ErrorShape};
use super::audit::{Audit, Client};
use super::ft::absent;
use super::seats::{Noted, REQUEST_LIMIT, SEATS_MAX, Seat, Seats, USER_SEATS_MAX};
use super::{ApiError, ApiReply, ApiRequest, Shared, VmmError};
use crate::ft_api::{Call, Control};
use host_kit::warn_limited;

/// Longest body of a request, in bytes; as in Cloud Hypervisor.
const BODY_MAX: usize = 51200;
/// So much of a longer body is read before it is refused, so that its sender gets to the answer.
const DRAINED_MAX: usize = 16 << 20;
/// It listens to clients, and to threads of its own, which wait for the engine and for name servers, and
/// looks at the certificates whose end the status tells.
const NEEDS: Needs =
    Needs::ACCEPT.union(Needs::MESSAGES).union(Needs::THREADS).union(Needs::NAMES).union(Needs::NETWORK);
/// Longest head of a request, in bytes.
const HEAD_MAX: usize = 32 << 10;
/// How long a name server may take to tell the address of a peer.
const NAMES_LIMIT: Duration = Duration::from_secs(10);
/// What `vm.counters` calls the audit log.
const AUDIT_ID: &str = "__audit";
/// How long clients get to take their last answer when the VMM ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The running server. Dropping it sends the answers that are due, then ends it.
#[derive(Debug)]
pub struct HttpServer {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves `listener`, which must be non-blocking, in a thread of its own. What clients have it do is
    /// noted in `audit`.
    ///
    /// # Errors
    /// When the system has no thread or no epoll for it.
    pub fn start(listener: UnixListener, shared: Arc<Shared>, audit: Audit) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::from_std(listener)?
        };
        let thread = host_kit::thread::spawn("http-server", NEEDS, move || {
            runtime.block_on(async move {
                let graceful = Arc::new(GracefulShutdown::new());
                let accepting = tokio::spawn(accept(listener, Served { shared, audit }, Arc::clone(&graceful)));
                // Only ever answered by being dropped.
                let _ = ended.await;
                accepting.abort();
                let _ = accepting.await;
                if let Ok(graceful) = Arc::try_unwrap(graceful)
                    && tokio::time::timeout(FAREWELL, graceful.shutdown()).await.is_err()
                {
                    tracing::debug!("a client did not take its last answer in time");
                }
            });
            // A call that still waits for somebody else, on a thread of its own, does not hold up the end of
            // this process.
            runtime.shutdown_background();
        })?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API thread has panicked");
        }
    }
}

/// What every connection needs.
#[derive(Clone, Debug)]
struct Served {
    shared: Arc<Shared>,
    audit: Audit,
}

async fn accept(listener: tokio::net::UnixListener, served: Served, graceful: Arc<GracefulShutdown>) {
    let seats = Seats::default();
    loop {
        let accepted = match listener.accept().await {
            Ok((stream, _)) => client_of(&stream).map(|client| (stream, client)),
            Err(error) => Err(error),
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly too many open files: give those that are served time to end.
                warn_limited!("an API connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(seat) = seats.take(client.uid) else {
            warn_limited!(
                "an API connection of user {} was closed: more than {} of one user, or {} of all, at once",
                client.uid,
                2 * USER_SEATS_MAX,
                2 * SEATS_MAX
            );
            continue;
        };
        let connected = Connected { served: served.clone(), client, seat: seat.clone() };
        let service = service_fn(move |request| {
            let connected = connected.clone();
            async move { Ok::<_, Infallible>(connected.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .title_case_headers(true)
            .auto_date_header(false)
            .keep_alive(!seat.is_refused())
            .half_close(true)
            .max_buf_size(HEAD_MAX)
            .serve_connection(TokioIo::new(Noted::new(stream, seat.clone())), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!("an API connection ended: {error}");
                },
                () = seat.must_leave() => tracing::debug!("an API connection was closed: its client kept it waiting"),
            }
        });
    }
}

/// Who is at the other end, as the kernel noted when it connected.
fn client_of(stream: &tokio::net::UnixStream) -> io::Result<Client> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().unwrap_or_default();
    // It may have ended, or be somebody else's by now: a name is a hint.
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim_end().to_owned());
    Ok(Client { pid, uid: credentials.uid(), gid: credentials.gid(), comm })
}

fn busy() -> Answer {
    let text = format!("more than {USER_SEATS_MAX} connections of one user, or {SEATS_MAX} of all, at once");
    Answer::Failed(Box::new(Problem::new(503, "busy", Blame::Host, text)))
}

fn too_slow() -> Answer {
    let text = format!("the body has not come within {} s", REQUEST_LIMIT.as_secs());
    let problem = Problem::new(408, "request-timeout", Blame::Request, "Request Timeout");
    Answer::Failed(Box::new(problem.because(vec![text])))
}

/// A connection, and who is at its other end.
#[derive(Clone, Debug)]
struct Connected {
    served: Served,
    client: Client,
    seat: Seat,
}

impl Connected {
    async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let seat = self.seat.clone();
        seat.has_head();
        let (head, body) = request.into_parts();
        let closes = head.headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        let shape = ErrorShape::of(&head.headers);
        // All of it before anything is answered: whoever still sends when the connection is closed never
        // reads why.
        let body = tokio::time::timeout(REQUEST_LIMIT, receive(body)).await;
        seat.has_request();
        // A client that leaves does not end what it has begun, nor keep it out of the log, and has its seat
        // until then.
        let answer = tokio::spawn(self.handle(head, body)).await;
        let mut response = answer.unwrap_or_else(|_| panicked()).into_response(shape);
        seat.has_answer();
        if !closes {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        response
    }

    /// Refuses a request or has it performed, and has either logged.
    async fn handle(self, head: Parts, body: Result<Result<Vec<u8>, String>, Elapsed>) -> Answer {
        let (audit, shared) = (&self.served.audit, &self.served.shared);
        let received = body.as_ref().ok().and_then(|body| body.as_ref().ok()).map(Vec::as_slice).unwrap_or_default();
        let asked = || audit.asked(&self.client, head.method.as_str(), head.uri.path(), received);
        let route = match &body {
            Err(_) => Err(too_slow()),
            _ if self.seat.is_refused() => Err(busy()),
            Ok(Err(text)) => Err(Answer::bad_request(Some(text.clone()))),
            Ok(Ok(body)) => route(&head, body),
        };
        match route {
            Err(answer) => {
                audit.refused(asked(), answer.status(), answer.code()).await;
                answer
            }
            Ok(route) if route.method() == routes::Method::Get => perform(route, received, shared, audit).await,
            Ok(route) => {
                let asked = asked();
                audit.begun(asked.as_ref()).await;
                let answer = perform(route, received, shared, audit).await;
                audit.ended(asked, answer.status(), answer.code()).await;
                answer
            }
        }
    }
}

fn panicked() -> Answer {
    Answer::Failed(Box::new(Problem::new(500, "internal", Blame::Internal, "The request could not be handled")))
}

/// Calls that Cloud Hypervisor has and this VMM has not, and what to do instead.
const NOT_HERE: [(&str, &[&str]); 4] = [
    (
        "devices cannot be added or removed; name them all in vm.create",
        &[
            "add-device",
            "add-disk",
            "add-fs",
            "add-generic-vhost-user",
            "add-net",
            "add-pmem",
            "add-user-device",
            "add-vdpa",
            "add-vsock",
            "remove-device",
        ],
    ),
    ("sizes cannot be changed; give them to vm.create", &["resize", "resize-disk", "resize-zone"]),
    ("there are no snapshots; ft.protect keeps a copy on another host", &["snapshot", "restore", "coredump"]),
    ("there is no live migration; ft.protect and ft.switchover move a VM", &["send-migration", "receive-migration"]),
];

/// A path that names nothing we do.
fn unknown(path: &str) -> Answer {
    let call = path.strip_prefix(BASE).and_then(|path| path.strip_prefix("vm.")).unwrap_or_default();
    match NOT_HERE.iter().find(|(_, calls)| calls.contains(&call)) {
        Some((hint, _)) => {
            let title = format!("Pollux does not support vm.{call}");
            let problem = Problem::new(500, "not-supported", Blame::Request, title);
            Answer::Refused(Box::new(problem.because(vec![(*hint).to_owned()])))
        }
        None => Answer::not_found(),
    }
}

/// The whole body, or why there is none.
async fn receive(mut body: Incoming) -> Result<Vec<u8>, String> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        length += data.len();
        if length <= BODY_MAX {
            bytes.extend_from_slice(&data);
        } else if length > DRAINED_MAX {
            break;
        }
    }
    if length <= BODY_MAX { Ok(bytes) } else { Err(format!("the body is longer than {BODY_MAX} bytes")) }
}

/// What a request asks for, or why its form is wrong.
fn route(head: &Parts, body: &[u8]) -> Result<Route, Answer> {
    let method = match head.method {
        Method::GET => routes::Method::Get,
        Method::PUT => routes::Method::Put,
        _ => return Err(Answer::bad_request(None)),
    };
    let path = head.uri.path();
    let Some(route) = path.strip_prefix(BASE).and_then(Route::named).filter(|_| head.uri.query().is_none()) else {
        return Err(unknown(path));
    };
    match route.body() {
        _ if method != route.method() => Err(Answer::bad_request(None)),
        Body::None if !body.is_empty() => Err(Answer::bad_request(None)),
        Body::Required if body.is_empty() => Err(Answer::NoBody),
        Body::None | Body::Optional | Body::Required => Ok(route),
    }
}

/// Does what a request asks for, whose form has been looked at.
async fn perform(route: Route, body: &[u8], shared: &Shared, audit: &Audit) -> Answer {
    let request = match route {
        Route::VmmPing => return Answer::json(&ping()),
        Route::VmInfo => return info(shared),
        Route::FtStatus => return ft_query(shared, |ft| Answer::json(&ft.status())),
        Route::FtEvents => return ft_query(shared, |ft| Answer::json(&ft.events())),
        Route::FtProtect => return protect(shared, body.to_vec()).await,
        Route::FtStop => return ft_call(shared, Call::Stop).await,
        Route::FtSuspend => return ft_call(shared, Call::Suspend).await,
        Route::FtResume => return ft_call(shared, Call::Resume).await,
        Route::FtSwitchover => return ft_call(shared, Call::Switchover).await,
        Route::FtTestFailover => return ft_call(shared, Call::TestFailover).await,
        Route::VmCreate => match serde_json::from_slice(body) {
            Ok(config) => ApiRequest::Create(config),
            Err(error) => return Answer::not_deserialized(&error),
        },
        Route::VmCounters => ApiRequest::Counters,
        Route::VmmShutdown => ApiRequest::VmmShutdown,
        Route::VmBoot => ApiRequest::Boot,
        Route::VmShutdown => ApiRequest::Shutdown,
        Route::VmReboot => ApiRequest::Reboot,
        Route::VmDelete => ApiRequest::Delete,
        Route::VmPause => ApiRequest::Pause,
        Route::VmResume => ApiRequest::Resume,
        Route::VmPowerButton => ApiRequest::PowerButton,
        Route::VmNmi => ApiRequest::Nmi,
    };
    forward(shared, audit, request).await
}

async fn forward(shared: &Shared, audit: &Audit, request: ApiRequest) -> Answer {
    let ends = request == ApiRequest::VmmShutdown;
    match shared.call(request).await {
        Ok(ApiReply::Counters(mut counters)) => {
            let own = audit.counters().map(|own| own.map(|(name, count)| (name.to_owned(), count)).into());
            counters.extend(own.map(|own| (AUDIT_ID.to_owned(), own)));
            Answer::json(&counters)
        }
        Ok(ApiReply::Done) if ends => Answer::Empty,
        Ok(ApiReply::Done) => Answer::Done,
        Err(error) => failed(&error),
    }
}

async fn ft_call(shared: &Shared, call: Call) -> Answer {
    match super::ft::call(shared, call).await {
        Ok(()) => Answer::Done,
        Err(error) => failed(&error),
    }
}

/// By the peers that the VMM was started with, unless the body names one. To read the body may mean to ask a
/// name server for the peer's address, which takes its time: others are served meanwhile.
async fn protect(shared: &Shared, body: Vec<u8>) -> Answer {
    if body.is_empty() {
        return ft_call(shared, Call::Protect(None)).await;
    }
    let read = tokio::task::spawn_blocking(move || serde_json::from_slice(&body));
    match tokio::time::timeout(NAMES_LIMIT, read).await {
        Ok(Ok(Ok(options))) => ft_call(shared, Call::Protect(Some(options))).await,
        Ok(Ok(Err(error))) => Answer::not_deserialized(&error),
        Ok(Err(_)) | Err(_) => failed(&ApiError::because("The VM is not protected", VmmError::NameServer)),
    }
}

fn failed(error: &ApiError) -> Answer {
    Answer::Refused(Box::new(error.problem()))
}

fn ping() -> Ping {
    Ping {
        build_version: format!("v{CH_VERSION}-pollux-{}", env!("CARGO_PKG_VERSION")),
        features: ["kvm", "ft"].map(str::to_owned).into(),
        pid: std::process::id(),
        version: CH_VERSION.to_owned(),
    }
}

fn info(shared: &Shared) -> Answer {
    match &shared.snapshot().vm {
        Some(vm) => Answer::json(vm),
        None => failed(&ApiError::because("The VM info is not available", VmmError::NotCreated)),
    }
}

fn ft_query(shared: &Shared, show: impl FnOnce(&dyn Control) -> Answer) -> Answer {
    let snapshot = shared.snapshot();
    match &snapshot.ft {
        Some(ft) => show(&**ft),
        None => failed(&ApiError::because("The protection status is not available", absent(&snapshot))),
    }
}
