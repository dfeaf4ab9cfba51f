//! Option texts: whatever is accepted is the same again after it was written out.
//!
//! Input: the number of an option, then its text.

use ft::WitnessAddress;
use pollux_api::config::{
    ConsoleConfig, CpusConfig, DiskConfig, MemoryConfig, NetConfig, PlatformConfig, RngConfig, SerialConfig,
};
use pollux_api::options::{ByteSize, NodeRequest, OptionValue, Options, ProtectRequest, Tuning, node_options};
use pollux_vmm::api::socket::SocketTarget;
use pollux_vmm::control::event_monitor::EventTarget;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Kinds of texts.
pub(crate) const KINDS: u8 = 14;

/// Reads the text as the option that the first byte names.
pub fn run(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match kind % KINDS {
        0 => same_in_json(CpusConfig::from_option(text)),
        1 => same_in_json(MemoryConfig::from_option(text)),
        2 => same_in_json(DiskConfig::from_option(text)),
        3 => same_in_json(NetConfig::from_option(text)),
        4 => same_in_json(RngConfig::from_option(text)),
        5 => same_in_json(SerialConfig::from_option(text)),
        6 => same_in_json(ConsoleConfig::from_option(text)),
        7 => same_in_json(PlatformConfig::from_option(text)),
        8 => protect(text),
        9 => node(text),
        10 => same_as_text::<WitnessAddress, _>(text.parse()),
        11 => same_size(text),
        12 => drop(SocketTarget::from_option(text)),
        _ => drop(EventTarget::from_option(text)),
    }
}

/// As the API shows it and takes it.
fn same_in_json<T, E>(read: Result<T, E>)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(value) = read else { return };
    let json = serde_json::to_string(&value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
}

fn same_as_text<T, E>(read: Result<T, E>)
where
    T: std::fmt::Display + std::str::FromStr + PartialEq + std::fmt::Debug,
{
    let Ok(value) = read else { return };
    let text = value.to_string();
    assert!(text.parse::<T>().is_ok_and(|again| again == value), "{text}");
}

fn same_size(text: &str) {
    let Some(size) = ByteSize::from_text(text) else { return };
    assert_eq!(ByteSize::from_text(&size.to_string()), Some(size));
}

fn protect(text: &str) {
    let Ok(request) = ProtectRequest::parse(text) else { return };
    let json = request.to_json().unwrap();
    assert_eq!(serde_json::from_value::<ProtectRequest>(json).unwrap(), request);
    let _ = pollux_api::options::faults(request.witness.is_some(), request.on_partition.is_some(), &request.tuning());
}

/// Without the names in it: those are looked up.
fn node(text: &str) {
    let keys: Vec<&str> = node_options().iter().map(|option| option.key).collect();
    let Ok(options) = Options::parse("--ft", text, &keys, &[]) else { return };
    let _ = (NodeRequest::read(&options), Tuning::read(&options));
    // Written out, it is read as the same keys and values.
    let pairs: Vec<_> = options.iter().filter(|(_, value)| !value.contains('"')).collect();
    let written: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    let again = Options::parse("--ft", &written.join(","), &keys, &[]).unwrap();
    assert_eq!(again.iter().collect::<Vec<_>>(), pairs);
}
