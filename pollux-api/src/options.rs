//! Options of the API and the command line.

use crate::words::words;

words! {
    /// How the traffic on the link is reduced.
    #[derive(Default)]
    pub enum Compression {
        /// What changed in pages is sent where that is less than the page, and packed while that is measured to be faster.
        #[default]
        Auto = "auto",
        /// Pages are sent whole.
        Off = "off",
        /// What changed in pages is sent where that is less than the page.
        Delta = "delta",
        /// And always packed.
        DeltaZstd = "delta+zstd",
    }
}
