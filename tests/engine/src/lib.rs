//! Harness of the engine tests: real processes of ours, the bare-metal guest, and private network namespaces.
//!
//! A test claims the machine, lays out a network, starts VMs in it and talks to the guests:
//!
//! ```no_run
//! use engine_tests::{Client, Machine, Netns, VmOptions};
//!
//! let machine = Machine::claim();
//! let host = Netns::new();
//! let mut vm = VmOptions::new().local_tap().boot(&machine, &host);
//! let mut client = Client::of_local_tap(&host);
//! client.work(10, 0);
//! assert!(vm.power_off(&mut client).success());
//! ```
//!
//! Nothing outlives its value: processes are killed, namespaces and files go, also when a test panics.

mod api;
mod binaries;
mod client;
mod image;
mod machine;
mod netns;
mod pair;
mod proxy;
mod stream;
mod vm;

pub use api::{Answer, Api};
pub use client::Client;
pub use image::Image;
pub use machine::Machine;
pub use netns::Netns;
pub use pair::Pair;
pub use pollux_guest::{pattern, wire};
pub use proxy::Proxy;
pub use stream::Stream;
pub use vm::{GUEST_IP, RealTime, Vm, VmOptions, die_with_us};

/// The bare-metal guest: a static ELF with a PVH note.
pub const GUEST: &str = env!("POLLUX_GUEST");
