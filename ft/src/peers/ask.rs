//! Asks other hosts what they do about a VM, before this one does anything about it that they might have done
//! already.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use ft_proto::{HostId, NodeId, Term, VmId};
use ft_transport::dial::{self, GreetError};
use ft_transport::frames::TransportError;
use ft_wire::session::{Hello, Kind, Part, Purpose, Standing, WireError};

/// How long a host may take to accept a connection, and to answer. One that is up answers at once, whatever
/// its VM does.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a host answers.
#[derive(Debug)]
pub struct Answer {
    /// Where it was asked.
    pub peer: SocketAddr,
    /// `None`: nobody is there, or nobody who can tell.
    pub standing: Option<Standing>,
}

/// Asks all of `peers` at once.
pub(crate) fn ask_all(peers: Vec<SocketAddr>, vm: Option<VmId>, node: NodeId) -> Vec<Answer> {
    thread::scope(|scope| {
        let ask = |peer| scope.spawn(move || Answer { peer, standing: told(peer, vm, node) });
        let asked: Vec<_> = peers.into_iter().map(ask).collect();
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}

/// Why this host must leave the VM to another one, by what that one says itself. `may_take_over`: a standby
/// has a right to the VM; one that was never registered, or has lost it, waits in vain, and so would whoever
/// waits for it.
pub(crate) fn objection(answers: &[Answer], me: HostId, may_take_over: bool) -> Option<String> {
    answers.iter().find_map(|Answer { peer, standing }| {
        let Standing { node, term, part, .. } = (*standing)?;
        match part {
            Part::Runs => Some(format!("host {} at {peer} runs the VM, in term {term}", node.host)),
            Part::WillTakeOver(_) if !may_take_over => None,
            Part::WillTakeOver(primary) if primary.host == me => Some(format!(
                "host {} at {peer} has a complete copy of the VM that ran here, and will take over",
                node.host
            )),
            Part::WillTakeOver(primary) => {
                Some(format!("host {} at {peer} protects the VM, which host {} runs", node.host, primary.host))
            }
            Part::Waits => None,
        }
    })
}

/// The VM that one of them knows.
pub(crate) fn known_vm(answers: &[Answer]) -> Option<VmId> {
    answers.iter().find_map(|answer| answer.standing?.vm)
}

fn told(peer: SocketAddr, vm: Option<VmId>, node: NodeId) -> Option<Standing> {
    match ask(peer, vm, node) {
        Ok(standing) => Some(standing),
        Err(error) => {
            tracing::debug!(target: "ft", "host at {peer} does not say what it does: {}", host_kit::error::chain(&error));
            None
        }
    }
}

fn ask(peer: SocketAddr, vm: Option<VmId>, node: NodeId) -> Result<Standing, GreetError> {
    let mut stream = dial::connect(peer, PATIENCE).map_err(TransportError::from)?;
    let answer = dial::greet(&mut stream, &Hello { vm, node, purpose: Purpose::Ask }, Term(0), PATIENCE)?;
    let got = match answer {
        dial::Answer::Standing(standing) => return Ok(standing),
        dial::Answer::Refused(reasons) => {
            tracing::debug!(target: "ft", "host at {peer} refuses to say what it does: {}", reasons.join("; "));
            Kind::Refuse
        }
        dial::Answer::Welcome(_) => Kind::Welcome,
    };
    Err(TransportError::from(WireError::Unexpected { got, expected: "standing" }).into())
}
