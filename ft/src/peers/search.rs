//! Looking for a standby: as long as the VM runs alone, peers are configured, and nobody has said not to.

use std::time::Duration;

use ft_proto::Time;
use host_kit::backoff::Backoff;
use pollux_api::Blocker;
use pollux_api::reason::BlockerReport;
use pollux_api::status::SearchStatus;

use crate::options::ProtectOptions;
use crate::peers::application::Unopened;

/// Between two tries while nobody answers: whoever comes back is to be found soon.
const AGAIN: Duration = Duration::from_secs(1);

/// Whom to ask, and what came of it.
#[derive(Debug)]
pub(crate) struct Search {
    peers: Vec<ProtectOptions>,
    on: bool,
    next: Time,
    /// A standby has accepted, and the VM is not protected yet.
    trying: bool,
    /// After sessions that never protected, for whatever reason: each has copied in vain.
    sessions: Backoff,
    /// After the same refusal: whoever gives it has to be changed by somebody.
    refusals: Backoff,
    /// What was refused last, without its numbers.
    refusal: Vec<String>,
    /// Why the VM is not protected, until it is.
    why: Unopened,
}

impl Search {
    /// A search among `peers` that begins when it is switched on.
    pub(crate) fn new(peers: Vec<ProtectOptions>) -> Self {
        Self {
            peers,
            on: false,
            next: Time::default(),
            trying: false,
            sessions: Backoff::default(),
            refusals: Backoff::default(),
            refusal: Vec::new(),
            why: Unopened::default(),
        }
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
        self.begin_anew();
    }

    /// When to ask again.
    pub(crate) fn due(&self) -> Option<Time> {
        (self.on && !self.peers.is_empty()).then_some(self.next)
    }

    /// Nobody accepted, or the session is over that somebody had accepted. As long as the same question has
    /// the same answer, it is asked less and less often, whoever cannot be reached in between. Returns
    /// whether the reasons are news.
    pub(crate) fn failed(&mut self, why: &Unopened, now: Time) -> bool {
        let news = kind(&self.why) != kind(why);
        let pause = if why.blockers.iter().any(|blocker| matches!(blocker, Blocker::SessionFailed { .. })) {
            self.sessions.failed()
        } else if why.persists() {
            self.refused(why)
        } else {
            AGAIN
        };
        self.next = now + pause;
        self.why = why.clone();
        news
    }

    fn refused(&mut self, why: &Unopened) -> Duration {
        let refusal = kind(why);
        if self.refusal != refusal {
            self.refusals.begin_anew();
            self.refusal = refusal;
        }
        self.refusals.failed()
    }

    /// Somebody accepted: whether that was of use is known when the first copy is complete.
    pub(crate) fn accepted(&mut self) {
        self.trying = true;
    }

    /// The VM is protected.
    pub(crate) fn found(&mut self) {
        self.begin_anew();
    }

    /// The session is over. Returns whether the VM has never been protected by it.
    pub(crate) fn session_ended(&mut self) -> bool {
        std::mem::take(&mut self.trying)
    }

    fn begin_anew(&mut self) {
        (self.next, self.trying) = (Time::default(), false);
        self.sessions.begin_anew();
        self.refusals.begin_anew();
        self.refusal.clear();
        self.why = Unopened::default();
    }

    /// For status.
    pub(crate) fn status(&self) -> Option<SearchStatus> {
        let blockers = || self.why.blockers.iter().map(BlockerReport::from).collect();
        let status = || SearchStatus { on: self.on, waiting_for: self.why.sentences(), blockers: blockers() };
        (!self.peers.is_empty()).then(status)
    }
}

/// Reasons without what may be another number each time: an offset, a port, a term.
fn kind(why: &Unopened) -> Vec<String> {
    let word = |word: &str| if word.contains(|c: char| c.is_ascii_digit()) { String::new() } else { word.to_owned() };
    let reason = |reason: &String| reason.split_inclusive(|c: char| !c.is_alphanumeric()).map(word).collect::<String>();
    why.sentences().iter().map(reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Unopened {
        Blocker::StandbyUnreachable { peer: "b:1".to_owned(), reason: "away".to_owned() }.into()
    }

    fn refused(reason: &str) -> Unopened {
        Blocker::RefusedByStandby { peer: "b:1".to_owned(), reason: reason.to_owned() }.into()
    }

    #[test]
    fn the_same_reasons_are_told_once_and_tries_keep_their_distance() {
        let address = ([127, 0, 0, 1], 1).into();
        let mut search = Search::new(vec![ProtectOptions::by(address, address)]);
        assert_eq!(search.due(), None, "not before it is switched on");
        search.switch(true);
        let now = Time(1 << 40);
        assert!(search.due().unwrap() <= now);
        let (away, busy) = (away(), refused("busy"));
        assert!(search.failed(&away, now) && !search.failed(&away, now) && search.failed(&busy, now));
        assert_eq!(search.due(), Some(now + AGAIN));
        search.found();
        assert!(search.due().unwrap() <= now, "lost again: at once");
        search.switch(false);
        assert_eq!(search.due(), None);
    }

    #[test]
    fn what_is_settled_is_asked_less_and_less_often() {
        let address = ([127, 0, 0, 1], 1).into();
        let mut search = Search::new(vec![ProtectOptions::by(address, address)]);
        search.switch(true);
        let now = Time(1 << 40);
        let size = refused("another queue size");
        let mut pause = |why: &Unopened| {
            search.failed(why, now);
            search.due().unwrap().since(now).as_secs()
        };
        let pauses: Vec<_> = (0..9).map(|_| pause(&size)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(&refused("another serial")), 1, "something has changed");
        let away = away();
        assert_eq!([pause(&away), pause(&away), pause(&away)], [1; 3]);
        assert_eq!((pause(&size), pause(&size)), (1, 2));
        search.switch(true);
        assert!(search.due().unwrap() <= now, "an operator asks");
    }

    #[test]
    fn a_session_that_never_protected_is_a_failure_and_its_reason_stays() {
        let address = ([127, 0, 0, 1], 1).into();
        let mut search = Search::new(vec![ProtectOptions::by(address, address)]);
        search.switch(true);
        let reason = "not built like the primary's";
        let (now, why) = (Time(1 << 40), Unopened::from(Blocker::SessionFailed { reason: reason.to_owned() }));
        for pause in [1, 2, 4] {
            search.accepted();
            assert!(search.session_ended());
            search.failed(&why, now);
            assert_eq!(search.due(), Some(now + Duration::from_secs(pause)));
        }
        search.accepted();
        assert_eq!(search.status().unwrap().waiting_for, [reason], "until it is protected");
        search.found();
        assert!(!search.session_ended() && search.status().unwrap().waiting_for.is_empty());
    }

    #[test]
    fn other_numbers_and_hosts_that_are_away_for_a_moment_are_no_other_refusal() {
        let address = ([127, 0, 0, 1], 1).into();
        let mut search = Search::new(vec![ProtectOptions::by(address, address)]);
        search.switch(true);
        let now = Time(1 << 40);
        let mut told = Vec::new();
        let mut pause = |why: &Unopened| {
            told.push(search.failed(why, now));
            search.due().unwrap().since(now).as_secs()
        };
        let mut pauses = Vec::new();
        for offset in [0x1000, 0x8f000, 81920, 7] {
            pauses.push(pause(&refused(&format!("write of {offset} bytes at {offset:#x}: no space left"))));
            pauses.push(pause(&away()));
        }
        assert_eq!(pauses, [1, 1, 2, 1, 4, 1, 8, 1]);
        pause(&refused("image of 4096 bytes"));
        pause(&refused("image of 8192 bytes"));
        assert_eq!(told[8..], [true, false], "another number is no news");
    }

    #[test]
    fn sessions_that_never_protect_keep_their_distance_whatever_ends_them() {
        let address = ([127, 0, 0, 1], 1).into();
        let mut search = Search::new(vec![ProtectOptions::by(address, address)]);
        search.switch(true);
        let now = Time(1 << 40);
        for (pause, reason) in [(1, "disk full"), (2, "reset by peer"), (4, "disk full"), (8, "no memory")] {
            search.accepted();
            assert!(search.session_ended());
            search.failed(&Blocker::SessionFailed { reason: reason.to_owned() }.into(), now);
            assert_eq!(search.due(), Some(now + Duration::from_secs(pause)));
            search.failed(&refused("it still has a session"), now);
            search.failed(&away(), now);
        }
    }

    #[test]
    fn without_peers_there_is_nothing_to_do() {
        let mut search = Search::new(Vec::new());
        search.switch(true);
        assert!(search.due().is_none() && search.status().is_none());
    }
}
