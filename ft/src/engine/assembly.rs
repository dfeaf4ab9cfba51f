//! Puts an executor together, on whatever platform.

use ft_proto::{Node, NodeId, Settings, VmId};

use super::admission::Admission;
use super::executor::Executor;
use super::protection::Protection;
use crate::context::inbox::Post;
use crate::context::machine::Machine;
use crate::context::reporter::Reporter;
use crate::context::witness_link::WitnessLink;
use crate::context::{self, Context};
use crate::devices::DeviceEnd;
use crate::guest::{Guest, HeldOutput};
use crate::identity::Identity;
use crate::options::{ProtectOptions, StandbyOptions};
use crate::peers::search::Search;
use crate::platform::Platform;
use crate::start::NodeTerm;
use crate::status::Board;

/// What a node begins as.
#[derive(Clone, Copy, Debug)]
pub enum Begin {
    /// It runs the VM.
    Run(NodeTerm),
    /// It waits for a primary.
    StandBy(NodeId),
}

/// What an executor is made of: the arguments of [`assemble`] by name.
pub struct Parts<P: Platform> {
    /// What it stands on.
    pub platform: P,
    /// The VM on this host.
    pub guest: Box<dyn Guest>,
    /// The ways to its device processes.
    pub devices: Vec<DeviceEnd<P::Control>>,
    /// Where others leave messages for it.
    pub post: Post<P>,
    /// Where status and events go.
    pub board: Board,
    /// Heartbeats.
    pub beats: P::Beats,
    /// What the node begins as.
    pub begin: Begin,
    /// The VM, as far as it is known.
    pub vm: Option<VmId>,
    /// How to be a standby.
    pub listen: Option<StandbyOptions>,
    /// Who is asked to be one.
    pub peers: Vec<ProtectOptions>,
    /// The way to the witness.
    pub witness: Option<P::Witness>,
}

/// Puts an executor together. Nothing happens yet.
pub fn assemble<P: Platform>(parts: Parts<P>) -> Executor<P> {
    let Parts { platform, guest, devices, post, board, beats, begin, vm, listen, peers, witness } = parts;
    let mut machine = Machine::new(guest, devices);
    let held = post.clone();
    machine.watch_console(HeldOutput::new(move |epoch| held.output_held(epoch)));
    let now = platform.now();
    let (node, identity, on_record) = match begin {
        Begin::StandBy(node) => (Node::standby(node, Settings::default(), now), Identity::new(vm, false), true),
        Begin::Run(node_term) => {
            let node = Node::solo(node_term.node, node_term.term, Settings::default(), now);
            (node, Identity::new(Some(node_term.vm), node_term.first), !node_term.first)
        }
    };
    let mut search = Search::new(peers);
    // The VM of a standby runs as soon as it has taken over.
    search.switch(matches!(begin, Begin::StandBy(_)));
    let cx = Context::new(context::Parts {
        node,
        platform,
        machine,
        identity,
        witness: WitnessLink::new(witness, on_record, now),
        beats,
        reporter: Reporter::new(board, now),
        post,
    });
    Executor::new(cx, Protection::new(search), Admission::new(listen))
}
