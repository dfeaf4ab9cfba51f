//! Tells in time that this host's certificate expires: by an event 30 and 7 days before, and when it has.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use host_kit::sandbox::Needs;
use pollux_api::event::EventName;
use serde_json::json;

use super::tls::{PeerTls, WARN_DAYS, expiry_warning};
use crate::status::Board;

/// Between two looks at the certificate.
const AGAIN: Duration = Duration::from_secs(3600);

/// The thread that looks; dropping it ends it.
#[derive(Debug)]
pub(crate) struct ExpiryWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ExpiryWatch {
    /// Looks at the certificate now and then, and tells `board` of it. Without TLS there is nothing to look
    /// at.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn start(tls: PeerTls, board: Board) -> io::Result<Option<Self>> {
        if !matches!(tls.credentials(), Ok(Some(_))) {
            return Ok(None);
        }
        let (stop, stopped) = bounded(0);
        let thread = host_kit::thread::spawn("ft-expiry", Needs::FILES, move || {
            let mut told = Stage::Valid;
            loop {
                if let Some(left) = tls.left() {
                    told = tell(told, left, &board);
                }
                if stopped.recv_timeout(AGAIN) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Some(Self { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for ExpiryWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How near the end of a certificate is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Stage {
    Valid,
    Weeks,
    Days,
    Expired,
}

impl Stage {
    fn of(left: Duration) -> Self {
        let within = |days: u64| left < Duration::from_secs(days * 86_400);
        match WARN_DAYS {
            _ if left.is_zero() => Self::Expired,
            [_, days] if within(days) => Self::Days,
            [weeks, _] if within(weeks) => Self::Weeks,
            _ => Self::Valid,
        }
    }
}

/// Each stage is told once; a renewed certificate begins anew.
fn tell(told: Stage, left: Duration, board: &Board) -> Stage {
    let stage = Stage::of(left);
    if stage > told
        && let Some(warning) = expiry_warning(left)
    {
        board.note(EventName::CertificateExpires, json!({ "days": left.as_secs() / 86_400, "hint": warning }));
    }
    stage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_told_once_and_again_after_a_renewal() {
        let board = Board::default();
        let mut told = Stage::Valid;
        for days in [40, 29, 29, 8, 6, 6, 0, 0, 365, 20] {
            told = tell(told, Duration::from_secs(days * 86_400), &board);
        }
        let days: Vec<_> = board.events().iter().map(|event| event.detail["days"].clone()).collect();
        assert_eq!(days, [29, 6, 0, 20]);
    }
}
