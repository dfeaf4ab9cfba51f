//! The HTTP side of the API: a unix socket, the routes, and the answers in the exact shape that clients of Cloud Hypervisor
//! parse.
//!
//! In: HTTP/1.1 requests. Out: [`ApiRequest`]s, and answers. Never: a decision about the VM.
//!
//! The shape, all of it checked by `tests/http.rs`: empty reason phrase, title-case header names, exact Content-Length, no
//! length and no type on 204, a JSON array of strings (outermost to root cause) as the body of an error.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::ft::{FtCall, absent};
use super::seats::{Noted, REQUEST_LIMIT, SEATS_MAX, Seat, Seats};
use super::{ApiError, ApiReply, ApiRequest, CH_VERSION, Shared, VmmError};
use host_kit::warn_limited;

/// Longest body of a request, in bytes; as in Cloud Hypervisor.
const BODY_MAX: usize = 51200;
/// So much of a longer body is read before it is refused, so that its sender gets to the answer.
const DRAINED_MAX: usize = 16 << 20;
/// How long clients get to take their last answer when the VMM ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// What every path starts with.
const BASE: &str = "/api/v1/";

/// The running server. Dropping it sends the answers that are due, then ends it.
#[derive(Debug)]
pub struct HttpServer {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves `listener`, which must be non-blocking, in a thread of its own.
    ///
    /// # Errors
    /// When the system has no thread or no epoll for it.
    pub fn start(listener: UnixListener, shared: Arc<Shared>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::from_std(listener)?
        };
        let thread = host_kit::thread::spawn("http-server", move || {
            runtime.block_on(async move {
                let graceful = Arc::new(GracefulShutdown::new());
                let accepting = tokio::spawn(accept(listener, shared, Arc::clone(&graceful)));
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
            // A call that still waits for somebody else, on a thread of its own, does not hold up the end of this process.
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

async fn accept(listener: tokio::net::UnixListener, shared: Arc<Shared>, graceful: Arc<GracefulShutdown>) {
    let seats = Seats::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly too many open files: give those that are served time to end.
                warn_limited!("an API connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(seat) = seats.take() else {
            warn_limited!("an API connection was closed: more than {} at once", 2 * SEATS_MAX);
            continue;
        };
        let (shared, seated) = (Arc::clone(&shared), seat.clone());
        let service = service_fn(move |request| {
            let (shared, seat) = (Arc::clone(&shared), seated.clone());
            async move { Ok::<_, Infallible>(answer(request, &shared, &seat).await) }
        });
        let connection = http1::Builder::new()
            .title_case_headers(true)
            .auto_date_header(false)
            .keep_alive(!seat.is_refused())
            .half_close(true)
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

/// An answer before it is put into its final shape.
enum Answer {
    /// 200 with JSON.
    Json(Vec<u8>),
    /// 200 without a body: `vmm.shutdown`.
    Empty,
    /// 204.
    Done,
    /// An error: its status and its chain. Without a chain the body is empty.
    Failed(StatusCode, Vec<String>),
}

impl Answer {
    fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(text) => Self::Json(text),
            Err(error) => Self::Failed(
                StatusCode::INTERNAL_SERVER_ERROR,
                vec!["Failed to serialize JSON".to_owned(), error.to_string()],
            ),
        }
    }

    fn bad_request() -> Self {
        Self::Failed(StatusCode::BAD_REQUEST, vec!["Bad Request".to_owned()])
    }

    fn not_found() -> Self {
        Self::Failed(StatusCode::NOT_FOUND, vec!["Not Found".to_owned()])
    }

    fn api_error(text: Vec<String>, status: StatusCode) -> Self {
        Self::Failed(status, std::iter::once("Error from API".to_owned()).chain(text).collect())
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let (status, body) = match self {
            Self::Json(text) => (StatusCode::OK, text),
            Self::Empty => (StatusCode::OK, Vec::new()),
            Self::Done => (StatusCode::NO_CONTENT, Vec::new()),
            Self::Failed(status, texts) if texts.is_empty() => (status, Vec::new()),
            Self::Failed(status, texts) => (status, json!(texts).to_string().into_bytes()),
        };
        let typed = !body.is_empty();
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        // `ch-remote` takes all that follows "HTTP/1.1 " for a number.
        response.extensions_mut().insert(ReasonPhrase::from_static(b""));
        response.headers_mut().insert(SERVER, HeaderValue::from_static("Cloud Hypervisor API"));
        if typed {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        response
    }
}

fn busy() -> Answer {
    let text = format!("more than {SEATS_MAX} connections at once");
    Answer::Failed(StatusCode::SERVICE_UNAVAILABLE, vec![text])
}

async fn answer(request: Request<Incoming>, shared: &Shared, seat: &Seat) -> Response<Full<Bytes>> {
    seat.has_head();
    let closes = request.headers().get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let (head, body) = request.into_parts();
    // All of it before anything is answered: whoever still sends when the connection is closed never reads why.
    let body = tokio::time::timeout(REQUEST_LIMIT, receive(body)).await;
    seat.has_request();
    let answer = match body {
        Err(_) => {
            let text = format!("the body has not come within {} s", REQUEST_LIMIT.as_secs());
            Answer::Failed(StatusCode::REQUEST_TIMEOUT, vec!["Request Timeout".to_owned(), text])
        }
        _ if seat.is_refused() => busy(),
        Ok(Err(text)) => Answer::Failed(StatusCode::BAD_REQUEST, vec!["Bad Request".to_owned(), text]),
        Ok(Ok(body)) => dispatch(&head, &body, shared).await,
    };
    let mut response = answer.into_response();
    seat.has_answer();
    if !closes {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    response
}

/// What a path names.
enum Route {
    Ping,
    Info,
    FtStatus,
    FtEvents,
    Counters,
    Create,
    VmmShutdown,
    FtProtect,
    /// A change without parameters.
    Plain(ApiRequest),
    /// As above, of the engine.
    Ft(FtCall),
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix(BASE)? {
            "vmm.ping" => Self::Ping,
            "vmm.shutdown" => Self::VmmShutdown,
            "vm.info" => Self::Info,
            "vm.counters" => Self::Counters,
            "vm.create" => Self::Create,
            "vm.boot" => Self::Plain(ApiRequest::Boot),
            "vm.shutdown" => Self::Plain(ApiRequest::Shutdown),
            "vm.reboot" => Self::Plain(ApiRequest::Reboot),
            "vm.delete" => Self::Plain(ApiRequest::Delete),
            "vm.pause" => Self::Plain(ApiRequest::Pause),
            "vm.resume" => Self::Plain(ApiRequest::Resume),
            "vm.power-button" => Self::Plain(ApiRequest::PowerButton),
            // The second is what the client library on crates.io asks for.
            "vm.nmi" | "vmm.nmi" => Self::Plain(ApiRequest::Nmi),
            "ft.status" => Self::FtStatus,
            "ft.events" => Self::FtEvents,
            "ft.protect" => Self::FtProtect,
            "ft.stop" => Self::Ft(FtCall::Stop),
            "ft.suspend" => Self::Ft(FtCall::Suspend),
            "ft.resume" => Self::Ft(FtCall::Resume),
            "ft.switchover" => Self::Ft(FtCall::Switchover),
            "ft.test-failover" => Self::Ft(FtCall::TestFailover),
            _ => return None,
        })
    }

    fn method(&self) -> Method {
        match self {
            Self::Ping | Self::Info | Self::FtStatus | Self::FtEvents | Self::Counters => Method::GET,
            Self::Create | Self::VmmShutdown | Self::FtProtect | Self::Plain(_) | Self::Ft(_) => Method::PUT,
        }
    }
}

/// Calls that Cloud Hypervisor has and this VMM has not, and the way out.
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
        Some((way_out, _)) => {
            let texts = vec![format!("Pollux does not support vm.{call}"), (*way_out).to_owned()];
            Answer::api_error(texts, StatusCode::INTERNAL_SERVER_ERROR)
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

async fn dispatch(head: &Parts, body: &[u8], shared: &Shared) -> Answer {
    if head.method != Method::GET && head.method != Method::PUT {
        return Answer::bad_request();
    }
    let Some(route) = Route::of(head.uri.path()).filter(|_| head.uri.query().is_none()) else {
        return unknown(head.uri.path());
    };
    if head.method != route.method() {
        return Answer::bad_request();
    }
    let request = match route {
        Route::Create if body.is_empty() => return Answer::Failed(StatusCode::BAD_REQUEST, Vec::new()),
        // By the peers that the VMM was started with.
        Route::FtProtect if body.is_empty() => return ft_call(shared, FtCall::Protect(None)).await,
        Route::Create => serde_json::from_slice(body).map(ApiRequest::Create),
        Route::FtProtect => match serde_json::from_slice(body) {
            Ok(options) => return ft_call(shared, FtCall::Protect(Some(options))).await,
            Err(error) => Err(error),
        },
        _ if !body.is_empty() => return Answer::bad_request(),
        Route::Ping => return ping(),
        Route::Info => return info(shared),
        Route::FtStatus | Route::FtEvents => return ft_query(shared, &route),
        Route::Counters => Ok(ApiRequest::Counters),
        Route::VmmShutdown => Ok(ApiRequest::VmmShutdown),
        Route::Plain(request) => Ok(request),
        Route::Ft(call) => return ft_call(shared, call).await,
    };
    match request {
        Ok(request) => forward(shared, request).await,
        Err(error) => {
            Answer::Failed(StatusCode::BAD_REQUEST, vec!["Failed to deserialize JSON".to_owned(), error.to_string()])
        }
    }
}

async fn forward(shared: &Shared, request: ApiRequest) -> Answer {
    let ends = request == ApiRequest::VmmShutdown;
    match shared.call(request).await {
        Ok(ApiReply::Counters(counters)) => Answer::json(&counters),
        Ok(ApiReply::Done) if ends => Answer::Empty,
        Ok(ApiReply::Done) => Answer::Done,
        Err(error) => failed(&error),
    }
}

async fn ft_call(shared: &Shared, call: FtCall) -> Answer {
    match super::ft::call(shared, call).await {
        Ok(()) => Answer::Done,
        Err(error) => failed(&error),
    }
}

fn failed(error: &ApiError) -> Answer {
    let status = match error.reason() {
        VmmError::NotCreated => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let texts = match error.reason() {
        // A list, not a chain: every reason is one string.
        VmmError::Ft(reasons) => std::iter::once(error.to_string()).chain(reasons.iter().cloned()).collect(),
        _ => host_kit::error::causes(error),
    };
    Answer::api_error(texts, status)
}

fn ping() -> Answer {
    Answer::json(&json!({
        "build_version": format!("v{CH_VERSION}-pollux-{}", env!("CARGO_PKG_VERSION")),
        "version": CH_VERSION,
        "pid": std::process::id(),
        "features": ["kvm", "ft"],
    }))
}

fn info(shared: &Shared) -> Answer {
    match &shared.snapshot().vm {
        Some(vm) => Answer::json(vm),
        None => {
            let texts = vec!["The VM info is not available".to_owned(), VmmError::NotCreated.to_string()];
            Answer::api_error(texts, StatusCode::NOT_FOUND)
        }
    }
}

fn ft_query(shared: &Shared, route: &Route) -> Answer {
    let snapshot = shared.snapshot();
    match &snapshot.ft {
        Some(ft) if matches!(route, Route::FtEvents) => Answer::json(&ft.events()),
        Some(ft) => Answer::json(&ft.status()),
        None => failed(&ApiError { failure: "The protection status is not available", source: absent(&snapshot) }),
    }
}
