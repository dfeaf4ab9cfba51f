//! Device processes of ours: found, started, watched and ended.

mod descriptors;
mod device_process;
mod error;
mod exits;
mod lines;
mod program;
mod supervisor;

pub use self::device_process::DeviceProcess;
pub use self::error::ProcessError;
pub use self::exits::{ChildExit, ChildExits};
pub use self::program::DIRECTORY_VARIABLE;
pub(crate) use self::program::find;
