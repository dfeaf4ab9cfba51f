//! `pollux pair`: makes two hosts a pair whose VMs may be protected by each other, and keeps their
//! certificates valid.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ft_pair::PairError;
use ft_pair::authority::Authority;
use ft_pair::folder::Folder;
use ft_pair::invitation::{Invitation, VALID};
use ft_pair::{bundle, joining};
use ft_transport::addresses::resolve;
use serde_json::json;

use crate::error::CommandError;
use crate::place::Place;
use crate::print::show;
use crate::renewal::{Renewal, days_left, renew};

pub const HELP: &str = "\
A pair has an authority of its own, whose key both hosts have. Each host proves to the other that
it is of the pair by a certificate that this authority has signed; what a guest holds crosses the
links encrypted.

  first host:   pollux pair init east
  second host:  pollux pair join TOKEN     (printed by the first; valid once, for ten minutes)
  both hosts:   pollux-vmm --ft ...        (uses the pair by itself; pair=NAME if there are several)

Where the hosts do not reach each other's port 7009: pollux pair init --offline and export on the
first host, import on the second.";

/// What to do with a pair.
#[derive(Debug, Subcommand)]
pub enum PairCommand {
    /// Makes a pair on the first host, and waits for the second one to join
    Init {
        /// Its name
        name: String,
        #[command(flatten)]
        door: Door,
        /// Do not wait for the second host: it gets a file of `pollux pair export`
        #[arg(long, conflicts_with = "listen")]
        offline: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Waits for the second host once more, with another token
    Invite {
        /// Name of the pair
        name: String,
        #[command(flatten)]
        door: Door,
        #[command(flatten)]
        place: Place,
    },
    /// Has this host join a pair
    Join {
        /// What `pollux pair init` or `invite` has printed on the first host; - reads it from standard input,
        /// so that no other user of this host sees it
        token: String,
        #[command(flatten)]
        place: Place,
    },
    /// Makes another certificate for this host; VMs stay protected meanwhile
    Renew(Renewal),
    /// Writes a file by which a second host becomes part of the pair; whoever has it can do so
    Export {
        /// Name of the pair
        name: String,
        /// The file
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Has this host join a pair by a file of `pollux pair export`
    Import {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Shows when the certificate expires, and a hash by which two hosts see that they are of the same pair
    Show {
        /// Name of the pair
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
}

/// Where the second host is waited for.
#[derive(Args, Debug)]
pub struct Door {
    /// Address at which the second host reaches this one [default: the first one of this host, port 7009]
    #[arg(long, value_name = "ADDR:PORT", value_parser = resolve)]
    listen: Option<SocketAddr>,
}

/// Runs it.
///
/// # Errors
/// Why it was not done.
pub fn run(command: PairCommand) -> Result<(), CommandError> {
    let mut out = io::stdout();
    match command {
        PairCommand::Init { name, door, offline, place } => {
            let (folder, authority) = (place.folder(&name), Authority::create(&name)?);
            folder.create(&authority, &authority.issue(&place.host())?)?;
            writeln!(out, "pair {name} is in {}", folder.path().display())?;
            if offline {
                writeln!(out, "next: pollux pair export {name} FILE, and on the second host pollux pair import FILE")?;
                return Ok(());
            }
            invite(&folder, &place, &door)
        }
        PairCommand::Invite { name, door, place } => invite(&place.folder(&name), &place, &door),
        PairCommand::Join { token, place } => {
            let token = if token == "-" { io::read_to_string(io::stdin())? } else { token };
            joined(&joining::join(&token.parse()?, place.dir.as_deref(), &place.host())?)
        }
        PairCommand::Renew(renewal) => renew(&renewal),
        PairCommand::Export { name, file, place } => {
            bundle::export(&place.folder(&name), &file)?;
            let file = file.display();
            Ok(writeln!(out, "{file} lets any host join pair {name}: carry it safely, and remove it afterwards")?)
        }
        PairCommand::Import { file, place } => joined(&bundle::import(&file, place.dir.as_deref(), &place.host())?),
        PairCommand::Show { name, json, place } => shown(&place.folder(&name), json),
    }
}

fn invite(folder: &Folder, place: &Place, door: &Door) -> Result<(), CommandError> {
    let invitation = Invitation::open(folder.authority()?, &place.host(), door.listen)?;
    let mut out = io::stdout();
    writeln!(out, "on the second host, within {} minutes:\n", VALID.as_secs() / 60)?;
    writeln!(out, "  pollux pair join {}\n", invitation.token())?;
    writeln!(out, "waiting for it; to stop (Ctrl-C) keeps the pair, and `pollux pair invite` goes on")?;
    out.flush()?;
    let host = invitation.wait(VALID)?;
    Ok(writeln!(out, "{host} has joined")?)
}

fn joined(folder: &Folder) -> Result<(), CommandError> {
    folder.credentials()?;
    let (name, path) = (folder.authority()?.name().to_owned(), folder.path().display().to_string());
    Ok(writeln!(io::stdout(), "this host is of pair {name}; its files are in {path}")?)
}

fn shown(folder: &Folder, json: bool) -> Result<(), CommandError> {
    let (credentials, authority) = (folder.credentials()?, folder.hash()?);
    let expires = credentials.expires().map_err(PairError::from)?;
    let days = days_left(expires);
    let path = folder.path().display().to_string();
    if json {
        return show(&json!({ "folder": path, "authority": authority, "days_left": days }));
    }
    let mut out = io::stdout();
    writeln!(out, "folder       {path}")?;
    writeln!(out, "authority    {authority}")?;
    Ok(writeln!(out, "certificate  valid for {days} days")?)
}
