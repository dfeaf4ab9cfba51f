//! Settings from the command line: `name=value` words; unknown ones are left to others.

use core::net::Ipv4Addr;

/// What the guest is to do.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// `ip=`: our address; default 192.168.77.2.
    pub ip: Ipv4Addr,
    /// `port=`: UDP port of the service.
    pub port: u16,
    /// `offloads=0`: the network card computes no checksums and cuts no segments, even if it could.
    pub offloads: bool,
    /// `bare=1`: the drivers take no virtio feature at all, not even VERSION_1.
    pub bare: bool,
    /// `spoil=1`: first break queues of all devices, and see that these want a reset.
    pub spoil: bool,
    /// `hostile=FIRST-LAST`: nothing but these cases of `hostile`.
    pub hostile: Option<(usize, usize)>,
    /// `hold=`: the guest stands still after every so many of them; 0 (default) is never.
    pub hold: usize,
    /// `pages=`: pages that requests rewrite; default 256.
    pub pages: usize,
    /// `high=1`: the pages are above 4 GiB.
    pub high: bool,
    /// `fill=`: words written in each page, 1 to 512; default 512.
    pub fill: usize,
    /// `bg_pages=`: pages that are rewritten in the background by each vCPU but the first, or by the first if
    /// it is alone; default 0.
    pub background_pages: usize,
    /// `rate=`: background rewrites per second and vCPU; 0 (default) is none, `max` as many as possible.
    pub rate: u64,
    /// `disk=1`: write self-checking blocks to the first disk.
    pub disk: bool,
    /// `disk_rate=`: disk writes per second; default 500; 0 is only on request, `max` as many as possible.
    pub disk_rate: u64,
    /// `disk_slots=`: blocks of 4 KiB the disk writer uses, from the start of the disk; default 256.
    pub disk_slots: usize,
    /// `vcpus=`: vCPUs to start; default 1.
    pub vcpus: usize,
}

impl Config {
    /// Read the command line.
    ///
    /// # Panics
    /// With the word that is wrong.
    pub fn parse(line: &str) -> Self {
        let mut config = Self {
            ip: Ipv4Addr::new(192, 168, 77, 2),
            port: pollux_guest::wire::PORT,
            offloads: true,
            bare: false,
            spoil: false,
            hostile: None,
            hold: 0,
            pages: 256,
            high: false,
            fill: pollux_guest::pattern::WORDS,
            background_pages: 0,
            rate: 0,
            disk: false,
            disk_rate: 500,
            disk_slots: 256,
            vcpus: 1,
        };
        for word in line.split_ascii_whitespace() {
            if let Some((name, value)) = word.split_once('=') {
                assert!(config.set(name, value).is_some(), "bad setting: {word}");
            }
        }
        config.fill = config.fill.clamp(1, pollux_guest::pattern::WORDS);
        config.pages = config.pages.max(1);
        config.disk_slots = config.disk_slots.max(crate::disk::DEPTH * 2);
        config.vcpus = config.vcpus.clamp(1, crate::boot::MAX_VCPUS);
        config
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "ip" => self.ip = value.parse().ok()?,
            "port" => self.port = value.parse().ok()?,
            "offloads" => self.offloads = value == "1",
            "bare" => self.bare = value == "1",
            "spoil" => self.spoil = value == "1",
            "hostile" => {
                let (first, last) = value.split_once('-')?;
                self.hostile = Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1));
            }
            "hold" => self.hold = value.parse().ok()?,
            "pages" => self.pages = value.parse().ok()?,
            "high" => self.high = value == "1",
            "fill" => self.fill = value.parse().ok()?,
            "bg_pages" => self.background_pages = value.parse().ok()?,
            "rate" => self.rate = rate(value)?,
            "disk" => self.disk = value == "1",
            "disk_rate" => self.disk_rate = rate(value)?,
            "disk_slots" => self.disk_slots = value.parse().ok()?,
            "vcpus" => self.vcpus = value.parse().ok()?,
            _ => {}
        }
        Some(())
    }
}

fn rate(value: &str) -> Option<u64> {
    if value == "max" { Some(u64::MAX) } else { value.parse().ok() }
}

/// Lets something happen a number of times per second.
pub struct Pace {
    interval: u64,
    next: u64,
}

impl Pace {
    /// `rate` times per second: 0 is never, `u64::MAX` always.
    pub fn new(rate: u64, tsc_khz: u64, now: u64) -> Self {
        let interval = match rate {
            0 => u64::MAX,
            u64::MAX => 0,
            rate => tsc_khz * 1000 / rate,
        };
        Self { interval, next: now.saturating_add(interval) }
    }

    /// Whether it is time. After a stall the pace goes on without a burst.
    pub fn due(&mut self, now: u64) -> bool {
        if now < self.next {
            return false;
        }
        self.next = self.next.saturating_add(self.interval).max(now.saturating_sub(self.interval));
        true
    }
}
