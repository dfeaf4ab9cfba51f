//! The VMM as a device knows it: somebody who may command it, and is told. A device serves without one, too;
//! then nobody is told, and nothing is commanded.

use device_api::link::Received;
use ft_wire::device_ctl::{Command, DeviceInfo, Report};

use crate::control::{Control, Reporter};

/// The VMM, once there is a link to it.
#[derive(Default)]
pub struct Vmm {
    control: Option<Control>,
}

impl Vmm {
    /// This is the link to it.
    pub fn connect(&mut self, control: Control) {
        self.control = Some(control);
    }

    /// Closes the link.
    pub fn disconnect(&mut self) {
        self.control = None;
    }

    /// Whether the VMM has come and gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.control.as_ref().is_some_and(Control::is_closed)
    }

    /// The next command, if one is there; never waits.
    pub fn next_command(&mut self) -> Option<Received<Command>> {
        self.control.as_mut()?.next_command()
    }

    /// As [`Control::greet`].
    pub fn greet(&self, version: u16, info: DeviceInfo) {
        if let Some(control) = &self.control {
            control.greet(version, info);
        }
    }

    /// As [`Reporter::report`].
    pub fn report(&self, report: &Report) {
        if let Some(control) = &self.control {
            control.report(report);
        }
    }

    /// For other threads; `None` without a VMM.
    #[must_use]
    pub fn reporter(&self) -> Option<Reporter> {
        self.control.as_ref()?.reporter()
    }
}
