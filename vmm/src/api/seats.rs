//! Who may be connected to the API, and for how long without asking for anything.
//!
//! In: new connections, and how far each has come with its request. Out: a seat each, and word to those that
//! must go. Never: a client that is served made to go, or kept out by clients that are not, or by any number
//! of connections of one other user.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Connections that are served at once; more are told 503, and as many as that.
pub const SEATS_MAX: usize = 64;
/// As many of them may be one user's; and as many more of his are told 503.
pub const USER_SEATS_MAX: usize = 16;
/// How long a client may take for the head of a request, from its first byte on, and for the body.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing of a next request has come.
    Idle,
    /// Some of its head has.
    Head,
    /// Its head has.
    Body,
    /// All of it has; the answer is not complete.
    Served,
}

#[derive(Debug)]
struct Progress {
    phase: Phase,
    since: Instant,
}

#[derive(Debug)]
struct State {
    /// The user whose connection it is.
    uid: u32,
    progress: Mutex<Progress>,
    /// Whether there was a seat for it when it came.
    refused: bool,
    /// It has to go.
    leave: Notify,
    /// Its first byte of a request has come.
    begun: Notify,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        *self.lock() = Progress { phase, since: Instant::now() };
    }

    /// Since when it has kept us waiting.
    fn waiting_since(&self) -> Option<Instant> {
        let progress = self.lock();
        (progress.phase != Phase::Served).then_some(progress.since)
    }
}

/// All seats of one server.
#[derive(Debug, Default)]
pub struct Seats(Arc<Mutex<Vec<Arc<State>>>>);

impl Seats {
    /// A seat for a new connection of a user. If all are taken, or all that one user may have, whoever of
    /// them has kept us waiting for longest has to leave his; if all are being served, the new one is to be
    /// refused. `None`: there are even too many of those.
    #[must_use]
    pub fn take(&self, uid: u32) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_users = |state: &Arc<State>| state.uid == uid;
        let has_room = make_room(&mut taken, USER_SEATS_MAX, is_users) && make_room(&mut taken, SEATS_MAX, |_| true);
        if !has_room {
            let refused =
                |of: &dyn Fn(&Arc<State>) -> bool| taken.iter().filter(|state| state.refused && of(state)).count();
            if refused(&is_users) >= USER_SEATS_MAX || refused(&|_| true) >= SEATS_MAX {
                return None;
            }
        }
        let state = State {
            uid,
            progress: Mutex::new(Progress { phase: Phase::Idle, since: Instant::now() }),
            refused: !has_room,
            leave: Notify::new(),
            begun: Notify::new(),
        };
        let state = Arc::new(state);
        taken.push(Arc::clone(&state));
        Some(Seat(Arc::new(Taken { state, seats: Arc::clone(&self.0) })))
    }
}

/// Whether there are fewer than `most` seats taken of those that `counts` names, after one of them had to be
/// left if it was possible.
fn make_room(taken: &mut Vec<Arc<State>>, most: usize, counts: impl Fn(&Arc<State>) -> bool) -> bool {
    let seated = taken.iter().filter(|state| !state.refused && counts(state));
    if seated.clone().count() < most {
        return true;
    }
    let waiting = seated.filter_map(|state| Some((state.waiting_since()?, state)));
    let Some((_, longest)) = waiting.min_by_key(|(since, _)| *since) else { return false };
    let longest = Arc::clone(longest);
    longest.leave.notify_one();
    taken.retain(|state| !Arc::ptr_eq(state, &longest));
    true
}

#[derive(Debug)]
struct Taken {
    state: Arc<State>,
    seats: Arc<Mutex<Vec<Arc<State>>>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|state| !Arc::ptr_eq(state, &self.state));
    }
}

/// One connection's seat; free when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Seat(Arc<Taken>);

impl Seat {
    /// Whether there was none for it: whatever it asks, it is told to come later.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.0.state.refused
    }

    /// The head of a request has come.
    pub fn has_head(&self) {
        self.0.state.enter(Phase::Body);
    }

    /// All of a request has come.
    pub fn has_request(&self) {
        self.0.state.enter(Phase::Served);
    }

    /// It has been answered.
    pub fn has_answer(&self) {
        self.0.state.enter(Phase::Idle);
    }

    /// Returns when this connection must go: somebody else needs its seat, or a head does not come to its
    /// end.
    pub async fn must_leave(&self) {
        let state = &self.0.state;
        loop {
            let due = {
                let progress = state.lock();
                // Those who were refused have nothing to stay for.
                let ends = progress.phase == Phase::Head || state.refused && progress.phase == Phase::Idle;
                ends.then_some(progress.since + REQUEST_LIMIT)
            };
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::select! {
                    () = state.leave.notified() => return,
                    () = sleep_until(due) => {}
                },
                None => tokio::select! {
                    () = state.leave.notified() => return,
                    () = state.begun.notified() => {}
                },
            }
        }
    }
}

/// A connection that notes in its seat when a request begins to come.
#[derive(Debug)]
pub struct Noted {
    stream: UnixStream,
    seat: Seat,
}

impl Noted {
    /// The connection of `seat`.
    #[must_use]
    pub fn new(stream: UnixStream, seat: Seat) -> Self {
        Self { stream, seat }
    }
}

impl AsyncRead for Noted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let state = &self.seat.0.state;
        let begins = buf.filled().len() > before && state.lock().phase == Phase::Idle;
        if begins {
            state.enter(Phase::Head);
            state.begun.notify_one();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seats that are taken by so many users, and all of them served.
    fn served(seats: &Seats, users: u32) -> Vec<Seat> {
        let each = |uid| (0..USER_SEATS_MAX).map(move |_| uid);
        let taken: Vec<_> = (0..users).flat_map(each).map(|uid| seats.take(uid).unwrap()).collect();
        taken.iter().for_each(Seat::has_request);
        taken
    }

    #[test]
    fn who_keeps_us_waiting_gives_up_the_seat_and_who_is_served_does_not() {
        let seats = Seats::default();
        let mut taken = served(&seats, 4);
        taken[0].has_answer();
        let next = seats.take(5).unwrap();
        assert!(!next.is_refused());
        next.has_request();
        // The first one is on its way out; all others are being served.
        assert!(seats.take(6).unwrap().is_refused());
        let refused: Vec<_> = (10..).map_while(|number| seats.take(number / 2)).collect();
        assert_eq!(refused.len(), SEATS_MAX);
        drop(refused);
        taken.pop();
        assert!(!seats.take(6).unwrap().is_refused());
    }

    #[test]
    fn one_user_cannot_have_all_seats() {
        let seats = Seats::default();
        let greedy = served(&seats, 1);
        let refused: Vec<_> = std::iter::from_fn(|| seats.take(0)).collect();
        assert_eq!(refused.len(), USER_SEATS_MAX);
        assert!(refused.iter().all(Seat::is_refused));
        let others: Vec<_> = (0..USER_SEATS_MAX).map(|_| seats.take(1).unwrap()).collect();
        assert!(!others.iter().any(Seat::is_refused));
        // Who has all of his gives up one of his own, and nobody else's.
        others.iter().skip(1).for_each(Seat::has_request);
        greedy[3].has_answer();
        assert!(!seats.take(0).unwrap().is_refused());
        assert_eq!(seats.0.lock().unwrap().iter().filter(|state| state.uid == 1).count(), USER_SEATS_MAX);
    }
}
