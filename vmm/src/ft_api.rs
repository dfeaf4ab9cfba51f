//! Fault tolerance as the API sees it: the `--ft` option, and what the `ft.*` routes call.
//!
//! The routes turn JSON into these calls and back, and decide nothing.

use std::net::SocketAddr;
use std::time::Duration;

pub use ft::{Call, Control, NodeOptions, ProtectOptions, StandbyOptions};
use ft::{TlsChoice, WitnessAddress, on_partition, pairs, resolve};
use ft_proto::Term;
use host_kit::landlock::{Access, Place, around, folders};
use pollux_api::options::{NodeRequest, OptionError, Options, StartRole, TextList, Tuning, node_options};

/// The files of the witness and of the pair.
#[must_use]
pub fn places(options: &NodeOptions) -> Vec<Place> {
    let mut places = match &options.witness {
        None => Vec::new(),
        // Wherever the file is that the name leads to, records are made beside it.
        Some(WitnessAddress::File(path)) => {
            let real = path.canonicalize().ok();
            [Some(path), real.as_ref()].into_iter().flatten().map(|path| (around(path), Access::Write)).collect()
        }
        Some(WitnessAddress::Etcd(etcd)) => {
            let identity = etcd.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
            let all = etcd.cacert.iter().chain(identity).chain(etcd.user.iter().map(|(_, password)| password));
            all.flat_map(|path| folders(path)).map(|folder| (folder, Access::Read)).collect()
        }
    };
    match &options.tls {
        TlsChoice::Off => {}
        TlsChoice::Folder(folder) => places.push((folder.clone(), Access::Read)),
        TlsChoice::OnlyPair => places.push((pairs(), Access::Read)),
    }
    places
}

/// Reads the text after `--ft`.
///
/// # Errors
/// When the text does not follow the grammar, a key is missing, or keys do not go together.
pub fn node_option(text: &str) -> Result<NodeOptions, OptionError> {
    let keys: Vec<&str> = node_options().iter().map(|option| option.key).collect();
    let options = Options::parse("--ft", text, &keys, &[])?;
    let NodeRequest { role, listen, blackout_wait, .. } = NodeRequest::read(&options)?;
    let force = force(&options, role)?;
    if role == StartRole::Auto {
        // Without these it could neither decide nor protect.
        options.required::<String>("witness")?;
        options.required::<TextList>("standby-peers")?;
    }
    let standby = if role == StartRole::Primary && listen.is_none() {
        None
    } else {
        Some(StandbyOptions {
            listen: address(&options, "listen")?,
            heartbeat: address(&options, "heartbeat")?,
            witness: witness(&options)?,
            on_partition: options.value("on_partition")?.map(on_partition),
            detect_ms: options.value("detect_ms")?,
            keeps_data: false,
        })
    };
    Ok(NodeOptions {
        role,
        standby,
        peers: peers(&options)?,
        witness: witness(&options)?,
        node: options.parsed("node", "a name of 1 to 32 letters, digits, dots, dashes or underscores")?,
        force,
        overwrite: options.value("overwrite")?.unwrap_or(false),
        tls: tls(&options)?,
        blackout_wait: blackout_wait.map(Duration::from_secs),
    })
}

/// What protects the streams between the hosts.
fn tls(options: &Options) -> Result<TlsChoice, OptionError> {
    let conflict = |what: &str| OptionError::Conflict { flag: "--ft".to_owned(), what: what.to_owned() };
    let (pair, folder) = (options.text("pair"), options.text("tls_dir"));
    match (options.value::<bool>("tls")?.unwrap_or(true), pair, folder) {
        (true, None, None) => Ok(TlsChoice::OnlyPair),
        (true, Some(pair), None) if pair.contains('/') => Err(conflict("pair= is a name; tls_dir= takes a folder")),
        (true, Some(pair), None) => Ok(TlsChoice::pair(pair)),
        (true, None, Some(folder)) => Ok(TlsChoice::Folder(folder.into())),
        (true, Some(_), Some(_)) => Err(conflict("pair= and tls_dir= name two sets of certificates")),
        (false, None, None) => Ok(TlsChoice::Off),
        (false, ..) => Err(conflict("tls=off needs no certificates: leave out pair= and tls_dir=, or tls=off")),
    }
}

/// The term that an operator overrides.
fn force(options: &Options, role: StartRole) -> Result<Option<Term>, OptionError> {
    let what = match options.text("force") {
        None | Some("off") => return Ok(None),
        Some(text) => match text.parse() {
            Ok(term) if role == StartRole::Primary => return Ok(Some(Term(term))),
            Ok(_) => "force=TERM needs role=primary: it runs the VM here although the witness is in that term",
            Err(_) => {
                "force= takes the term that it overrides, so that it counts only once: what pollux-vmm says without it \
                 names the term"
            }
        },
    };
    Err(OptionError::Conflict { flag: "--ft".to_owned(), what: what.to_owned() })
}

/// How each of the standby peers is to protect this VM.
fn peers(options: &Options) -> Result<Vec<ProtectOptions>, OptionError> {
    let list = options.value::<TextList>("standby-peers")?.map_or_else(Vec::new, |list| list.0);
    let mut peers = Vec::new();
    for text in list {
        let wrong = |why: String| {
            let list = "a list such as [ADDR:PORT/ADDR:PORT]: listen and heartbeat of each";
            options.bad_value("standby-peers", &format!("{list} ({text}: {why})"))
        };
        let (peer, heartbeat) = text.split_once('/').ok_or_else(|| wrong("there is no slash".to_owned()))?;
        let (peer, heartbeat) = (resolve(peer).map_err(wrong)?, resolve(heartbeat).map_err(wrong)?);
        let peer = ProtectOptions {
            witness: witness(options)?,
            on_partition: options.value("on_partition")?.map(on_partition),
            tuning: Tuning::read(options)?,
            ..ProtectOptions::by(peer, heartbeat)
        };
        if let Some(fault) = peer.faults().into_iter().next() {
            return Err(OptionError::Conflict { flag: "--ft".to_owned(), what: fault.to_string() });
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn witness(options: &Options) -> Result<Option<WitnessAddress>, OptionError> {
    let parse = |text: &str| text.parse().map_err(|error| options.bad_value("witness", &format!("usable: {error}")));
    options.text("witness").map(parse).transpose()
}

/// The address that must be given as `key`.
fn address(options: &Options, key: &str) -> Result<SocketAddr, OptionError> {
    let text = options.required::<String>(key)?;
    resolve(&text).map_err(|error| options.bad_value(key, &format!("ADDR:PORT: {error}")))
}

#[cfg(test)]
mod tests {
    use pollux_api::options::{ByteSize, Compression};

    use super::*;

    #[test]
    fn standby() {
        let text = "role=standby,listen=10.0.0.2:7000,heartbeat=[fd00::2]:7001,detect_ms=0,witness=/w";
        let expected = StandbyOptions {
            listen: ([10, 0, 0, 2], 7000).into(),
            heartbeat: "[fd00::2]:7001".parse().unwrap(),
            witness: Some(WitnessAddress::File("/w".into())),
            on_partition: None,
            detect_ms: Some(0),
            keeps_data: false,
        };
        let options = node_option(text).unwrap();
        assert_eq!((options.role, options.standby), (StartRole::Standby, Some(expected)));
        let least = node_option("role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:2").unwrap();
        assert!(least.witness.is_none() && least.peers.is_empty());
    }

    #[test]
    fn names_and_interfaces_are_resolved_as_by_ft_protect() {
        let text = "role=primary,witness=/w,listen=localhost:7000,heartbeat=[fe80::1%lo]:7001,\
                    standby-peers=[localhost:7002/[fe80::2%lo]:7003]";
        let options = node_option(text).unwrap();
        let standby = options.standby.unwrap();
        assert!(standby.listen.ip().is_loopback());
        assert_eq!(standby.heartbeat, ft::resolve("[fe80::1%lo]:7001").unwrap());
        let json = r#"{"peer":"localhost:7002","heartbeat":"[fe80::2%lo]:7003"}"#;
        let asked: ProtectOptions = serde_json::from_str(json).unwrap();
        assert_eq!((options.peers[0].peer, options.peers[0].heartbeat), (asked.peer, asked.heartbeat));
    }

    #[test]
    fn tls_is_on_unless_it_is_switched_off_and_says_whose_certificates() {
        let tls = |more: &str| node_option(&format!("role=primary{more}")).map(|options| options.tls);
        assert_eq!(tls("").unwrap(), TlsChoice::OnlyPair);
        assert_eq!(tls(",tls=on,pair=east").unwrap(), TlsChoice::Folder("/etc/pollux/pairs/east".into()));
        assert_eq!(tls(",tls_dir=/pki").unwrap(), TlsChoice::Folder("/pki".into()));
        assert_eq!(tls(",tls=off").unwrap(), TlsChoice::Off);
        for wrong in [",pair=a/b", ",pair=east,tls_dir=/pki", ",tls=off,pair=east", ",tls=maybe"] {
            assert!(tls(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_same_line_makes_a_primary_and_a_standby() {
        let text = "role=auto,listen=10.0.0.1:7000,heartbeat=10.1.0.1:7001,witness=/w,detect_ms=500,disk_rate=8M,\
                    compression=delta+zstd,standby-peers=[10.0.0.2:7000/10.1.0.2:7001,[fd00::3]:7000/[fd01::3]:7001]";
        let options = node_option(text).unwrap();
        let [first, second] = &options.peers[..] else { panic!("{options:?}") };
        assert_eq!((first.peer, first.heartbeat), (([10, 0, 0, 2], 7000).into(), ([10, 1, 0, 2], 7001).into()));
        let expected = Tuning {
            detect_ms: 500,
            disk_rate: ByteSize(8 << 20),
            compression: Compression::DeltaZstd,
            ..Tuning::default()
        };
        assert_eq!(first.tuning, expected);
        assert_eq!(second.peer, "[fd00::3]:7000".parse().unwrap());
        assert_eq!((&second.witness, options.standby.unwrap().detect_ms), (&"/w".parse().ok(), Some(500)));
    }

    #[test]
    fn a_primary_may_be_no_more_than_that() {
        let options = node_option("role=primary,force=7,witness=/w").unwrap();
        assert_eq!(options.force, Some(Term(7)));
        assert!(options.standby.is_none() && options.peers.is_empty());
    }

    #[test]
    fn errors_name_the_key() {
        for (text, start) in [
            ("", "--ft: role= is missing"),
            ("role=boss", "--ft: role=boss is not auto, primary or standby"),
            ("role=standby", "--ft: listen= is missing"),
            ("role=standby,listen=1.2.3.4:1", "--ft: heartbeat= is missing"),
            ("role=standby,listen=here,heartbeat=1.2.3.4:1", "--ft: listen=here is not ADDR:PORT"),
            ("role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:70000", "--ft: heartbeat=1.2.3.4:70000 is not ADDR:PORT"),
            (
                "role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:1,detect_ms=soon",
                "--ft: detect_ms=soon is not a number",
            ),
            (
                "role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:1,witness=etcd://1.2.3.4:1",
                "--ft: witness=etcd://1.2.3.4:1 is not usable: no key after the etcd endpoints",
            ),
            (
                "role=standby,listen=fd00::2:7000,heartbeat=1.2.3.4:1",
                "--ft: listen=fd00::2:7000 is not ADDR:PORT: an IPv6 address goes into brackets: [fd00::2]:7000",
            ),
            (
                "role=standby,listen=[fe80::1]:7000,heartbeat=1.2.3.4:1",
                "--ft: listen=[fe80::1]:7000 is not ADDR:PORT: fe80::1 is an address of one link",
            ),
            ("role=standby,color=red", "--ft: unknown key \"color\""),
            ("role=auto,listen=1.2.3.4:1,heartbeat=1.2.3.4:2", "--ft: witness= is missing"),
            ("role=auto,witness=/w,listen=1.2.3.4:1,heartbeat=1.2.3.4:2", "--ft: standby-peers= is missing"),
            ("role=primary,witness=/w,force=on", "--ft: force= takes the term that it overrides"),
            ("role=primary,witness=/w,node=a/b", "--ft: node=a/b is not a name of 1 to 32 letters"),
            ("role=primary,witness=/w,standby-peers=1.2.3.4:1", "--ft: standby-peers=1.2.3.4:1 is not a list such as"),
            ("role=primary,standby-peers=1.2.3.4:1/1.2.3.5:1", "--ft: no witness: give witness=PATH"),
            ("role=primary,witness=/w,detect_ms=1,standby-peers=1.2.3.4:1/1.2.3.5:1", "--ft: detect_ms=1 is shorter"),
        ] {
            let error = node_option(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
