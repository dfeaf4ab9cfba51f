//! What a standby lets its primary have it hold.

use ft_proto::{Epoch, Input};

use crate::engine::{Engine, Session};
use crate::options::DISK_BUFFER_MAX;
use crate::receiver::Received;

/// What speaks against a primary that may have so many bytes of uncommitted writes held for each disk.
pub(crate) fn objection(disk_buffer: u64) -> Option<String> {
    let most = DISK_BUFFER_MAX >> 20;
    (disk_buffer > DISK_BUFFER_MAX)
        .then(|| format!("disk_buffer={disk_buffer} is more than a standby holds for a disk: at most {most} MiB"))
}

impl Engine {
    /// A disk has all of an epoch.
    pub(crate) fn disk_complete(&mut self, at: usize, epoch: Epoch) {
        if let Session::Standby(side) = &self.session {
            // A primary may have as many cut as wait for an acknowledgement; the guest runs in one more.
            let committed = self.node.epoch();
            if epoch.0.saturating_sub(committed.0) > self.node.settings().depth as u64 + 1 {
                // Said once; what a stream that has ended still brings is of no interest.
                if side.is_connected() {
                    let disk = &self.disks[at].id;
                    let reason = format!(
                        "the peer misbehaves: it ends epoch {epoch} of {disk} although {committed} is the last committed one"
                    );
                    self.received(Received::Ended(reason));
                }
                return;
            }
        }
        let disk = u16::try_from(at).unwrap_or(u16::MAX);
        self.input(Input::DiskComplete { epoch, disk });
    }
}
