//! Two hosts and a client, as namespaces: one network for the guest, two separate links between the hosts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::vm::CLIENT_IP;
use crate::{Answer, Client, Image, Machine, Netns, Vm, VmOptions};

/// Silence that counts as death unless a test says otherwise: more than the default, since the guests of
/// these tests never sleep and the machine may have two cores and other work.
const DETECT_MS: u64 = 1000;
/// Limit for states that a pair must reach.
const LIMIT: Duration = Duration::from_secs(120);

/// The hosts A and B and the network around them. A's addresses end in .1, B's in .2.
pub struct Pair {
    /// The right to use the machine.
    pub machine: Machine,
    /// Where clients are.
    pub lan: Netns,
    /// The hosts.
    pub hosts: [Netns; 2],
    /// The disk of the VM on each host.
    pub images: [Image; 2],
    witness: PathBuf,
}

impl Pair {
    /// Lay out the network and the images.
    #[must_use]
    pub fn new() -> Self {
        let machine = Machine::claim();
        let (lan, hosts) = (Netns::new(), [Netns::new(), Netns::new()]);
        lan.ip(&format!("link add br0 type bridge\nlink set br0 up\naddr add {CLIENT_IP}/24 dev br0\n"));
        for (host, port) in hosts.iter().zip(["host-a", "host-b"]) {
            lan.veth(port, host, "lan");
            lan.ip(&format!("link set {port} master br0\n"));
            host.ip("link add br0 type bridge\nlink set br0 up\nlink set lan master br0\n\
                 tuntap add dev tap0 mode tap user nobody\nlink set tap0 master br0\nlink set tap0 up\n");
        }
        for (i, name) in ["repl", "beat"].iter().enumerate() {
            hosts[0].veth(name, &hosts[1], name);
            for (host, end) in hosts.iter().zip(1..) {
                host.ip(&format!("addr add 10.77.{i}.{end}/24 dev {name}\n"));
            }
        }
        let images = ["a.img", "b.img"].map(|name| Image::new(&machine.dir().join(name), 4));
        let witness = machine.dir().join("witness");
        Self { machine, lan, hosts, images, witness }
    }

    /// From now on a switch carries the replication link, and loses packets for host 1 that are larger than
    /// `mtu`: without a word, as switches do. It is there until it is dropped.
    #[must_use]
    pub fn lose_large_packets(&self, mtu: u16) -> Netns {
        let switch = Netns::new();
        self.hosts[0].ip("link del repl\n");
        switch.ip("link add br0 type bridge\nlink set br0 up\n");
        for ((host, port), end) in self.hosts.iter().zip(["host0", "host1"]).zip(1..) {
            switch.veth(port, host, "repl");
            switch.ip(&format!("link set {port} master br0\n"));
            // What is cut into packets only at the other end of a cable passes every switch.
            host.ip(&format!("link set repl gso_max_segs 1\naddr add 10.77.0.{end}/24 dev repl\n"));
        }
        switch.ip(&format!("link set host1 mtu {mtu}\n"));
        switch
    }

    /// Boot a VM on host `i`.
    #[must_use]
    pub fn boot(&self, i: usize, options: &VmOptions) -> Vm {
        self.options(i, options).boot(&self.machine, &self.hosts[i])
    }

    /// Start a standby on host `i`; returns when primaries can connect.
    #[must_use]
    pub fn standby(&self, i: usize, options: &VmOptions) -> Vm {
        let (listen, beat) = (format!("10.77.0.{}:4700", i + 1), format!("10.77.1.{}:4701", i + 1));
        let witness = self.witness.display();
        let ft = format!("role=standby,listen={listen},heartbeat={beat},overwrite=on,witness={witness}");
        let standby = self.options(i, options).standby(&self.machine, &self.hosts[i], &ft);
        standby.wait_api();
        self.wait_status(&standby, "standby-empty");
        standby
    }

    /// Start the VMM on host `i` as a service manager does, with the same line for both hosts but for their
    /// addresses: who runs the VM, who stands by and when it is protected is for them to find out.
    #[must_use]
    pub fn node(&self, i: usize, options: &VmOptions) -> Vm {
        let node = self.starting(i, options, "role=auto", &self.witness);
        node.wait_api();
        node
    }

    /// The same with another role and more options, and perhaps a place for the witness that only this host
    /// has; may fail.
    #[must_use]
    pub fn starting(&self, i: usize, options: &VmOptions, role: &str, witness: &Path) -> Vm {
        let ends = |i: usize| [format!("10.77.0.{}:4700", i + 1), format!("10.77.1.{}:4701", i + 1)];
        let ([listen, beat], [peer, peer_beat]) = (ends(i), ends(1 - i));
        let ft = format!(
            "{role},listen={listen},heartbeat={beat},overwrite=on,standby-peers=[{peer}/{peer_beat}],witness={},\
             detect_ms={DETECT_MS}",
            witness.display()
        );
        self.options(i, options).node(&self.machine, &self.hosts[i], &ft)
    }

    /// The witness's record.
    #[must_use]
    pub fn witness(&self) -> &Path {
        &self.witness
    }

    fn options(&self, i: usize, options: &VmOptions) -> VmOptions {
        options.clone().disk(self.images[i].path()).tap("tap0")
    }

    /// The standby that `vm` is protected by goes away, and `vm` runs alone again.
    pub fn wait_solo(&self, vm: &Vm) -> Value {
        self.wait_status(vm, "solo")
    }

    /// A client on the network.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.lan, crate::vm::GUEST_IP)
    }

    /// A VM on host 0 that is protected by a standby on host 1; `more` adds to the request.
    #[must_use]
    pub fn protected(&self, options: &VmOptions, more: &Value) -> [Vm; 2] {
        let (vm, standby) = (self.boot(0, options), self.standby(1, options));
        self.client().echo();
        self.protect(&vm, 1, more);
        [vm, standby]
    }

    /// Have `vm` protected by the standby on host `i`; `more` adds to the request. Returns when it is.
    pub fn protect(&self, vm: &Vm, i: usize, more: &Value) {
        self.begin_protection(vm, i, more);
        self.wait_status(vm, "protected");
    }

    /// The same, but returns when the first copy begins.
    pub fn begin_protection(&self, vm: &Vm, i: usize, more: &Value) {
        self.ask_for_protection(vm, i, more).ok();
    }

    /// The same, and what is answered.
    pub fn ask_for_protection(&self, vm: &Vm, i: usize, more: &Value) -> Answer {
        let mut request = json!({
            "peer": format!("10.77.0.{}:4700", i + 1),
            "heartbeat": format!("10.77.1.{}:4701", i + 1),
            "witness": self.witness,
            "detect_ms": DETECT_MS,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            request[name] = value.clone();
        }
        vm.api().put("ft.protect", Some(&request))
    }

    /// Wait until the FT status of `vm` has this state.
    pub fn wait_status(&self, vm: &Vm, state: &str) -> Value {
        let start = Instant::now();
        loop {
            // An error while the VM is still being built.
            let status = vm.api().get("ft.status").body;
            if status["state"] == state {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "not {state} but {status}\n{}", vm.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}
