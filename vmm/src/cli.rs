//! The command line of `pollux-vmm`: Cloud Hypervisor's flags as far as Pollux has what they ask for, and
//! `--ft`.
//!
//! In: arguments. Out: [`Invocation`], completely checked. Every error names its flag and is one line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::api::CH_VERSION;
use crate::api::socket::SocketTarget;
use crate::config::{
    ConsoleConfig, CpusConfig, DiskConfig, LandlockConfig, MemoryConfig, NetConfig, PayloadConfig, PlatformConfig,
    RngConfig, SerialConfig, VmConfig,
};
use crate::control::event_monitor::EventTarget;
use crate::ft_api::{NodeOptions, node_option};
use host_kit::sandbox::Mode;
use pollux_api::options::{OptionError, OptionHelp, Options, StartRole, node_options, table};

/// Flags of Cloud Hypervisor v53 that Pollux does not have, with what to do instead.
const UNSUPPORTED: [(&str, &str); 22] = [
    ("balloon", "remove this option"),
    ("debug-console", "use --serial"),
    ("device", "remove this option"),
    ("fs", "remove this option"),
    ("fw-cfg-config", "remove this option"),
    ("gdb", "remove this option"),
    ("generic-vhost-user", "remove this option"),
    ("igvm", "use --kernel"),
    ("log-format", "remove this option"),
    ("memory-zone", "use --memory size="),
    ("numa", "remove this option"),
    ("pci-segment", "remove this option"),
    ("pmem", "use --disk"),
    ("pvpanic", "remove this option"),
    ("rate-limit-group", "remove this option"),
    ("restore", "remove this option"),
    ("rtc", "remove this option"),
    ("tpm", "remove this option"),
    ("user-device", "remove this option"),
    ("vdpa", "remove this option"),
    ("vsock", "remove this option"),
    ("watchdog", "remove this option"),
];

/// Flags that describe a VM, which without a payload nothing would be made of.
const VM_FLAGS: [&str; 10] =
    ["cmdline", "console", "cpus", "disk", "initramfs", "memory", "net", "platform", "rng", "serial"];

/// The options of a flag.
type HelpOf = fn() -> Vec<OptionHelp>;

/// Flags whose options are defined in one place, with the headings of their tables.
const TABLES: [(&str, HelpOf); 10] = [
    ("Options of --cpus", CpusConfig::help),
    ("Options of --memory", MemoryConfig::help),
    ("Options of --disk, which needs a path, or vhost_user=on and a socket", DiskConfig::help),
    ("Options of --net", NetConfig::help),
    ("Options of --rng", RngConfig::help),
    ("Modes of --serial", SerialConfig::help),
    ("Modes of --console (there is no virtio console yet)", ConsoleConfig::help),
    ("Options of --platform, accepted and not shown to the guest", PlatformConfig::help),
    ("Options of --landlock-rules", LandlockConfig::help),
    ("Options of --ft", node_options),
];

/// What follows the name in the output of `--version`; libvirt reads the number.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("v{CH_VERSION} (pollux-vmm {})", env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  Boot a kernel, serial port on the terminal:
    pollux-vmm --kernel vmlinuz --initramfs initrd.img --memory size=512M \\
      --cmdline console=ttyS0 --serial tty
  Boot from a disk with a network card, API on a socket:
    pollux-vmm --api-socket /run/a.sock --kernel vmlinuz \\
      --cmdline 'root=/dev/vda1 console=ttyS0' --cpus boot=2 --serial file=a.log \\
      --disk path=root.raw --net tap=tap0,mac=12:34:56:78:90:01
  Be one host of a pair; the first one that starts boots the VM, the other one protects it. Host A:
    pollux-vmm --api-socket /run/a.sock --kernel vmlinuz \\
      --cmdline 'root=/dev/vda1 console=ttyS0' --cpus boot=2 --serial file=a.log \\
      --disk path=root.raw --net tap=tap0,mac=12:34:56:78:90:01 \\
      --ft role=auto,listen=10.0.0.1:7000,heartbeat=10.1.0.1:7001,\\
standby-peers=[10.0.0.2:7000/10.1.0.2:7001],witness=/shared/vm1
  Host B: the same with its own addresses, and those of host A as standby-peers.

SIGTERM and SIGINT end the VM; one that is protected is handed over to its
standby first (shutdown-vmm of the API ends it on both hosts). Exit code: 0, or
1 with the error on standard error.

Flags of Cloud Hypervisor that are not listed here are refused by name.";

/// A Cloud-Hypervisor-compatible VMM with fault tolerance.
#[derive(Debug, Args)]
#[command(max_term_width = 120)]
struct Flags {
    /// Serve the API on a unix socket: PATH, path=PATH, or fd=N for an inherited listening socket. A socket
    /// that is made is for this user alone, unless path=PATH is followed by ,group=GROUP or ,mode=0660
    #[arg(long, value_name = "SOCKET")]
    api_socket: Option<String>,
    /// Add a line to a file for each API call that changes something and each that is refused: who, what,
    /// when and how it ended (see `pollux audit verify --help`)
    #[arg(long, value_name = "FILE", requires = "api_socket")]
    audit_log: Option<PathBuf>,
    /// Write events to path=FILE_OR_FIFO, or to fd=N
    #[arg(long, value_name = "TARGET")]
    event_monitor: Option<String>,
    /// Processors, such as boot=2
    #[arg(long, value_name = "OPTIONS")]
    cpus: Option<String>,
    /// Memory, such as size=2G
    #[arg(long, value_name = "OPTIONS")]
    memory: Option<String>,
    /// Disks, one text for each, such as path=root.raw
    #[arg(long, value_name = "OPTIONS", num_args = 1.., action = ArgAction::Append)]
    disk: Vec<String>,
    /// Network cards, one text for each, such as tap=tap0,mac=12:34:56:78:90:01
    #[arg(long, value_name = "OPTIONS", num_args = 1.., action = ArgAction::Append)]
    net: Vec<String>,
    /// Entropy device
    #[arg(long, value_name = "OPTIONS")]
    rng: Option<String>,
    /// Serial port
    #[arg(long, value_name = "MODE")]
    serial: Option<String>,
    /// Virtio console
    #[arg(long, value_name = "MODE")]
    console: Option<String>,
    /// Identity of the machine
    #[arg(long, value_name = "OPTIONS")]
    platform: Option<String>,
    /// Fault tolerance, such as role=auto,listen=ADDR:PORT,heartbeat=ADDR:PORT,witness=PLACE
    #[arg(long, value_name = "OPTIONS")]
    ft: Option<String>,
    /// Stay when the guest powers itself off
    #[arg(long)]
    no_shutdown: bool,
    /// What happens to a system call that a thread does not need: true, it ends the VMM; false, nothing; log,
    /// the kernel logs it; errno, it fails. The same holds for device processes
    #[arg(long, value_name = "MODE", default_value = "true")]
    seccomp: String,
    /// Leave this VMM only those files of the host that it needs for its VM
    #[arg(long)]
    landlock: bool,
    /// More files for it, one text for each, such as path=/srv/witness,access=rw
    #[arg(long, value_name = "OPTIONS", num_args = 1.., action = ArgAction::Append)]
    landlock_rules: Vec<String>,
    /// Log to a file instead of standard error
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
    /// Log more: -v info, -vv debug, -vvv trace
    #[arg(short, action = ArgAction::Count)]
    verbosity: u8,
}

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Not an error: text that was asked for, to be printed on standard output.
    #[error("{0}")]
    Shown(String),
    /// Wrong usage.
    #[error("{0} (see pollux-vmm --help)")]
    Usage(String),
    /// A flag of Cloud Hypervisor that Pollux does not have.
    #[error("--{flag} is not supported by pollux-vmm: {hint}")]
    Unsupported {
        /// Its name.
        flag: String,
        /// What to do instead.
        hint: String,
    },
    /// An option string is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
}

/// What the command line asks for.
#[derive(Debug)]
pub struct Invocation {
    /// Where the API listens.
    pub api_socket: Option<SocketTarget>,
    /// Where it is logged who has it do what.
    pub audit_log: Option<PathBuf>,
    /// Where events go.
    pub event_monitor: Option<EventTarget>,
    /// The VM to boot at once, or to be the standby of.
    pub vm: Option<VmConfig>,
    /// Its fault tolerance.
    pub ft: Option<NodeOptions>,
    /// Stay when the guest powers itself off.
    pub no_shutdown: bool,
    /// What happens to system calls that no thread of ours makes.
    pub seccomp: Mode,
    /// Where the log goes, if not to standard error.
    pub log_file: Option<PathBuf>,
    /// Steps of verbosity above warnings.
    pub verbosity: u8,
}

fn command() -> Command {
    let base = Command::new("pollux-vmm")
        .version(VERSION.as_str())
        .about("A Cloud-Hypervisor-compatible VMM with fault tolerance")
        .after_help(after_help())
        .args(PayloadConfig::help().into_iter().map(payload_flag));
    UNSUPPORTED.iter().fold(Flags::augment_args(base), |command, (flag, _)| {
        command.arg(Arg::new(*flag).long(*flag).num_args(0..).action(ArgAction::Append).hide(true))
    })
}

fn after_help() -> String {
    let table = |(heading, help): (&str, HelpOf)| format!("{heading}:\n{}\n", table(&help()));
    let tables: String = TABLES.into_iter().map(table).collect();
    format!("OPTIONS are KEY=VALUE,KEY=VALUE. In brackets: what holds without them.\n\n{tables}{EXAMPLES}")
}

/// Each part of the payload is a flag of its own.
fn payload_flag(option: OptionHelp) -> Arg {
    Arg::new(option.key).long(option.key).value_name(option.value).help(option.text).allow_hyphen_values(true)
}

impl Invocation {
    /// Whether the VM is only waited for: it needs nothing to boot.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.ft.as_ref().is_some_and(|options| options.role == StartRole::Standby)
    }

    /// Reads a command line, the name of the program first.
    ///
    /// # Errors
    /// When it cannot be used; help and version come as [`CliError::Shown`].
    pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, CliError> {
        let matches = command().try_get_matches_from(arguments).map_err(|error| usage(&error))?;
        let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        if let Some((flag, hint)) = UNSUPPORTED.iter().find(|(flag, _)| given(flag)) {
            return Err(CliError::Unsupported { flag: (*flag).to_owned(), hint: (*hint).to_owned() });
        }
        let flags = Flags::from_arg_matches(&matches).map_err(|error| usage(&error))?;
        let seccomp = flags.seccomp.parse().map_err(|why| CliError::Usage(format!("--seccomp: {why}")))?;
        let api_socket = flags.api_socket.as_deref().map(SocketTarget::from_option).transpose()?;
        let event_monitor = flags.event_monitor.as_deref().map(EventTarget::from_option).transpose()?;
        let ft = flags.ft.as_deref().map(node_option).transpose()?;
        let vm = vm_config(&flags, &matches, ft.as_ref().is_some_and(|ft| ft.role == StartRole::Standby))?;
        if vm.is_none() && api_socket.is_none() {
            let text = "nothing to do: give --kernel to boot a VM, or --api-socket to wait for requests";
            return Err(CliError::Usage(text.to_owned()));
        }
        let Flags { audit_log, no_shutdown, log_file, verbosity, .. } = flags;
        Ok(Self { api_socket, audit_log, event_monitor, vm, ft, no_shutdown, seccomp, log_file, verbosity })
    }
}

/// One line out of clap's paragraphs; help and version unchanged.
fn usage(error: &clap::Error) -> CliError {
    match error.kind() {
        ErrorKind::DisplayHelp => CliError::Shown(error.render().to_string()),
        // Management tools look for this name at the start of the line.
        ErrorKind::DisplayVersion => {
            CliError::Shown(error.render().to_string().replacen("pollux-vmm", "cloud-hypervisor", 1))
        }
        _ => {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
            CliError::Usage(line.strip_prefix("error: ").unwrap_or(&line).to_owned())
        }
    }
}

fn vm_config(flags: &Flags, matches: &ArgMatches, standby: bool) -> Result<Option<VmConfig>, CliError> {
    let given = |option: OptionHelp| Some((option.key, matches.get_one::<String>(option.key)?.clone()));
    let payload = PayloadConfig::from_options(&Options::of_flags(PayloadConfig::help().into_iter().filter_map(given)))?;
    if payload.kernel.is_some() && payload.firmware.is_some() {
        return Err(CliError::Usage("--kernel cannot be used together with --firmware".to_owned()));
    }
    if payload.kernel.is_none() && payload.firmware.is_none() && !standby {
        let given = |name: &&&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        return match VM_FLAGS.iter().find(given) {
            None => Ok(None),
            Some(flag) => Err(CliError::Usage(format!("--{flag} needs --kernel or --firmware"))),
        };
    }
    let disks = flags.disk.iter().map(|text| DiskConfig::from_option(text)).collect::<Result<Vec<_>, _>>()?;
    let rules = &flags.landlock_rules;
    let rules = rules.iter().map(|text| LandlockConfig::from_option(text)).collect::<Result<Vec<_>, _>>()?;
    let net = flags.net.iter().map(|text| NetConfig::from_option(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(VmConfig {
        cpus: one(&flags.cpus, CpusConfig::from_option)?.unwrap_or_default(),
        memory: one(&flags.memory, MemoryConfig::from_option)?.unwrap_or_default(),
        payload: (payload != PayloadConfig::default()).then_some(payload),
        disks: Some(disks).filter(|list| !list.is_empty()),
        net: Some(net).filter(|list| !list.is_empty()),
        rng: one(&flags.rng, RngConfig::from_option)?.unwrap_or_default(),
        serial: one(&flags.serial, SerialConfig::from_option)?.unwrap_or_default(),
        console: one(&flags.console, ConsoleConfig::from_option)?.unwrap_or_default(),
        platform: one(&flags.platform, PlatformConfig::from_option)?,
        landlock_enable: flags.landlock,
        landlock_rules: Some(rules).filter(|list| !list.is_empty()),
        ..VmConfig::default()
    }))
}

/// What follows a flag, if it is given.
fn one<T>(text: &Option<String>, read: fn(&str) -> Result<T, OptionError>) -> Result<Option<T>, OptionError> {
    text.as_deref().map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConsoleOutputMode;

    fn parse(line: &str) -> Result<Invocation, CliError> {
        Invocation::parse(std::iter::once("pollux-vmm").chain(line.split_whitespace()))
    }

    #[test]
    fn many_values_after_one_flag() {
        let line = "--kernel k --disk path=/a path=/b --net tap=t0 --disk path=/c --serial tty --cpus boot=2 -vv";
        let invocation = parse(line).unwrap();
        let vm = invocation.vm.unwrap();
        assert_eq!(vm.disks.unwrap().len(), 3);
        assert_eq!(vm.net.unwrap().len(), 1);
        assert_eq!((vm.cpus.boot_vcpus, vm.serial.mode), (2, ConsoleOutputMode::Tty));
        assert_eq!((vm.console.mode, vm.memory.size), (ConsoleOutputMode::Off, 512 << 20));
        assert_eq!(invocation.verbosity, 2);
    }

    #[test]
    fn without_payload_it_waits() {
        let invocation = parse("--api-socket /tmp/s").unwrap();
        assert!(invocation.vm.is_none());
        assert_eq!(invocation.api_socket, Some(SocketTarget::at("/tmp/s")));
    }

    #[test]
    fn standby_needs_no_kernel() {
        let invocation = parse("--ft role=standby,listen=127.0.0.1:1,heartbeat=127.0.0.1:2 --disk path=/a").unwrap();
        assert!(invocation.vm.unwrap().payload.is_none());
        assert!(invocation.ft.is_some());
    }

    #[test]
    fn version_is_read_by_management_tools() {
        let CliError::Shown(text) = parse("--version").unwrap_err() else { panic!("not shown") };
        assert_eq!(text, format!("cloud-hypervisor v53.0.0 (pollux-vmm {})\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn help_lists_what_there_is() {
        let CliError::Shown(text) = parse("--help").unwrap_err() else { panic!("not shown") };
        for flag in ["--api-socket", "--kernel", "--disk", "--net", "--ft", "--no-shutdown", "Examples:"] {
            assert!(text.contains(flag), "{flag}");
        }
        for (heading, help) in TABLES {
            assert!(text.contains(heading), "{heading}");
            for option in help() {
                assert!(
                    text.contains(&format!("\n  {}", option.pair())),
                    "{} of {heading} is not in\n{text}",
                    option.key
                );
            }
        }
        assert!(!text.contains("--balloon"));
    }
}
