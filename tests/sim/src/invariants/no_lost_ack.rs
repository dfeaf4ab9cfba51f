//! What a client was told to be stored is in memory and on disk of whoever runs the VM next, and reads never
//! go back.
//!
//! Reason: this is what the product is for.

use super::moment::{Invariant, Moment, Scene};
use crate::guest::{KEYS, Saying};

#[derive(Default)]
pub(super) struct NoLostAck {
    acknowledged: [u64; KEYS],
}

impl Invariant for NoLostAck {
    fn name(&self) -> &'static str {
        "no_lost_ack"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::Visible { frame, .. } => {
                if let Saying::Stored { key, value } = frame.saying {
                    self.acknowledged[key] = self.acknowledged[key].max(value);
                }
            }
            Moment::TookOver(took) => {
                for (key, told) in self.acknowledged.iter().enumerate() {
                    let (memory, disk) = (took.pages[key], took.blocks[key]);
                    if memory < *told || disk < *told {
                        let node = took.node;
                        return Err(format!(
                            "key {key} was acknowledged as {told}; {node} runs with {memory} in memory, {disk} on disk"
                        ));
                    }
                }
            }
            Moment::Booted { node, blocks: Some(blocks), .. } => {
                let mut all = self.acknowledged.iter().enumerate();
                if let Some((key, told)) = all.find(|(key, told)| blocks[*key] < **told) {
                    return Err(format!("key {key} was acknowledged as {told}; {node} boots with {}", blocks[key]));
                }
            }
            Moment::Read { key, value, floor } if value < floor => {
                return Err(format!("key {key} was known to be {floor}, and is now read as {value}"));
            }
            _ => {}
        }
        Ok(())
    }
}
