//! MSI-X: the table, the pending bits, and the lines behind the vectors.
//!
//! In: guest accesses to table, pending bits and message control. Out: routes and masks of the interrupt
//! lines. Never: a lost signal; while a vector is masked its signals wait in the line's eventfd, and that is
//! what the pending bit shows.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::irq::{IrqError, MsiLine};

/// Bytes of a table entry: address (8), data (4), vector control (4).
pub const ENTRY_SIZE: u64 = 16;
/// Message control: MSI-X is on.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Vector control: this vector is masked.
const VECTOR_MASKED: u32 = 1;

/// An interrupt line as MSI-X needs it; the real one is [`MsiLine`].
pub trait Line: Send {
    /// The eventfd whose signals the line delivers.
    fn event(&self) -> &EventFd;
    /// Sets message and mask.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn route(&self, address: u64, data: u32, masked: bool) -> Result<(), IrqError>;
}

impl Line for MsiLine {
    fn event(&self) -> &EventFd {
        self.fd()
    }

    fn route(&self, address: u64, data: u32, masked: bool) -> Result<(), IrqError> {
        self.set(address, data, masked)
    }
}

/// One table entry.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

const POWER_ON: Entry = Entry { address: 0, data: 0, control: VECTOR_MASKED };

/// The vectors in a checkpoint.
#[derive(Deserialize, Serialize)]
pub struct SavedMsix<'a> {
    control: u16,
    entries: Cow<'a, [Entry]>,
    /// Pending bits: vectors that were signalled while masked.
    pending: u64,
}

/// The number of vectors differs between the saved and this function.
#[derive(Debug, thiserror::Error)]
#[error("saved MSI-X table has {found} vectors, this device has {expected}")]
pub struct VectorCount {
    found: usize,
    expected: usize,
}

/// The MSI-X part of one function.
pub struct Msix {
    control: u16,
    entries: Vec<Entry>,
    lines: Vec<Box<dyn Line>>,
    /// What the lines were told last: message if unmasked.
    applied: Vec<Option<(u64, u32)>>,
}

impl Msix {
    /// One vector for each line, all masked, MSI-X off. At most 64.
    #[must_use]
    pub fn new(lines: Vec<Box<dyn Line>>) -> Self {
        debug_assert!(lines.len() <= 64);
        let count = lines.len();
        Self { control: 0, entries: vec![POWER_ON; count], lines, applied: vec![None; count] }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.lines.len()
    }

    /// The eventfd that signals `vector`; none when there is no such vector (such as 0xffff, "no vector").
    #[must_use]
    pub fn event(&self, vector: u16) -> Option<&EventFd> {
        self.lines.get(usize::from(vector)).map(|line| line.event())
    }

    /// Signals `vector`, if there is one.
    pub fn trigger(&self, vector: u16) {
        if let Some(event) = self.event(vector)
            && let Err(e) = event.write(1)
            && e.kind() != io::ErrorKind::WouldBlock
        {
            host_kit::log_limited!(error, vector, "cannot signal an interrupt: {e}");
        }
    }

    /// Takes over the message control register after a guest write.
    pub fn set_control(&mut self, control: u16) {
        let control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        if control != self.control {
            self.control = control;
            self.apply_all();
        }
    }

    /// Guest read of the table; `data` stays as it is where there is no entry.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let Some((index, at)) = self.locate(offset, data.len()) else { return };
        let entry = self.entries[index];
        let mut raw = [0; ENTRY_SIZE as usize];
        raw[..8].copy_from_slice(&entry.address.to_le_bytes());
        raw[8..12].copy_from_slice(&entry.data.to_le_bytes());
        raw[12..].copy_from_slice(&entry.control.to_le_bytes());
        data.copy_from_slice(&raw[at..at + data.len()]);
    }

    /// Guest write of the table: aligned double and quad words, as the specification demands; others are
    /// dropped.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let Some((index, at)) = self.locate(offset, data.len()) else { return };
        for (i, word) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let entry = &mut self.entries[index];
            match at / 4 + i {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(value),
                1 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
                2 => entry.data = value,
                _ => entry.control = value & VECTOR_MASKED,
            }
        }
        self.apply(index);
    }

    /// Guest read of the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let bits = self.pending().to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i);
            *byte = bits.get(at).copied().unwrap_or(0);
        }
    }

    /// Power-on state. Signals that wait are dropped.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill(POWER_ON);
        self.apply_all();
        for line in &self.lines {
            // An empty eventfd is what we want; nothing else can go wrong with one of our own.
            let _ = line.event().read();
        }
    }

    /// What goes into a checkpoint.
    #[must_use]
    pub fn save(&self) -> SavedMsix<'_> {
        SavedMsix { control: self.control, entries: Cow::Borrowed(&self.entries), pending: self.pending() }
    }

    /// Becomes `saved`; signals that were pending there are pending here.
    ///
    /// # Errors
    /// When the table has another number of vectors.
    pub fn load(&mut self, saved: &SavedMsix<'_>) -> Result<(), VectorCount> {
        if saved.entries.len() != self.entries.len() {
            return Err(VectorCount { found: saved.entries.len(), expected: self.entries.len() });
        }
        self.entries.copy_from_slice(&saved.entries);
        self.control = saved.control;
        self.apply_all();
        for vector in 0..self.vectors() {
            if saved.pending & 1 << vector != 0 {
                self.trigger(vector as u16);
            }
        }
        Ok(())
    }

    /// Entry and offset in it of an access that the specification allows.
    fn locate(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let index = usize::try_from(offset / ENTRY_SIZE).ok().filter(|index| *index < self.entries.len())?;
        let at = (offset % ENTRY_SIZE) as usize;
        (matches!(len, 4 | 8) && at.is_multiple_of(len)).then_some((index, at))
    }

    fn masked(&self, index: usize) -> bool {
        self.control & (CONTROL_ENABLE | CONTROL_MASK_ALL) != CONTROL_ENABLE
            || self.entries[index].control & VECTOR_MASKED != 0
    }

    fn pending(&self) -> u64 {
        let masked: Vec<_> = (0..self.vectors()).filter(|vector| self.masked(*vector)).collect();
        let signalled = readable(masked.iter().map(|vector| self.lines[*vector].event()));
        masked.iter().zip(signalled).fold(0, |bits, (vector, signalled)| bits | u64::from(signalled) << vector)
    }

    fn apply_all(&mut self) {
        for index in 0..self.vectors() {
            self.apply(index);
        }
    }

    /// Tells a line what its entry says. A kernel that refuses leaves the vector dead, which only the guest
    /// can notice; so it is logged and the VM goes on.
    fn apply(&mut self, index: usize) {
        let Entry { address, data, .. } = self.entries[index];
        let wanted = (!self.masked(index)).then_some((address, data));
        if wanted == self.applied[index] {
            return;
        }
        match self.lines[index].route(address, data, wanted.is_none()) {
            Ok(()) => self.applied[index] = wanted,
            Err(e) => host_kit::log_limited!(error, index, "cannot route an MSI-X vector: {e}"),
        }
    }
}

/// Which of the eventfds hold a signal, without taking it.
fn readable<'a>(events: impl Iterator<Item = &'a EventFd>) -> Vec<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the eventfds outlive this call.
    let fds = events.map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) });
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let looked = fds.is_empty() || poll(&mut fds, PollTimeout::ZERO).is_ok();
    fds.iter().map(|fd| looked && fd.any().unwrap_or(false)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    /// What a line was told: address, data, masked.
    pub(crate) type Told = Arc<Mutex<Vec<(u64, u32, bool)>>>;

    /// A line that only remembers.
    pub(crate) struct FakeLine {
        event: EventFd,
        told: Told,
    }

    impl FakeLine {
        pub(crate) fn new() -> (Self, Told) {
            let told = Told::default();
            (Self { event: EventFd::new(EFD_NONBLOCK).unwrap(), told: told.clone() }, told)
        }
    }

    impl Line for FakeLine {
        fn event(&self) -> &EventFd {
            &self.event
        }

        fn route(&self, address: u64, data: u32, masked: bool) -> Result<(), IrqError> {
            self.told.lock().unwrap().push((address, data, masked));
            Ok(())
        }
    }

    fn msix(vectors: usize) -> (Msix, Vec<Told>) {
        let (lines, told): (Vec<_>, Vec<_>) = (0..vectors).map(|_| FakeLine::new()).unzip();
        (Msix::new(lines.into_iter().map(|line| Box::new(line) as Box<dyn Line>).collect()), told)
    }

    fn fill(msix: &mut Msix, vector: u64, address: u64, data: u32) {
        msix.write_table(vector * 16, &(address as u32).to_le_bytes());
        msix.write_table(vector * 16 + 4, &((address >> 32) as u32).to_le_bytes());
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        msix.write_table(vector * 16 + 12, &0_u32.to_le_bytes());
    }

    #[test]
    fn a_line_is_routed_when_all_three_masks_are_off() {
        let (mut msix, told) = msix(2);
        fill(&mut msix, 1, 0x1_fee0_0000, 0x41);
        assert!(told[1].lock().unwrap().is_empty());
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert!(told[1].lock().unwrap().is_empty());
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(*told[1].lock().unwrap(), [(0x1_fee0_0000, 0x41, false)]);
        assert!(told[0].lock().unwrap().is_empty(), "vector 0 is still masked");
        msix.write_table(16 + 12, &1_u32.to_le_bytes());
        assert_eq!(told[1].lock().unwrap().last(), Some(&(0x1_fee0_0000, 0x41, true)));
    }

    #[test]
    fn table_reads_back_in_both_widths() {
        let (mut msix, _) = msix(1);
        msix.write_table(0, &0x1122_3344_5566_7788_u64.to_le_bytes());
        msix.write_table(8, &0x0000_0000_0000_0099_u64.to_le_bytes());
        let mut data = [0; 8];
        msix.read_table(0, &mut data);
        assert_eq!(u64::from_le_bytes(data), 0x1122_3344_5566_7788);
        let mut word = [0; 4];
        msix.read_table(8, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0x99);
        msix.read_table(12, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let (mut msix, told) = msix(1);
        msix.write_table(1, &[0; 4]);
        msix.write_table(0, &[1; 2]);
        msix.write_table(16, &[1; 4]);
        msix.write_table(u64::MAX - 3, &[1; 4]);
        let mut data = [0xff; 4];
        msix.read_table(16, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(msix.entries, [POWER_ON]);
        assert!(told[0].lock().unwrap().is_empty());
    }

    #[test]
    fn signals_while_masked_are_pending_and_survive_a_checkpoint() {
        let (mut a, _) = msix(3);
        fill(&mut a, 2, 0xfee0_0000, 7);
        a.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        a.trigger(2);
        a.trigger(0xffff);
        let mut pba = [0; 8];
        a.read_pending(0, &mut pba);
        assert_eq!(u64::from_le_bytes(pba), 4);
        let bytes = postcard::to_allocvec(&a.save()).unwrap();
        let (mut b, told) = msix(3);
        b.load(&postcard::from_bytes(&bytes).unwrap()).unwrap();
        b.read_pending(0, &mut pba);
        assert_eq!(u64::from_le_bytes(pba), 4);
        b.set_control(CONTROL_ENABLE);
        assert_eq!(*told[2].lock().unwrap(), [(0xfee0_0000, 7, false)]);
        let (mut c, _) = msix(2);
        assert!(c.load(&a.save()).is_err());
    }

    #[test]
    fn reset_masks_and_forgets() {
        let (mut msix, told) = msix(1);
        fill(&mut msix, 0, 0xfee0_0000, 7);
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(0);
        msix.reset();
        assert_eq!(told[0].lock().unwrap().last().map(|t| t.2), Some(true));
        assert_eq!((msix.entries[0], msix.pending()), (POWER_ON, 0));
    }
}
