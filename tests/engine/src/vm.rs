//! One VMM process with its device processes.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pollux_guest::wire::op;

use crate::{Api, Client, GUEST, Machine, Netns, binaries};

/// Address of the guest.
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// Address of clients.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

const MAC: &str = "52:54:00:77:00:02";
/// Longest time that an orderly end may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What VM to start. Both sides of a pair are started from the same options.
#[derive(Clone, Debug)]
pub struct VmOptions {
    kernel: PathBuf,
    memory_mib: u64,
    vcpus: u32,
    disk: Option<PathBuf>,
    disk_id: Option<String>,
    serial_unread: bool,
    tap: Option<String>,
    net: String,
    command_line: String,
    flags: Vec<String>,
    host_boot: Option<u8>,
    without_root: Option<RealTime>,
}

/// By what a user other than root may have real-time priority.
#[derive(Clone, Copy, Debug)]
pub enum RealTime {
    /// CAP_SYS_NICE.
    Capability,
    /// Limits of its processes, where root may raise them; it has no capability at all.
    Limits,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl VmOptions {
    /// 1 vCPU, 128 MiB, no disk, no network.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kernel: GUEST.into(),
            memory_mib: 128,
            vcpus: 1,
            disk: None,
            disk_id: None,
            serial_unread: false,
            tap: None,
            net: String::new(),
            command_line: String::new(),
            flags: Vec::new(),
            host_boot: None,
            without_root: None,
        }
    }

    /// Another file that the guest is in.
    #[must_use]
    pub fn kernel(mut self, path: &Path) -> Self {
        self.kernel = path.to_path_buf();
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// vCPUs, all of which the guest starts.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self.guest(&format!("vcpus={vcpus}"))
    }

    /// A disk, which the guest writes self-checking blocks to.
    #[must_use]
    pub fn disk(mut self, image: &Path) -> Self {
        self.disk = Some(image.to_path_buf());
        self.guest("disk=1")
    }

    /// What the disk is called.
    #[must_use]
    pub fn disk_id(mut self, id: &str) -> Self {
        self.disk_id = Some(id.to_owned());
        self
    }

    /// The VMM's standard output, where the guest prints, is a pipe that nobody reads.
    #[must_use]
    pub fn serial_unread(mut self) -> Self {
        self.serial_unread = true;
        self
    }

    /// A network card on a tap that the VMM makes, with [`CLIENT_IP`] on the host's side of it.
    #[must_use]
    pub fn local_tap(mut self) -> Self {
        self.tap = Some(format!("tap=tap0,ip={CLIENT_IP},mask=255.255.255.0"));
        self
    }

    /// A network card on a tap that is there.
    #[must_use]
    pub fn tap(mut self, name: &str) -> Self {
        self.tap = Some(format!("tap={name}"));
        self
    }

    /// More for the value of `--net`.
    #[must_use]
    pub fn net(mut self, more: &str) -> Self {
        self.net = format!("{},{more}", self.net);
        self
    }

    /// More for the guest's command line (see `config` in tests/guest).
    #[must_use]
    pub fn guest(mut self, words: &str) -> Self {
        self.command_line = format!("{} {words}", self.command_line);
        self
    }

    /// One more flag of `pollux-vmm`, with its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// One more flag of `pollux-vmm`, which has no value.
    #[must_use]
    pub fn switch(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// The host has been booted so often since the test began: to these processes it has another boot id, and
    /// what was under /run is gone.
    #[must_use]
    pub fn host_boot(mut self, boot: u8) -> Self {
        self.host_boot = Some(boot);
        self
    }

    /// The VMM's user is `nobody`, who has nothing but `/dev/kvm` and real-time priority; its programs, the
    /// guest and what is in the test's directory belong to it.
    #[must_use]
    pub fn without_root(mut self, by: RealTime) -> Self {
        self.without_root = Some(by);
        self
    }

    /// Start the VMM in `netns` and boot the guest.
    #[must_use]
    pub fn boot(&self, machine: &Machine, netns: &Netns) -> Vm {
        let line = format!("ip={GUEST_IP}{}", self.command_line);
        let kernel = self.readable(machine, &self.kernel);
        self.spawn(machine, netns, &["--kernel", &kernel.to_string_lossy(), "--cmdline", &line])
    }

    /// Start the VMM in `netns` as a standby: `ft` is the value of `--ft`.
    #[must_use]
    pub fn standby(&self, machine: &Machine, netns: &Netns, ft: &str) -> Vm {
        self.spawn(machine, netns, &["--ft", ft])
    }

    /// Start the VMM in `netns` as a host of a pair, with everything that it may need: `ft` is the value of
    /// `--ft`.
    #[must_use]
    pub fn node(&self, machine: &Machine, netns: &Netns, ft: &str) -> Vm {
        let line = format!("ip={GUEST_IP}{}", self.command_line);
        self.spawn(machine, netns, &["--kernel", GUEST, "--cmdline", &line, "--ft", ft])
    }

    /// Where the VMM's user finds `file`.
    fn readable(&self, machine: &Machine, file: &Path) -> PathBuf {
        let copy = || machine.dir().join("bin").join(file.file_name().expect("a file"));
        if self.without_root.is_some() { copy() } else { file.to_owned() }
    }

    fn spawn(&self, machine: &Machine, netns: &Netns, role: &[&str]) -> Vm {
        let socket =
            (0..).map(|i| machine.dir().join(format!("api{i}"))).find(|path| !path.with_extension("log").exists());
        let socket = socket.expect("a free number");
        let log = std::fs::File::create(socket.with_extension("log")).expect("log file");
        // Before other work on this machine: a host that gets no processor looks dead to its peer, and is
        // meant to.
        let mut command = match (self.without_root, self.host_boot) {
            (Some(by), _) => as_nobody(machine.dir(), &self.kernel, by),
            (None, Some(boot)) => after_reboot(machine.dir(), boot),
            (None, None) => Command::new("nice"),
        };
        let program = self.readable(machine, &binaries::path("pollux-vmm"));
        command.args(["-n", "-10"]).arg(program).arg("--api-socket").arg(&socket);
        command.args([
            "--cpus",
            &format!("boot={}", self.vcpus),
            "--memory",
            &format!("size={}M,shared=on", self.memory_mib),
        ]);
        if !self.flags.iter().any(|flag| flag == "--serial") {
            command.args(["--serial", "tty"]);
        }
        command.env("POLLUX_PAIRS", machine.pairs());
        command.args(["--console", "off", "-v"]).args(&self.flags).args(plain_if_wanted(role));
        if let Some(disk) = &self.disk {
            let id = self.disk_id.as_ref().map(|id| format!(",id={id}")).unwrap_or_default();
            command.arg("--disk").arg(format!("path={},image_type=raw{id}", disk.display()));
        }
        if let Some(tap) = &self.tap {
            command.arg("--net").arg(format!("{tap},mac={MAC}{}", self.net));
        }
        // A group of its own: `kill_host` gets the device processes in the same instant.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
        netns.enter_on_exec(&mut command);
        die_with_us(&mut command);
        Vm::start(command, &socket, self.serial_unread)
    }
}

/// With `POLLUX_TEST_TLS=off` in the environment, the arguments of a VMM whose streams are plain.
fn plain_if_wanted(role: &[&str]) -> Vec<String> {
    let mut role: Vec<String> = role.iter().map(|word| (*word).to_owned()).collect();
    if std::env::var_os("POLLUX_TEST_TLS").is_some_and(|tls| tls == "off") {
        match role.iter().position(|word| word == "--ft") {
            Some(at) => role[at + 1].push_str(",tls=off"),
            None => role.extend(["--ft", "role=primary,tls=off"].map(str::to_owned)),
        }
    }
    role
}

/// The beginning of a command that runs on what looks like another boot of this host; `dir` keeps its id.
fn after_reboot(dir: &Path, boot: u8) -> Command {
    const PREPARE: &str =
        r#"mount --bind "$1" /proc/sys/kernel/random/boot_id && mount -t tmpfs run /run && shift && exec "$@""#;
    let id = dir.join(format!("boot{boot}"));
    std::fs::write(&id, format!("00000000-0000-4000-8000-0000000000{boot:02x}\n")).expect("file of a boot id");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh"]).arg(id).arg("nice");
    command
}

/// The beginning of a command of `nobody`: `dir` and copies of the programs and of the `kernel` in it are its
/// own, and so are `/dev/kvm` and `/dev/net/tun` in a mount namespace of the command.
fn as_nobody(dir: &Path, kernel: &Path, by: RealTime) -> Command {
    const PREPARE: &str = r#"
        mount --bind "$1/kvm" /dev/kvm && mount --bind "$1/tun" /dev/net/tun && cd / && shift &&
        caps=$1 && shift && { prlimit --pid $$ $1 || true; } && shift &&
        exec setpriv --reuid nobody --regid nogroup --clear-groups --pdeathsig KILL \
            --inh-caps $caps --ambient-caps $caps -- "$@""#;
    let bin = dir.join("bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).expect("a folder for programs");
        let programs = ["pollux-vmm", "vhost-user-blk-repl", "vhost-user-net-buffer"].map(binaries::path);
        for file in programs.iter().map(PathBuf::as_path).chain([kernel]) {
            std::fs::copy(file, bin.join(file.file_name().expect("a file"))).expect("a copy of a program");
        }
        for (name, minor) in [("kvm", 232), ("tun", 200)] {
            mknod(&dir.join(name), SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(10, minor))
                .expect("a device");
        }
    }
    let owned = Command::new("chown").args(["-R", "nobody"]).arg(dir).status();
    assert!(owned.is_ok_and(|status| status.success()), "nobody owns {}", dir.display());
    let rights = match by {
        RealTime::Capability => ["-all,+sys_nice", "--rtprio=0"],
        // Niceness -10 is 30 there.
        RealTime::Limits => ["-all", "--rtprio=1 --nice=30"],
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh"]).arg(dir).args(rights).arg("nice");
    command
}

/// Whatever ends this process: a guest that polls must not be left behind. Counts from the thread that starts
/// the VMM.
pub fn die_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
}

/// A running VMM. Killed with its device processes when dropped.
pub struct Vm {
    pid: Pid,
    socket: PathBuf,
    serial: Receiver<String>,
    /// What nobody reads.
    _unread: Option<ChildStdout>,
    printed: Vec<String>,
    exit: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Vm {
    fn start(mut command: Command, socket: &Path, unread: bool) -> Self {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (to_serial, serial) = channel();
        let (to_exit, exit) = channel();
        let mut output = child.stdout.take();
        let kept = output.take_if(|_| unread);
        let pid = Pid::from_raw(child.id().cast_signed());
        thread::spawn(move || {
            for line in output.into_iter().flat_map(|pipe| BufReader::new(pipe).split(b'\n').map_while(Result::ok)) {
                let _ = to_serial.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        thread::spawn(move || {
            let _ = to_exit.send(child.wait().expect("wait for a VMM"));
        });
        Self { pid, socket: socket.to_path_buf(), serial, _unread: kept, printed: Vec::new(), exit, status: None }
    }

    /// Its API.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::new(&self.socket)
    }

    /// Wait until its API answers.
    pub fn wait_api(&self) {
        let start = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            assert!(start.elapsed() < LIMIT, "no API:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Path of its API socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Wait for a line of the guest's serial output that contains `text`; returns it.
    ///
    /// # Panics
    /// With all output so far, if it does not come.
    pub fn wait_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.serial.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.printed.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!("no {text:?} on the serial line ({error}): {:#?}\n{}", self.printed, self.log()),
            }
        }
    }

    /// What the VMM and its device processes logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.socket.with_extension("log")).unwrap_or_default()
    }

    /// Process ids of the VMM and its device processes.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        let mut next = vec![self.pid];
        while let Some(pid) = next.pop() {
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            all.push(pid);
            for task in tasks.flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                next.extend(children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
            }
        }
        all
    }

    /// The device process whose program is `name`.
    #[must_use]
    pub fn device(&self, name: &str) -> Pid {
        let program = |pid: &Pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with(name));
        self.processes().into_iter().find(program).unwrap_or_else(|| panic!("no {name} process:\n{}", self.log()))
    }

    /// The guest's RAM as it is now: the contents of the VMM's memory file.
    #[must_use]
    pub fn memory(&self) -> Vec<u8> {
        std::fs::read(self.memory_file()).expect("read guest RAM")
    }

    /// The VMM's memory file, as /proc shows it.
    #[must_use]
    pub fn memory_file(&self) -> PathBuf {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("files of a VMM");
        let is_memory = |path: &PathBuf| {
            std::fs::read_link(path)
                .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:pollux-guest-memory"))
        };
        let path = files.flatten().map(|entry| entry.path()).find(is_memory);
        path.unwrap_or_else(|| panic!("no memory file:\n{}", self.log()))
    }

    /// Process id of the VMM.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Send a signal to the VMM alone.
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            kill(self.pid, signal).expect("signal a VMM");
        }
    }

    /// Send a signal to the VMM and its device processes, which have groups of their own; which they were.
    pub fn signal_all(&self, signal: Signal) -> Vec<Pid> {
        let processes = self.processes();
        for pid in &processes {
            // Gone already: fine.
            let _ = kill(*pid, signal);
        }
        processes
    }

    /// Stop the VMM. Returns when each of its threads stands still, which is when its parent is told: until
    /// the one that the signal was given to has run, the others go on.
    ///
    /// # Panics
    /// When it ends instead.
    pub fn freeze(&self) {
        self.signal_all(Signal::SIGSTOP);
        let status = waitpid(self.pid, Some(WaitPidFlag::WUNTRACED));
        assert!(matches!(status, Ok(WaitStatus::Stopped(..))), "{status:?}:\n{}", self.log());
    }

    /// The host dies: SIGKILL for every process at once. Returns when all have ended: one that is in the
    /// middle of a write to a disk keeps its image until that is done.
    pub fn kill_host(&mut self) {
        let processes = self.signal_all(Signal::SIGKILL);
        let status = self.wait();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "the VMM had ended by itself: {}", self.log());
        let start = Instant::now();
        while processes.iter().any(|pid| alive(*pid)) {
            assert!(start.elapsed() < LIMIT, "a killed process does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Wait until the VMM ends.
    ///
    /// # Panics
    /// With its log, if it does not.
    pub fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        match self.exit.recv_timeout(LIMIT) {
            Ok(status) => *self.status.insert(status),
            Err(RecvTimeoutError::Timeout) => panic!("the VMM does not end:\n{}", self.log()),
            Err(RecvTimeoutError::Disconnected) => panic!("lost the VMM"),
        }
    }

    /// Have the guest power off and wait for the end; checks that nothing is left behind.
    pub fn power_off(&mut self, client: &mut Client) -> ExitStatus {
        let processes = self.processes();
        client.ask(op::POWER_OFF, 0);
        let status = self.wait();
        self.assert_nothing_left(&processes);
        status
    }

    /// Panic if one of `processes` or the API socket is still there.
    pub fn assert_nothing_left(&self, processes: &[Pid]) {
        let left: Vec<_> = processes.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        assert!(left.is_empty(), "processes {left:?} outlive their VMM:\n{}", self.log());
        assert!(!self.socket.exists(), "the API socket is left behind");
    }
}

/// Whether a process has not ended; one that nobody has asked about yet has.
fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

impl Drop for Vm {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal_all(Signal::SIGKILL);
            let _ = self.exit.recv_timeout(LIMIT);
        }
        if thread::panicking() {
            self.printed.extend(self.serial.try_iter());
            eprintln!("--- serial of {}: {:#?}\n--- log:\n{}", self.socket.display(), self.printed, self.log());
        }
    }
}
