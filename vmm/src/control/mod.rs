//! Who decides what happens to the VM: the loop that owns it, and the events that it tells.

pub mod control_loop;
pub mod event_monitor;
