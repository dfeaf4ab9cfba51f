//! Real etcd members on loopback: started, stopped, killed and started again by a test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ft::witness::{EtcdAddress, EtcdWitness, Witness, WitnessAddress};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Whatever a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The members of one cluster, in a folder of their own.
pub struct Cluster {
    folder: tempfile::TempDir,
    members: Vec<Member>,
    /// `https` members have these.
    certificates: Option<Certificates>,
}

struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Option<Child>,
}

/// PEM files for TLS with client certificates.
pub struct Certificates {
    pub ca: PathBuf,
    pub other_ca: PathBuf,
    pub server: (PathBuf, PathBuf),
    pub client: (PathBuf, PathBuf),
}

impl Cluster {
    /// One member without TLS.
    pub fn one() -> Self {
        Self::start(1, false)
    }

    /// `count` members without TLS.
    pub fn of(count: usize) -> Self {
        Self::start(count, false)
    }

    /// One member that talks only to clients with a certificate.
    pub fn with_tls() -> Self {
        Self::start(1, true)
    }

    fn start(count: usize, tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // All at once, so that no port is handed out twice.
        let held: Vec<_> = (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = held.iter().map(|port| port.local_addr().unwrap().port()).collect();
        drop(held);
        let member = |(at, ports): (usize, &[u16])| Member {
            name: format!("m{at}"),
            client: ports[0],
            peer: ports[1],
            process: None,
        };
        let members: Vec<_> = ports.chunks(2).enumerate().map(member).collect();
        let certificates = tls.then(|| Certificates::make(folder.path()));
        let mut cluster = Self { folder, members, certificates };
        (0..count).for_each(|at| cluster.launch(at));
        cluster.wait();
        cluster
    }

    /// Starts a member, with what it remembers.
    pub fn launch(&mut self, at: usize) {
        let peers: Vec<_> = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer)).collect();
        let member = &mut self.members[at];
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", member.client);
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.folder.path().join(&member.name));
        command.args([
            "--bcrypt-cost",
            "4",
            "--name",
            &member.name,
            "--log-level",
            "error",
            "--initial-cluster",
            &peers.join(","),
        ]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        if let Some(Certificates { ca, server: (cert, key), .. }) = &self.certificates {
            command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
        }
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        member.process = Some(child.expect("no etcd on this machine: apt-get install etcd-server"));
    }

    /// Until questions are answered.
    pub fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut witness = self.witness("/ready");
        while let Err(error) = witness.read() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "etcd does not start: {error}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to a member.
    pub fn signal(&self, at: usize, signal: Signal) {
        kill(self.pid(at), signal).unwrap();
    }

    /// Has a member stand still. Returns when each of its threads does, which is when its parent is told:
    /// until the one that the signal was given to has run, the others go on and answer.
    pub fn freeze(&self, at: usize) {
        self.signal(at, Signal::SIGSTOP);
        let status = waitpid(self.pid(at), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }

    fn pid(&self, at: usize) -> Pid {
        Pid::from_raw(i32::try_from(self.members[at].process.as_ref().unwrap().id()).unwrap())
    }

    /// Ends a member at once.
    pub fn kill(&mut self, at: usize) {
        let mut process = self.members[at].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().unwrap()
    }

    /// `HOST:PORT` of a member.
    pub fn endpoint(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.members[at].client)
    }

    /// A key at all members, with all that they ask for.
    pub fn address(&self, key: &str) -> EtcdAddress {
        let endpoints: Vec<_> = (0..self.members.len()).map(|at| self.endpoint(at)).collect();
        let text = format!("etcd://{}{key}", endpoints.join("+"));
        let Ok(WitnessAddress::Etcd(mut address)) = text.parse() else { panic!("{text}") };
        if let Some(Certificates { ca, client, .. }) = &self.certificates {
            address.cacert = Some(ca.clone());
            address.identity = Some(client.clone());
        }
        address
    }

    /// The witness at a key.
    pub fn witness(&self, key: &str) -> EtcdWitness {
        EtcdWitness::new(self.address(key))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            // SIGKILL also ends a member that a test has stopped.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Certificates {
    fn make(folder: &Path) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
        let write = |name: &str, pem: String| {
            let path = folder.join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let authority = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let ca = authority();
        let issue = |name: &str, purpose: ExtendedKeyUsagePurpose| {
            let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            // etcd's own gateway shows the server's certificate as a client.
            params.extended_key_usages = vec![purpose, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            (write(&format!("{name}.pem"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
        };
        let server = issue("server", ExtendedKeyUsagePurpose::ServerAuth);
        let client = issue("client", ExtendedKeyUsagePurpose::ClientAuth);
        Self { ca: write("ca.pem", ca.pem()), other_ca: write("other-ca.pem", authority().pem()), server, client }
    }
}
