//! Decides whether the peer may be dead, from when its heartbeats arrived on each link.
//!
//! Each link has a light: green (heard within half the limit), yellow (silent for longer, within the limit)
//! or red (silent beyond it). The peer is suspected only when every link is red: one cut cable is a degraded
//! link, not a dead peer.
//!
//! Silence is evidence only while this process was listening. A process that was stopped or starved of CPU
//! time finds old time stamps when it wakes, while newer beats are still in its sockets. So time that it did
//! not run does not count as silence, and afterwards the peer has at least a third of the limit, two of its
//! beats, to be heard. Silence from before still counts: a process that is starved again and again must not
//! keep a dead peer alive.

use std::time::Duration;

use crate::time::Time;

/// Which host-to-host link a heartbeat came over.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum LinkId {
    /// The link that carries the epochs.
    Replication,
    /// The second link, for heartbeats alone.
    Heartbeat,
}

impl LinkId {
    /// Both links.
    pub const ALL: [Self; 2] = [Self::Replication, Self::Heartbeat];

    /// Its name in events and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// The state of a link.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Light {
    /// Heard within half the limit.
    Green,
    /// Silent for more than half the limit.
    Yellow,
    /// Silent beyond the limit.
    Red,
}

/// Arrivals on all links, and the limit.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FailureDetector {
    /// `None`: the peer is never suspected.
    limit: Option<Duration>,
    heard: [Time; LinkId::ALL.len()],
    checked: Time,
}

impl FailureDetector {
    /// Starts with every link heard at `now`.
    #[must_use]
    pub fn new(limit: Option<Duration>, now: Time) -> Self {
        Self { limit, heard: [now; LinkId::ALL.len()], checked: now }
    }

    /// A heartbeat of the peer arrived at `at`.
    pub fn heard(&mut self, link: LinkId, at: Time) {
        let heard = &mut self.heard[link as usize];
        *heard = (*heard).max(at);
    }

    /// How long a link has been silent.
    #[must_use]
    pub fn silence(&self, link: LinkId, now: Time) -> Duration {
        now.since(self.heard[link as usize])
    }

    /// The state of a link.
    #[must_use]
    pub fn light(&self, link: LinkId, now: Time) -> Light {
        let Some(limit) = self.limit else { return Light::Green };
        let silence = self.silence(link, now);
        if silence > limit {
            Light::Red
        } else if silence > limit / 2 {
            Light::Yellow
        } else {
            Light::Green
        }
    }

    /// To be called at least every [`Self::check_interval`], after [`Self::heard`] for all arrivals until
    /// `now`. Discounts silence during which this process did not run; returns whether there was any.
    pub fn check(&mut self, now: Time) -> bool {
        let late = now.since(std::mem::replace(&mut self.checked, now));
        let stalled = self.limit.is_some_and(|limit| late > limit / 3);
        if let Some(limit) = self.limit.filter(|_| stalled) {
            let latest = now - limit * 2 / 3;
            for heard in &mut self.heard {
                *heard = (*heard + late).max(latest).min(now);
            }
        }
        stalled
    }

    /// How often to call [`Self::check`] and to send beats: a sixth of the limit.
    #[must_use]
    pub fn check_interval(&self) -> Option<Duration> {
        self.limit.map(|limit| limit / 6)
    }

    /// When the next check is due: regularly, and the moment that a link becomes red.
    #[must_use]
    pub fn next_check(&self) -> Option<Time> {
        let limit = self.limit?;
        let red = self.heard.map(|heard| heard + limit + Duration::from_nanos(1));
        let red = red.into_iter().filter(|at| *at > self.checked);
        red.chain(self.check_interval().map(|interval| self.checked + interval)).min()
    }

    /// Whether every link is silent beyond the limit, and beyond `patience`.
    #[must_use]
    pub fn suspects(&self, now: Time, patience: Duration) -> bool {
        LinkId::ALL.iter().all(|link| self.light(*link, now) == Light::Red && self.silence(*link, now) > patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    fn ms(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    /// Checks every 50 ms from `from` to `to`, as a healthy process does.
    fn run(detector: &mut FailureDetector, from: u64, to: u64) {
        for at in (from..=to).step_by(50) {
            detector.check(ms(at));
        }
    }

    #[test]
    fn looks_the_moment_that_the_peer_may_be_suspected() {
        let mut detector = FailureDetector::new(Some(LIMIT), ms(0));
        detector.heard(LinkId::Replication, ms(10));
        run(&mut detector, 0, 300);
        assert_eq!(detector.next_check(), Some(Time(300_000_001)));
        detector.check(Time(300_000_001));
        assert!(!detector.suspects(Time(300_000_001), Duration::ZERO));
        assert_eq!(detector.next_check(), Some(Time(310_000_001)));
        detector.check(Time(310_000_001));
        assert!(detector.suspects(Time(310_000_001), Duration::ZERO));
        assert_eq!(detector.next_check(), Some(Time(360_000_001)));
    }

    #[test]
    fn suspects_only_when_both_links_are_silent() {
        let mut detector = FailureDetector::new(Some(LIMIT), ms(0));
        run(&mut detector, 0, 250);
        detector.heard(LinkId::Heartbeat, ms(250));
        run(&mut detector, 300, 500);
        assert_eq!(detector.light(LinkId::Replication, ms(500)), Light::Red);
        assert_eq!(detector.light(LinkId::Heartbeat, ms(500)), Light::Yellow);
        assert!(!detector.suspects(ms(500), Duration::ZERO));
        run(&mut detector, 550, 600);
        assert!(detector.suspects(ms(600), Duration::ZERO));
    }

    #[test]
    fn own_stall_is_not_the_peers_death() {
        let mut detector = FailureDetector::new(Some(LIMIT), ms(0));
        run(&mut detector, 0, 100);
        assert!(detector.check(ms(5_000)), "a five second gap is a stall");
        assert!(!detector.suspects(ms(5_000), Duration::ZERO));
        run(&mut detector, 5_050, 5_150);
        assert!(!detector.suspects(ms(5_150), Duration::ZERO));
        run(&mut detector, 5_200, 5_350);
        assert!(detector.suspects(ms(5_350), Duration::ZERO), "a whole limit of listening is evidence");
    }

    #[test]
    fn two_short_stalls_between_two_beats_are_not_the_peers_death_either() {
        let mut detector = FailureDetector::new(Some(LIMIT), ms(0));
        for now in [10, 150, 160, 300, 310] {
            detector.check(ms(now));
        }
        assert!(!detector.suspects(ms(310), Duration::ZERO));
        run(&mut detector, 350, 600);
        assert!(detector.suspects(ms(600), Duration::ZERO), "who listens after them hears nothing");
    }

    #[test]
    fn after_a_stall_the_peer_has_time_for_two_beats() {
        let mut detector = FailureDetector::new(Some(LIMIT), ms(0));
        run(&mut detector, 0, 300);
        detector.check(ms(5_000));
        assert!(!detector.suspects(ms(5_000), Duration::ZERO));
        run(&mut detector, 5_050, 5_100);
        assert!(!detector.suspects(ms(5_100), Duration::ZERO));
    }

    #[test]
    fn a_process_that_is_starved_again_and_again_still_finds_out() {
        let mut detector = FailureDetector::new(Some(LIMIT), ms(0));
        // Awake for 120 ms, asleep for 200 ms, in turn.
        let mut now = 0;
        while !detector.suspects(ms(now), Duration::ZERO) {
            assert!(now < 3_000, "never suspected");
            for _ in 0..3 {
                now += 40;
                detector.check(ms(now));
            }
            if !detector.suspects(ms(now), Duration::ZERO) {
                now += 200;
                detector.check(ms(now));
            }
        }
    }

    #[test]
    fn without_a_limit_nobody_is_suspected() {
        let mut detector = FailureDetector::new(None, ms(0));
        assert!(!detector.check(ms(1_000_000)));
        assert!(!detector.suspects(ms(1_000_000), Duration::ZERO));
        assert_eq!(detector.next_check(), None);
    }
}
