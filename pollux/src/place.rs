//! Where the files of a pair are, and what this host is called in them.

use std::path::PathBuf;

use clap::Args;
use ft_pair::folder::Folder;
use nix::unistd::gethostname;

/// Where the files of a pair are.
#[derive(Args, Debug)]
pub struct Place {
    /// Folder for the pair's files [default: /etc/pollux/pairs/NAME, or under $POLLUX_PAIRS]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Name of this host in its certificate [default: its host name]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

impl Place {
    /// That of the pair called `name`.
    pub fn folder(&self, name: &str) -> Folder {
        Folder::of(name, self.dir.as_deref())
    }

    /// The host's name that the operator gives.
    pub fn named_host(&self) -> Option<String> {
        self.host.clone()
    }

    /// That, or the one that the host has.
    pub fn host(&self) -> String {
        let own = || gethostname().ok()?.into_string().ok();
        self.named_host().or_else(own).unwrap_or_else(|| "localhost".to_owned())
    }
}
