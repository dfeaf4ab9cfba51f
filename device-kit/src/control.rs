//! The device's end of the ft-ctl link: commands in, reports out, and what becomes of a link that is lost or
//! misused.
//!
//! There is one VMM, and it has one chance. Once the link is closed the process has no reason to live. Both
//! ends are of one build: what is not a command is a bug or another version, and a device that guessed on
//! might let out what it is to hold. So the VMM is told ([`Report::Failed`]), the link is closed, and the
//! process ends.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use device_api::link::{Link, LinkError, Received};
use ft_wire::device_ctl::{CTL_MAX, CTL_VERSION, Command, DeviceInfo, Report};

use crate::ends::{End, Ends};
use crate::events::Events;
use crate::sockets::{ControlSocket, ControlState, SocketFile, accept_now};

/// The device's end of the link; owned by the worker thread.
pub struct Control {
    state: State,
    /// Kept: a `Seal` should not wait for memory.
    buffer: Vec<u8>,
    events: Events,
    ends: Ends,
}

enum State {
    /// The VMM has still to connect: one is enough.
    Listening(OwnedFd, SocketFile),
    Connected(Reporter),
    Closed,
}

impl Control {
    /// A link that is there already, or that the VMM makes by connecting. Its end is told to `ends`.
    ///
    /// # Errors
    /// Of epoll.
    pub(crate) fn new(socket: ControlSocket, events: &Events, ends: Ends) -> std::io::Result<Self> {
        let state = match socket.0 {
            ControlState::Connected(fd) => {
                events.watch_control(&fd)?;
                State::Connected(Reporter::new(fd))
            }
            ControlState::Listening(listener, file) => {
                events.watch_control(&listener)?;
                State::Listening(listener, file)
            }
        };
        Ok(Self { state, buffer: vec![0; CTL_MAX], events: events.clone(), ends })
    }

    /// The next command, if one is there; never waits.
    pub fn next_command(&mut self) -> Option<Received<Command>> {
        self.accept();
        let State::Connected(reporter) = &self.state else { return None };
        match reporter.0.receive(&mut self.buffer, "command") {
            Ok(received) => received,
            Err(error) => {
                self.lost(&error);
                None
            }
        }
    }

    /// Answers `Hello`. A VMM of another version is answered, too: it decides.
    pub fn greet(&self, version: u16, info: DeviceInfo) {
        if version != CTL_VERSION {
            tracing::error!("the VMM speaks version {version} of ft-ctl, this device {CTL_VERSION}");
        }
        self.report(&Report::Ready { version: CTL_VERSION, info });
    }

    /// As [`Reporter::report`]; without a VMM nobody is told.
    pub fn report(&self, report: &Report) {
        if let State::Connected(reporter) = &self.state {
            reporter.report(report);
        }
    }

    /// For other threads; `None` without a VMM.
    #[must_use]
    pub fn reporter(&self) -> Option<Reporter> {
        if let State::Connected(reporter) = &self.state { Some(reporter.clone()) } else { None }
    }

    /// Whether the VMM has come and gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn accept(&mut self) {
        let State::Listening(listener, file) = &self.state else { return };
        let accepted = match accept_now(listener) {
            Ok(None) => return,
            Ok(Some(fd)) => self.events.watch_control(&fd).map(|()| fd),
            Err(error) => Err(error),
        };
        match accepted {
            // Closes the listener, which removes it from epoll, too.
            Ok(fd) => {
                file.remove();
                self.state = State::Connected(Reporter::new(fd));
            }
            Err(error) => self.lost(&LinkError::Socket(error)),
        }
    }

    fn lost(&mut self, error: &LinkError) {
        if let State::Connected(reporter) = std::mem::replace(&mut self.state, State::Closed) {
            match error {
                LinkError::Closed => tracing::info!("{error}"),
                _ => {
                    let reason = format!("ft-ctl: {}", host_kit::error::chain(error));
                    tracing::error!("{reason}");
                    reporter.report(&Report::Failed { reason });
                }
            }
            // Other threads may still have it.
            self.events.unwatch(&reporter.0.as_fd());
            reporter.0.shut();
        }
        self.ends.tell(End::Vmm);
    }
}

/// Tells the VMM, from any thread.
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Link>);

impl Reporter {
    fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(Link::new(fd)))
    }

    /// Sends a report; waits for room: the socket holds far more than an epoch's reports.
    ///
    /// That the VMM is gone is noticed where commands are read. A link that fails otherwise is closed, which
    /// is noticed there, too.
    pub fn report(&self, report: &Report) {
        self.check(self.0.send(report, None));
    }

    /// Sends a report unless the VMM is behind with reading: for progress, of which the next one says more.
    pub fn report_if_room(&self, report: &Report) {
        self.check(self.0.try_send(report));
    }

    fn check<T>(&self, sent: Result<T, LinkError>) {
        match sent {
            Ok(_) | Err(LinkError::Closed) => {}
            Err(error) => {
                tracing::error!("a report is lost: {}", host_kit::error::chain(&error));
                self.0.shut();
            }
        }
    }
}
