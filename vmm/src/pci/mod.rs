//! PCI: one bus of plain functions, reached through ECAM and the 0xcf8 ports. No bridges, no INTx, no
//! hotplug.

pub mod bar;
pub mod bus;
pub mod config_space;
pub mod msix;
