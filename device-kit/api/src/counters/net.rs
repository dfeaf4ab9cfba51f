//! What a network card counts, as the guest sees it: `rx` is what it has received, `tx` what it has sent.

use super::{Counter, Page};

const RX_BYTES: usize = 0;
const RX_FRAMES: usize = 1;
const RX_DROPPED: usize = 2;
const TX_BYTES: usize = 3;
const TX_FRAMES: usize = 4;
const TX_DROPPED: usize = 5;
const TX_HELD: usize = 6;
const MALFORMED: usize = 7;

/// Counters of a network card. Bytes are those of the frames, without virtio's header.
#[derive(Debug)]
pub struct NetCounters(Page);

impl NetCounters {
    /// Counts into `page`.
    #[must_use]
    pub fn new(page: Page) -> Self {
        Self(page)
    }

    /// The guest has received a frame of `bytes`.
    pub fn received(&self, bytes: usize) {
        self.0.add(RX_FRAMES, 1);
        self.0.add(RX_BYTES, bytes as u64);
    }

    /// A frame for the guest was dropped: it can never fit its buffers.
    pub fn receive_dropped(&self) {
        self.0.add(RX_DROPPED, 1);
    }

    /// A frame of `bytes` has left for the outside world. One that is held has not.
    pub fn sent(&self, bytes: usize) {
        self.0.add(TX_FRAMES, 1);
        self.0.add(TX_BYTES, bytes as u64);
    }

    /// Frames of the guest never leave: the tap did not take them, or their epoch was not committed.
    pub fn send_dropped(&self, frames: usize) {
        self.0.add(TX_DROPPED, frames as u64);
    }

    /// A frame of the guest has to wait for its epoch to be committed.
    pub fn held(&self) {
        self.0.add(TX_HELD, 1);
    }

    /// The driver has broken the rules of a queue.
    pub fn malformed(&self) {
        self.0.add(MALFORMED, 1);
    }

    /// What the card with `page` has counted.
    #[must_use]
    pub fn list(page: &Page) -> Vec<Counter> {
        vec![
            page.show("rx_bytes", RX_BYTES),
            page.show("rx_frames", RX_FRAMES),
            page.show("rx_dropped", RX_DROPPED),
            page.show("tx_bytes", TX_BYTES),
            page.show("tx_frames", TX_FRAMES),
            page.show("tx_dropped", TX_DROPPED),
            page.show("tx_held", TX_HELD),
            page.show("malformed", MALFORMED),
        ]
    }

    /// As [`NetCounters::list`], of this card.
    #[must_use]
    pub fn all(&self) -> Vec<Counter> {
        Self::list(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_its_counters() {
        let counters = NetCounters::new(Page::private().unwrap());
        counters.received(60);
        counters.sent(100);
        counters.sent(11);
        counters.held();
        counters.receive_dropped();
        counters.send_dropped(4);
        counters.malformed();
        let expected = [60, 1, 1, 111, 2, 4, 1, 1];
        assert_eq!(counters.all().iter().map(|(_, value)| *value).collect::<Vec<_>>(), expected);
    }
}
