//! One virtual machine, put together from its parts.

mod confirmed;
mod error;
mod gate;
mod hardware;
mod parts;
mod pending_event;
mod virtual_machine;

pub use self::confirmed::Confirmed;
pub use self::error::VmError;
pub use self::gate::{Gate, Inside, NotHere};
pub use self::parts::SavedParts;
pub use self::virtual_machine::Vm;
