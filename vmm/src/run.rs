//! One run of `pollux-vmm`, from the command line to the exit code. The only place where all parts are seen.
//!
//! Order: what can block or fail without a trace first (arguments, log, event stream), then the signals, then
//! what leaves files behind (audit log, API socket), then the VM. The end is the same list backwards.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crossbeam_channel::{Receiver, unbounded};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};

use crate::api::Shared;
use crate::api::audit::{Audit, AuditLog, Tell};
use crate::api::http::HttpServer;
use crate::api::socket::{ApiSocket, SocketTarget};
use crate::cli::{CliError, Invocation};
use crate::contract::BoxError;
use crate::control::control_loop::{Ending, Parts, Vmm};
use crate::control::event_monitor::EventMonitor;
use crate::files;
use crate::ft_adapter::factory::KvmFactory;
use crate::logging;
use crate::process;
use host_kit::capabilities::{self, Capability};
use host_kit::core_dump;
use host_kit::error::chain;
use host_kit::sandbox::{self, Needs};

/// Of root's capabilities: real-time priority, and files, sockets and ports as before, whoever owns them.
/// Taps are opened by their device processes.
const KEPT: [Capability; 5] = [
    Capability::CAP_SYS_NICE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_NET_BIND_SERVICE,
];

/// Does what the command line asks for; returns when the VMM has ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match Invocation::parse(arguments) {
        Ok(invocation) => {
            let outcome = serve(invocation);
            process::end_launcher();
            outcome
        }
        Err(CliError::Shown(text)) => {
            // Nobody to tell when standard output is closed.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(Ending::Clean) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::FAILURE,
        Err(error) => {
            // As above.
            let _ = writeln!(io::stderr(), "pollux-vmm: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn serve(invocation: Invocation) -> Result<Ending, BoxError> {
    if let Some(vm) = &invocation.vm {
        if invocation.is_standby() { vm.validate_standby() } else { vm.validate() }?;
    }
    // What we and our device processes create, sockets and logs among them, is for our user alone.
    umask(Mode::from_bits_truncate(0o077));
    // Before there are threads, filters and limits, which what it starts would inherit.
    process::start_launcher()?;
    capabilities::keep(&KEPT)?;
    let log = logging::start(invocation.verbosity, invocation.log_file.as_deref())?;
    core_dump::leave_out_shared_memory();
    sandbox::start("pollux-vmm", invocation.seccomp, log)?;
    // Whatever threads need, this one must have, which starts them.
    sandbox::confine(Needs::all() - Needs::NAMESPACES)?;
    tracing::info!("pollux-vmm {} starting", env!("CARGO_PKG_VERSION"));
    let monitor = match &invocation.event_monitor {
        Some(target) => EventMonitor::open(target)?,
        None => EventMonitor::default(),
    };
    let socket = invocation.api_socket.as_ref().and_then(SocketTarget::path).map(PathBuf::from);
    let own: Vec<_> = socket.into_iter().chain(invocation.audit_log.clone()).collect();
    // Before there are other threads, which inherit it.
    if let Some(vm) = &invocation.vm {
        files::limit_to(vm, invocation.ft.as_ref(), &own)?;
    }
    let signals = signals()?;
    let factory = Box::new(KvmFactory::new(invocation.ft, own)?);

    let (sender, calls) = unbounded();
    let shared = Shared::new(sender);
    let audit_log = invocation.audit_log.as_ref().map(|path| AuditLog::open(path, tell_in(&monitor))).transpose()?;
    let audit = audit_log.as_ref().map_or_else(Audit::default, AuditLog::handle);
    let socket = invocation.api_socket.as_ref().map(ApiSocket::open).transpose()?;
    let http = match &socket {
        Some(socket) => Some(HttpServer::start(socket.listener()?, shared.clone(), audit)?),
        None => None,
    };
    let no_shutdown = invocation.no_shutdown;
    let mut vmm = Vmm::new(Parts { factory, monitor, shared, no_shutdown });
    let outcome = match invocation.vm.map(|vm| vmm.start(vm)) {
        Some(Err(error)) => {
            vmm.end_vmm();
            Err(error.into())
        }
        None | Some(Ok(())) => Ok(vmm.run(&calls, &signals)),
    };
    // The last answers leave before the socket does.
    drop((calls, http));
    drop(socket);
    drop(audit_log);
    outcome
}

/// Events that say whether the audit log can be written.
fn tell_in(monitor: &EventMonitor) -> Tell {
    let monitor = monitor.clone();
    Box::new(move |reason| match reason {
        Some(reason) => {
            monitor.event_with("vmm", "audit-failed", &[("reason".to_owned(), reason.to_owned())].into());
        }
        None => monitor.event("vmm", "audit-restored"),
    })
}

/// Signals that end the VMM in order, as messages. Must be called while there is but one thread, as the
/// others inherit the mask.
fn signals() -> Result<Receiver<i32>, BoxError> {
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    set.thread_block()?;
    let (sender, signals) = unbounded();
    host_kit::thread::spawn("signal", Needs::NOTHING, move || {
        while let Ok(signal) = set.wait() {
            if sender.send(signal as i32).is_err() {
                return;
            }
        }
    })?;
    Ok(signals)
}
