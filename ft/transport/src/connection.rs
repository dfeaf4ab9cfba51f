//! A stream between the hosts, as the engine's thread uses it: it writes what is short, and reads only what
//! is there already.

use std::fmt::Debug;
use std::io::{self, Write};

use crate::frames::{RecvNow, TransportError};

/// A stream between the hosts. Each call of `write` may wake the reader.
pub trait Connection: Debug + RecvNow + Send + Write {
    /// The greeting is over: from now on reading and writing may take as long as they like.
    ///
    /// # Errors
    /// When the stream broke.
    fn end_greeting(&self) -> io::Result<()>;

    /// Nothing more is written.
    fn finish(&self);

    /// Breaks when what is sent is not acknowledged by the other host for too long.
    fn limit_silence(&self);

    /// The name in the certificate that the other host has shown, if it has.
    fn peer_name(&self) -> Option<String> {
        None
    }

    /// Why it failed, for people.
    fn explain(&self, error: &TransportError) -> String;
}
