//! The units for systemd leave a service little.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// Ten times what `systemd-analyze security` calls the overall exposure level, at most.
const EXPOSURE: u32 = 20;

#[test]
fn units_leave_a_service_little() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    let mut seen = 0;
    for entry in units.read_dir().unwrap() {
        let unit = entry.unwrap().path();
        // A timer runs nothing itself.
        if unit.extension().is_none_or(|kind| kind != "service") {
            continue;
        }
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", &format!("--threshold={EXPOSURE}")]).arg(&unit);
        let output = match analyze.output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return println!("SKIPPED: no systemd-analyze here"),
            output => output.unwrap(),
        };
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {told}{}", unit.display(), String::from_utf8_lossy(&output.stderr));
        seen += 1;
    }
    assert!(seen > 0, "no unit in {}", units.display());
}
