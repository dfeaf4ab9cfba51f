//! The machine under a guest: processors, memory, interrupts, buses and clocks, and how they are saved. Knows
//! no device of its own, and nothing of what a checkpoint is for.

pub mod bus;
pub mod clock;
pub mod cpu;
pub mod ioapic;
pub mod irq;
pub mod kvm;
pub mod memory;
pub mod page_writer;
pub mod state;
pub mod watch_cost;
