//! `pollux pair renew`: makes other certificates for this host, of one pair or of all, at once or when it is
//! time.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use clap::Args;
use ft_pair::PairError;
use ft_pair::authority::HOST_DAYS;
use ft_pair::folder::Folder;

use crate::error::CommandError;
use crate::place::Place;

const DAY: Duration = Duration::from_secs(86_400);

/// Which certificates.
#[derive(Args, Debug)]
pub struct Renewal {
    /// Name of the pair
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All pairs of this host whose authority's key is here
    #[arg(long, conflicts_with_all = ["name", "dir", "host"])]
    all: bool,
    /// Only a certificate that expires within so many days
    #[arg(long, value_name = "DAYS")]
    within: Option<u32>,
    #[command(flatten)]
    place: Place,
}

/// Renews them. One that cannot be renewed does not keep the others from it.
///
/// # Errors
/// The last that could not be renewed; those before it are reported on standard error.
pub fn renew(renewal: &Renewal) -> Result<(), CommandError> {
    let Renewal { name, within, place, .. } = renewal;
    let folders = match name {
        Some(name) => vec![(name.clone(), place.folder(name))],
        None => Folder::all()?,
    };
    let mut out = io::stdout();
    if folders.is_empty() {
        return Ok(writeln!(out, "this host is of no pair")?);
    }
    let mut failed = None;
    for (name, folder) in folders {
        match renew_one(&folder, place, *within) {
            Ok(done) => writeln!(out, "pair {name}: {done}")?,
            // Whoever has its authority renews it there.
            Err(PairError::NoAuthority(_)) if renewal.all => writeln!(out, "pair {name}: of an authority elsewhere")?,
            Err(error) => {
                if let Some(earlier) = failed.replace(CommandError::from(error)) {
                    eprintln!("pollux: {earlier}");
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What was done, in words.
fn renew_one(folder: &Folder, place: &Place, within: Option<u32>) -> Result<String, PairError> {
    let authority = folder.authority()?;
    // One that cannot be read is renewed in any case.
    let now = folder.credentials().ok();
    let expires = now.as_ref().and_then(|now| now.expires().ok());
    if let (Some(within), Some(expires)) = (within, expires)
        && expires > SystemTime::now() + DAY * within
    {
        return Ok(format!("the certificate is valid for {} days", days_left(expires)));
    }
    // The name that others know this host by stays what it is.
    let host = place.named_host().or_else(|| now?.host()).unwrap_or_else(|| place.host());
    folder.put_host(&authority.issue(&host)?)?;
    folder.credentials()?;
    Ok(format!("{host} has a certificate for {HOST_DAYS} days; running VMs use it by themselves"))
}

/// Whole days until then.
pub fn days_left(expires: SystemTime) -> u64 {
    expires.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO).as_secs() / DAY.as_secs()
}
