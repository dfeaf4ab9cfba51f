//! The record in files on storage that both hosts see: a compare-and-swap by exclusive hard links.
//!
//! # Files
//!
//! `PATH.~7~` is the seventh record. Numbered files are never changed, and `PATH` is another name of the
//! latest one, for people and for earlier versions. `PATH.lock` is locked by whoever writes; `PATH.~new-…~`
//! is a record in the making.
//!
//! # How a record is stored
//!
//! 1. Lock; make a draft, which also has the client of a file server look at the folder anew.
//! 2. Find the latest record, number *n*: the highest number in the folder. Judge the claim by it.
//! 3. Write record *n+1* to the draft and have it written to stable storage.
//! 4. Link the draft to `PATH.~n+1~`. **This is the moment at which the claim is granted**, to one writer at
//!    most: link(2) fails if the name exists, on a file server too. Who fails begins again at 2.
//! 5. Make sure of it (see below), and have the folder written to stable storage. Only then is the claim said
//!    to be granted.
//! 6. Rename the draft to `PATH`. Remove records but for the last 64, and drafts of others.
//!
//! # Why one record follows another
//!
//! The lock saves the losers' work and makes it fair, but nothing depends on it: a host that was frozen may
//! have lost it to a file server that gave it up, and go on at any step.
//!
//! * *Frozen before 4, few records since.* `PATH.~n+1~` is there, link fails, the claim is judged anew.
//! * *Frozen before 4, many since.* `PATH.~n+1~` may have been removed as an old one, and link succeeds. But
//!   an old one is removed only when one with a number 64 higher is there. Step 5 therefore looks at the
//!   folder again: if the highest number is below *n+64*, nobody has ever removed number *n+1*, so this link
//!   was the first of its name and everybody builds on it. Otherwise nobody ever looks at the link, since a
//!   higher number is there; the claim is judged anew. (If it had been granted after all, 64 records ago,
//!   then it is judged as any claim whose answer got lost.)
//! * *Frozen before 6.* `PATH` goes back to an old record. Readers go by the highest number, and the next
//!   writer renames it again. A frozen removal removes what is old for good. A draft that is removed under
//!   way fails to be linked, and is made anew.
//!
//! So numbers have no gap that matters, each was made by one writer who had judged by the one before, and the
//! highest is the record.
//!
//! # A crash
//!
//! Before 4 nothing has happened, but for a draft that the next writer removes. After 4 the record is the new
//! one, and nobody was told; claims can be asked again. Records are on stable storage before they have a
//! number, and the name is before anybody acts on it; a later record makes the names of earlier ones durable
//! with its own.
//!
//! # An earlier release's file
//!
//! It is `PATH` alone, without number and identity. It is taken over as number 1, unchanged, and `PATH` is
//! renamed before there is a number 2. So a file without a number beside a number 2, or beside a number 1
//! that says something else, was written later by an earlier release, or by hand; nobody can tell what it was
//! judged by, and a human is asked.
//!
//! # What is lost, moved or restored
//!
//! `PATH` leads to the same folder as at the first question (by descriptor, device and inode), and the record
//! is of the same witness and no older one ([`Memory`]), or there is an error. If `PATH` was removed and
//! numbered files are there, it was not lost. If all of them are gone the record is lost, and
//! `ft_proto::witness::judge` says who may make it anew: as number 1 again, so that only one of them does.
//! Files are removed by hand only while no host runs the VM.

mod steps;

use std::path::{Path, PathBuf};

use ft_proto::VmId;
use ft_proto::witness::{Claim, Verdict};
use nix::errno::Errno;

use super::folder::{Folder, FolderId};
use super::kept::{Kept, Memory};
use super::{Change, Stored, Witness, WitnessError};
use steps::{Draft, Files, Look};

/// How many records stay.
const STAY: u64 = 64;
/// How often a claim is judged anew because others were faster.
const ROUNDS: u32 = 16;

/// A record in files that both hosts see.
#[derive(Debug)]
pub struct FileWitness {
    path: PathBuf,
    folder: Option<Folder>,
    /// Which folder it was, also when it has to be found again.
    known: Option<FolderId>,
    memory: Memory,
}

impl FileWitness {
    /// Uses `path`; nothing is touched yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), folder: None, known: None, memory: Memory::default() }
    }

    /// Does something in the folder, and once more if a file server has forgotten it.
    fn there<T>(&mut self, act: impl Fn(&mut Memory, Files<'_>) -> Result<T, WitnessError>) -> Result<T, WitnessError> {
        match self.once(&act) {
            Err(error) if is_stale(&error) => {
                self.folder = None;
                self.once(&act)
            }
            done => done,
        }
    }

    fn once<T>(&mut self, act: impl Fn(&mut Memory, Files<'_>) -> Result<T, WitnessError>) -> Result<T, WitnessError> {
        let held = match self.folder.take() {
            Some(held) => held,
            None => Folder::find(&self.path)?,
        };
        let known = *self.known.get_or_insert(held.id());
        if held.id() != known {
            return Err(WitnessError::NotTheSame { place: self.path.display().to_string() });
        }
        let held = self.folder.insert(held);
        act(&mut self.memory, Files::new(held, &self.path, STAY))
    }

    fn change(&mut self, change: Change) -> Result<Verdict, WitnessError> {
        self.there(|memory, files| {
            let _lock = files.lock()?;
            swap(memory, files, change)
        })
    }
}

impl Witness for FileWitness {
    /// Writes nothing.
    fn read(&mut self) -> Result<Option<Stored>, WitnessError> {
        self.there(|memory, files| {
            // There is always a record that is whole, but one that is about to be replaced is better not
            // told.
            let _lock = files.lock_to_read()?;
            Ok(look(memory, files)?.top.map(|top| top.stored))
        })
    }

    fn ask(&mut self, vm: VmId, claim: Claim) -> Result<Verdict, WitnessError> {
        self.change(Change::Claim(vm, claim))
    }

    fn create(&mut self, stored: Stored) -> Result<Verdict, WitnessError> {
        self.change(Change::Create(stored))
    }
}

/// Whether a file server has forgotten what a descriptor stands for.
fn is_stale(error: &WitnessError) -> bool {
    matches!(error, WitnessError::File { source, .. } if source.raw_os_error() == Some(Errno::ESTALE as i32))
}

/// What is there, if the path still leads there and it is what is known.
fn look(memory: &mut Memory, files: Files<'_>) -> Result<Look, WitnessError> {
    if !files.are_at_their_path()? {
        return Err(WitnessError::NotTheSame { place: files.place() });
    }
    let look = files.look()?;
    memory.accept(look.top.as_ref(), &files.place())?;
    Ok(look)
}

/// Judges and stores until nobody was faster.
fn swap(memory: &mut Memory, files: Files<'_>, change: Change) -> Result<Verdict, WitnessError> {
    for _ in 0..ROUNDS {
        let mut draft = files.draft()?;
        let look = look(memory, files)?;
        if !settle(memory, files, &look, &mut draft)? {
            continue;
        }
        let (verdict, next) = change.judge(look.top.map(|top| top.stored), || files.place())?;
        let Some(next) = next else { return Ok(verdict) };
        // Also when the record stays: what was judged before and is still under way must find it changed.
        let next = memory.follow(look.top.as_ref(), next)?;
        if store(files, draft, look.top.as_ref(), &next)? {
            memory.accept(Some(&next), &files.place())?;
            return Ok(verdict);
        }
    }
    Err(WitnessError::Contended { place: files.place(), rounds: ROUNDS })
}

/// Puts right what somebody left half-way, or an earlier release has written; `false`: the folder has to be
/// looked at again.
fn settle(memory: &Memory, files: Files<'_>, look: &Look, draft: &mut Draft<'_>) -> Result<bool, WitnessError> {
    let Some(top) = &look.top else { return Ok(true) };
    let named = look.main.is_some_and(|main| main.n == top.n);
    if look.numbered && named {
        return Ok(true);
    }
    let kept = if top.n == 0 { memory.follow(None, top.stored)? } else { *top };
    files.write(draft, &kept)?;
    if look.numbered || (files.link(draft, kept.n)? && files.confirm(draft, None, kept.n)?) {
        files.publish(draft)?;
    }
    Ok(false)
}

/// Stores what follows `judged`; `false`: others were faster.
fn store(files: Files<'_>, mut draft: Draft<'_>, judged: Option<&Kept>, next: &Kept) -> Result<bool, WitnessError> {
    files.write(&mut draft, next)?;
    if !(files.link(&draft, next.n)? && files.confirm(&draft, judged, next.n)?) {
        return Ok(false);
    }
    // It is granted. The rest is put right by the next writer if it cannot be done now.
    if files.publish(&draft).is_ok() {
        files.clean(next.n, &draft);
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
