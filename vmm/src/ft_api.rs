//! Fault tolerance as the API sees it: the `--ft` option, and what the `ft.*` routes call.
//!
//! The routes turn JSON into these calls and back, and decide nothing.

use serde_json::{Map, Value};

use crate::options::{OptionError, OptionValue, Options};

/// The protection of one VM.
pub trait FtControl: Send + Sync {
    /// Starts to protect the VM by the standby that the request names. Returns as soon as the standby has agreed and the
    /// first copy runs; called from the control loop, so it must not wait for that copy.
    ///
    /// # Errors
    /// All reasons why the VM cannot be protected, at once.
    fn protect(&self, request: Value) -> Result<(), Vec<String>>;
    /// Ends protection in order: the standby is told, so that it does not take over.
    ///
    /// # Errors
    /// Why it could not be ended.
    fn stop(&self) -> Result<(), Vec<String>>;
    /// The VM has ended for good, because the guest or an operator wanted it: nobody has to take over.
    fn vm_ended(&self);
    /// How protection stands. Called from the API thread: takes no lock that an epoch holds.
    fn status(&self) -> Value;
    /// The last events, oldest first. Called from the API thread: takes no lock that an epoch holds.
    fn events(&self) -> Value;
}

/// Keys of `--ft`.
const KEYS: [&str; 10] = [
    "role",
    "listen",
    "heartbeat",
    "witness",
    "policy",
    "detect_ms",
    "min_epoch_us",
    "max_epoch_us",
    "min_epoch_ms",
    "max_epoch_ms",
];

/// The checked `--ft` option. What a value means beyond its type is the engine's matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FtOptions(Map<String, Value>);

impl FtOptions {
    /// From the text after `--ft`.
    ///
    /// # Errors
    /// When the text does not follow the grammar, a key is missing or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse("--ft", text, &KEYS, &[])?;
        if options.required::<String>("role")? != "standby" {
            return Err(options.bad_value("role", "standby (a primary is made with: pollux ft protect)"));
        }
        for key in ["listen", "heartbeat"] {
            options.required::<String>(key)?;
            options.value::<Endpoint>(key)?;
        }
        let mut map = Map::new();
        for (key, text) in options.iter().filter(|(_, text)| !text.is_empty()) {
            let value = if key.ends_with("_ms") || key.ends_with("_us") {
                options.value::<u64>(key)?.into()
            } else {
                Value::from(text)
            };
            map.insert(key.to_owned(), value);
        }
        Ok(Self(map))
    }

    /// The value of a key, if it was given.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All of it as JSON: times are numbers, the rest is text.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }
}

/// `ADDR:PORT`, where the address may be a name.
struct Endpoint;

impl OptionValue for Endpoint {
    const EXPECTED: &'static str = "ADDR:PORT";

    fn from_text(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        (!host.is_empty() && port.parse::<u16>().is_ok()).then_some(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn standby_option() {
        let options =
            FtOptions::from_option("role=standby,listen=10.0.0.2:7000,heartbeat=[fd00::2]:7001,detect_ms=0,witness=/w")
                .unwrap();
        assert_eq!(
            options.to_json(),
            json!({"role": "standby", "listen": "10.0.0.2:7000", "heartbeat": "[fd00::2]:7001", "detect_ms": 0,
                   "witness": "/w"})
        );
    }

    #[test]
    fn errors_name_the_key() {
        for (text, start) in [
            ("", "--ft: role= is missing"),
            ("role=primary", "--ft: role=primary is not standby"),
            ("role=standby", "--ft: listen= is missing"),
            ("role=standby,listen=1.2.3.4:1", "--ft: heartbeat= is missing"),
            ("role=standby,listen=here,heartbeat=b:1", "--ft: listen=here is not ADDR:PORT"),
            ("role=standby,listen=a:1,heartbeat=b:70000", "--ft: heartbeat=b:70000 is not ADDR:PORT"),
            ("role=standby,listen=a:1,heartbeat=b:1,detect_ms=soon", "--ft: detect_ms=soon is not a number"),
            ("role=standby,listen=a:1,heartbeat=b:1,color=red", "--ft: unknown key \"color\""),
        ] {
            let error = FtOptions::from_option(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
