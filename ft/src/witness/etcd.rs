//! The record under a key in etcd, changed by transactions that compare the key's revision.
//!
//! Every question makes its own connections, to all members at once, and takes the first answer: questions
//! are rare, and a connection that was kept would be found dead exactly when it matters. Claims are
//! idempotent and every write is bound to the revision that was judged, so asking several members is as good
//! as asking one.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, Compare, CompareOp, ConnectOptions, Error, Identity, TlsOptions, Txn, TxnOp};
use ft_proto::VmId;
use ft_proto::witness::{Claim, Verdict};
use host_kit::error::chain;
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::kept::{Kept, Memory};
use super::{Change, EtcdAddress, Stored, Witness, WitnessError};

/// How long a question may take in all; then whether a claim took effect is unknown.
const LIMIT: Duration = Duration::from_secs(2);
/// How often a claim is judged anew because the record changed between look and write.
const ROUNDS: u32 = 8;

/// A record under a key in etcd.
#[derive(Debug)]
pub struct EtcdWitness {
    address: EtcdAddress,
    memory: Memory,
}

/// Why one member gave no answer.
enum Failure {
    Member(String),
    Record(WitnessError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Member(match error {
            Error::GRpcStatus(status) => {
                let causes = std::error::Error::source(&status).map(chain);
                in_words(causes.unwrap_or_else(|| status.message().to_owned()))
            }
            other => chain(&other),
        })
    }
}

impl EtcdWitness {
    /// Uses a key; nothing is touched yet.
    #[must_use]
    pub fn new(address: EtcdAddress) -> Self {
        Self { address, memory: Memory::default() }
    }

    fn change(&mut self, change: Change) -> Result<Verdict, WitnessError> {
        let memory = self.memory;
        let (verdict, memory) = self.question(move |client, key| swap(client, key, memory, change))?;
        self.memory = memory;
        Ok(verdict)
    }

    /// Puts a question to all members and takes the first answer.
    fn question<T, F>(&self, put: impl Fn(Client, String) -> F + Clone + Send + 'static) -> Result<T, WitnessError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let options = self.options()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(WitnessError::Local)?;
        let answer = runtime.block_on(async {
            let mut members = JoinSet::new();
            for endpoint in &self.address.endpoints {
                let (connect, key, put) = ((endpoint.clone(), options.clone()), self.address.key.clone(), put.clone());
                let answer = async move {
                    let client = Client::connect([connect.0], Some(connect.1)).await?;
                    put(client, key).await
                };
                let endpoint = endpoint.clone();
                members.spawn(async move { (timeout(LIMIT, answer).await.unwrap_or_else(|_| late()), endpoint) });
            }
            self.first(members).await
        });
        // Does not wait for a name server that does not answer either.
        runtime.shutdown_background();
        answer
    }

    /// The first answer, or what is wrong with every member.
    async fn first<T: 'static>(&self, mut members: JoinSet<(Result<T, Failure>, String)>) -> Result<T, WitnessError> {
        let mut reasons = Vec::new();
        while let Some(ended) = members.join_next().await {
            match ended {
                Ok((Ok(answer), _)) => return Ok(answer),
                Ok((Err(Failure::Record(error)), _)) => return Err(error),
                Ok((Err(Failure::Member(reason)), endpoint)) => reasons.push(format!("{endpoint}: {reason}")),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(WitnessError::Etcd { reasons })
    }

    /// Read anew for each question, so that renewed certificates and passwords count.
    fn options(&self) -> Result<ConnectOptions, WitnessError> {
        let EtcdAddress { cacert, identity, user, .. } = &self.address;
        let mut options = ConnectOptions::new().with_connect_timeout(LIMIT).with_require_leader(true);
        if let Some(cacert) = cacert {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("read", cacert)?));
            if let Some((cert, key)) = identity {
                tls = tls.identity(Identity::from_pem(read("read", cert)?, read("read", key)?));
            }
            options = options.with_tls(tls);
        }
        if let Some((name, file)) = user {
            let password = read("read the password in", file)?;
            options = options.with_user(name, String::from_utf8_lossy(&password).trim_end_matches(['\r', '\n']));
        }
        Ok(options)
    }
}

impl Witness for EtcdWitness {
    fn read(&mut self) -> Result<Option<Stored>, WitnessError> {
        let memory = self.memory;
        let (kept, memory) = self.question(move |mut client, key| async move {
            let mut memory = memory;
            let (kept, _) = load(&mut client, &key, &mut memory).await?;
            Ok((kept, memory))
        })?;
        self.memory = memory;
        Ok(kept.map(|kept| kept.stored))
    }

    fn ask(&mut self, vm: VmId, claim: Claim) -> Result<Verdict, WitnessError> {
        self.change(Change::Claim(vm, claim))
    }

    fn create(&mut self, stored: Stored) -> Result<Verdict, WitnessError> {
        self.change(Change::Create(stored))
    }
}

/// What etcd says when it does not take writes for lack of space, with what it means.
fn in_words(reason: String) -> String {
    if !reason.contains("database space exceeded") {
        return reason;
    }
    format!("{reason} (NOSPACE alarm: the database is full; compact and defragment it, then disarm the alarm)")
}

fn late<T>() -> Result<T, Failure> {
    Err(Failure::Member(format!("no answer within {} s", LIMIT.as_secs())))
}

/// Judges and writes until the record did not change in between.
async fn swap(
    mut client: Client,
    key: String,
    mut memory: Memory,
    change: Change,
) -> Result<(Verdict, Memory), Failure> {
    for _ in 0..ROUNDS {
        let (before, revision) = load(&mut client, &key, &mut memory).await?;
        let (verdict, next) =
            change.judge(before.map(|before| before.stored), || key.clone()).map_err(Failure::Record)?;
        let Some(next) = next else { return Ok((verdict, memory)) };
        // Also when the record stays: what was judged before and is still under way must find it changed.
        let next = memory.follow(before.as_ref(), next).map_err(Failure::Record)?;
        let bytes = next.encode().map_err(Failure::Record)?;
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
        let swap = Txn::new().when([unchanged]).and_then([TxnOp::put(key.as_str(), bytes, None)]);
        if client.txn(swap).await?.succeeded() {
            memory.accept(Some(&next), &key).map_err(Failure::Record)?;
            return Ok((verdict, memory));
        }
    }
    Err(Failure::Member(WitnessError::Contended { place: key, rounds: ROUNDS }.to_string()))
}

/// The record and the revision that made it; zero, also for etcd, when there is none.
async fn load(client: &mut Client, key: &str, memory: &mut Memory) -> Result<(Option<Kept>, i64), Failure> {
    let answer = client.get(key, None).await?;
    let pair = answer.kvs().first();
    let kept = pair.map(|pair| Kept::decode(pair.value(), key)).transpose().map_err(Failure::Record)?;
    memory.accept(kept.as_ref(), key).map_err(Failure::Record)?;
    Ok((kept, pair.map_or(0, |pair| pair.mod_revision())))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, WitnessError> {
    fs::read(path).map_err(|source| WitnessError::File { what, path: path.to_owned(), source })
}
