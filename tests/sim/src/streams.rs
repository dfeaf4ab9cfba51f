//! How streams move through the network: in order, delayed, held up by partitions, ended by either side or by
//! nobody.

use ft_proto::{LinkId, Time};
use ft_wire::device_ctl::Report;
use ft_wire::session::Kind;

use crate::devices::Disk;
use crate::ids::device_of;
use crate::mutation::Mutation;
use crate::network::{End, Payload, Segment, StreamId};
use crate::opening::parse;
use crate::process::{Address, Delivery};
use crate::world::{Event, World};

impl World {
    /// Sends one frame from a host.
    pub(crate) fn send(&mut self, host: usize, stream: StreamId, payload: Payload) {
        self.push(host, stream, Segment::Data(payload));
    }

    fn push(&mut self, host: usize, id: StreamId, segment: Segment) {
        let (low, high) = self.plan.delay_us;
        let mut delay = self.rng.micros(low, high);
        if self.rng.chance(self.plan.loss) {
            delay += self.rng.micros(1000, 8000);
        }
        let now = self.now;
        let Some(lane) = self.network.side(id, host) else { return };
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        if !stream.ends[lane].open {
            return;
        }
        let queue = &mut stream.lanes[lane];
        let due = queue.segments.back().map_or(now, |(due, _)| *due).max(now + delay);
        queue.segments.push_back((due, segment));
        if !std::mem::replace(&mut queue.scheduled, true) {
            self.at(due, Event::Stream(id, lane));
        }
    }

    /// Ends a host's side: what is queued still leaves.
    pub(crate) fn close(&mut self, host: usize, id: StreamId) {
        self.push(host, id, Segment::Fin);
        if let Some(lane) = self.network.side(id, host)
            && let Some(stream) = self.network.streams.get_mut(&id)
        {
            stream.ends[lane].open = false;
        }
    }

    /// Everything a process had open, when it dies. A power loss tells nobody.
    pub(crate) fn close_all(&mut self, address: Address, tell: bool) {
        let of = |end: &End| (end.host, end.incarnation) == address;
        let ids: Vec<StreamId> =
            self.network.streams.iter().filter(|(_, stream)| stream.ends.iter().any(of)).map(|(id, _)| *id).collect();
        for id in ids {
            self.truncate(id, address.0);
            if tell {
                self.close(address.0, id);
            } else if let Some(lane) = self.network.side(id, address.0)
                && let Some(stream) = self.network.streams.get_mut(&id)
            {
                stream.ends[lane].open = false;
            }
        }
    }

    /// What a host has sent is lost from somewhere on.
    pub(crate) fn truncate(&mut self, id: StreamId, host: usize) {
        let keep = self.rng.word() as usize;
        if let Some(lane) = self.network.side(id, host)
            && let Some(stream) = self.network.streams.get_mut(&id)
        {
            let segments = &mut stream.lanes[lane].segments;
            segments.truncate(keep % (segments.len() + 1));
        }
    }

    /// Something on the way resets a stream.
    pub(crate) fn break_stream(&mut self, id: StreamId) {
        let Some(stream) = self.network.streams.get(&id) else { return };
        let hosts = stream.ends.map(|end| end.host);
        for host in hosts {
            self.truncate(id, host);
            self.push(host, id, Segment::Fin);
        }
    }

    /// The next frame of a stream is changed on the way.
    pub(crate) fn corrupt_stream(&mut self, id: StreamId, lane: usize) {
        let place = self.rng.word();
        if let Some(stream) = self.network.streams.get_mut(&id)
            && let Some((_, segment)) = stream.lanes[lane].segments.back_mut()
        {
            match segment {
                Segment::Data(Payload::Bytes(bytes)) if !bytes.is_empty() => {
                    let at = place as usize % bytes.len();
                    bytes[at] ^= 1 << (place >> 61);
                }
                segment => *segment = Segment::Corrupt,
            }
        }
    }

    /// The head of a lane may have arrived.
    pub(crate) fn stream_due(&mut self, id: StreamId, lane: usize) {
        let retry = self.rng.micros(2000, 12_000);
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        let (from, to) = (stream.ends[lane], stream.ends[1 - lane]);
        let queue = &mut stream.lanes[lane];
        queue.scheduled = false;
        let Some((due, _)) = queue.segments.front() else { return self.forget_if_over(id) };
        let mut again = (*due).max(queue.stalled_until);
        let mut gone = !to.open;
        match &self.hosts[to.host].process {
            // Sent again and again until somebody answers.
            None => again = again.max(self.now + retry),
            Some(process) if process.incarnation != to.incarnation => gone = true,
            Some(process) => {
                again = again.max(process.paused_until);
                let receives = |disk: &Disk| disk.receiver.as_ref().is_some_and(|receiver| receiver.stream == id);
                let disk = process.body().disks.iter().position(receives);
                let hung = disk.map_or(Time(0), |disk| self.hosts[to.host].drives[disk].hung_until);
                if hung > self.now {
                    again = again.max(self.now + retry);
                }
            }
        }
        if self.network.is_blocked(from.host, to.host, LinkId::Replication, self.now) {
            again = again.max(self.now + retry);
        }
        if again > self.now {
            return self.schedule_lane(id, lane, again);
        }
        if gone {
            return self.reset(id, lane);
        }
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        let Some((_, segment)) = stream.lanes[lane].segments.pop_front() else { return };
        if !matches!(segment, Segment::Data(_)) {
            // Nobody reads on after that.
            stream.lanes[lane].segments.clear();
        }
        if let Some((due, _)) = stream.lanes[lane].segments.front() {
            let due = *due;
            self.schedule_lane(id, lane, due);
        }
        self.arrive((to.host, to.incarnation), id, from.host, segment);
        self.forget_if_over(id);
    }

    fn schedule_lane(&mut self, id: StreamId, lane: usize, at: Time) {
        if let Some(stream) = self.network.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.lanes[lane].scheduled, true)
        {
            self.at(at, Event::Stream(id, lane));
        }
    }

    /// Nobody is there: whoever sends on this lane is told so.
    fn reset(&mut self, id: StreamId, lane: usize) {
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        stream.lanes[lane].segments.clear();
        if !stream.ends[lane].open {
            return self.forget_if_over(id);
        }
        let back = &mut stream.lanes[1 - lane];
        back.segments.clear();
        back.segments.push_back((self.now, Segment::Fin));
        let at = self.now;
        self.schedule_lane(id, 1 - lane, at);
    }

    fn forget_if_over(&mut self, id: StreamId) {
        let over = self.network.streams.get(&id).is_some_and(|stream| {
            stream.ends.iter().all(|end| !end.open) && stream.lanes.iter().all(|lane| lane.segments.is_empty())
        });
        if over {
            self.network.streams.remove(&id);
        }
    }

    /// A segment has arrived at a live process: find out whom it is for.
    fn arrive(&mut self, at: Address, id: StreamId, from: usize, segment: Segment) {
        let local = self.local(at.0);
        if self.greeting_heard(at, id, &segment) {
            return;
        }
        let Some(process) = self.process(at) else { return };
        let mut body = process.body();
        if body.feeds.contains_key(&id) {
            let claims = body.has(Mutation::AckBeforeDisk);
            let whole = body.feeds.get_mut(&id).map_or(Vec::new(), |feed| match segment {
                Segment::Data(Payload::Bytes(bytes)) => feed.take(&bytes, local),
                Segment::Data(_) | Segment::Corrupt | Segment::Fin => {
                    feed.end("the stream is closed".to_owned());
                    Vec::new()
                }
            });
            drop(body);
            for epoch in whole.into_iter().filter(|_| claims) {
                (0..self.plan.disks)
                    .for_each(|disk| self.report_later(at, device_of(disk), Report::Complete { epoch }));
            }
            return self.work(at);
        }
        let of_disk = body.disk_on(id).is_some();
        let watched = body.watched == Some(id);
        drop(body);
        match segment {
            segment if of_disk => self.disk_stream(at, id, segment),
            Segment::Data(Payload::Bytes(bytes)) if !watched && !process.greeted.contains(&id) && !is_ours(&bytes) => {
                self.caller(at, id, from, &bytes);
            }
            Segment::Data(Payload::Bytes(bytes)) => {
                process.body().received.entry(id).or_default().bytes.extend(bytes);
                self.readable(at, id);
            }
            Segment::Data(_) => self.unclaimed(at, id, segment),
            Segment::Corrupt | Segment::Fin => {
                process.body().received.entry(id).or_default().closed = true;
                if !watched {
                    // The kernel keeps it for a disk that is about to be given the stream.
                    self.unclaimed(at, id, segment);
                }
                self.readable(at, id);
            }
        }
    }

    fn unclaimed(&mut self, at: Address, id: StreamId, segment: Segment) {
        if let Some(process) = self.process(at) {
            process.unclaimed.entry(id).or_default().push(segment);
        }
    }

    /// There may be something to read for the engine's thread.
    pub(crate) fn readable(&mut self, at: Address, id: StreamId) {
        let Some(process) = self.process(at) else { return };
        let readable = {
            let body = process.body();
            body.watched == Some(id) && body.received.contains_key(&id)
        };
        if readable {
            self.tell(at, Delivery::Stream);
        }
    }
}

/// Whether these bytes are of a session, not a greeting.
fn is_ours(bytes: &[u8]) -> bool {
    parse(bytes).is_some_and(|(header, _)| header.kind != Kind::Hello)
}
