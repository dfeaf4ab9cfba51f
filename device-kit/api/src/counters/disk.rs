//! What a disk counts: requests that it has finished, their bytes, and how long they took.

use std::time::Duration;

use super::{Counter, Page, SHOWN_MAX};

const READ: Slots = Slots(0);
const WRITE: Slots = Slots(8);

/// Where the counters of one direction are.
#[derive(Clone, Copy)]
struct Slots(usize);

impl Slots {
    const fn bytes(self) -> usize {
        self.0
    }
    const fn ops(self) -> usize {
        self.0 + 1
    }
    const fn latency_sum(self) -> usize {
        self.0 + 2
    }
    const fn latency_min(self) -> usize {
        self.0 + 3
    }
    const fn latency_max(self) -> usize {
        self.0 + 4
    }
}

/// Which way the data of a request went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transfer {
    /// To the guest.
    Read,
    /// To the image.
    Write,
}

/// Counters of a disk. A request's latency is from when it was taken from its queue until the guest was told.
#[derive(Debug)]
pub struct DiskCounters(Page);

impl DiskCounters {
    /// Counts into `page`.
    #[must_use]
    pub fn new(page: Page) -> Self {
        Self(page)
    }

    /// A request that moved `bytes` has succeeded.
    pub fn done(&self, transfer: Transfer, bytes: usize, latency: Duration) {
        let slots = match transfer {
            Transfer::Read => READ,
            Transfer::Write => WRITE,
        };
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let (page, first) = (&self.0, self.0.get(slots.ops()) == 0);
        if first || micros < page.get(slots.latency_min()) {
            page.set(slots.latency_min(), micros);
        }
        page.set(slots.latency_max(), micros.max(page.get(slots.latency_max())));
        page.add(slots.latency_sum(), micros);
        page.add(slots.bytes(), bytes as u64);
        page.add(slots.ops(), 1);
    }

    /// What the disk with `page` has counted. Latencies are in microseconds, and 0 before the first request.
    #[must_use]
    pub fn list(page: &Page) -> Vec<Counter> {
        // The two are not read at the same moment.
        let average = |slots: Slots| {
            let [min, max] = [slots.latency_min(), slots.latency_max()].map(|index| page.get(index).min(SHOWN_MAX));
            page.get(slots.latency_sum()).checked_div(page.get(slots.ops())).unwrap_or(0).max(min).min(max)
        };
        vec![
            page.show("read_bytes", READ.bytes()),
            page.show("read_ops", READ.ops()),
            page.show("read_latency_min", READ.latency_min()),
            page.show("read_latency_max", READ.latency_max()),
            ("read_latency_avg", average(READ)),
            page.show("write_bytes", WRITE.bytes()),
            page.show("write_ops", WRITE.ops()),
            page.show("write_latency_min", WRITE.latency_min()),
            page.show("write_latency_max", WRITE.latency_max()),
            ("write_latency_avg", average(WRITE)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_of_their_direction() {
        let counters = DiskCounters::new(Page::private().unwrap());
        let list = || DiskCounters::list(&counters.0).iter().map(|(_, value)| *value).collect::<Vec<_>>();
        assert_eq!(list(), [0; 10]);
        for (transfer, micros) in
            [(Transfer::Read, 30), (Transfer::Write, 7), (Transfer::Read, 10), (Transfer::Read, 80)]
        {
            counters.done(transfer, 512, Duration::from_micros(micros));
        }
        assert_eq!(list(), [1536, 3, 10, 80, 40, 512, 1, 7, 7, 7]);
    }
}
