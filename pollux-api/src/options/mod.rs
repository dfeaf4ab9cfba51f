//! Options of command lines and of `ft.protect`: each is defined once, and its parser, its help, its JSON and
//! its default come from that definition.

mod define;
mod grammar;
mod help;
mod node;
mod protect;

pub(crate) use grammar::option_words;
pub use grammar::{ByteSize, NumberList, OptionError, OptionText, OptionValue, Options, TextList, Tuples};
pub use help::{OptionHelp, table};
pub use node::{NodeRequest, StartRole, node_options};
pub use protect::{
    Compression, DISK_BUFFER_MAX, Endpoint, Fault, OnPartition, ProtectRequest, Tuning, faults, protect_help,
};
