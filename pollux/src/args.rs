//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  pollux --api-socket /run/a.sock info
  pollux --api-socket /run/a.sock ft protect
  pollux --api-socket /run/a.sock ft status
  pollux --api-socket /run/a.sock ft events --follow
  pollux --api-socket /run/a.sock shutdown-vmm";

/// Controls a running pollux-vmm
#[derive(Debug, Parser)]
#[command(name = "pollux", version, after_help = EXAMPLES, max_term_width = 120)]
pub struct Arguments {
    /// API socket of the VMM
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Asks whether the VMM lives; prints its version as JSON
    Ping,
    /// Prints configuration and state of the VM as JSON
    Info,
    /// Prints the counters of the VM's devices as JSON
    Counters,
    /// Gives the VMM the configuration of a VM
    Create {
        /// File with the VM's configuration as JSON; - is standard input
        #[arg(default_value = "-")]
        config: PathBuf,
    },
    /// Boots the VM, or resumes it if it is paused
    Boot,
    /// Ends the VM; its configuration stays
    Shutdown,
    /// Resets the VM
    Reboot,
    /// Ends the VM and forgets its configuration
    Delete,
    /// Stops the VM's processors
    Pause,
    /// Lets the VM's processors go on
    Resume,
    /// Presses the VM's power button
    PowerButton,
    /// Raises a non-maskable interrupt in the VM
    Nmi,
    /// Ends the VM and the VMM
    ShutdownVmm,
    /// Fault tolerance
    #[command(subcommand)]
    Ft(FtCommand),
}

/// Fault tolerance.
#[derive(Debug, Subcommand)]
pub enum FtCommand {
    /// Protects the running VM by a standby, and shows the first copy until it is complete
    #[command(after_help = PROTECT_HELP)]
    Protect(Protect),
    /// Shows role, state, epochs, times and copies
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Ends protection; the VM goes on here, and no standby is looked for until `ft protect`
    Stop,
    /// Ends protection for a while: the VM goes on here, and the standby keeps its copy for `ft resume`
    #[command(after_help = SUSPEND_HELP)]
    Suspend,
    /// Protects the VM again after `ft suspend`, by sending what has changed since, and shows that until it is complete
    Resume(Shown),
    /// Moves the VM to its standby without a loss, and makes this host the standby: before maintenance of this host
    #[command(after_help = SWITCHOVER_HELP)]
    Switchover(Planned),
    /// Stops the VM here as if this host had died, to see the standby take over, and makes this host the standby
    #[command(after_help = FAILOVER_HELP)]
    TestFailover(Planned),
    /// Shows what happened, oldest first
    Events {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
        /// Goes on until interrupted
        #[arg(long)]
        follow: bool,
    },
}

const PROTECT_HELP: &str = "\
Without options the VM is protected by the first of the standby-peers that pollux-vmm was started with (--ft) that accepts.

Options, separated by commas, and what they are if they are left out. One of witness and on_partition is required.
  peer=ADDR:PORT       the standby's listen address (required)
  heartbeat=ADDR:PORT  its address on the second link (required)
  witness=PLACE        who decides which host goes on when they cannot see each other, the same on both hosts: a file on
                       storage that both see, or a key in etcd, in quotes:
                       etcd://HOST:PORT[+HOST:PORT]/KEY[?cacert=FILE&cert=FILE&key=FILE&user=NAME&password_file=FILE]
  on_partition=WHO     without a witness: primary, standby or both go on, as the standby was started with (both risks two
                       running copies)
  detect_ms=N          silence on both links after which the peer is taken for dead, 50 at least; 0: never (300)
  min_epoch_us=N       shortest epoch (100)
  max_epoch_us=N       longest epoch (20000)
  latency_us=N         epochs with many pages are made shorter until the standby has them in this time (2000)
  pause_share=PERCENT  but not so short that the guest stands still for a larger part of its time (5)
  disk_buffer=SIZE     uncommitted writes per disk before the disk waits (64M)
  disk_rate=SIZE       limit of a disk's copy or resynchronisation, per second; 0: none (0)
  compression=HOW      off; delta: of a page that the standby has, what changed is sent; delta+zstd: and everything is packed;
                       auto: delta, and packed while that is measured to be faster (auto)
  delta_cache=SIZE     memory for earlier versions of pages, at most a quarter of the guest's (64M)

Example:
  pollux --api-socket /run/a.sock ft protect peer=10.0.0.2:7000,heartbeat=10.1.0.2:7001,witness=/shared/vm1";

const SUSPEND_HELP: &str = "\
While protection is suspended a failure of this host ends the VM: its standby does not take over, and nobody looks for another one.
`ft resume` sends the memory pages and disk regions that were written meanwhile. If the standby was started anew, it needs all of memory
and still only those regions of the disks.";

const SWITCHOVER_HELP: &str = "\
The guest is stopped, its last checkpoint and everything it said leave, then it goes on at the standby. Prints the gap: from the
guest's last instruction here to its first one there. When the command ends this host holds a complete copy; it may be shut down.
If the standby is lost on the way the VM stays here.";

const FAILOVER_HELP: &str = "\
Nothing is announced: the standby notices the silence, asks the witness and takes over by itself. What the guest did since its last
committed checkpoint is done again there; nothing that anybody has seen is lost. Prints how long detection and takeover took.";

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
        for word in ["ping", "info", "counters", "create", "boot", "shutdown-vmm", "power-button", "ft", "Examples:"] {
            assert!(help.contains(word), "{word}");
        }
        let parsed =
            Arguments::try_parse_from(["pollux", "--api-socket", "/s", "ft", "protect", "peer=a:1", "--no-wait"]);
        assert!(matches!(
            parsed.unwrap().command,
            Command::Ft(FtCommand::Protect(Protect { shown: Shown { no_wait: true, .. }, .. }))
        ));
    }
}
