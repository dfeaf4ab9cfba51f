//! The binary against a socket that answers what it is told to, in the shape that `pollux-vmm` answers.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

struct Server {
    dir: tempfile::TempDir,
    thread: JoinHandle<Vec<String>>,
}

/// Answers one connection after the other with these; then returns the requests: request line, a blank, the
/// body.
fn server(answers: &[String]) -> Server {
    let answers = answers.to_vec();
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("api")).unwrap();
    let serve = move |answer: &String| {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            if let Some(text) = line.to_lowercase().strip_prefix("content-length: ") {
                length = text.trim().parse().unwrap();
            }
            if first.is_empty() {
                first = line.trim().to_owned();
            }
        }
        let mut body = vec![0; length];
        lines.read_exact(&mut body).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        format!("{first} {}", String::from_utf8(body).unwrap())
    };
    let thread = std::thread::spawn(move || answers.iter().map(serve).collect());
    Server { dir, thread }
}

/// An answer with a body, shaped as the VMM's.
fn answer(status: u16, body: &str) -> String {
    let head = "Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json";
    format!("HTTP/1.1 {status} \r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn done() -> String {
    "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n".to_owned()
}

impl Server {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
        command.arg("--api-socket").arg(self.dir.path().join("api")).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn requests(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn plain_commands_use_their_routes() {
    for (command, route) in [("boot", "vm.boot"), ("power-button", "vm.power-button"), ("shutdown-vmm", "vmm.shutdown")]
    {
        let server = server(&[done()]);
        let output = server.run(&[command]);
        assert!(output.status.success() && output.stdout.is_empty(), "{command}");
        assert_eq!(server.requests(), [format!("PUT /api/v1/{route} HTTP/1.1 ")]);
    }
}

#[test]
fn answers_are_printed() {
    let server = server(&[answer(200, r#"{"state":"Paused"}"#)]);
    let output = server.run(&["info"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "{\"state\":\"Paused\"}\n");
    assert_eq!(server.requests(), ["GET /api/v1/vm.info HTTP/1.1 "]);
}

#[test]
fn create_sends_the_file() {
    let server = server(&[done()]);
    let config = server.dir.path().join("vm.json");
    std::fs::write(&config, "{ \"memory\": {\"size\": 1} }").unwrap();
    assert!(server.run(&["create", config.to_str().unwrap()]).status.success());
    assert_eq!(server.requests(), ["PUT /api/v1/vm.create HTTP/1.1 {\"memory\":{\"size\":1}}"]);
}

#[test]
fn refusals_are_shown_as_a_chain_or_a_list() {
    let chain = server(&[answer(404, r#"["Error from API","The VM info is not available","VM is not created"]"#)]);
    let output = chain.run(&["info"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "pollux: Error from API: The VM info is not available: VM is not created\n");
    let preflight = r#"{"title":"The VM cannot be protected","status":500,"code":"preflight","blame":"environment","relation":"list","reasons":["no witness","no disk"]}"#;
    let list = server(&[answer(500, preflight).replace("application/json", "application/problem+json")]);
    let output = list.run(&["ft", "protect", "peer=127.0.0.1:1,heartbeat=127.0.0.1:2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "pollux: The VM cannot be protected:\n  - no witness\n  - no disk\n");
    let expected = "PUT /api/v1/ft.protect HTTP/1.1 {\"heartbeat\":\"127.0.0.1:2\",\"peer\":\"127.0.0.1:1\"}";
    assert_eq!(list.requests(), [expected]);
}

#[test]
fn whatever_a_server_says_no_control_character_reaches_the_terminal() {
    let rude = r"\u001b]0;owned\u0007\u001b[31mall is well\n\r\u009b2J";
    let raw = rude.replace(r"\u009b", "\u{9b}\u{7f}");
    let refusal = |rude: &str| answer(500, &format!(r#"["Error from API","The VM cannot be protected","{rude}","b"]"#));
    let problem = |rude: &str| {
        let said = format!(r#""{rude}""#);
        let body = format!(
            r#"{{"title":{said},"status":500,"code":{said},"blame":{said},"relation":"list","reasons":[{said}],"hint":{said}}}"#
        );
        answer(500, &body).replace("application/json", "application/problem+json")
    };
    let status = |rude: &str| {
        let said = format!(r#""{rude}""#);
        answer(
            200,
            &format!(
                r#"{{"role":{said},"state":{said},"node":{said},"last_error":{said},"witness":{{"name":{said}}}}}"#
            ),
        )
    };
    let events = |rude: &str| {
        answer(200, &format!(r#"[{{"seq":1,"time":"{rude}","event":"{rude}","detail":{{"{rude}":["{rude}"]}}}}]"#))
    };
    for rude in [rude, &raw] {
        for (arguments, answers) in [
            (&["ft", "protect", "peer=127.0.0.1:1,heartbeat=127.0.0.1:2"][..], vec![refusal(rude)]),
            (&["ft", "stop"], vec![problem(rude)]),
            (&["ft", "protect", "--no-wait"], vec![done(), status(rude)]),
            (&["boot"], vec![answer(500, rude)]),
            (&["ft", "status"], vec![status(rude)]),
            (&["ft", "status", "--json"], vec![status(rude)]),
            (&["ft", "events"], vec![events(rude)]),
            (&["ft", "events", "--json"], vec![events(rude)]),
            (&["ft", "switchover"], vec![answer(200, "[]"), answer(500, rude)]),
            (&["info"], vec![status(rude)]),
        ] {
            let server = server(&answers);
            let output = server.run(arguments);
            let shown = [text(&output.stdout), text(&output.stderr)].concat();
            assert!(shown.contains("all is well"), "{arguments:?} {shown}");
            assert!(!shown.chars().any(|char| char.is_control() && char != '\n'), "{arguments:?} {shown:?}");
        }
    }
}

#[test]
fn protect_waits_until_protected() {
    let syncing = r#"{"state":"syncing","memory_sync":{"done":1,"total":2,"eta_s":null}}"#;
    let server = server(&[done(), answer(200, syncing), answer(200, r#"{"state":"protected"}"#)]);
    let output = server.run(&["ft", "protect", "peer=127.0.0.1:1,heartbeat=127.0.0.1:2"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "protected\n");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn events_as_lines() {
    let server = server(&[answer(200, r#"[{"seq":1,"time":"t1","event":"protected","detail":{"term":2}}]"#)]);
    let output = server.run(&["ft", "events"]);
    assert_eq!(text(&output.stdout), "t1 protected term=2\n");
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
    let output = command.arg("--api-socket").arg(dir.path().join("api")).arg("ping").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("pollux: cannot connect to the API socket "));
    let usage = Command::new(env!("CARGO_BIN_EXE_pollux")).arg("ping").output().unwrap();
    assert_eq!(usage.status.code(), Some(1));
}

/// `pollux pair` with these arguments, where the pairs of this host are in `pairs`.
fn pair(pairs: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
    command.env("POLLUX_PAIRS", pairs).arg("pair").args(arguments).output().unwrap()
}

#[test]
fn certificates_are_renewed_when_it_is_time_and_keep_their_name() {
    let pairs = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let output = pair(pairs.path(), arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(said(&["renew", "--all"]), "this host is of no pair\n");
    said(&["init", "east", "--offline", "--host", "host-a"]);
    said(&["init", "west", "--offline", "--host", "host-b"]);
    let certificate = |pair: &str| std::fs::read(pairs.path().join(pair).join("server-cert.pem")).unwrap();
    let before = certificate("east");

    assert!(said(&["renew", "--all", "--within", "60"]).contains("pair east: the certificate is valid for 36"));
    assert_eq!(certificate("east"), before);
    let renewed = said(&["renew", "--all", "--within", "366"]);
    assert!(renewed.contains("pair east: host-a has") && renewed.contains("pair west: host-b has"), "{renewed}");
    assert_ne!(certificate("east"), before);
    assert!(said(&["renew", "east", "--host", "host-c"]).contains("host-c has a certificate for 365 days"));

    // One that cannot be renewed does not keep the others from it.
    std::fs::write(pairs.path().join("east").join("ca-key.pem"), "no key").unwrap();
    let before = certificate("west");
    let output = pair(pairs.path(), &["renew", "--all"]);
    assert!(!output.status.success());
    assert_ne!(certificate("west"), before);
    // Another authority's is renewed elsewhere.
    std::fs::remove_file(pairs.path().join("east").join("ca-key.pem")).unwrap();
    assert!(said(&["renew", "--all"]).contains("pair east: of an authority elsewhere"));
}
