//! Writes pieces of text as a whole, or not at all, to files and pipes that may take only a part of one: its
//! rest is written before anything else.

use std::io::{self, Write};

/// The writer.
#[derive(Debug)]
pub struct WholeWriter<W> {
    to: W,
    /// What is not written yet of a piece that was begun.
    rest: Vec<u8>,
}

impl<W: Write> WholeWriter<W> {
    /// One with nothing to write yet.
    pub fn new(to: W) -> Self {
        Self::with_rest(to, Vec::new())
    }

    /// One that writes the `rest` of a piece first.
    pub fn with_rest(to: W, rest: Vec<u8>) -> Self {
        Self { to, rest }
    }

    /// Where it writes to.
    pub fn get_ref(&self) -> &W {
        &self.to
    }

    /// Writes there from now on.
    pub fn redirect(&mut self, to: W) {
        self.to = to;
    }

    /// Writes what is left of a piece that was begun. Returns whether nothing is left.
    ///
    /// # Errors
    /// When nothing of it was written.
    pub fn catch_up(&mut self) -> io::Result<bool> {
        let rest = std::mem::take(&mut self.rest);
        self.begin(&rest).inspect_err(|_| self.rest = rest)?;
        Ok(self.rest.is_empty())
    }

    /// Writes `text`, or begins to.
    ///
    /// # Errors
    /// When nothing of it was written, nor ever will be.
    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.catch_up()? { self.begin(text) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Writes as much as is taken; the rest is kept. An error: nothing is.
    fn begin(&mut self, text: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < text.len() {
            match self.to.write(&text[written..]) {
                Ok(len @ 1..) => written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if written == 0 => return Err(error),
                Ok(0) if written == 0 => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) | Err(_) => break,
            }
        }
        self.rest = text[written..].to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_was_begun_is_finished_before_the_next() {
        /// Takes so many bytes.
        struct Narrow(Vec<u8>, usize);
        impl Write for Narrow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let len = bytes.len().min(self.1);
                self.0.extend(&bytes[..len]);
                self.1 -= len;
                if len == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = WholeWriter::new(Narrow(Vec::new(), 3));
        out.write(b"first").unwrap();
        assert!(out.write(b"lost").is_err(), "there is no room for the rest of the first one");
        out.to.1 = 1;
        assert!(out.write(b"lost").is_err(), "nor for all of it");
        out.to.1 = 100;
        out.write(b"second").unwrap();
        assert_eq!(String::from_utf8(out.to.0).unwrap(), "firstsecond");
    }
}
