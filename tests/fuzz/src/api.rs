//! JSON bodies: what is accepted is the same again after the API has shown it, and checked without a panic.

use pollux_api::config::VmConfig;
use pollux_api::options::ProtectRequest;
use pollux_api::{EventRecord, Status};

/// Reads the input as each of the bodies that a client or a VMM sends.
pub fn run(input: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<VmConfig>(input) {
        let shown = serde_json::to_vec(&config).unwrap();
        assert_eq!(serde_json::from_slice::<VmConfig>(&shown).unwrap(), config);
        let _ = (config.validate(), config.validate_standby(), config.validate_limits(), config.ignored());
    }
    if let Ok(request) = serde_json::from_slice::<ProtectRequest>(input) {
        let shown = request.to_json().unwrap();
        assert_eq!(serde_json::from_value::<ProtectRequest>(shown).unwrap(), request);
        let _ = pollux_api::options::faults(request.witness.is_some(), false, &request.tuning());
    }
    if let Ok(status) = serde_json::from_slice::<Status>(input) {
        let shown = serde_json::to_vec(&status).unwrap();
        assert!(serde_json::from_slice::<Status>(&shown).is_ok());
    }
    if let Ok(event) = serde_json::from_slice::<EventRecord>(input) {
        let _ = event.known();
    }
}
