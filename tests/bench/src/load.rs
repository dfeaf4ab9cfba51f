//! What is asked of a guest, whichever system runs it: requests, a page writer watched, stalls counted.

use std::thread;
use std::time::{Duration, Instant};

use engine_tests::Client;
use engine_tests::wire::op;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Requests for a spread.
    pub requests: usize,
    /// How long requests of one kind may take all together; there are at least 20.
    pub budget: Duration,
    /// How long a page writer is watched.
    pub watch: Duration,
    /// Windows in which the longest stall is looked for.
    pub windows: usize,
    /// Takeovers.
    pub takeovers: usize,
}

impl Effort {
    /// Under a minute for three working sets.
    pub const QUICK: Self = Self {
        requests: 300,
        budget: Duration::from_millis(1500),
        watch: Duration::from_millis(500),
        windows: 20,
        takeovers: 2,
    };
    /// Steady figures.
    pub const FULL: Self = Self {
        requests: 1000,
        budget: Duration::from_secs(5),
        watch: Duration::from_secs(2),
        windows: 100,
        takeovers: 10,
    };
}

/// Several epochs of 20 ms and, of a slower system, one checkpoint.
const WINDOW: Duration = Duration::from_millis(100);

/// Times of requests that rewrite `pages` pages each.
pub fn requests(client: &mut Client, pages: u64, effort: &Effort) -> Vec<Duration> {
    client.echo();
    (0..10).for_each(|_| _ = client.work(pages, 0));
    let begun = Instant::now();
    let mut times = Vec::with_capacity(effort.requests);
    while times.len() < 20 || times.len() < effort.requests && begun.elapsed() < effort.budget {
        let start = Instant::now();
        client.work(pages, 0);
        times.push(start.elapsed());
    }
    times
}

/// Pages that the guest rewrites in the background per second of its own clock.
pub fn writer_speed(client: &mut Client, effort: &Effort) -> f64 {
    let first = client.echo();
    thread::sleep(effort.watch);
    let last = client.echo();
    let seconds = (last.tsc - first.tsc) as f64 / (last.tsc_khz as f64 * 1000.0);
    (last.background - first.background) as f64 / seconds
}

/// In each of many windows, the longest time that the guest did not see its clock move.
pub fn stalls(client: &mut Client, effort: &Effort) -> Vec<Duration> {
    client.ask(op::CLEAR_STALLS, 0);
    let window = |_| {
        thread::sleep(WINDOW);
        let reply = client.ask(op::CLEAR_STALLS, 0);
        Duration::from_secs_f64(reply.stall_max as f64 / (reply.tsc_khz as f64 * 1000.0))
    };
    (0..effort.windows).map(window).collect()
}
