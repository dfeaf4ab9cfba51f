//! In each term one node at most believes that it may run the VM, and when a newer term has spoken, an older
//! one says nothing that the newer one does not know of.
//!
//! Reason: two that run write to two disks and answer the same clients; nothing can bring them together
//! again. A frame that the newer term's history contains may be late, as any frame may be in a network.

use std::collections::BTreeMap;

use ft_proto::{NodeId, Term};

use super::moment::{Invariant, Moment, Scene};
use crate::truth::Point;

#[derive(Default)]
pub(super) struct SingleRunner {
    runners: BTreeMap<Term, NodeId>,
    newest: Option<(Term, NodeId, Point)>,
}

impl Invariant for SingleRunner {
    fn name(&self) -> &'static str {
        "single_runner"
    }

    fn look(&mut self, moment: &Moment, scene: &Scene<'_>) -> Result<(), String> {
        match *moment {
            Moment::Runs { node, term } => {
                let before = self.runners.insert(term, node).unwrap_or(node);
                if before != node && !follows(node, before, scene) {
                    return Err(format!("{before} and {node} both run in term {term}"));
                }
            }
            Moment::Beside { node } => return Err(format!("{node} runs beside another one, and nothing was cut off")),
            Moment::Overridden { by, term } => {
                return Err(format!("{by} was given the VM by a word that was good for term {term}"));
            }
            Moment::Visible { node, term, frame } => {
                if let Some((newest, by, at)) = self.newest
                    && by != node
                    && newest >= term
                    && !follows(node, by, scene)
                    && !scene.truth.includes(at, frame.at)
                {
                    return Err(format!("{node} says {frame:?} in term {term} after {by} spoke in term {newest}"));
                }
                if self.newest.is_none_or(|(newest, ..)| term >= newest) {
                    self.newest = Some((term, node, frame.at));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a process was started anew, in the term of the one before on its host: nobody gives terms where
/// there is no witness.
fn follows(node: NodeId, before: NodeId, scene: &Scene<'_>) -> bool {
    scene.policy.is_some() && before.host == node.host
}
