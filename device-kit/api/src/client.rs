//! The VMM's end of an ft-ctl link: commands out, reports in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ft_wire::device_ctl::{CTL_MAX, CTL_VERSION, Command, DeviceInfo, Report};
use nix::poll::PollTimeout;

use crate::link::{Link, LinkError};

/// What errors call a message of a device.
const REPORT: &str = "report";

/// Why a device process was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// It is gone, or does not speak this protocol.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// It cannot serve.
    #[error("{0}")]
    Failed(String),
    /// It speaks another version of the protocol.
    #[error("it speaks version {0} of ft-ctl, this VMM {CTL_VERSION}")]
    Version(u16),
    /// It said something else first.
    #[error("it does not answer like a device process")]
    Unexpected,
}

/// The VMM's end of the link to one device process.
#[derive(Debug)]
pub struct Client {
    link: Link,
    buffer: Box<[u8; CTL_MAX]>,
}

impl Client {
    /// Takes over a connected socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { link: Link::new(socket), buffer: Box::new([0; CTL_MAX]) }
    }

    /// A client and the socket that the device process is to have.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (link, far) = Link::pair()?;
        Ok((Self { link, buffer: Box::new([0; CTL_MAX]) }, far))
    }

    /// Waits until the device process has opened what it needs, and learns what it is.
    ///
    /// # Errors
    /// See [`HelloError`].
    pub fn hello(&mut self, limit: Duration) -> Result<DeviceInfo, HelloError> {
        hello(&self.link, limit)
    }

    /// Sends a command, with a descriptor where the command has one.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn send(&mut self, command: &Command, fd: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        self.link.send(command, fd)
    }

    /// The next report, if one is there.
    ///
    /// # Errors
    /// When the process is gone or sends something else.
    pub fn receive(&mut self) -> Result<Option<Report>, LinkError> {
        Ok(self.link.receive(&mut self.buffer[..], REPORT)?.map(|(report, _)| report))
    }

    /// Waits until [`Client::receive`] has something. False: not within `limit`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, limit: Duration) -> Result<bool, LinkError> {
        self.link.wait(timeout(limit))
    }

    /// Another descriptor of the socket.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.link.as_fd().try_clone_to_owned()
    }
}

/// As [`Client::hello`], on a link of which there is no client yet.
///
/// # Errors
/// See [`HelloError`].
pub fn hello(link: &Link, limit: Duration) -> Result<DeviceInfo, HelloError> {
    link.send(&Command::Hello { version: CTL_VERSION }, None)?;
    if !link.wait(timeout(limit))? {
        return Err(HelloError::Silent(limit));
    }
    match link.receive(&mut vec![0; CTL_MAX], REPORT)? {
        Some((Report::Ready { version: CTL_VERSION, info }, _)) => Ok(info),
        Some((Report::Ready { version, .. }, _)) => Err(HelloError::Version(version)),
        Some((Report::Failed { reason }, _)) => Err(HelloError::Failed(reason)),
        _ => Err(HelloError::Unexpected),
    }
}

fn timeout(limit: Duration) -> PollTimeout {
    PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn greeted(report: &Report) -> Result<DeviceInfo, HelloError> {
        let (mut client, far) = Client::pair().unwrap();
        let device = Link::new(far);
        device.send(report, None).unwrap();
        client.hello(LIMIT)
    }

    #[test]
    fn a_device_says_what_it_is_or_why_not() {
        let info = DeviceInfo::Net { tap: "tap0".into(), mtu: 1500 };
        let ready = |version| Report::Ready { version, info: info.clone() };
        assert_eq!(greeted(&ready(CTL_VERSION)).unwrap(), info);
        assert!(matches!(greeted(&ready(CTL_VERSION + 1)), Err(HelloError::Version(_))));
        assert!(matches!(greeted(&Report::Failed { reason: "no".into() }), Err(HelloError::Failed(_))));
        assert!(matches!(greeted(&Report::Started), Err(HelloError::Unexpected)));
    }

    #[test]
    fn a_device_that_says_nothing_is_silent_and_one_that_is_gone_is_closed() {
        let (mut client, far) = Client::pair().unwrap();
        assert!(matches!(client.hello(Duration::from_millis(1)), Err(HelloError::Silent(_))));
        drop(far);
        assert!(matches!(client.hello(LIMIT), Err(HelloError::Link(LinkError::Closed))));
    }
}
