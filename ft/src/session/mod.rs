//! Sessions with the other host: each is one end of a replication stream, with what is known of the other
//! end.
//!
//! A session is a receiver of what the engine captures, or of what the other host's does. It tells the core
//! what it hears, by way of the [`Context`](crate::context::Context), and does what the core decides when the
//! executor says so.

pub(crate) mod primary;
pub(crate) mod standby;

use pollux_api::status::Peer;

use self::primary::PrimarySession;
use self::standby::StandbySession;
use crate::platform::Platform;

/// What this node holds open towards another one.
pub(crate) enum Session<P: Platform> {
    /// Nothing.
    None,
    /// This node is the primary.
    Primary(Box<PrimarySession<P>>),
    /// This node is the standby.
    Standby(Box<StandbySession<P>>),
}

impl<P: Platform> Session<P> {
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The session, if this node is its primary.
    pub(crate) fn primary(&mut self) -> Option<&mut PrimarySession<P>> {
        if let Self::Primary(session) = self { Some(session) } else { None }
    }

    /// The session, if this node is its standby.
    pub(crate) fn standby(&mut self) -> Option<&mut StandbySession<P>> {
        if let Self::Standby(session) = self { Some(session) } else { None }
    }

    /// Ends it, if this node is its primary.
    pub(crate) fn take_primary(&mut self) -> Option<Box<PrimarySession<P>>> {
        match std::mem::replace(self, Self::None) {
            Self::Primary(session) => Some(session),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Ends it, if this node is its standby.
    pub(crate) fn take_standby(&mut self) -> Option<Box<StandbySession<P>>> {
        match std::mem::replace(self, Self::None) {
            Self::Standby(session) => Some(session),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The other end, for status.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        match self {
            Self::None => None,
            Self::Primary(session) => Some(session.peer()),
            Self::Standby(session) => Some(session.peer()),
        }
    }
}
