//! A peer that is no honest primary, and what it makes a standby hold.

use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::mpsc;
use std::time::Duration;

use ft_proto::{Settings, Term};
use ft_transport::dial;
use ft_transport::frames::{Frame, Stamp, write_frame, write_frames};
use ft_wire::packing::Packer;
use ft_wire::pages::PAGE;
use ft_wire::session::{CopyProgress, Digest, EpochEnd, MESSAGE_MAX, Refusal, encode_body};

use super::*;
use crate::guest::GuestError;
use crate::guest::staging::Staging;

const PAGES: u64 = 2048;
const FRAME_PAGES: u64 = 512;
const GUEST: usize = PAGES as usize * PAGE;

/// Memory that takes everything.
struct Sink;

impl Memory for Sink {
    fn ranges(&self) -> Vec<Range<u64>> {
        std::iter::once(0..PAGES).collect()
    }

    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError> {
        Ok(self.ranges())
    }

    fn copy_out(&self, _: u64, into: &mut [u8]) -> Result<(), GuestError> {
        into.fill(0);
        Ok(())
    }

    fn copy_in(&self, _: u64, _: &[u8]) -> Result<(), GuestError> {
        Ok(())
    }

    fn zero(&self, _: u64) -> Result<(), GuestError> {
        Ok(())
    }

    fn clear(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// A peer's end of the stream, the thread that reads it, and what that tells.
fn connected() -> (TcpStream, ReceiverHandle, mpsc::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = dial::connect(listener.local_addr().unwrap(), Duration::from_secs(60), None).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let (tell, told) = mpsc::channel();
    let receiver =
        ReceiverHandle::start(stream, Clock::new(), Arc::new(Sink), move |received| drop(tell.send(received))).unwrap();
    (peer, receiver, told)
}

/// Sends an epoch that names every page of the guest, whole, in few bytes. An error is the end of the stream.
fn send_epoch(peer: &mut TcpStream, epoch: Epoch, packer: &mut Packer) -> Result<(), TransportError> {
    let stamp = |kind| Stamp { kind, term: Term(1), epoch };
    let (mut digest, mut frames) = (Digest::default(), 0);
    for first in (0..PAGES).step_by(FRAME_PAGES as usize) {
        let mut body = FRAME_PAGES.to_le_bytes().to_vec();
        body.extend((first..first + FRAME_PAGES).flat_map(u64::to_le_bytes));
        body.resize(body.len() + FRAME_PAGES as usize * PAGE, 7);
        let packed = packer.pack(&[&body]).expect("it repeats itself");
        let frame = Frame::packed(stamp(Kind::Pages), &packed.parts, packed.raw);
        digest.add(frame.hash);
        frames += 1;
        write_frames(peer, &[frame])?;
    }
    let mut staging = Staging::default();
    staging.state.extend([1; 100]);
    let positions = encode_body::<Vec<ft_wire::state::Position>>(&Vec::new());
    let len = (positions.len() as u64).to_le_bytes();
    let (hash, _) = write_frame(peer, stamp(Kind::State), &[&len, &positions, &staging.state])?;
    digest.add(hash);
    let end = EpochEnd { pages: PAGES, frames: frames + 1, digest: digest.value() };
    write_frame(peer, stamp(Kind::End), &[&encode_body(&end)]).map(|_| ())
}

#[test]
fn epochs_that_are_never_committed_take_no_more_than_the_depth_of_the_pipeline() {
    let (mut peer, receiver, told) = connected();
    let sending = thread::spawn(move || {
        let mut packer = Packer::default();
        // Many times what may wait; the standby ends that.
        (1..=64).take_while(|epoch| send_epoch(&mut peer, Epoch(*epoch), &mut packer).is_ok()).count()
    });
    let (mut held, mut epochs) = (Vec::new(), 0);
    let reason = loop {
        match told.recv().unwrap() {
            Received::Whole(image) => {
                epochs += 1;
                held.push(image);
            }
            Received::Ended(reason) => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        reason.contains("the peer misbehaves: it sends epoch 3 although no epoch after 0 is committed"),
        "{reason}"
    );
    let bytes: usize = held.iter().map(|image| image.bytes()).sum();
    let depth = Settings::default().depth;
    assert_eq!(epochs, depth);
    assert!(bytes >= depth * GUEST && bytes < (depth + 1) * GUEST, "{bytes} bytes are held of a guest of {GUEST}");
    drop(receiver);
    assert!(sending.join().unwrap() < 64);
}

#[test]
fn a_primary_that_waits_for_its_acknowledgements_may_go_on() {
    let (mut peer, receiver, told) = connected();
    let mut packer = Packer::default();
    for epoch in 1..=2 {
        send_epoch(&mut peer, Epoch(epoch), &mut packer).unwrap();
    }
    for epoch in 1..=10 {
        let Received::Whole(mut image) = told.recv().unwrap() else { panic!("the stream has ended") };
        assert_eq!(image.epoch(), Epoch(epoch));
        receiver.committed(Epoch(epoch));
        image.recycle().for_each(|buffer| receiver.give_back(buffer));
        send_epoch(&mut peer, Epoch(epoch + 2), &mut packer).unwrap();
    }
}

#[test]
fn of_many_words_about_the_first_copy_the_last_one_waits() {
    let (mut peer, _receiver, told) = connected();
    let stamp = |kind| Stamp { kind, term: Term(1), epoch: Epoch(0) };
    for done in 0..10_000 {
        let progress = CopyProgress { memory: [done, 10_000], disks: vec![None; 64] };
        write_frame(&mut peer, stamp(Kind::Progress), &[&encode_body(&progress)]).unwrap();
    }
    write_frame(&mut peer, stamp(Kind::Bye), &[&encode_body(&Refusal { reasons: vec!["done".to_owned()] })]).unwrap();
    // Nobody reads before the end.
    let all: Vec<_> = told.iter().collect();
    let [Received::Progress(last), Received::Left(_, reason)] = &all[..] else { panic!("{} messages", all.len()) };
    assert_eq!((last.take().unwrap().memory, reason.as_str()), ([9_999, 10_000], "done"));
}

#[test]
fn a_long_word_is_refused_before_it_is_read() {
    let (mut peer, _receiver, told) = connected();
    let len = MESSAGE_MAX + 1;
    let header =
        ft_wire::session::Header { kind: Kind::Progress, term: Term(1), epoch: Epoch(0), len, raw: len, body_hash: 0 };
    io::Write::write_all(&mut peer, &header.encode()).unwrap();
    let Received::Ended(reason) = told.recv().unwrap() else { panic!("it goes on") };
    assert!(reason.contains("longer than a frame may be"), "{reason}");
}
