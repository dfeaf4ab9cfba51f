//! Which guest is measured.

use engine_tests::VmOptions;

/// What guest is measured.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Pages of the working set; each request rewrites all of them.
    pub pages: u64,
    /// vCPUs; those but the first spin.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u64,
}

impl Setup {
    /// The guest of this set-up, its page writer at work or not.
    pub fn options(&self, writer: bool) -> VmOptions {
        VmOptions::new().memory(self.mem_mib).vcpus(self.vcpus).guest(&self.words(writer))
    }

    /// What its command line says of its work.
    pub fn words(&self, writer: bool) -> String {
        let background = if writer { format!("bg_pages={} rate=max", self.pages) } else { String::new() };
        format!("pages={} disk_rate=0 {background}", self.pages)
    }
}
