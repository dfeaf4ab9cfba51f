//! Looking for a standby: as long as the VM runs alone, peers are configured, and nobody has said not to.

use std::time::Duration;

use ft_proto::Time;

use crate::options::ProtectOptions;
use crate::status::SearchStatus;

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);

/// Whom to ask, and what came of it.
#[derive(Debug)]
pub(crate) struct Search {
    peers: Vec<ProtectOptions>,
    on: bool,
    next: Time,
    reasons: Vec<String>,
}

impl Search {
    /// A search among `peers` that begins when it is switched on.
    pub(crate) fn new(peers: Vec<ProtectOptions>) -> Self {
        Self { peers, on: false, next: Time::default(), reasons: Vec::new() }
    }

    /// Whom to ask.
    pub(crate) fn peers(&self) -> &[ProtectOptions] {
        &self.peers
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Looks for a standby from now on, or no more.
    pub(crate) fn switch(&mut self, on: bool) {
        self.on = on;
        self.next = Time::default();
        self.reasons.clear();
    }

    /// When to ask again.
    pub(crate) fn due(&self) -> Option<Time> {
        (self.on && !self.peers.is_empty()).then_some(self.next)
    }

    /// Nobody accepted. Returns whether the reasons are news.
    pub(crate) fn failed(&mut self, reasons: &[String], now: Time) -> bool {
        self.next = now + AGAIN;
        let news = self.reasons != reasons;
        if news {
            self.reasons = reasons.to_vec();
        }
        news
    }

    /// Somebody accepted.
    pub(crate) fn found(&mut self) {
        self.reasons.clear();
        self.next = Time::default();
    }

    /// For status.
    pub(crate) fn status(&self) -> Option<SearchStatus> {
        (!self.peers.is_empty()).then(|| SearchStatus { on: self.on, waiting_for: self.reasons.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reasons_are_told_once_and_tries_keep_their_distance() {
        let address = ([127, 0, 0, 1], 1).into();
        let mut search = Search::new(vec![ProtectOptions::by(address, address)]);
        assert_eq!(search.due(), None, "not before it is switched on");
        search.switch(true);
        let now = Time(1 << 40);
        assert!(search.due().unwrap() <= now);
        let (away, busy) = (["away".to_owned()], ["busy".to_owned()]);
        assert!(search.failed(&away, now) && !search.failed(&away, now) && search.failed(&busy, now));
        assert_eq!(search.due(), Some(now + AGAIN));
        search.found();
        assert!(search.due().unwrap() <= now, "lost again: at once");
        search.switch(false);
        assert_eq!(search.due(), None);
    }

    #[test]
    fn without_peers_there_is_nothing_to_do() {
        let mut search = Search::new(Vec::new());
        search.switch(true);
        assert!(search.due().is_none() && search.status().is_none());
    }
}
