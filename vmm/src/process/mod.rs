//! Device processes of ours: found, started, watched and ended.

mod child;
mod descriptors;
mod device_process;
mod error;
mod exits;
mod launcher;
mod lines;
mod program;
mod supervisor;

pub use self::device_process::DeviceProcess;
pub use self::error::ProcessError;
pub use self::exits::{ChildExit, ChildExits};
pub(crate) use self::launcher::launch;
pub(crate) use self::launcher::limit_to as limit_launcher;
pub use self::launcher::{end as end_launcher, start as start_launcher};
pub use self::program::DIRECTORY_VARIABLE;
pub(crate) use self::program::{DISK_PROGRAM, NET_PROGRAM, find as find_program};
