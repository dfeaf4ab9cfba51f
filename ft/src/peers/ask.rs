//! Asks other hosts what they do about a VM, before this one does anything about it that they might have done
//! already.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use ft_proto::{HostId, NodeId, Term, VmId};
use ft_transport::dial::{self, GreetError};
use ft_transport::frames::TransportError;
use ft_transport::stream::OpenError;
use ft_wire::session::{Hello, Kind, Part, Purpose, Standing, WireError};
use host_kit::error::chain;

use super::tls::PeerTls;

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
    /// Why it is not known whether somebody is there: TLS with whoever answers fails.
    pub unproven: Option<String>,
}

/// Asks all of `peers` at once.
pub(crate) fn ask_all(peers: Vec<SocketAddr>, vm: Option<VmId>, node: NodeId, tls: &PeerTls) -> Vec<Answer> {
    thread::scope(|scope| {
        let ask = |peer| scope.spawn(move || told(peer, vm, node, tls));
        let asked: Vec<_> = peers.into_iter().map(ask).collect();
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}

/// Why this host must leave the VM to another one, by what that one says itself. `may_take_over`: a standby
/// has a right to the VM; one that was never registered, or has lost it, waits in vain, and so would whoever
/// waits for it.
pub(crate) fn objection(answers: &[Answer], me: HostId, may_take_over: bool) -> Option<String> {
    answers.iter().find_map(|Answer { peer, standing, .. }| {
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

/// Why nobody can say that no other host runs the VM: one answers, and cannot be understood. It may be the
/// host that has taken over, with certificates that have expired here or there.
pub(crate) fn unproven(answers: &[Answer]) -> Option<String> {
    answers.iter().find_map(|Answer { peer, unproven, .. }| {
        let why = unproven.as_ref()?;
        Some(format!("host at {peer} answers, but what it does about the VM cannot be found out: {why}"))
    })
}

/// The VM that one of them knows.
pub(crate) fn known_vm(answers: &[Answer]) -> Option<VmId> {
    answers.iter().find_map(|answer| answer.standing?.vm)
}

fn told(peer: SocketAddr, vm: Option<VmId>, node: NodeId, tls: &PeerTls) -> Answer {
    let silent = Answer { peer, standing: None, unproven: None };
    match ask(peer, vm, node, tls) {
        Ok(standing) => Answer { standing: Some(standing), ..silent },
        Err(AskError::Unproven(why)) => {
            tracing::warn!(target: "ft", "host at {peer} does not prove who it is: {why}");
            Answer { unproven: Some(why), ..silent }
        }
        Err(AskError::Greet(error)) => {
            tracing::debug!(target: "ft", "host at {peer} does not say what it does: {}", chain(&error));
            silent
        }
    }
}

/// Why a host has not said what it does.
enum AskError {
    /// It is there, or this host cannot ask anybody.
    Unproven(String),
    /// It is not, or is no host of ours.
    Greet(GreetError),
}

impl From<GreetError> for AskError {
    fn from(error: GreetError) -> Self {
        match error {
            GreetError::Failed(TransportError::Tls(error)) => Self::Unproven(chain(&error)),
            error => Self::Greet(error),
        }
    }
}

fn ask(peer: SocketAddr, vm: Option<VmId>, node: NodeId, tls: &PeerTls) -> Result<Standing, AskError> {
    let tls = tls.credentials().map_err(AskError::Unproven)?;
    let connected = dial::connect(peer, PATIENCE, tls.as_ref());
    let mut stream = connected.map_err(|error| match error {
        OpenError::Io(error) => AskError::Greet(TransportError::from(error).into()),
        error => AskError::Unproven(chain(&error)),
    })?;
    let answer = dial::greet(&mut stream, &Hello { vm, node, purpose: Purpose::Ask }, Term(0), PATIENCE)?;
    let got = match answer {
        dial::Answer::Standing(standing) => return Ok(standing),
        dial::Answer::Refused(reasons) => {
            tracing::debug!(target: "ft", "host at {peer} refuses to say what it does: {}", reasons.join("; "));
            Kind::Refuse
        }
        dial::Answer::Welcome(_) => Kind::Welcome,
    };
    let unexpected = TransportError::from(WireError::Unexpected { got, expected: "standing" });
    Err(GreetError::from(unexpected).into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ft_pair::authority::Authority;
    use ft_pair::folder::Folder;

    use super::*;
    use crate::peers::tls::TlsChoice;

    #[test]
    fn a_host_that_answers_without_proving_who_it_is_may_run_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, folder) = (Authority::create("east").unwrap(), dir.path().join("east"));
        Folder::of("east", Some(&folder)).create(&authority, &authority.issue("a").unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let ask = |choice| ask_all(vec![peer], None, NodeId::numbered(1, 1), &PeerTls::new(choice));
        let missing = ask(TlsChoice::Folder(dir.path().join("west")));
        assert!(unproven(&missing).unwrap().contains("west"), "nobody can be asked");
        let answering = thread::spawn(move || drop(listener.accept()));
        let answers = ask(TlsChoice::Folder(folder.clone()));
        answering.join().unwrap();
        assert!(unproven(&answers).unwrap().contains("hung up"), "{answers:?}");
        assert_eq!(unproven(&ask(TlsChoice::Folder(folder))), None, "nobody is there");
    }
}
