//! The files of a pair on one host, each written as a whole, and keys for nobody else to read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use ft_transport::tls::credentials::{CA_CERT, CLIENT_CERT, CLIENT_KEY, Credentials, SERVER_CERT, SERVER_KEY, pairs};

use crate::PairError;
use crate::authority::{Authority, HostCertificate};

const CA_KEY: &str = "ca-key.pem";
const NAME: &str = "name";

/// A folder with a pair's files.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// That of the pair called `name`, or the one that the operator names.
    #[must_use]
    pub fn of(name: &str, folder: Option<&Path>) -> Self {
        Self(folder.map_or_else(|| pairs().join(name), Path::to_owned))
    }

    /// Those of all pairs of this host, by name.
    ///
    /// # Errors
    /// When the folder of pairs cannot be read; that there is none is no error.
    pub fn all() -> Result<Vec<(String, Self)>, PairError> {
        let pairs = pairs();
        let entries = match fs::read_dir(&pairs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| PairError::File(pairs, error))?,
        };
        let folder = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, Self(entry.path())));
        let mut all: Vec<_> = entries.flatten().filter_map(folder).collect();
        all.retain(|(_, folder)| folder.0.join(CA_CERT).exists());
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a new pair in, whose certificate for this host has been made.
    ///
    /// # Errors
    /// When there is one already, or it cannot be written.
    pub fn create(&self, authority: &Authority, host: &HostCertificate) -> Result<(), PairError> {
        self.check_free()?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|error| PairError::File(self.0.clone(), error))?;
        let put = self.put(NAME, authority.name(), 0o644);
        let put = put.and_then(|()| self.put_host(host)).and_then(|()| self.put(CA_KEY, &authority.key(), 0o600));
        // Last: it says that the folder is whole.
        let put = put.and_then(|()| self.put(CA_CERT, authority.certificate(), 0o644));
        put.inspect_err(|_| {
            // So that it can be tried again.
            let _ = fs::remove_file(self.0.join(CA_KEY));
        })
    }

    /// Whether a pair can be put in.
    ///
    /// # Errors
    /// When there is one already, or what is left of one.
    pub fn check_free(&self) -> Result<(), PairError> {
        let taken = [CA_CERT, CA_KEY].iter().any(|name| self.0.join(name).exists());
        if taken { Err(PairError::Exists(self.0.clone())) } else { Ok(()) }
    }

    /// The authority, whose key is here.
    ///
    /// # Errors
    /// When it is not.
    pub fn authority(&self) -> Result<Authority, PairError> {
        if self.0.join(CA_CERT).exists() && !self.0.join(CA_KEY).exists() {
            return Err(PairError::NoAuthority(self.0.clone()));
        }
        let name = self.get(NAME)?;
        Authority::load(name.trim(), &self.get(CA_CERT)?, &self.get(CA_KEY)?)
    }

    /// Replaces this host's certificate and key. VMs that run go on, and use them from the next connection
    /// on.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_host(&self, host: &HostCertificate) -> Result<(), PairError> {
        for (certificate, key) in [(SERVER_CERT, SERVER_KEY), (CLIENT_CERT, CLIENT_KEY)] {
            self.put(key, &host.key, 0o600)?;
            self.put(certificate, &host.certificate, 0o644)?;
        }
        Ok(())
    }

    /// A hash of the authority's certificate: the same on both hosts.
    ///
    /// # Errors
    /// When it is not here.
    pub fn hash(&self) -> Result<String, PairError> {
        Ok(blake3::hash(self.get(CA_CERT)?.as_bytes()).to_hex()[..16].to_owned())
    }

    /// What a VMM makes of it.
    ///
    /// # Errors
    /// When it would not accept it.
    pub fn credentials(&self) -> Result<Credentials, PairError> {
        Ok(Credentials::load(&self.0)?)
    }

    fn get(&self, name: &str) -> Result<String, PairError> {
        let path = self.0.join(name);
        fs::read_to_string(&path).map_err(|error| PairError::File(path, error))
    }

    fn put(&self, name: &str, text: &str, mode: u32) -> Result<(), PairError> {
        let path = self.0.join(name);
        replace(&path, text, mode).map_err(|error| PairError::File(path, error))
    }
}

/// Writes a file so that at each moment either all of the old one or all of the new one is there. It belongs
/// to whom the old one did: root renews what a VMM of another user reads.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let folder = host_kit::file::folder(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = folder.join(name);
    // Left over from a host that lost its power.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    let owned = fs::metadata(path).map_or(Ok(()), |old| fchown(&file, Some(old.uid()), Some(old.gid())));
    let written = owned.and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&fresh, path)).inspect_err(|_| {
        // It may be a key.
        let _ = fs::remove_file(&fresh);
    })?;
    File::open(folder)?.sync_all()
}
