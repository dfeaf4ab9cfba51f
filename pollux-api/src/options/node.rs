//! What follows `--ft`: which part a host has in its pair, how it is a standby, and how it is protected.

use super::define::{option_key, option_struct};
use super::grammar::{OptionValue, TextList};
use super::help::OptionHelp;
use super::protect::{ProtectRequest, Tuning};
use crate::words::words;

option_struct! {
    /// What a host is in its pair. How it protects its VM is [`ProtectRequest`]'s, from the same text.
    #[derive(Clone, Debug)]
    pub struct NodeRequest {
        required {
            /// auto: the witness decides, the first host that starts boots the VM, the other one protects it;
            /// primary: boots the VM; standby: waits for the host that runs it
            role ("ROLE"): StartRole,
        }
        optional {
            /// the address at which the other host reaches this one
            listen ("ADDR:PORT"): String,
            /// its address on the second link
            heartbeat ("ADDR:PORT"): String,
            /// hosts that may be the standby: listen and heartbeat of each
            standby_peers as "standby-peers" ("[ADDR:PORT/ADDR:PORT,...]"): TextList,
            /// name of this host, which never changes (derived from the machine-id and the disks)
            node ("NAME"): String,
            /// the pair whose certificates are used, as `pollux pair init NAME` called it (the only one)
            pair ("NAME"): String,
            /// other certificates for TLS: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and
            /// client-key.pem in this folder
            tls_dir ("DIR"): String,
            /// off: hosts do not prove who they are, and what the guest holds crosses the links readable (on)
            tls ("on|off"): bool,
            /// on: as a standby, take a copy although the disks hold data that is not of a VM of a pair (off)
            overwrite ("on|off"): bool,
            /// how long a standby that starts alone waits for the host with the newest disks (forever)
            blackout_wait ("SECONDS"): u64,
            /// with role=primary: run the VM although the witness, or the disks, are in that term
            force ("TERM"): String,
        }
    }
}

words! {
    /// What a host begins as.
    pub enum StartRole: Default {
        /// What the witness lets it be: the first host boots the VM, the other one is its standby.
        Auto = "auto",
        /// Boots the VM.
        Primary = "primary" [default],
        /// Waits for the host that runs it.
        Standby = "standby",
    }
}

impl OptionValue for StartRole {
    const EXPECTED: &'static str = "auto, primary or standby";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == text)
    }
}

/// All options of `--ft`. Its keys for a VM's protection are those of `ft protect`, but for the standby's
/// addresses.
#[must_use]
pub fn node_options() -> Vec<OptionHelp> {
    let own = NodeRequest::help();
    let shared = ProtectRequest::help().into_iter().filter(|option| own.iter().all(|other| other.key != option.key));
    let policy: Vec<_> = shared.filter(|option| option.key != "peer").collect();
    [own, policy, Tuning::help()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::table;

    #[test]
    fn help_has_the_keys_of_both_definitions_once() {
        let keys: Vec<_> = node_options().iter().map(|option| option.key).collect();
        let expected = "role listen heartbeat standby-peers node pair tls_dir tls overwrite blackout_wait force witness on_partition detect_ms min_epoch_us \
                        max_epoch_us latency_us pause_share disk_buffer disk_rate compression delta_cache";
        assert_eq!(keys.join(" "), expected);
        assert!(table(&node_options()).contains("  standby-peers=[ADDR:PORT/ADDR:PORT,...]\n"));
    }
}
