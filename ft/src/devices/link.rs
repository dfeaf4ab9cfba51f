//! One device process as the engine sees it: commands out, reports in, and none of a session that is over.

use std::collections::VecDeque;
use std::time::Duration;

use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Report};

use super::control::{DeviceControl, LinkError};

/// One device process.
#[derive(Debug)]
pub struct DeviceLink<C> {
    control: C,
    /// Reports that arrived while another one was waited for.
    early: VecDeque<Report>,
    /// Sessions that were dropped and whose end the device has not confirmed.
    dropped: u32,
}

impl<C: DeviceControl> DeviceLink<C> {
    /// Takes over a device process that has answered `Hello`.
    #[must_use]
    pub fn new(control: C) -> Self {
        Self { control, early: VecDeque::new(), dropped: 0 }
    }

    /// Id of the device.
    #[must_use]
    pub fn id(&self) -> &str {
        self.control.id()
    }

    /// The way to it.
    pub(crate) fn control(&self) -> &C {
        &self.control
    }

    /// Sends a command, with a stream where the command has one.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn send(&mut self, command: &Command, stream: Option<&C::Stream>) -> Result<(), LinkError> {
        self.control.send(command, stream)
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
        let deadline = self.control.deadline(limit);
        loop {
            while let Some(report) = self.recv_now()? {
                match wanted(report) {
                    Ok(value) => return Ok(value),
                    Err(Report::Failed { reason }) => {
                        return Err(LinkError::Failed { id: self.id().to_owned(), reason });
                    }
                    Err(other) => self.early.push_back(other),
                }
            }
            if !self.control.wait(&deadline)? {
                return Err(LinkError::Silent { id: self.id().to_owned(), limit });
            }
        }
    }

    /// A report that waits although a poll on the socket does not show it.
    pub(crate) fn early(&mut self) -> Option<Report> {
        self.early.pop_front()
    }

    fn recv_now(&mut self) -> Result<Option<Report>, LinkError> {
        loop {
            match self.control.recv_now()? {
                Some(Report::Discarded) if self.dropped > 0 => self.dropped -= 1,
                Some(report) if self.dropped > 0 && is_of_a_session(&report) => {}
                other => return Ok(other),
            }
        }
    }
}

fn is_of_a_session(report: &Report) -> bool {
    matches!(report, Report::Complete { .. } | Report::InSync | Report::MirrorLost { .. } | Report::Resync { .. })
}

#[cfg(test)]
mod tests {
    use device_api::link;

    use super::super::socket::ControlSocket;
    use super::*;

    #[test]
    fn reports_of_a_dropped_session_do_not_reach_the_next_one() {
        let (device, ours) = link::Link::pair().unwrap();
        let mut link = DeviceLink::new(ControlSocket::new("disk".to_owned(), ours));
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
