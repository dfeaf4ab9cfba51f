//! The control socket to one device process: commands out, reports in, in datagrams.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use device_api::client::Client;
use device_api::link;
use ft_proto::Epoch;
use ft_proto::device_ctl::{Command, Report};

use crate::guest::device::LinkEnd;

/// A device process cannot be controlled any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Its end of the socket is closed.
    #[error("device process of {0} is gone")]
    Gone(String),
    /// It sent something that is not a report.
    #[error("device process of {id} sent a malformed report")]
    Malformed {
        /// The device.
        id: String,
        /// What it sent.
        #[source]
        source: link::LinkError,
    },
    /// It did not answer in time.
    #[error("device process of {id} did not answer within {limit:?}")]
    Silent {
        /// The device.
        id: String,
        /// How long we waited.
        limit: Duration,
    },
    /// It reported that it cannot go on.
    #[error("device {id} failed: {reason}")]
    Failed {
        /// The device.
        id: String,
        /// In its own words.
        reason: String,
    },
    /// The socket failed.
    #[error("control socket of {id} failed")]
    Socket {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One device process.
#[derive(Debug)]
pub struct DeviceLink {
    id: String,
    client: Client,
    /// Reports that arrived while another one was waited for.
    early: VecDeque<Report>,
    /// Sessions that were dropped and whose end the device has not confirmed.
    dropped: u32,
}

impl DeviceLink {
    /// Takes over a connected socket on which `Hello` was answered.
    #[must_use]
    pub fn new(end: LinkEnd) -> Self {
        Self { id: end.id, client: Client::new(end.socket), early: VecDeque::new(), dropped: 0 }
    }

    /// Id of the device.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sends a command, with a descriptor where the command has one.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn send(&mut self, command: &Command, fd: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        self.client.send(command, fd).map_err(|error| broken(&self.id, error))
    }

    /// Drops what the device holds of a session. What it still reports of that session is not passed on:
    /// epochs of the next one have the same numbers.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn drop_session(&mut self) -> Result<(), LinkError> {
        self.send(&Command::Discard { after: Epoch(0) }, None)?;
        self.dropped += 1;
        self.early.retain(|report| !is_of_a_session(report));
        Ok(())
    }

    /// The next report, if there is one.
    ///
    /// # Errors
    /// When the process is gone or sends nonsense.
    pub fn try_recv(&mut self) -> Result<Option<Report>, LinkError> {
        self.early().map_or_else(|| self.recv_now(), |report| Ok(Some(report)))
    }

    /// Waits for the report that `wanted` picks; others are kept for `try_recv`.
    ///
    /// # Errors
    /// When the process is gone, fails, or `limit` is over.
    pub fn wait_for<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(Report) -> Result<T, Report>,
    ) -> Result<T, LinkError> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(report) = self.recv_now()? {
                match wanted(report) {
                    Ok(value) => return Ok(value),
                    Err(Report::Failed { reason }) => return Err(LinkError::Failed { id: self.id.clone(), reason }),
                    Err(other) => self.early.push_back(other),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Silent { id: self.id.clone(), limit });
            }
            self.client.wait(left).map_err(|error| broken(&self.id, error))?;
        }
    }

    /// A report that waits although a poll on the socket does not show it.
    pub(crate) fn early(&mut self) -> Option<Report> {
        self.early.pop_front()
    }

    fn recv_now(&mut self) -> Result<Option<Report>, LinkError> {
        loop {
            match self.recv_any()? {
                Some(Report::Discarded) if self.dropped > 0 => self.dropped -= 1,
                Some(report) if self.dropped > 0 && is_of_a_session(&report) => {}
                other => return Ok(other),
            }
        }
    }

    fn recv_any(&mut self) -> Result<Option<Report>, LinkError> {
        self.client.receive().map_err(|error| broken(&self.id, error))
    }
}

impl AsFd for DeviceLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

fn is_of_a_session(report: &Report) -> bool {
    matches!(report, Report::Complete { .. } | Report::InSync | Report::MirrorLost { .. } | Report::Resync { .. })
}

fn broken(id: &str, error: link::LinkError) -> LinkError {
    let id = id.to_owned();
    match error {
        link::LinkError::Closed => LinkError::Gone(id),
        link::LinkError::Socket(source) => LinkError::Socket { id, source },
        source => LinkError::Malformed { id, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::DeviceCaps;

    #[test]
    fn reports_of_a_dropped_session_do_not_reach_the_next_one() {
        let (device, ours) = link::Link::pair().unwrap();
        let mut link = DeviceLink::new(LinkEnd { id: "disk".to_owned(), caps: DeviceCaps::default(), socket: ours });
        let say = |report: Report| device.send(&report, None).unwrap();
        say(Report::Complete { epoch: Epoch(7) });
        link.drop_session().unwrap();
        say(Report::MirrorLost { reason: "closed".to_owned() });
        assert_eq!(link.try_recv().unwrap(), None);
        say(Report::Failed { reason: "disk full".to_owned() });
        say(Report::Discarded);
        say(Report::Complete { epoch: Epoch(1) });
        assert_eq!(link.try_recv().unwrap(), Some(Report::Failed { reason: "disk full".to_owned() }));
        assert_eq!(link.try_recv().unwrap(), Some(Report::Complete { epoch: Epoch(1) }));
    }
}
