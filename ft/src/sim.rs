//! The engine's parts, for the simulator: the executor, the platform that it stands on, and what is pure of
//! what production's platform runs on threads. Behind a feature: nobody else puts an engine together.

pub use crate::context::inbox::{Inbox, Message, Post, Reply};
pub use crate::devices::control::{DeviceControl, LinkError};
pub use crate::devices::{DeviceEnd, DeviceKey};
pub use crate::engine::assembly::{Begin, Parts, assemble};
pub use crate::engine::executor::Executor;
pub use crate::identity::SessionKey;
pub use crate::peers::application::{Applicant, Introduction, Opened, Unopened};
pub use crate::peers::ask::Answer;
pub use crate::peers::opening::{BeatAddresses, Dialler, open_first};
pub use crate::platform::{OpenedOn, Platform};
pub use crate::start::part_by;
pub use crate::stream::coder::Coder;
pub use crate::stream::ends::{Done, Job, Received, ReceivingEnd, SendingEnd, Sent};
pub use crate::stream::history::History;
pub use crate::stream::image::apply_pages;
pub use crate::stream::intake::Intake;
pub use crate::stream::outgoing::perform;
pub use crate::witness::{AskWitness, decode_stored};
pub use host_kit::cpu_load::CpuLoad;
pub use pollux_api::options::Compression;
pub use pollux_api::status::WitnessStatus;
