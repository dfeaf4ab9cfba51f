//! A pair in one file, for a second host that the first one does not reach: whoever has it is of the pair.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::PairError;
use crate::authority::{Authority, HostCertificate};
use crate::folder::{Folder, replace};

/// What a second host needs. Its own key is made there.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bundle {
    pub(crate) pair: String,
    pub(crate) ca_certificate: String,
    pub(crate) ca_key: String,
}

impl Bundle {
    pub(crate) fn of(authority: &Authority) -> Self {
        Self {
            pair: authority.name().to_owned(),
            ca_certificate: authority.certificate().to_owned(),
            ca_key: authority.key(),
        }
    }

    pub(crate) fn authority(&self) -> Result<Authority, PairError> {
        Authority::load(&self.pair, &self.ca_certificate, &self.ca_key)
    }
}

/// Writes the pair of `folder` into `file`.
///
/// # Errors
/// When the key of the authority is not there, or the file cannot be written.
pub fn export(folder: &Folder, file: &Path) -> Result<(), PairError> {
    let bundle = Bundle::of(&folder.authority()?);
    let text = serde_json::to_string_pretty(&bundle).map_err(|error| PairError::Bundle(file.to_owned(), error))?;
    replace(file, &text, 0o600).map_err(|error| PairError::File(file.to_owned(), error))
}

/// Puts the pair of `file` into its folder, with a certificate for `host`. Returns the folder.
///
/// # Errors
/// When the file is not a bundle, or there is a pair already.
pub fn import(file: &Path, folder: Option<&Path>, host: &str) -> Result<Folder, PairError> {
    let text = fs::read_to_string(file).map_err(|error| PairError::File(file.to_owned(), error))?;
    let bundle: Bundle = serde_json::from_str(&text).map_err(|error| PairError::Bundle(file.to_owned(), error))?;
    let authority = bundle.authority()?;
    let certificate: HostCertificate = authority.issue(host)?;
    let folder = Folder::of(authority.name(), folder);
    folder.create(&authority, &certificate)?;
    Ok(folder)
}
