//! Configuration of the serial port and of the consoles: where their bytes go.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::is_false;
use crate::options::{OptionError, OptionHelp, OptionValue};

/// Where the bytes of a serial port or console go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ConsoleOutputMode {
    /// The device does not exist.
    Off,
    /// A new pseudo terminal, whose path is put into `file`.
    Pty,
    /// Standard input and output of the VMM.
    Tty,
    /// The file named by `file`, output only.
    File,
    /// The unix socket named by `socket`.
    Socket,
    /// Nowhere; the device exists.
    #[default]
    Null,
}

/// What there is to choose from, as options have it.
#[derive(Debug)]
struct Choice {
    mode: ConsoleOutputMode,
    word: &'static str,
    /// Whether a path follows the word.
    has_path: bool,
    help: &'static str,
}

impl Choice {
    const ALL: [Self; 6] = [
        Self::new(ConsoleOutputMode::Off, "off", false, "no device"),
        Self::new(ConsoleOutputMode::Null, "null", false, "output is dropped"),
        Self::new(ConsoleOutputMode::Pty, "pty", false, "a new pseudo terminal, which vm.info names"),
        Self::new(ConsoleOutputMode::Tty, "tty", false, "standard input and output"),
        Self::new(ConsoleOutputMode::File, "file", true, "a file or FIFO, output only"),
        Self::new(ConsoleOutputMode::Socket, "socket", true, "a unix socket"),
    ];

    const fn new(mode: ConsoleOutputMode, word: &'static str, has_path: bool, help: &'static str) -> Self {
        Self { mode, word, has_path, help }
    }

    /// As it is written.
    fn form(&self) -> String {
        if self.has_path { format!("{}=PATH", self.word) } else { self.word.to_owned() }
    }
}

/// Modes of the serial port that Pollux has.
pub(super) const SERIAL_MODES: [ConsoleOutputMode; 5] = [
    ConsoleOutputMode::Off,
    ConsoleOutputMode::Null,
    ConsoleOutputMode::Pty,
    ConsoleOutputMode::Tty,
    ConsoleOutputMode::File,
];
/// Modes of the virtio console that Pollux has, which does not have the device yet.
pub(super) const CONSOLE_MODES: [ConsoleOutputMode; 2] = [ConsoleOutputMode::Off, ConsoleOutputMode::Null];

/// The help of these modes.
fn help(modes: &[ConsoleOutputMode], default: ConsoleOutputMode) -> Vec<OptionHelp> {
    let choices = Choice::ALL.into_iter().filter(|choice| modes.contains(&choice.mode));
    let one = |choice: Choice| {
        let default = (choice.mode == default).then(|| "default".to_owned());
        let value = if choice.has_path { "PATH" } else { "" };
        OptionHelp::new(choice.word, value, choice.help, default)
    };
    choices.map(one).collect()
}

/// Modes as a configuration in JSON calls them.
pub(super) fn names(modes: &[ConsoleOutputMode]) -> String {
    let names: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
    names.join(", ")
}

/// What an option string says of a console.
struct Output {
    mode: ConsoleOutputMode,
    file: Option<PathBuf>,
    socket: Option<PathBuf>,
    iommu: bool,
}

impl Output {
    fn parse(flag: &'static str, text: &str) -> Result<Self, OptionError> {
        let (mut chosen, mut iommu) = (None, false);
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = || OptionError::NotAPair { flag: flag.to_owned(), part: part.to_owned() };
            let (word, value) = part.split_once('=').map_or((part, None), |(word, value)| (word, Some(value)));
            if let ("iommu", Some(toggle)) = (word, value) {
                iommu = bool::from_text(toggle).ok_or_else(wrong)?;
                continue;
            }
            let known = Choice::ALL.iter().find(|choice| choice.word == word && choice.has_path == value.is_some());
            let choice = known.ok_or_else(|| OptionError::UnknownKey {
                flag: flag.to_owned(),
                key: part.to_owned(),
                known: Choice::ALL.map(|choice| choice.form()).join(", "),
            })?;
            if value.is_some_and(str::is_empty) {
                return Err(wrong());
            }
            if chosen.replace((choice.mode, value.map(PathBuf::from))).is_some() {
                return Err(OptionError::Twice { flag: flag.to_owned(), key: "the mode".to_owned() });
            }
        }
        let missing = || OptionError::Missing { flag: flag.to_owned(), key: "mode".to_owned() };
        let (mode, path) = chosen.ok_or_else(missing)?;
        let (file, socket) = if mode == ConsoleOutputMode::Socket { (None, path) } else { (path, None) };
        Ok(Self { mode, file, socket, iommu })
    }
}

/// The 16550 at port 0x3f8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SerialConfig {
    /// Target of mode `File`; filled in with the terminal's path in mode `Pty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// Target of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
}

impl SerialConfig {
    /// From the text after `--serial`.
    ///
    /// # Errors
    /// When it is none of the modes.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let Output { mode, file, socket, .. } = Output::parse("--serial", text)?;
        Ok(Self { file, mode, socket })
    }

    /// Its modes.
    #[must_use]
    pub fn help() -> Vec<OptionHelp> {
        help(&SERIAL_MODES, Self::default().mode)
    }
}

/// The virtio console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleConfig {
    /// Device id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Target of mode `File`; filled in with the terminal's path in mode `Pty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// Target of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Behind the virtual IOMMU.
    #[serde(default, skip_serializing_if = "is_false")]
    pub iommu: bool,
    /// PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { id: None, file: None, mode: ConsoleOutputMode::Off, socket: None, iommu: false, pci_segment: 0 }
    }
}

impl ConsoleConfig {
    /// From the text after `--console`.
    ///
    /// # Errors
    /// When it is none of the modes.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let Output { mode, file, socket, iommu } = Output::parse("--console", text)?;
        Ok(Self { file, mode, socket, iommu, ..Self::default() })
    }

    /// Its modes.
    #[must_use]
    pub fn help() -> Vec<OptionHelp> {
        help(&CONSOLE_MODES, Self::default().mode)
    }
}

/// The debug port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DebugConsoleConfig {
    /// Target of mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Must be `Off`: the device does not exist in Pollux.
    pub mode: ConsoleOutputMode,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iobase: Option<u16>,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { file: None, mode: ConsoleOutputMode::Off, iobase: Some(0xe9) }
    }
}
