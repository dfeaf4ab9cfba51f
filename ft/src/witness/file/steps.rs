//! The steps of storing a record in numbered files, one function each; `file.rs` has the reasons for their
//! order.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::witness::WitnessError;
use crate::witness::folder::{Folder, Found};
use crate::witness::kept::Kept;

/// How often the latest record is looked for while others remove it as an old one.
const LOOKS: u32 = 8;

/// The files of one record.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    folder: &'a Folder,
    path: &'a Path,
    stay: u64,
}

/// What the folder says.
#[derive(Debug)]
pub(super) struct Look {
    /// What `PATH` is.
    pub(super) main: Option<Kept>,
    /// The record.
    pub(super) top: Option<Kept>,
    /// It is under its number.
    pub(super) numbered: bool,
}

/// A record in the making; gone when this is dropped.
pub(super) struct Draft<'a> {
    folder: &'a Folder,
    name: OsString,
    file: File,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // The next writer removes it otherwise.
        let _ = self.folder.remove(&self.name);
    }
}

impl<'a> Files<'a> {
    /// Those in `folder`, of which `stay` records stay. Messages name `path`, as an operator wrote it.
    pub(super) fn new(folder: &'a Folder, path: &'a Path, stay: u64) -> Self {
        Self { folder, path, stay }
    }

    /// Whether the path still leads to them.
    pub(super) fn are_at_their_path(&self) -> Result<bool, WitnessError> {
        let now = Folder::find(self.path)?;
        Ok((now.id(), now.name()) == (self.folder.id(), self.folder.name()))
    }

    /// As [`Folder::lock`].
    pub(super) fn lock(&self) -> Result<File, WitnessError> {
        self.folder.lock().map_err(self.error("lock"))
    }

    /// As [`Folder::lock_to_read`].
    pub(super) fn lock_to_read(&self) -> Result<Option<File>, WitnessError> {
        self.folder.lock_to_read().map_err(self.error("lock"))
    }

    /// An empty file of our own.
    pub(super) fn draft(&self) -> Result<Draft<'a>, WitnessError> {
        let number = host_kit::random::bytes().map(u64::from_le_bytes).map_err(WitnessError::Local)?;
        let name = self.folder.beside(&format!(".~new-{number:016x}~"));
        let file = self.folder.create(&name).map_err(self.error("write"))?;
        Ok(Draft { folder: self.folder, name, file })
    }

    /// What is there.
    pub(super) fn look(&self) -> Result<Look, WitnessError> {
        let main = self.read("")?;
        let mut latest = self.latest()?;
        for _ in 0..LOOKS {
            // A file server's client may know `PATH` better than the folder.
            latest = latest.max(main.map_or(0, |main| main.n));
            let mut top = self.numbered(latest)?;
            while let Some(next) = top.map_or(Ok(None), |top| self.numbered(top.n + 1))? {
                top = Some(next);
            }
            match (main, top) {
                (Some(main), Some(top)) if main.n == 0 && (top.n > 1 || top.stored.record != main.stored.record) => {
                    return Err(WitnessError::Mixed { place: self.place() });
                }
                (_, Some(_)) => return Ok(Look { main, top, numbered: true }),
                (Some(known), None) if known.n == latest => return Ok(Look { main, top: main, numbered: false }),
                (None, None) if latest == 0 => return Ok(Look { main, top, numbered: false }),
                // It has become an old one since.
                _ => latest = self.latest()?,
            }
        }
        Err(WitnessError::Contended { place: self.place(), rounds: LOOKS })
    }

    /// Has a record written to stable storage, where nobody looks for it yet.
    pub(super) fn write(&self, draft: &mut Draft<'_>, kept: &Kept) -> Result<(), WitnessError> {
        let bytes = kept.encode()?;
        draft.file.write_all(&bytes).and_then(|()| draft.file.sync_all()).map_err(self.error("write"))
    }

    /// Gives the record its number; `false`: others were faster.
    pub(super) fn link(&self, draft: &Draft<'_>, n: u64) -> Result<bool, WitnessError> {
        let name = self.name_of(n);
        let linked = self.folder.link(&draft.name, &name).map_err(self.error("write"))?;
        // A file server's answer may have got lost, and the question been repeated.
        Ok(linked || self.folder.is(&name, &draft.file).map_err(self.error("read"))?)
    }

    /// Whether the link as `n` was the first one of that name, and follows the record that was judged; then
    /// it is made durable.
    pub(super) fn confirm(&self, draft: &Draft<'_>, judged: Option<&Kept>, n: u64) -> Result<bool, WitnessError> {
        if self.latest()? + 1 >= n + self.stay {
            return Ok(false);
        }
        if self.latest_before(n, judged)? {
            self.folder.sync().map_err(self.error("write"))?;
            return Ok(true);
        }
        // Somebody has removed the files by hand meanwhile.
        if self.folder.is(&self.name_of(n), &draft.file).map_err(self.error("read"))? {
            self.folder.remove(&self.name_of(n)).map_err(self.error("remove a record from"))?;
        }
        Err(WitnessError::NotTheSame { place: self.place() })
    }

    /// Whether what was judged is still there, below `n`.
    fn latest_before(&self, n: u64, judged: Option<&Kept>) -> Result<bool, WitnessError> {
        match judged.filter(|judged| judged.n > 0 && judged.n < n) {
            Some(judged) => Ok(self.numbered(judged.n)?.as_ref() == Some(judged)),
            None => Ok(true),
        }
    }

    /// Has `PATH` be what was written to the draft.
    pub(super) fn publish(&self, draft: &Draft<'_>) -> Result<(), WitnessError> {
        self.folder.rename(&draft.name, self.folder.name()).map_err(self.error("write"))
    }

    /// Removes what nobody needs any more. What stays is in nobody's way.
    pub(super) fn clean(&self, n: u64, own: &Draft<'_>) {
        for suffix in self.folder.suffixes().unwrap_or_default() {
            let old = number(&suffix).is_some_and(|number| number.saturating_add(self.stay) <= n);
            let name = self.folder.beside(&suffix);
            if old || (suffix.starts_with(".~new-") && suffix.ends_with('~') && name != own.name) {
                let _ = self.folder.remove(&name);
            }
        }
    }

    /// The highest number in the folder; 0: there is none.
    fn latest(&self) -> Result<u64, WitnessError> {
        let suffixes = self.folder.suffixes().map_err(self.error("read the folder of"))?;
        Ok(suffixes.iter().filter_map(|suffix| number(suffix)).max().unwrap_or(0))
    }

    fn numbered(&self, n: u64) -> Result<Option<Kept>, WitnessError> {
        if n == 0 {
            return Ok(None);
        }
        let kept = self.read(&suffix_of(n))?;
        match kept.is_none_or(|kept| kept.n == n) {
            true => Ok(kept),
            false => Err(WitnessError::Implausible { place: format!("{}{}", self.place(), suffix_of(n)) }),
        }
    }

    fn read(&self, suffix: &str) -> Result<Option<Kept>, WitnessError> {
        let place = format!("{}{suffix}", self.place());
        match self.folder.read(&self.folder.beside(suffix)).map_err(self.error("read"))? {
            Found::Nothing => Ok(None),
            Found::Unfit(why) => Err(WitnessError::Unfit { place, why }),
            Found::Bytes(bytes) => Kept::decode(&bytes, &place).map(Some),
        }
    }

    pub(super) fn error(&self, what: &'static str) -> impl FnOnce(io::Error) -> WitnessError + use<> {
        let path = self.path.to_owned();
        move |source| WitnessError::File { what, path, source }
    }

    pub(super) fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn name_of(&self, n: u64) -> OsString {
        self.folder.beside(&suffix_of(n))
    }
}

fn suffix_of(n: u64) -> String {
    format!(".~{n}~")
}

/// The number of a record, by what follows the name in its own.
fn number(suffix: &str) -> Option<u64> {
    let digits = suffix.strip_prefix(".~")?.strip_suffix('~')?;
    let number = digits.parse().ok()?;
    // Only as this program writes it.
    (suffix == suffix_of(number)).then_some(number)
}
