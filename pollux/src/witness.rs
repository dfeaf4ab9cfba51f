//! `pollux witness`: shows a witness's record, and makes one where there is none, with the engine's own
//! keepers.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use ft::witness::{Witness, WitnessError};
use ft::{Stored, WitnessAddress};
use ft_proto::witness::{DiskState, Record, Verdict};
use ft_proto::{NodeId, Term, VmId};
use ft_wire::text::clean;
use host_kit::error::chain;
use pollux_api::status::Role;
use pollux_api::{Route, Status};
use serde::Deserialize;

use crate::args::{Create, WitnessCommand};
use crate::client::{Client, ClientError};
use crate::error::{BLK_REPL, CommandError, RecordError, WITNESS_LIMIT};
use crate::print::show;

/// Runs it.
///
/// # Errors
/// Why it was not done.
pub fn run(command: &WitnessCommand) -> Result<(), CommandError> {
    match command {
        WitnessCommand::Show { place, json } => {
            let stored = ask(place, |witness| witness.read())?.ok_or_else(|| RecordError::None(place.to_string()))?;
            if *json {
                return show(&serde_json::to_value(stored).map_err(ClientError::from)?);
            }
            Ok(writeln!(io::stdout(), "{}", in_words(&stored))?)
        }
        WitnessCommand::Create(create) => make(create),
    }
}

fn make(create: &Create) -> Result<(), CommandError> {
    let (stored, hint) = match create {
        Create { image: Some(image), .. } => of_image(image)?,
        Create { from: Some(socket), .. } => (of_vmm(socket)?, None),
        _ => (of_words(create), None),
    };
    match ask(&create.place, move |witness| witness.create(stored))? {
        Verdict::Granted(_) => {}
        Verdict::Refused(record) => {
            let place = create.place.to_string();
            let record = record.map_or_else(String::new, |record| in_words(&Stored { vm: None, record }));
            return Err(RecordError::Exists { place, record }.into());
        }
    }
    let mut out = io::stdout();
    writeln!(out, "{}", in_words(&stored))?;
    if let Some(hint) = hint {
        writeln!(out, "{hint}")?;
    }
    Ok(())
}

/// What the operator says.
fn of_words(create: &Create) -> Stored {
    let term = create.term.unwrap_or_default();
    let record = match create.runs {
        Some(owner) => Record::Solo { owner, term, since: term },
        None => Record::Stopped { term, disks: create.disks.unwrap_or(term) },
    };
    Stored { vm: create.vm, record }
}

/// The record of an image, as `vhost-user-blk-repl` prints it.
#[derive(Debug, Deserialize)]
struct ImageRecord {
    vm: Option<VmId>,
    #[serde(default)]
    term: Term,
    #[serde(default)]
    ended: Term,
    state: DiskState,
    reason: Option<String>,
}

/// The VM was last run in the term that its disks say, and is started from disks that are as new. With it,
/// what else is to be done.
fn of_image(image: &Path) -> Result<(Stored, Option<String>), RecordError> {
    let failed = |reason: String| RecordError::Image { image: image.to_owned(), reason: clean(&reason) };
    let output = Command::new(program()).arg("record").arg(image).arg("--json").output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let told: ImageRecord = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    let none = |reason: &str| RecordError::NoRecord { image: image.to_owned(), reason: clean(reason) };
    let reason = told.reason.as_deref();
    if told.state == DiskState::Unusable {
        return Err(none(reason.unwrap_or("no VM can be started from it")));
    }
    let vm = told.vm.ok_or_else(|| none(reason.unwrap_or("it has no record, or an earlier release wrote it")))?;
    let newest = told.state.term();
    let term = newest.max(told.term).max(told.ended);
    let record = Record::Stopped { term, disks: newest };
    if !record.is_plausible() {
        return Err(none("it names an impossible term"));
    }
    let hint = matches!(told.state, DiskState::Copy(_)).then(|| {
        format!("the image is a copy: if it is the newest there is, start pollux-vmm here with --ft role=primary,force={term}")
    });
    Ok((Stored { vm: Some(vm), record }, hint))
}

/// It is installed where we are, or where the shell finds it.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name(BLK_REPL));
    beside.filter(|path| path.exists()).unwrap_or_else(|| BLK_REPL.into())
}

/// The VM runs there, and nowhere else.
fn of_vmm(socket: &Path) -> Result<Stored, CommandError> {
    let status = Client::new(socket)?.get(Route::FtStatus)?;
    let Status { role, state, term, vm, node, .. } = serde_json::from_value(status).map_err(ClientError::from)?;
    let refused = |reason: String| RecordError::Vmm { socket: socket.to_owned(), reason };
    if role != Role::Solo {
        let reason = match role {
            Role::Primary => {
                "has a standby, and makes a lost record anew by itself; to change the witness, `ft stop` first"
            }
            _ => "does not run the VM: ask the one that does",
        };
        return Err(refused(format!("{reason} (role {role}, state {state})")).into());
    }
    let owner = node.parse::<NodeId>().map_err(|_| refused("names no node".to_owned()))?;
    let vm = vm.map(|vm| vm.parse::<VmId>()).transpose().map_err(|_| refused("names no VM".to_owned()))?;
    let record = Record::Solo { owner, term: Term(term), since: Term(term) };
    match vm {
        Some(vm) if record.is_plausible() => Ok(Stored { vm: Some(vm), record }),
        _ => Err(refused("names no VM, or an impossible term".to_owned()).into()),
    }
}

/// Has a witness do something, and waits, but not forever.
fn ask<T: Send + 'static>(
    place: &WitnessAddress,
    act: impl FnOnce(&mut dyn Witness) -> Result<T, WitnessError> + Send + 'static,
) -> Result<T, RecordError> {
    let (told, answer) = mpsc::channel();
    let mut witness = place.keeper();
    // Nobody listens any more when the answer comes too late; the process has ended by then.
    let _ = host_kit::thread::spawn("witness", ft::needs::KEEPER, move || drop(told.send(act(&mut *witness))));
    let answer = answer.recv_timeout(WITNESS_LIMIT).map_err(|_| RecordError::Silent(place.to_string()))?;
    answer.map_err(|error| RecordError::Witness(clean(&chain(&error))))
}

/// A record in words.
fn in_words(stored: &Stored) -> String {
    let vm = stored.vm.map_or_else(|| "the VM".to_owned(), |vm| format!("VM {vm}"));
    match stored.record {
        Record::Protected { primary, in_sync, term } => {
            format!("{vm} is protected in term {term}: node {primary} runs it, node {in_sync} may take over")
        }
        Record::Solo { owner, term, since } if since == term => {
            format!("{vm} is run in term {term} by node {owner}, and by nobody else since")
        }
        Record::Solo { owner, term, since } => {
            format!("{vm} is run in term {term} by node {owner}, and by nobody else since term {since}")
        }
        Record::Stopped { term, disks: Term(0) } => {
            format!("{vm} is shut down, in term {term}; any disks of it may start it")
        }
        Record::Stopped { term, disks } => {
            format!("{vm} is shut down, in term {term}; disks that it ran from in term {disks} or later may start it")
        }
    }
}
