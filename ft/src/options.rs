//! What an operator says, made definite: names are resolved, and the core's types stand for the API's words.

use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::{HostId, OnPartition, Settings, Term};
use ft_transport::addresses::resolve;
use pollux_api::options::{self as api, Fault, ProtectRequest, StartRole, Tuning};
use serde::Deserialize;

use crate::peers::tls::TlsChoice;
use crate::witness::WitnessAddress;

/// `--ft …`: the same for both hosts of a pair, but for addresses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeOptions {
    /// What to begin as.
    pub role: StartRole,
    /// How to be a standby, now or when another host runs the VM.
    pub standby: Option<StandbyOptions>,
    /// Hosts that may be the standby when this one runs the VM alone, and how it is protected then.
    pub peers: Vec<ProtectOptions>,
    /// The witness's record.
    pub witness: Option<WitnessAddress>,
    /// This host's name; `None`: one that is made of the machine and its VM.
    pub node: Option<HostId>,
    /// Run the VM although the witness is in this term, or the disks are: its runner is gone for good. No
    /// later term is overridden.
    pub force: Option<Term>,
    /// As a standby: the disks may be overwritten whatever is in them.
    pub overwrite: bool,
    /// What protects the streams between the hosts.
    pub tls: TlsChoice,
    /// How long a standby that came up alone waits for the host with the newest disks; `None`: until it
    /// comes.
    pub blackout_wait: Option<Duration>,
}

/// How to be a standby.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StandbyOptions {
    /// Where primaries connect (TCP), and the first link's heartbeats arrive (UDP, same port).
    pub listen: SocketAddr,
    /// Where the second link's heartbeats arrive (UDP).
    pub heartbeat: SocketAddr,
    /// Where the witness keeps its record: a file that both hosts see, or a key in etcd.
    pub witness: Option<WitnessAddress>,
    /// Who goes on in a partition, without a witness. A primary that asks for another policy is refused.
    pub on_partition: Option<OnPartition>,
    /// Silence after which this side takes the primary for dead, in milliseconds, instead of what the primary
    /// asks for; 0: never.
    pub detect_ms: Option<u64>,
    /// The disks hold data that no VM of a pair has written: no copy is taken.
    pub keeps_data: bool,
}

/// How to be protected, and by whom.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "ProtectRequest")]
pub struct ProtectOptions {
    /// The standby's `listen`.
    pub peer: SocketAddr,
    /// The standby's `heartbeat`.
    pub heartbeat: SocketAddr,
    /// Where the witness keeps its record: a file that both hosts see, or a key in etcd.
    pub witness: Option<WitnessAddress>,
    /// Who goes on in a partition; only, and necessarily, without a witness.
    pub on_partition: Option<OnPartition>,
    /// Times, sizes and rates.
    pub tuning: Tuning,
}

impl TryFrom<ProtectRequest> for ProtectOptions {
    type Error = String;

    fn try_from(request: ProtectRequest) -> Result<Self, String> {
        let address = |endpoint: &api::Endpoint| {
            resolve(&endpoint.0).map_err(|error| format!("{} is not ADDR:PORT: {error}", endpoint.0))
        };
        let witness = request.witness.as_deref().map(str::parse::<WitnessAddress>).transpose();
        Ok(Self {
            peer: address(&request.peer)?,
            heartbeat: address(&request.heartbeat)?,
            witness: witness.map_err(|error| error.to_string())?,
            on_partition: request.on_partition.map(on_partition),
            tuning: request.tuning(),
        })
    }
}

impl ProtectOptions {
    /// Protection by the standby that listens at these addresses, everything else as it is by default.
    #[must_use]
    pub fn by(peer: SocketAddr, heartbeat: SocketAddr) -> Self {
        Self { peer, heartbeat, witness: None, on_partition: None, tuning: Tuning::default() }
    }

    /// What is wrong with them, all of it.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        api::faults(self.witness.is_some(), self.on_partition.is_some(), &self.tuning)
    }

    /// The core's settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let Tuning { detect_ms, min_epoch_us, max_epoch_us, latency_us, pause_share, .. } = self.tuning;
        Settings {
            silence: silence(detect_ms),
            min_epoch: Duration::from_micros(min_epoch_us),
            max_epoch: Duration::from_micros(max_epoch_us),
            latency: Duration::from_micros(latency_us),
            pause_share,
            on_partition: self.on_partition,
            ..Settings::default()
        }
    }
}

/// The core's policy for the API's word.
#[must_use]
pub fn on_partition(policy: api::OnPartition) -> OnPartition {
    match policy {
        api::OnPartition::Primary => OnPartition::Primary,
        api::OnPartition::Standby => OnPartition::Standby,
        api::OnPartition::Both => OnPartition::Both,
    }
}

/// The silence limit that `detect_ms` names.
pub(crate) fn silence(detect_ms: u64) -> Option<Duration> {
    (detect_ms != 0).then(|| Duration::from_millis(detect_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_the_api_are_those_of_the_core() {
        let nobody = ([127, 0, 0, 1], 1).into();
        assert_eq!(ProtectOptions::by(nobody, nobody).settings(), Settings::default());
    }
}
