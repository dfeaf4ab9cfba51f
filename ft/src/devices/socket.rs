//! The control socket to one device process, in production.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use device_api::client::Client;
use device_api::link;
use ft_transport::stream::Stream;
use ft_wire::device_ctl::{Command, Report};

use super::control::{DeviceControl, LinkError};

/// A connected socket on which `Hello` was answered.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    id: String,
    client: Client,
}

impl ControlSocket {
    pub(crate) fn new(id: String, socket: OwnedFd) -> Self {
        Self { id, client: Client::new(socket) }
    }
}

impl DeviceControl for ControlSocket {
    type Stream = Stream;
    type Deadline = Instant;

    fn id(&self) -> &str {
        &self.id
    }

    fn send(&mut self, command: &Command, stream: Option<&Stream>) -> Result<(), LinkError> {
        let keys = stream.map(Stream::keys).transpose().map_err(|error| LinkError::Stream(self.id.clone(), error))?;
        if let Some(keys) = keys.flatten() {
            self.client.send(&Command::StreamKeys(keys.into()), None).map_err(|error| broken(&self.id, error))?;
        }
        self.client.send(command, stream.map(AsFd::as_fd)).map_err(|error| broken(&self.id, error))
    }

    fn recv_now(&mut self) -> Result<Option<Report>, LinkError> {
        self.client.receive().map_err(|error| broken(&self.id, error))
    }

    fn deadline(&self, limit: Duration) -> Instant {
        Instant::now() + limit
    }

    fn wait(&mut self, deadline: &Instant) -> Result<bool, LinkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        self.client.wait(left).map_err(|error| broken(&self.id, error))?;
        Ok(true)
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

fn broken(id: &str, error: link::LinkError) -> LinkError {
    let id = id.to_owned();
    match error {
        link::LinkError::Closed => LinkError::Gone(id),
        link::LinkError::Socket(source) => LinkError::Socket { id, source },
        source => LinkError::Malformed { id, source },
    }
}
