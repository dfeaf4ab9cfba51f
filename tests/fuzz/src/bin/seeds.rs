//! Writes the seeds into the corpora: `cargo run -p fuzz --bin seeds`.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for seed in fuzz::seeds::all() {
        let folder = corpora.join(seed.target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("seed-{}", seed.name)), seed.input)?;
    }
    Ok(())
}
