//! The few devices of an old PC that a Linux guest still touches.

pub mod console;
pub mod i8042;
pub mod pm_timer;
pub mod power;
pub mod rtc;
pub mod serial;
