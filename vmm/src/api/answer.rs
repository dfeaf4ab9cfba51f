//! Answers in the exact shape that clients of Cloud Hypervisor parse, and errors in the richer one that other
//! clients ask for.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::ext::ReasonPhrase;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, SERVER};
use hyper::{Response, StatusCode};
use pollux_api::problem::{Blame, MEDIA_TYPE, Problem};
use serde::Serialize;

/// What programs know a missing body by.
const NO_BODY: &str = "no-body";

/// How a client wants errors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorShape {
    /// An array of sentences, as Cloud Hypervisor's.
    Sentences,
    /// A [`Problem`].
    Problem,
}

impl ErrorShape {
    /// What the headers of a request ask for.
    pub fn of(headers: &HeaderMap) -> Self {
        let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains(MEDIA_TYPE));
        if headers.get_all(ACCEPT).iter().any(accepts) { Self::Problem } else { Self::Sentences }
    }
}

/// An answer before it is put into its final shape.
#[derive(Debug)]
pub enum Answer {
    /// 200 with JSON.
    Json(Vec<u8>),
    /// 200 without a body: `vmm.shutdown`.
    Empty,
    /// 204.
    Done,
    /// An error of HTTP or JSON.
    Failed(Box<Problem>),
    /// An error of what was asked for.
    Refused(Box<Problem>),
    /// There is no body where one is needed. For clients of Cloud Hypervisor the answer has none either.
    NoBody,
}

impl Answer {
    /// A value, or why it cannot be shown.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(text) => Self::Json(text),
            Err(error) => {
                let problem = Problem::new(500, "not-serialized", Blame::Internal, "Failed to serialize JSON");
                Self::Failed(Box::new(problem.because(vec![error.to_string()])))
            }
        }
    }

    /// The request is none that this server understands.
    pub fn bad_request(reason: Option<String>) -> Self {
        let problem = Problem::new(400, "bad-request", Blame::Request, "Bad Request");
        Self::Failed(Box::new(problem.because(reason.into_iter().collect())))
    }

    /// The body is not the JSON that it should be.
    pub fn not_deserialized(error: &serde_json::Error) -> Self {
        let problem = Problem::new(400, "invalid-json", Blame::Request, "Failed to deserialize JSON");
        Self::Failed(Box::new(problem.because(vec![error.to_string()])))
    }

    /// There is no such path.
    pub fn not_found() -> Self {
        Self::Failed(Box::new(Problem::new(404, "not-found", Blame::Request, "Not Found")))
    }

    /// The status of its response.
    pub fn status(&self) -> u16 {
        match self {
            Self::Json(_) | Self::Empty => 200,
            Self::Done => 204,
            Self::NoBody => 400,
            Self::Failed(problem) | Self::Refused(problem) => problem.status,
        }
    }

    /// What programs know the error by, if it is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Json(_) | Self::Empty | Self::Done => None,
            Self::NoBody => Some(NO_BODY),
            Self::Failed(problem) | Self::Refused(problem) => Some(&problem.code),
        }
    }

    /// The response.
    pub fn into_response(self, shape: ErrorShape) -> Response<Full<Bytes>> {
        let (status, json) = (self.status(), "application/json");
        let (media_type, body) = match self {
            Self::Json(text) => (json, text),
            Self::Empty | Self::Done => (json, Vec::new()),
            Self::NoBody if shape == ErrorShape::Sentences => (json, Vec::new()),
            Self::NoBody => {
                let problem = Problem::new(status, NO_BODY, Blame::Request, "The request has no body");
                (MEDIA_TYPE, text_of(&problem))
            }
            Self::Failed(problem) | Self::Refused(problem) if shape == ErrorShape::Problem => {
                (MEDIA_TYPE, text_of(&problem))
            }
            Self::Failed(problem) => (json, text_of(&problem.sentences())),
            Self::Refused(problem) => {
                let sentences: Vec<_> = std::iter::once("Error from API").chain(problem.sentences()).collect();
                (json, text_of(&sentences))
            }
        };
        let typed = !body.is_empty();
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // `ch-remote` takes all that follows "HTTP/1.1 " for a number.
        response.extensions_mut().insert(ReasonPhrase::from_static(b""));
        response.headers_mut().insert(SERVER, HeaderValue::from_static("Cloud Hypervisor API"));
        if typed {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        response
    }
}

/// Sentences as JSON: nothing in them that could fail to be.
fn text_of(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
