//! What happened, in lines that a person can read. Kept only when somebody will read them.

use ft_proto::{NodeId, Time};

/// When virtual time begins: late enough to look back from.
pub(crate) const BEGIN: Time = Time(1_000_000_000);

/// The lines so far.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: Option<Vec<String>>,
    /// What nodes are called.
    names: Vec<(NodeId, String)>,
}

impl Trace {
    pub(crate) fn new(on: bool) -> Self {
        Self { lines: on.then(Vec::new), names: Vec::new() }
    }

    pub(crate) fn name(&mut self, node: NodeId, name: String) {
        self.names.push((node, name));
    }

    pub(crate) fn line(&mut self, now: Time, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            let text = readable(text(), &self.names);
            let micros = now.since(BEGIN).as_micros();
            lines.push(format!("{:>5}.{:03} ms  {}", micros / 1000, micros % 1000, text));
        }
    }

    /// With the names of nodes instead of their numbers.
    pub(crate) fn readable(&self, text: String) -> String {
        readable(text, &self.names)
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

fn readable(text: String, names: &[(NodeId, String)]) -> String {
    let named = |text: String, (node, name): &(NodeId, String)| {
        text.replace(&format!("{node:?}"), name).replace(&node.to_string(), name)
    };
    names.iter().fold(text, named)
}
