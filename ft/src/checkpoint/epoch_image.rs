//! One epoch as captured: immutable, shared by all that send it, and its buffer reused when the last of them
//! is through.

use std::ops::Deref;
use std::sync::Arc;

use ft_proto::Epoch;

use crate::guest::staging::Staging;

/// A captured epoch, or pages of a first copy (of epoch 0).
#[derive(Clone, Debug)]
pub struct EpochImage(Arc<Staging>);

impl EpochImage {
    /// Nothing is changed from here on.
    pub(crate) fn new(staging: Staging) -> Self {
        Self(Arc::new(staging))
    }
}

impl Deref for EpochImage {
    type Target = Staging;

    fn deref(&self) -> &Staging {
        &self.0
    }
}

/// Staging buffers that are neither being filled nor shared. They are kept from epoch to epoch.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Vec<Staging>);

impl Buffers {
    /// A buffer for `epoch`, empty.
    pub(crate) fn take(&mut self, epoch: Epoch) -> Staging {
        let mut staging = self.0.pop().unwrap_or_default();
        staging.clear(epoch);
        staging
    }

    /// Takes back a buffer that has not become an image.
    pub(crate) fn put_back(&mut self, staging: Staging) {
        self.0.push(staging);
    }

    /// One of those that share an image is through with it.
    pub(crate) fn done(&mut self, EpochImage(shared): EpochImage) {
        self.0.extend(Arc::into_inner(shared));
    }

    /// Gives their memory back: a session is over.
    pub(crate) fn free(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_receiver_is_through_with_it() {
        let mut buffers = Buffers::default();
        let mut staging = buffers.take(Epoch(7));
        staging.pages.reserve(1000);
        let image = EpochImage::new(staging);
        let other = image.clone();
        buffers.done(image);
        assert_eq!(buffers.0.len(), 0, "the other one still sends it");
        assert_eq!(other.epoch, Epoch(7));
        buffers.done(other);
        let again = buffers.take(Epoch(8));
        assert_eq!((again.epoch, again.pages.len()), (Epoch(8), 0));
        assert!(again.pages.capacity() >= 1000);
    }
}
