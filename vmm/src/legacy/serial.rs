//! COM1: a 16550 at port 0x3f8, its output to a [`ConsoleOut`], its input from a terminal.
//!
//! In: the guest's port accesses; keys. Out: bytes for the console, edges on pin 4. Never: a terminal left in
//! raw mode.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use host_kit::sandbox::Needs;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::terminal::Terminal;

use super::console::ConsoleOut;
use crate::config::{ConsoleOutputMode, SerialConfig};
use crate::machine::bus::BusDevice;
use crate::machine::ioapic::Pin;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};

/// Name of the device: of its section in the saved state, and of its counters.
pub const ID: &str = "__serial";
const VERSION: u16 = 1;

/// What becomes of the output that is in the line's file already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Earlier {
    /// It goes: this VM boots.
    Removed,
    /// It stays: this VM goes on, perhaps, with what ran before.
    Kept,
}

/// Why there is no serial line.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// Its file cannot be written.
    #[error("serial: cannot open file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No pseudo terminal.
    #[error("serial: cannot open a pseudo terminal")]
    Pty(#[source] io::Error),
    /// Standard output cannot be used.
    #[error("serial: cannot use the terminal")]
    Tty(#[source] io::Error),
    /// A mode that Pollux does not have.
    #[error("serial mode {0:?} is not supported, use Pty, Tty, File, Null or Off")]
    Mode(ConsoleOutputMode),
    /// No thread or event descriptor.
    #[error("serial: cannot start")]
    Start(#[source] io::Error),
}

/// Tells the input thread that the guest has read everything.
struct Room(EventFd);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // A full counter is a set one.
        let _ = self.0.write(1);
    }
}

struct Output(Arc<ConsoleOut>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Pin, Arc<Room>, Output>;

/// The device.
pub struct SerialPort {
    uart: Uart,
    pin: Pin,
    room: Arc<Room>,
    out: Arc<ConsoleOut>,
}

/// What the guest can see of the device; [`SerialState`] in a form that can be stored.
#[derive(Serialize, Deserialize)]
struct Registers {
    registers: [u8; 9],
    in_buffer: Vec<u8>,
}

impl SerialPort {
    /// As after reset.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub fn new(pin: Pin, out: Arc<ConsoleOut>) -> io::Result<Self> {
        let room = Arc::new(Room(EventFd::new(EFD_NONBLOCK)?));
        let uart = Serial::with_events(pin.clone(), room.clone(), Output(out.clone()));
        Ok(Self { uart, pin, room, out })
    }

    /// Back to [`SerialPort::new`].
    pub fn reset(&mut self) {
        self.uart = Serial::with_events(self.pin.clone(), self.room.clone(), Output(self.out.clone()));
        self.room.in_buffer_empty();
    }

    /// Bytes that the input buffer has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Input for the guest; more than [`SerialPort::room`] is lost.
    pub fn input(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.room())];
        if let Err(e) = self.uart.enqueue_raw_bytes(bytes) {
            tracing::debug!("serial input is lost: {e}");
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.uart.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = data
            && let Err(e) = self.uart.write(offset as u8, *byte)
        {
            tracing::debug!("serial write: {e}");
        }
    }
}

impl Saved for SerialPort {
    fn state_id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        let state = self.uart.state();
        let registers = [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        out.section(ID, VERSION, &Registers { registers, in_buffer: state.in_buffer })
    }

    /// Raises the pin if an interrupt is due, so load the IOAPIC first.
    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        let Registers { registers, in_buffer } = from.take(ID, VERSION)?;
        let [low, high, enable, identification, line_control, line_status, modem_control, modem_status, scratch] =
            registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        self.uart = Serial::from_state(&state, self.pin.clone(), self.room.clone(), Output(self.out.clone()))
            .map_err(|e| StateError::Part { id: ID.to_owned(), what: e.to_string(), source: None })?;
        Ok(())
    }
}

/// The outside of the line: the console's output, and where its input comes from.
pub struct Line {
    /// Output.
    pub out: Arc<ConsoleOut>,
    input: Option<File>,
    /// Kept open so that the terminal does not hang up when a reader leaves.
    _pty: Option<OwnedFd>,
    /// Standard input is in raw mode and must be set back.
    raw: Option<RawMode>,
}

/// Sets standard input back to cooked mode when dropped.
struct RawMode;

impl RawMode {
    fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        stdin.lock().set_raw_mode().map_err(io::Error::from)?;
        Ok(Some(Self))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(e) = io::stdin().lock().set_canon_mode() {
            tracing::warn!("cannot set the terminal back to its normal mode: {e}");
        }
    }
}

impl Line {
    /// Opens what `config` says; `None` for mode `Off`. A new pseudo terminal's path is put into
    /// `config.file`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(config: &mut SerialConfig, earlier: Earlier) -> Result<Option<Self>, SerialError> {
        let line = |sink: Box<dyn Write + Send>, input, pty, raw| {
            let out = ConsoleOut::new(sink).map_err(SerialError::Start)?;
            Ok(Some(Self { out: Arc::new(out), input, _pty: pty, raw }))
        };
        match config.mode {
            ConsoleOutputMode::Off => Ok(None),
            ConsoleOutputMode::Null => line(Box::new(io::sink()), None, None, None),
            ConsoleOutputMode::File => {
                let path = config.file.clone().unwrap_or_default();
                let file = create(&path, earlier).map_err(|source| SerialError::File { path, source })?;
                line(Box::new(file), None, None, None)
            }
            ConsoleOutputMode::Tty => {
                let dup = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
                let output = dup(io::stdout().as_fd()).map_err(SerialError::Tty)?;
                let input = dup(io::stdin().as_fd()).map_err(SerialError::Tty)?;
                let raw = RawMode::new().map_err(SerialError::Tty)?;
                line(Box::new(output), Some(input), None, raw)
            }
            ConsoleOutputMode::Pty => {
                let (main, sub, path) = open_pty().map_err(SerialError::Pty)?;
                config.file = Some(path);
                let input = main.try_clone().map_err(SerialError::Pty)?;
                line(Box::new(main), Some(input), Some(sub), None)
            }
            mode @ ConsoleOutputMode::Socket => Err(SerialError::Mode(mode)),
        }
    }

    /// Starts to feed input to `port`, until the returned guard is dropped. Nothing for lines without input.
    ///
    /// # Errors
    /// When there is no thread or file descriptor left.
    pub fn start_input(&self, port: &Arc<Mutex<SerialPort>>) -> Result<Option<InputThread>, SerialError> {
        let Some(input) = &self.input else { return Ok(None) };
        let start = || -> io::Result<InputThread> {
            let stop = EventFd::new(EFD_NONBLOCK)?;
            let room = port.lock().unwrap_or_else(PoisonError::into_inner).room.0.try_clone()?;
            let feed = Feed { input: input.try_clone()?, stop: stop.try_clone()?, room, port: port.clone() };
            let thread = host_kit::thread::spawn("serial-in", Needs::VCPU, move || feed.run())?;
            Ok(InputThread { stop, thread: Some(thread) })
        };
        start().map(Some).map_err(SerialError::Start)
    }

    /// Whether standard input is in raw mode because of this line.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.raw.is_some()
    }
}

/// The file for the output. A FIFO that nobody reads is an error: to wait for a reader would hold up
/// everybody who wants something of this VMM. Writing to it may wait again, on a thread of its own.
fn create(path: &Path, earlier: Earlier) -> io::Result<File> {
    let mut options = File::options();
    match earlier {
        Earlier::Removed => options.write(true).truncate(true),
        Earlier::Kept => options.append(true),
    };
    options.create(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::new(error.kind(), "nobody reads it: start its reader first"),
        _ => error,
    })?;
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// A new pseudo terminal in raw mode: its main end (not blocking), its sub end, and the sub end's path.
fn open_pty() -> io::Result<(File, OwnedFd, PathBuf)> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
    let main = options.open("/dev/ptmx")?;
    let mut number: libc::c_uint = 0;
    let unlock: libc::c_int = 0;
    // SAFETY: the kernel writes one unsigned int.
    let result = unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
    // SAFETY: the kernel reads one int.
    if result < 0 || unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let path = Path::new("/dev/pts").join(number.to_string());
    let sub = options.open(&path)?;
    let fd = sub.as_raw_fd();
    // SAFETY: termios is plain data that the kernel fills.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `fd` is a terminal of ours, `settings` lives through the calls.
    let result = unsafe {
        libc::tcgetattr(fd, &raw mut settings);
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(fd, libc::TCSANOW, &raw const settings)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((main, sub.into(), path)) }
}

struct Feed {
    input: File,
    stop: EventFd,
    room: EventFd,
    port: Arc<Mutex<SerialPort>>,
}

impl Feed {
    fn run(mut self) {
        let mut buffer = [0; 64];
        loop {
            let room = self.port.lock().unwrap_or_else(PoisonError::into_inner).room().min(buffer.len());
            match self.wait(room > 0) {
                Ok(Wait::Stop) => return,
                Ok(Wait::Again) => continue,
                Ok(Wait::Input) => {}
                Err(e) => {
                    tracing::warn!("serial input has ended: {e}");
                    return;
                }
            }
            match self.input.read(&mut buffer[..room]) {
                // End of input, for example /dev/null.
                Ok(0) => return,
                Ok(len) => self.port.lock().unwrap_or_else(PoisonError::into_inner).input(&buffer[..len]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => {
                    tracing::debug!("serial input has ended: {e}");
                    return;
                }
            }
        }
    }

    /// Waits for input if there is room for it, else for room.
    fn wait(&self, has_room: bool) -> io::Result<Wait> {
        let input = if has_room { self.input.as_fd() } else { borrow(&self.room) };
        let mut fds = [PollFd::new(borrow(&self.stop), PollFlags::POLLIN), PollFd::new(input, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => return Ok(Wait::Again),
            result => result.map_err(io::Error::from)?,
        };
        if fds[0].any().unwrap_or(true) {
            return Ok(Wait::Stop);
        }
        if has_room {
            return Ok(Wait::Input);
        }
        // Only resets the counter; it may be clear already.
        let _ = self.room.read();
        Ok(Wait::Again)
    }
}

enum Wait {
    Input,
    Again,
    Stop,
}

fn borrow(event: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// The thread that feeds input; ends when this is dropped.
pub struct InputThread {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Drop for InputThread {
    fn drop(&mut self) {
        if let Err(e) = self.stop.write(1) {
            tracing::warn!("serial input cannot be stopped: {e}");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the serial input thread has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::machine::ioapic::Ioapic;
    use crate::machine::irq::IrqManager;

    fn port(out: Arc<ConsoleOut>) -> SerialPort {
        let vm = Arc::new(crate::machine::kvm::open().unwrap().create_vm().unwrap());
        let ioapic = Arc::new(Mutex::new(Ioapic::new(Arc::new(IrqManager::new(vm).unwrap()))));
        SerialPort::new(Pin::new(ioapic, 4), out).unwrap()
    }

    fn null() -> Arc<ConsoleOut> {
        Arc::new(ConsoleOut::new(Box::new(io::sink())).unwrap())
    }

    #[test]
    fn registers_and_input_survive_a_save() {
        let mut old = port(null());
        old.write(1, &[1]);
        old.write(7, &[0x5a]);
        old.input(b"key");
        let mut bytes = Vec::new();
        old.save(&mut StateWriter::new(&mut bytes)).unwrap();
        let mut new = port(null());
        new.load(&mut StateReader::new(&bytes).unwrap()).unwrap();
        let mut byte = [0];
        new.read(7, &mut byte);
        assert_eq!(byte, [0x5a]);
        new.read(0, &mut byte);
        assert_eq!(&byte, b"k");
        new.reset();
        new.read(7, &mut byte);
        assert_eq!(byte, [0]);
    }

    #[test]
    fn output_of_before_stays_unless_the_vm_boots() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let says = |words: &[u8], earlier| {
            let file = Some(path.clone());
            let mut config = SerialConfig { mode: ConsoleOutputMode::File, file, ..Default::default() };
            let line = Line::open(&mut config, earlier).unwrap().unwrap();
            port(line.out.clone()).write(0, words);
            line.out.clone()
        };
        std::fs::write(&path, "an earlier run").unwrap();
        drop(says(b"1", Earlier::Removed));
        drop(says(b"2", Earlier::Kept));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "12");
    }

    #[test]
    fn a_pty_carries_both_directions() {
        let mut config = SerialConfig { mode: ConsoleOutputMode::Pty, ..Default::default() };
        let line = Line::open(&mut config, Earlier::Removed).unwrap().unwrap();
        let mut terminal = File::options().read(true).write(true).open(config.file.unwrap()).unwrap();
        let port = Arc::new(Mutex::new(port(line.out.clone())));
        let (send, receive) = mpsc::channel();
        /// Reads what the input thread delivers, as a driver would: when told.
        fn reader(port: &Arc<Mutex<SerialPort>>, send: &mpsc::Sender<u8>) -> bool {
            let mut port = port.lock().unwrap();
            let mut status = [0];
            port.read(5, &mut status);
            if status[0] & 1 == 0 {
                return false;
            }
            let mut byte = [0];
            port.read(0, &mut byte);
            send.send(byte[0]).is_ok()
        }
        let input = line.start_input(&port).unwrap();
        port.lock().unwrap().write(0, b"!");
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
        let text: Vec<u8> = (b'a'..=b'z').cycle().take(200).collect();
        terminal.write_all(&text).unwrap();
        let mut got = Vec::new();
        while got.len() < text.len() {
            if reader(&port, &send) {
                got.push(receive.recv().unwrap());
            } else {
                std::thread::yield_now();
            }
        }
        assert_eq!(got, text);
        drop(input);
    }

    #[test]
    fn a_pty_that_nobody_reads_does_not_stop_the_guest() {
        let mut config = SerialConfig { mode: ConsoleOutputMode::Pty, ..Default::default() };
        let line = Line::open(&mut config, Earlier::Removed).unwrap().unwrap();
        for _ in 0..100 {
            line.out.write(&[b'x'; 4096]);
        }
    }

    #[test]
    fn files_that_cannot_be_opened_are_named() {
        let file = Some(PathBuf::from("/nowhere/serial"));
        let mut config = SerialConfig { mode: ConsoleOutputMode::File, file, socket: None };
        let error = Line::open(&mut config, Earlier::Removed).err().unwrap();
        assert_eq!(error.to_string(), "serial: cannot open file /nowhere/serial");
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut config =
            SerialConfig { mode: ConsoleOutputMode::File, file: Some(path.clone()), ..SerialConfig::default() };
        let error = Line::open(&mut config, Earlier::Removed).err().unwrap();
        assert!(host_kit::error::chain(&error).ends_with("nobody reads it: start its reader first"), "{error:?}");
        let mut reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let line = Line::open(&mut config, Earlier::Removed).unwrap().unwrap();
        line.out.write(b"hello");
        drop(line);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
