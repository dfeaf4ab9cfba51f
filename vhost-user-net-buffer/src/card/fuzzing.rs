//! The card with sockets for taps, for the fuzz targets. Behind a feature: nobody else puts a card together
//! without a command line.

use std::io;
use std::os::fd::OwnedFd;

use clap::Parser;
use device_api::counters::{NetCounters, Page};
use device_kit::Vring;
use ft_wire::device_ctl::Command;

use super::Card;
use crate::args::Args;
use crate::tap::Tap;

/// What the card is told: it has an ft-ctl link, and holds little.
const HELD: [&str; 4] = ["--hold-bytes", "131072", "--hold-frames", "8"];

impl Card {
    /// A card on `taps`, each of which carries whole frames and does not block.
    ///
    /// # Errors
    /// When descriptors or timers cannot be had.
    pub fn on_sockets(taps: Vec<OwnedFd>) -> io::Result<Self> {
        let pairs = taps.len().to_string();
        let args = ["card", "--socket", "none", "--ft-ctl", "none", "--num-queues", &pairs];
        let args = Args::try_parse_from(args.iter().chain(&HELD)).map_err(io::Error::other)?;
        Self::new(&args, Tap::of_sockets(taps), NetCounters::new(Page::private()?))
    }

    /// The VMM says `command`.
    pub fn command(&mut self, command: Command, vrings: &[Vring]) {
        self.obey(command, vrings);
    }

    /// Frames that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.output.waiting().0 as usize
    }
}
