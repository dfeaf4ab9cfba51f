//! What every client of a chaos run can do.

use super::history::Contents;
use super::log::Log;
use crate::Result;

/// Something that asks a server in the guest over one connection.
pub trait Client: Send {
    /// A few operations.
    ///
    /// # Errors
    /// When the connection broke.
    fn step(&mut self, log: &Log) -> Result<()>;
    /// What tells this connection from another one, asked from the server over the connection.
    ///
    /// # Errors
    /// When the connection broke.
    fn session(&mut self) -> Result<String>;
    /// A new connection instead of the broken one.
    ///
    /// # Errors
    /// When the server does not answer.
    fn reconnect(&mut self) -> Result<()>;
    /// Everything that is in the ledgers of this client's server and belongs to this client.
    ///
    /// # Errors
    /// When the connection broke.
    fn read_back(&mut self) -> Result<Contents>;
}
