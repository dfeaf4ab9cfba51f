//! Fault tolerance as the API sees it: the `--ft` option, and what the `ft.*` routes call.
//!
//! The routes turn JSON into these calls and back, and decide nothing.

use std::net::SocketAddr;

pub use ft::{EventRecord, ProtectOptions, StandbyOptions, Status};
use ft::{Ft, WitnessAddress};

use crate::options::{OptionError, OptionValue, Options};

/// The protection of one VM.
pub trait FtControl: Send + Sync {
    /// Starts to protect the VM by the standby that the options name. Returns as soon as the standby has agreed and the
    /// first copy runs; called from the control loop, so it must not wait for that copy.
    ///
    /// # Errors
    /// All reasons why the VM cannot be protected, at once.
    fn protect(&self, options: ProtectOptions) -> Result<(), Vec<String>>;
    /// Ends protection in order: the standby is told, so that it does not take over.
    ///
    /// # Errors
    /// Why it could not be ended.
    fn stop(&self) -> Result<(), Vec<String>>;
    /// Stops the VM here and lets the standby go on with it: this host is told to end.
    ///
    /// # Errors
    /// When there is no standby that could.
    fn hand_over(&self, reason: &str) -> Result<(), Vec<String>>;
    /// The VM has ended for good, because the guest or an operator wanted it: nobody has to take over.
    fn vm_ended(&self);
    /// How protection stands. Called from the API thread: takes no lock that an epoch holds.
    fn status(&self) -> Status;
    /// The last events, oldest first. Called from the API thread: takes no lock that an epoch holds.
    fn events(&self) -> Vec<EventRecord>;
}

impl FtControl for Ft {
    fn protect(&self, options: ProtectOptions) -> Result<(), Vec<String>> {
        Self::protect(self, options)
    }

    fn stop(&self) -> Result<(), Vec<String>> {
        Self::stop(self)
    }

    fn hand_over(&self, reason: &str) -> Result<(), Vec<String>> {
        Self::hand_over(self, reason)
    }

    fn vm_ended(&self) {
        Self::vm_ended(self);
    }

    fn status(&self) -> Status {
        Self::status(self)
    }

    fn events(&self) -> Vec<EventRecord> {
        Self::events(self)
    }
}

/// Reads the text after `--ft`.
///
/// # Errors
/// When the text does not follow the grammar, a key is missing or a value is not what it should be.
pub fn standby_option(text: &str) -> Result<StandbyOptions, OptionError> {
    let options = Options::parse("--ft", text, &["role", "listen", "heartbeat", "witness", "detect_ms"], &[])?;
    if options.required::<String>("role")? != "standby" {
        return Err(options.bad_value("role", "standby (a primary is made with: pollux ft protect)"));
    }
    Ok(StandbyOptions {
        listen: options.required("listen")?,
        heartbeat: options.required("heartbeat")?,
        witness: witness(&options)?,
        detect_ms: options.value("detect_ms")?,
    })
}

fn witness(options: &Options) -> Result<Option<WitnessAddress>, OptionError> {
    let parse = |text: &str| text.parse().map_err(|error| options.bad_value("witness", &format!("usable: {error}")));
    options.text("witness").map(parse).transpose()
}

impl OptionValue for SocketAddr {
    const EXPECTED: &'static str = "ADDR:PORT";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standby() {
        let text = "role=standby,listen=10.0.0.2:7000,heartbeat=[fd00::2]:7001,detect_ms=0,witness=/w";
        let expected = StandbyOptions {
            listen: ([10, 0, 0, 2], 7000).into(),
            heartbeat: "[fd00::2]:7001".parse().unwrap(),
            witness: Some(WitnessAddress::File("/w".into())),
            detect_ms: Some(0),
        };
        assert_eq!(standby_option(text), Ok(expected));
        let least = standby_option("role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:2").unwrap();
        assert_eq!((least.witness, least.detect_ms), (None, None));
    }

    #[test]
    fn errors_name_the_key() {
        for (text, start) in [
            ("", "--ft: role= is missing"),
            ("role=primary", "--ft: role=primary is not standby"),
            ("role=standby", "--ft: listen= is missing"),
            ("role=standby,listen=1.2.3.4:1", "--ft: heartbeat= is missing"),
            ("role=standby,listen=here,heartbeat=1.2.3.4:1", "--ft: listen=here is not ADDR:PORT"),
            ("role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:70000", "--ft: heartbeat=1.2.3.4:70000 is not ADDR:PORT"),
            (
                "role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:1,detect_ms=soon",
                "--ft: detect_ms=soon is not a number",
            ),
            (
                "role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:1,witness=etcd://1.2.3.4:1",
                "--ft: witness=etcd://1.2.3.4:1 is not usable: no key after the etcd endpoints",
            ),
            ("role=standby,color=red", "--ft: unknown key \"color\""),
        ] {
            let error = standby_option(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
