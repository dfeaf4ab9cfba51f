//! The command line.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use ft::WitnessAddress;
use ft_proto::{NodeId, Term, VmId};
use pollux_api::options;

const EXAMPLES: &str = "\
Examples:
  pollux --api-socket /run/a.sock info
  pollux --api-socket /run/a.sock ft protect
  pollux --api-socket /run/a.sock ft status
  pollux --api-socket /run/a.sock ft events --follow
  pollux --api-socket /run/a.sock shutdown-vmm
  pollux witness show /shared/vm1
  pollux pair init east";

/// Controls a running pollux-vmm
#[derive(Debug, Parser)]
#[command(name = "pollux", version, after_help = EXAMPLES, max_term_width = 120)]
pub struct Arguments {
    /// API socket of the VMM; all commands but `witness`, `pair` and `audit` need it
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Checks that the VMM is responding; prints its version as JSON
    Ping,
    /// Prints configuration and state of the VM as JSON
    Info,
    /// Prints the counters of the VM's devices as JSON
    Counters,
    /// Creates a VM from its configuration, without booting it
    Create {
        /// File with the VM's configuration as JSON; - is standard input
        #[arg(default_value = "-")]
        config: PathBuf,
    },
    /// Boots the VM, or resumes it if it is paused
    Boot,
    /// Shuts the VM down; keeps its configuration
    Shutdown,
    /// Resets the VM
    Reboot,
    /// Shuts the VM down and deletes its configuration
    Delete,
    /// Pauses the VM
    Pause,
    /// Resumes the VM
    Resume,
    /// Presses the VM's power button
    PowerButton,
    /// Raises a non-maskable interrupt in the VM
    Nmi,
    /// Shuts the VM down and ends the VMM
    ShutdownVmm,
    /// Fault tolerance
    #[command(subcommand)]
    Ft(FtCommand),
    /// Shows or creates a witness's record of which node may run a VM; needs no VMM
    #[command(subcommand)]
    Witness(WitnessCommand),
    /// Makes two hosts a pair that encrypts what it sends and lets nobody else in; needs no VMM
    #[command(subcommand, after_help = crate::pair::HELP)]
    Pair(crate::pair::PairCommand),
    /// Checks the log that pollux-vmm writes with --audit-log; needs no VMM
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// Fault tolerance.
#[derive(Debug, Subcommand)]
pub enum FtCommand {
    /// Protects the running VM with a standby; shows the progress of the first copy
    #[command(after_help = protect_help())]
    Protect(Protect),
    /// Shows role, state, epochs, times and copies
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Ends protection; the VM continues here, unprotected until `ft protect`
    Stop,
    /// Suspends protection; the VM continues here, and the standby keeps its copy for `ft resume`
    #[command(after_help = SUSPEND_HELP)]
    Suspend,
    /// Resumes protection after `ft suspend` by sending what has changed; shows the progress
    Resume(Shown),
    /// Moves the VM to its standby without data loss; this host becomes the standby, for maintenance
    #[command(after_help = SWITCHOVER_HELP)]
    Switchover(Planned),
    /// Stops the VM as if this host had failed, so that the standby takes over; this host becomes the standby
    #[command(after_help = FAILOVER_HELP)]
    TestFailover(Planned),
    /// Shows events, oldest first
    Events {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
        /// Keep showing new events until interrupted
        #[arg(long)]
        follow: bool,
    },
}

/// A witness's record.
#[derive(Debug, Subcommand)]
pub enum WitnessCommand {
    /// Shows which node may run the VM; exit code 1 if there is no record
    Show {
        /// What follows witness= in the options of --ft and `ft protect`
        place: WitnessAddress,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Creates the record, only if there is none
    #[command(after_help = CREATE_HELP, group = ArgGroup::new("what").required(true))]
    Create(Box<Create>),
}

/// An audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Checks that no line of it was changed, removed or added; shows the first wrong line otherwise
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
}

/// Checks a log.
#[derive(Debug, Args)]
pub struct Verify {
    /// The log; if it was renamed now and then, all of its files, the oldest one first
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// An entry of this hash must be in it, as an earlier check has shown it
    #[arg(long, value_name = "HASH")]
    pub contains: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Makes a record.
#[derive(Debug, Args)]
pub struct Create {
    /// What follows witness= in the options of --ft and `ft protect`
    pub place: WitnessAddress,
    /// The VM that this image, the newest one, belongs to (see `vhost-user-blk-repl record IMAGE`)
    #[arg(long, value_name = "IMAGE", group = "what")]
    pub image: Option<PathBuf>,
    /// The VM that runs, unprotected, under the VMM with this API socket
    #[arg(long, value_name = "API-SOCKET", group = "what")]
    pub from: Option<PathBuf>,
    /// The VM, by its identity: 32 hexadecimal digits
    #[arg(long, value_name = "ID", group = "what", requires = "term")]
    pub vm: Option<VmId>,
    /// The last known term of the VM
    #[arg(long, value_name = "N", requires = "vm", conflicts_with_all = ["image", "from"], value_parser = term)]
    pub term: Option<Term>,
    /// Which disks it may be started from: those of a run in this term or later; 0: any. Default: those of
    /// the last term
    #[arg(long, value_name = "N", requires = "vm", conflicts_with_all = ["image", "from", "runs"], value_parser = term)]
    pub disks: Option<Term>,
    /// The VM is running, on this node
    #[arg(long, value_name = "HOST/INCARNATION", requires = "vm", conflicts_with_all = ["image", "from"])]
    pub runs: Option<NodeId>,
}

fn term(text: &str) -> Result<Term, String> {
    let term = text.parse().map(Term).map_err(|error| format!("{error}"))?;
    if term.is_plausible() { Ok(term) } else { Err(format!("a term is at most {}", Term::MAX)) }
}

const CREATE_HELP: &str = "\
When:
  - The witness is new: its file system, folder or etcd was replaced, or the VM gets another witness= from now on.
  - The record was lost: a host says \"the witness has no record of this VM\" or \"has lost its record\".
When not:
  - The file system with the record is not mounted, or PLACE is mistyped. Mount it, or correct it. A second record gives two
    hosts the right to run the VM.
  - The VM has never run. Its first start creates the record.
  - The VM is protected: the primary restores a lost record by itself.
  - There is a record. It is not overwritten; `pollux witness show PLACE` shows it. If its host is gone for good, start pollux-vmm on
    the host with the newest disks with --ft role=primary,force=TERM.

What to do:
  1. On each host that may run the VM: is the file system mounted (findmnt -T PATH)? Does the VM run (pollux --api-socket S ft status)?
  2. If it runs:              pollux witness create PLACE --from S
  3. If it runs nowhere:      vhost-user-blk-repl record IMAGE    on each host. The newest copy has the highest term; of two with the
     same term, the one with role=alone or role=protected, or the one that `ended` in it. On its host:
                              pollux witness create PLACE --image IMAGE
     Then start pollux-vmm there first. If that image is a copy (role=standby), the command says how to start from it.
  4. A process that has seen the former record refuses another one (\"is not the witness it was\"). Restart the standby. The process
     that runs the VM accepts it if it has noticed the loss (`ft events`: witness-record-lost); if the file system itself was replaced,
     create the record at a new PLACE and use that: pollux --api-socket S ft protect peer=…,heartbeat=…,witness=PLACE

Examples:
  pollux witness create /shared/vm1 --image /var/lib/vm1.img
  pollux witness create /shared/vm1 --from /run/vm1.sock
  pollux witness create 'etcd://10.0.0.1:2379/pollux/vm1' --vm 6d0b1c3c9f7c4c5e8f0e5a6c3b2a1908 --term 12";

const VERIFY_HELP: &str = "\
Each line is a JSON object with the SHA-256 of the line before it (`prev`). A change in the middle breaks the chain. Whoever can write
the file can also cut its end or write all of it anew: keep the hash that this command prints in another place, and give it to a later
check with --contains. The tools of any system give the same hash: tail -n 1 FILE | tr -d '\\n' | sha256sum

Events: opened and closed by a VMM (one without the other: it was killed), begun and ended (a call that changes something), refused (a
request that was not performed), lost (entries that could not be written).

Examples:
  pollux audit verify /var/log/vm1.audit
  pollux audit verify /var/log/vm1.audit.2 /var/log/vm1.audit.1 /var/log/vm1.audit --contains 5f70…";

fn protect_help() -> String {
    format!(
        "\
Without options the VM is protected by the first of the standby-peers that pollux-vmm was started with (--ft) that accepts.

Options, separated by commas, and what they are if they are left out. One of witness and on_partition is required.
{}
Example:
  pollux --api-socket /run/a.sock ft protect peer=10.0.0.2:7000,heartbeat=10.1.0.2:7001,witness=/shared/vm1",
        options::protect_help()
    )
}

const SUSPEND_HELP: &str = "\
While protection is suspended, a failure of this host ends the VM: its standby does not take over, and no other one is searched for.
`ft resume` sends the memory pages and disk regions that were written in the meantime. If the standby was restarted, it needs all of
memory, but still only those regions of the disks.";

const SWITCHOVER_HELP: &str = "\
The guest is paused, its last checkpoint and all of its output leave, then it continues at the standby. Prints the gap: from the
guest's last instruction here to its first one there. When the command returns, this host holds a complete copy and may be shut down.
If the standby is lost during the move, the VM stays here.";

const FAILOVER_HELP: &str = "\
Nothing is announced: the standby notices the silence, asks the witness and takes over by itself. What the guest did since its last
committed checkpoint is repeated there; nothing that a client has seen is lost. Prints how long detection and takeover took.";

/// A planned move of the VM.
#[derive(Debug, Args)]
pub struct Planned {
    /// Return as soon as the VM is stopped here
    #[arg(long)]
    pub no_wait: bool,
}

/// Protects the VM.
#[derive(Debug, Args)]
pub struct Protect {
    /// KEY=VALUE,KEY=VALUE (see below)
    #[arg(value_name = "OPTIONS")]
    pub options: Option<String>,
    /// How it is shown.
    #[command(flatten)]
    pub shown: Shown,
}

/// How a copy is shown.
#[derive(Debug, Args)]
pub struct Shown {
    /// Return as soon as the copy has begun
    #[arg(long)]
    pub no_wait: bool,
    /// Print the final status as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_are_those_of_ch_remote_and_ft() {
        let help = Arguments::command().render_help().to_string();
        for word in
            ["ping", "info", "counters", "create", "boot", "shutdown-vmm", "power-button", "ft", "witness", "Examples:"]
        {
            assert!(help.contains(word), "{word}");
        }
        let parsed =
            Arguments::try_parse_from(["pollux", "--api-socket", "/s", "ft", "protect", "peer=a:1", "--no-wait"]);
        assert!(matches!(
            parsed.unwrap().command,
            Command::Ft(FtCommand::Protect(Protect { shown: Shown { no_wait: true, .. }, .. }))
        ));
    }

    #[test]
    fn a_record_is_made_for_one_vm_that_is_named_in_one_way() {
        let vm = "0000000000000000000000000000000a";
        let parse = |words: &str| {
            let words = format!("pollux witness create /w {words}").replace("VM", vm);
            Arguments::try_parse_from(words.split_whitespace())
        };
        for words in [
            "--image a",
            "--from s",
            "--vm VM --term 3",
            "--vm VM --term 3 --disks 0",
            "--vm VM --term 3 --runs a/0000000000000001",
        ] {
            assert!(parse(words).is_ok(), "{words}");
        }
        for words in [
            "",
            "--vm VM",
            "--term 3",
            "--vm 7 --term 3",
            "--vm VM --term 18446744073709551615",
            "--image a --from s",
            "--image a --vm VM --term 3",
            "--image a --disks 0",
            "--from s --term 3",
            "--vm VM --term 3 --disks 0 --runs a/0000000000000001",
            "--vm VM --term 3 --runs a",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
