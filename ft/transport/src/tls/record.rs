//! The records of a stream after its handshake (RFC 8446, 5): a [`Sealer`] for what is written, an [`Opener`]
//! for what is read. How a record is protected is rustls's business; which key, and in which order, is here.

use std::fmt;
use std::io::{self, IoSlice, Write};

use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{AlertDescription, ContentType, HandshakeType, ProtocolVersion};

use super::TlsError;
use super::schedule::Direction;

/// Bytes of a record's header.
pub(super) const HEADER_LEN: usize = 5;
/// The most that a record carries.
const PLAIN_MAX: usize = 16 << 10;
/// The most that it takes after its header: room for the type, the tag, and padding.
pub(super) const BODY_MAX: usize = PLAIN_MAX + 256;
/// Records that are sealed before they are written: one call for all of them.
const BATCH: usize = 16;
/// Records with the same key: AES-GCM allows 2^24.5 full ones (RFC 8446, 5.5).
const KEY_RECORDS: u64 = 1 << 23;
/// Records without content in a row that a reader puts up with.
const IDLE_MAX: u32 = 32;
/// `KeyUpdate` without a request for one.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Protects what is written.
pub struct Sealer {
    direction: Direction,
    encrypter: Box<dyn MessageEncrypter>,
    /// What of a record is gathered.
    plain: Vec<u8>,
    sealed: Vec<Vec<u8>>,
    /// A record may have been written in part: nothing can follow it.
    broken: bool,
}

impl Sealer {
    /// Goes on in `direction`.
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        let encrypter = direction.encrypter();
        let (plain, sealed) = (Vec::with_capacity(PLAIN_MAX), Vec::with_capacity(BATCH));
        Self { direction, encrypter, plain, sealed, broken: false }
    }

    /// Where the next record stands.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction.clone()
    }

    /// Writes all of `parts`, one after the other.
    ///
    /// # Errors
    /// Of the socket; then the stream is of no use any more.
    pub fn write(&mut self, socket: &mut impl Write, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(PLAIN_MAX - self.plain.len()));
                self.plain.extend_from_slice(now);
                rest = later;
                if self.plain.len() == PLAIN_MAX {
                    self.seal_gathered()?;
                    if self.sealed.len() >= BATCH {
                        self.flush(socket)?;
                    }
                }
            }
        }
        if !self.plain.is_empty() {
            self.seal_gathered()?;
        }
        self.flush(socket)
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// Of the socket.
    pub fn close(&mut self, socket: &mut impl Write) -> io::Result<()> {
        if self.broken {
            return Ok(());
        }
        self.seal(ContentType::Alert, &CLOSE_NOTIFY)?;
        self.flush(socket)
    }

    fn seal_gathered(&mut self) -> io::Result<()> {
        if self.direction.records() >= KEY_RECORDS {
            self.update()?;
        }
        let plain = std::mem::take(&mut self.plain);
        let sealed = self.seal(ContentType::ApplicationData, &plain);
        self.plain = plain;
        self.plain.clear();
        sealed
    }

    /// The next key, which the other end is told with the last record of the old one.
    fn update(&mut self) -> io::Result<()> {
        self.seal(ContentType::Handshake, &KEY_UPDATE)?;
        self.direction.update();
        self.encrypter = self.direction.encrypter();
        Ok(())
    }

    fn seal(&mut self, typ: ContentType, plain: &[u8]) -> io::Result<()> {
        let payload = OutboundChunks::Single(plain);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let record = self.encrypter.encrypt(message, self.direction.next_record()).map_err(TlsError::Handshake)?;
        self.sealed.push(record.encode());
        Ok(())
    }

    fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        let mut slices: Vec<_> = self.sealed.iter().map(|record| IoSlice::new(record)).collect();
        let written = write_all(socket, &mut slices);
        self.sealed.clear();
        self.broken = written.is_err();
        written
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sealer").field(&self.direction).finish()
    }
}

/// `Write::write_all` for slices.
pub(crate) fn write_all(socket: &mut impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match socket.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens what is read. Until [`Self::read_ahead`], it takes no byte from the socket that is not of the record
/// that it needs: so the stream can be given to somebody else between two records.
pub struct Opener {
    direction: Direction,
    decrypter: Box<dyn MessageDecrypter>,
    /// As received: `buffer[start..end]` is still to be opened.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that are read beyond what is needed.
    ahead: usize,
    /// Opened and not taken yet: from `taken` on.
    plain: Vec<u8>,
    taken: usize,
    closed: bool,
    /// What was received was not what was sent: nothing that follows counts.
    broken: bool,
    /// Records without content since the last one with some.
    idle: u32,
}

/// What was in a record.
enum Content {
    /// So many bytes went to the reader.
    Data(usize),
    /// Nothing for the reader.
    Nothing,
}

impl Opener {
    /// Goes on in `direction`.
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        let decrypter = direction.decrypter();
        let (buffer, plain) = (vec![0; HEADER_LEN + BODY_MAX], Vec::new());
        Self {
            direction,
            decrypter,
            buffer,
            start: 0,
            end: 0,
            ahead: 0,
            plain,
            taken: 0,
            closed: false,
            broken: false,
            idle: 0,
        }
    }

    /// From now on up to `bytes` more are read than the next record needs: fewer calls of the kernel.
    pub fn read_ahead(&mut self, bytes: usize) {
        self.ahead = bytes;
        self.buffer.resize(self.buffer.len().max(HEADER_LEN + BODY_MAX + bytes), 0);
    }

    /// Where the next record stands; `None` where something of the stream is still held here.
    #[must_use]
    pub fn direction(&self) -> Option<Direction> {
        let holds = self.start < self.end || self.taken < self.plain.len() || self.closed;
        (!holds).then(|| self.direction.clone())
    }

    /// Reads some bytes into `into`, by `socket`, which reads as `Read::read` does. 0: the stream has ended.
    ///
    /// # Errors
    /// Of the socket; or a [`TlsError`] within, and then the stream is of no use any more.
    pub fn read(
        &mut self,
        into: &mut [u8],
        mut socket: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.broken {
            return Err(TlsError::Record.into());
        }
        let mut filled = self.take_opened(into);
        while filled < into.len() && !self.closed {
            let Some(len) = self.whole_record()? else {
                if filled > 0 {
                    break;
                }
                if self.fill(&mut socket)? == 0 {
                    let within = self.start < self.end;
                    return if within { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(0) };
                }
                continue;
            };
            let content = self.open(len, &mut into[filled..]);
            self.broken = content.is_err();
            match content? {
                Content::Data(bytes @ 1..) => {
                    filled += bytes;
                    self.idle = 0;
                }
                Content::Data(0) | Content::Nothing => self.idle += 1,
            }
            if self.idle > IDLE_MAX {
                self.broken = true;
                return Err(TlsError::Unexpected("too many without content").into());
            }
        }
        Ok(filled)
    }

    fn take_opened(&mut self, into: &mut [u8]) -> usize {
        let rest = &self.plain[self.taken..];
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        self.taken += len;
        len
    }

    /// The length of the next record's body, if all of it is here.
    fn whole_record(&self) -> io::Result<Option<usize>> {
        let received = &self.buffer[self.start..self.end];
        let Some(header) = received.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let len = body_len(header)?;
        Ok((received.len() >= HEADER_LEN + len).then_some(len))
    }

    /// Reads from the socket; how many bytes.
    fn fill(&mut self, socket: &mut impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let needed = match self.buffer[..self.end].first_chunk::<HEADER_LEN>() {
            Some(header) => HEADER_LEN + body_len(header)?,
            None => HEADER_LEN,
        };
        let until = self.buffer.len().min(needed + self.ahead);
        let read = socket(&mut self.buffer[self.end..until])?;
        self.end += read;
        Ok(read)
    }

    /// Opens the next record, whose body has `len` bytes.
    fn open(&mut self, len: usize, into: &mut [u8]) -> io::Result<Content> {
        let typ = ContentType::from(self.buffer[self.start]);
        if typ != ContentType::ApplicationData {
            return Err(TlsError::Unexpected("it is not protected").into());
        }
        let body = self.start + HEADER_LEN;
        self.start = body + len;
        let sealed = &mut self.buffer[body..body + len];
        let message = InboundOpaqueMessage::new(typ, ProtocolVersion::TLSv1_2, sealed);
        let opened = self.decrypter.decrypt(message, self.direction.next_record()).map_err(|_| TlsError::Record)?;
        match opened.typ {
            ContentType::ApplicationData => {
                let now = opened.payload.len().min(into.len());
                into[..now].copy_from_slice(&opened.payload[..now]);
                self.plain.clear();
                self.plain.extend_from_slice(&opened.payload[now..]);
                self.taken = 0;
                return Ok(Content::Data(now));
            }
            ContentType::Alert => match opened.payload {
                [_, 0] => self.closed = true,
                [_, alert] => return Err(TlsError::Alert(AlertDescription::from(*alert)).into()),
                _ => return Err(TlsError::Unexpected("an alert of another length").into()),
            },
            ContentType::Handshake if opened.payload == KEY_UPDATE => {
                self.direction.update();
                self.decrypter = self.direction.decrypter();
            }
            // Nothing is resumed.
            ContentType::Handshake if opened.payload.first() == Some(&HandshakeType::NewSessionTicket.into()) => {}
            ContentType::Handshake => return Err(TlsError::Unexpected("a handshake message").into()),
            _ => return Err(TlsError::Unexpected("of another type").into()),
        }
        Ok(Content::Nothing)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Opener").field(&self.direction).finish()
    }
}

/// The length of a record's body, by its header.
pub(super) fn body_len(header: &[u8; HEADER_LEN]) -> Result<usize, TlsError> {
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[1] != 3 || len > BODY_MAX {
        return Err(TlsError::Unexpected("longer than a record may be, or none"));
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tls::schedule::SECRET_LEN;

    fn ends(records: u64) -> (Sealer, Opener) {
        let direction = Direction::new([7; SECRET_LEN], records);
        (Sealer::new(direction.clone()), Opener::new(direction))
    }

    fn sealed(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        sealer.write(&mut wire, &[IoSlice::new(plain)]).unwrap();
        wire
    }

    fn opened(opener: &mut Opener, mut wire: &[u8]) -> io::Result<Vec<u8>> {
        let (mut all, mut some) = (Vec::new(), [0; 1000]);
        loop {
            match opener.read(&mut some, |into| io::Read::read(&mut wire, into))? {
                0 => return Ok(all),
                len => all.extend_from_slice(&some[..len]),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..5),
                                   ahead in 0_usize..100_000) {
            let (mut sealer, mut opener) = ends(0);
            opener.read_ahead(ahead);
            let (mut wire, slices) = (Vec::new(), parts.iter().map(|part| IoSlice::new(part)).collect::<Vec<_>>());
            sealer.write(&mut wire, &slices).unwrap();
            prop_assert_eq!(opened(&mut opener, &wire).unwrap(), parts.concat());
        }
    }

    #[test]
    fn the_key_changes_before_it_has_protected_too_many_records() {
        let (mut sealer, mut opener) = ends(KEY_RECORDS - 1);
        for text in ["the last with this key", "the first with the next one", "and another"] {
            let wire = sealed(&mut sealer, text.as_bytes());
            assert_eq!(opened(&mut opener, &wire).unwrap(), text.as_bytes());
        }
        assert_eq!(sealer.direction().records(), 2);
        assert_ne!(sealer.direction().secret(), &[7; SECRET_LEN]);
        assert_eq!(sealer.direction().secret(), opener.direction().unwrap().secret());
    }

    #[test]
    fn what_was_changed_repeated_or_left_out_is_refused() {
        let (mut sealer, _) = ends(0);
        let (first, second) = (sealed(&mut sealer, b"first"), sealed(&mut sealer, b"second"));
        for at in 0..first.len() {
            let mut wrong = first.clone();
            wrong[at] ^= 1;
            let result = opened(&mut ends(0).1, &[&wrong[..], &second].concat());
            // Nobody reads the second byte of the version (RFC 8446, 5.1).
            assert!(result.is_err() || at == 2, "byte {at}: {result:?}");
        }
        assert!(opened(&mut ends(0).1, &[&first[..], &first].concat()).is_err(), "twice");
        assert!(opened(&mut ends(0).1, &second).is_err(), "without the first one");
    }

    #[test]
    fn after_an_error_nothing_counts_any_more() {
        let (mut sealer, mut opener) = ends(0);
        let (mut first, second) = (sealed(&mut sealer, b"first"), sealed(&mut sealer, b"second"));
        first[9] ^= 1;
        let (wire, mut text) = ([&first[..], &second].concat(), [0; 8]);
        let mut rest = &wire[..];
        for _ in 0..2 {
            assert!(opener.read(&mut text, |into| io::Read::read(&mut rest, into)).is_err());
        }
        let mut full = &mut [0; 10][..];
        assert!(sealer.write(&mut full, &[IoSlice::new(b"does not fit")]).is_err());
        let mut wire = Vec::new();
        assert!(sealer.write(&mut wire, &[IoSlice::new(b"more")]).is_err() && sealer.close(&mut wire).is_ok());
        assert!(wire.is_empty(), "nothing follows half a record");
    }

    #[test]
    fn records_without_content_do_not_keep_a_reader_for_ever() {
        let (mut sealer, mut opener) = ends(0);
        for _ in 0..=IDLE_MAX {
            sealer.seal(ContentType::ApplicationData, b"").unwrap();
        }
        assert!(opened(&mut opener, &sealer.sealed.concat()).is_err());
    }

    #[test]
    fn nothing_is_read_beyond_a_record_until_that_is_asked_for() {
        let (mut sealer, mut opener) = ends(0);
        let wire = [sealed(&mut sealer, b"greeting"), sealed(&mut sealer, b"of another process")].concat();
        let (mut rest, mut text) = (&wire[..], [0; 8]);
        let len = opener.read(&mut text, |into| io::Read::read(&mut rest, into)).unwrap();
        assert_eq!(&text[..len], b"greeting");
        let mut other = Opener::new(opener.direction().unwrap());
        assert_eq!(opened(&mut other, rest).unwrap(), b"of another process");
        // But not in the middle of a record.
        let mut opener = ends(0).1;
        let mut rest = &wire[..];
        opener.read(&mut text[..3], |into| io::Read::read(&mut rest, into)).unwrap();
        assert!(opener.direction().is_none());
    }

    #[test]
    fn an_end_that_is_said_is_an_end_and_an_alert_an_error() {
        let (mut sealer, mut opener) = ends(0);
        let mut wire = sealed(&mut sealer, b"last words");
        sealer.close(&mut wire).unwrap();
        wire.extend_from_slice(b"what comes after it does not count");
        assert_eq!(opened(&mut opener, &wire).unwrap(), b"last words");
        let (mut sealer, mut opener) = ends(0);
        sealer.seal(ContentType::Alert, &[2, AlertDescription::UnknownCA.into()]).unwrap();
        let error = opened(&mut opener, &sealer.sealed[0]).unwrap_err();
        assert_eq!(error.to_string(), "the other end ended TLS: our certificate is not of its pair");
    }

    #[test]
    fn what_is_not_a_record_is_not_waited_for() {
        for wrong in [&b"GET / HTTP/1.1"[..], &[23, 3, 3, 0xff, 0xff, 0]] {
            assert!(opened(&mut ends(0).1, wrong).is_err(), "{wrong:?}");
        }
    }
}
