//! What a standby lets its primary have it hold.

use ft_proto::Epoch;
use pollux_api::options::DISK_BUFFER_MAX;

/// What speaks against a primary that may have so many bytes of uncommitted writes held for each disk.
pub(crate) fn objection(disk_buffer: u64) -> Option<String> {
    let most = DISK_BUFFER_MAX.0 >> 20;
    (disk_buffer > DISK_BUFFER_MAX.0)
        .then(|| format!("disk_buffer={disk_buffer} is more than a standby holds for a disk: at most {most} MiB"))
}

/// Whether no honest primary ends this epoch yet: it may have `depth` cut that wait for an acknowledgement,
/// and the guest runs in one more.
pub(crate) fn runs_ahead(epoch: Epoch, committed: Epoch, depth: usize) -> bool {
    epoch.0.saturating_sub(committed.0) > depth as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_may_be_ahead_by_the_depth_and_the_running_one() {
        let ahead = |epoch, committed| runs_ahead(Epoch(epoch), Epoch(committed), 2);
        assert_eq!(
            [ahead(1, 0), ahead(3, 0), ahead(4, 0), ahead(13, 10), ahead(14, 10)],
            [false, false, true, false, true]
        );
        assert!(ahead(u64::MAX, 5) && !ahead(3, 5), "one that is committed does no harm");
    }

    #[test]
    fn a_standby_does_not_hold_what_a_stranger_asks_it_to() {
        assert!(objection(u64::MAX).is_some() && objection(DISK_BUFFER_MAX.0 + 1).is_some());
        assert!(objection(DISK_BUFFER_MAX.0).is_none());
    }
}
