//! Looking for a standby: as long as the VM runs alone, peers are configured, and nobody has said not to.

use std::time::Duration;

use ft_proto::Time;
use pollux_api::reason::BlockerReport;
use pollux_api::status::SearchStatus;

use crate::options::ProtectOptions;
use crate::peers::application::Unopened;

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// After the same refusal, again and again: whoever gives it has to be changed by somebody.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Whom to ask, and what came of it.
#[derive(Debug)]
pub(crate) struct Search {
    peers: Vec<ProtectOptions>,
    on: bool,
    next: Time,
    pause: Duration,
    /// A standby has accepted, and the VM is not protected yet.
    trying: bool,
    /// Why it is not, until it is.
    why: Unopened,
}

impl Search {
    /// A search among `peers` that begins when it is switched on.
    pub(crate) fn new(peers: Vec<ProtectOptions>) -> Self {
        Self { peers, on: false, next: Time::default(), pause: AGAIN, trying: false, why: Unopened::default() }
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

    /// Nobody accepted. As long as the same question has the same answer, it is asked less and less often.
    /// Returns whether the reasons are news.
    pub(crate) fn failed(&mut self, why: &Unopened, now: Time) -> bool {
        let news = self.why != *why;
        self.pause = if why.persists() && !news { (self.pause * 2).min(AGAIN_MAX) } else { AGAIN };
        self.next = now + self.pause;
        if news {
            self.why = why.clone();
        }
        news
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
        (self.next, self.pause, self.trying) = (Time::default(), AGAIN, false);
        self.why = Unopened::default();
    }

    /// For status.
    pub(crate) fn status(&self) -> Option<SearchStatus> {
        let blockers = || self.why.blockers.iter().map(BlockerReport::from).collect();
        let status = || SearchStatus { on: self.on, waiting_for: self.why.sentences(), blockers: blockers() };
        (!self.peers.is_empty()).then(status)
    }
}

#[cfg(test)]
mod tests {
    use pollux_api::Blocker;

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
    fn without_peers_there_is_nothing_to_do() {
        let mut search = Search::new(Vec::new());
        search.switch(true);
        assert!(search.due().is_none() && search.status().is_none());
    }
}
