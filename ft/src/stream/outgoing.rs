//! From a primary's jobs to the bytes of its stream. Pure: it writes to whatever it is given.

use std::io::Write;

use ft_proto::{Epoch, Term, Time};
use ft_transport::frames::{Stamp, TransportError, write_frame};
use ft_wire::session::{Kind, Refusal, Yielding, encode_body};

use crate::clock::micros;
use crate::stream::coder::{Coder, Volume};
use crate::stream::ends::Job;

/// Writes what a job is to the other host.
///
/// # Errors
/// When the stream breaks.
pub fn perform(
    coder: &mut Coder,
    stream: &mut impl Write,
    term: Term,
    job: &Job,
    now: Time,
) -> Result<Volume, TransportError> {
    let (kind, body) = match job {
        Job::Copy(image, pack) => return coder.send_copy(image, *pack, stream, term),
        Job::Epoch(image, pack, _) => return coder.send_epoch(image, *pack, stream, term),
        Job::Progress(progress) => (Kind::Progress, encode_body(progress)),
        Job::Yield(reason, stopped) => {
            let (reason, stopped_us) = (reason.clone(), micros(now.since(*stopped)));
            (Kind::Yield, encode_body(&Yielding { reason, stopped_us }))
        }
        Job::Bye(reason) => (Kind::Bye, encode_body(&Refusal { reasons: vec![reason.clone()] })),
    };
    write_frame(stream, Stamp { kind, term, epoch: Epoch(0) }, &[&body])?;
    Ok(Volume::default())
}
