//! What is printed on standard output, made fit for a terminal.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::error::CommandError;
use crate::plain;

/// Prints JSON: indented for people, in one line for programs.
///
/// # Errors
/// When it cannot be written.
pub fn show(value: &Value) -> Result<(), CommandError> {
    let mut out = io::stdout();
    if out.is_terminal() {
        writeln!(out, "{}", plain::json(&format!("{value:#}")))?
    } else {
        writeln!(out, "{}", plain::json(&value.to_string()))?
    }
    Ok(())
}
