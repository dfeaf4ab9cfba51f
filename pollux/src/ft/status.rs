//! The status of protection as a table for people.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{ContentArrangement, Table};
use pollux_api::reason::BlockerReport;
use pollux_api::status::{
    ClaimStatus, CompressionStatus, CopyState, DiskStatus, Peer, Percentiles, SearchStatus, State, Status, TlsStatus,
    WitnessStatus,
};

/// Longer lines, those of errors, are wrapped; in columns.
const WIDTH: u16 = 110;

/// The status as a table.
pub fn table(status: &Status) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("role", status.role.to_string());
    row("state", state(status.state));
    row("replica", status.replica.to_string());
    row("term", status.term.to_string());
    row("epoch", status.epoch.to_string());
    row("node", or_dash(&status.node));
    row("peer", status.peer.as_ref().map_or_else(|| "-".to_owned(), peer_text));
    if let Some(search) = &status.search {
        row("search for a standby", search_text(status, search));
    }
    for link in &status.links {
        row(&format!("link {}", link.name), format!("{}, silent for {} ms", link.state, link.silence_ms));
    }
    if let Some(tls) = &status.tls {
        row("TLS", protection(tls));
    }
    if status.turned_away > 0 {
        row("callers turned away", status.turned_away.to_string());
    }
    if status.ignored_beats > 0 {
        row("heartbeats ignored", format!("{}: not of this session, or damaged", status.ignored_beats));
    }
    row("witness", status.witness.as_ref().map_or_else(|| "-".to_owned(), witness));
    if let Some(record) = status.witness.as_ref().and_then(|witness| witness.record.clone()) {
        row("witness record", record);
    }
    if let Some(open) = &status.claim {
        row("pending claim", claim(open));
    }
    row("pause p50 / p99", pair(status.pause_us, micros));
    row("commit latency p50 / p99", pair(status.commit_us, micros));
    row("dirty pages per epoch p50 / p99", pair(status.dirty_pages, |pages| pages.to_string()));
    row("bytes per epoch p50 / p99", pair(status.epoch_bytes, bytes));
    if let Some(compression) = &status.compression {
        row("compression", compressed(compression));
    }
    row("committed epochs", status.epochs.to_string());
    row("held output", format!("{} frames, {}", status.held_frames, bytes(status.held_bytes)));
    if let Some(copy) = status.memory_sync {
        row("memory copy", progress(copy.done, copy.total, copy.eta_s));
    }
    for disk in &status.disks {
        row(&format!("disk {}", disk.id), disk_text(disk));
    }
    if let Some(takeover) = status.takeover {
        let (all, disks) = (micros(takeover.total_us), micros(takeover.disks_us));
        row("takeover", format!("from epoch {}, {all} in total, disks {disks}", takeover.epoch));
    }
    row("last error", or_dash(status.last_error.as_deref().unwrap_or_default()));
    table
}

/// The state, and what it means where its name does not say it all.
fn state(state: State) -> String {
    let meaning = match state {
        State::Degraded => "the replica is good, but the witness does not answer: a failure would stop the VM",
        State::AwaitingWitness => "not protected, and nothing leaves the VM until the witness answers",
        _ => return state.to_string(),
    };
    format!("{state}: {meaning}")
}

/// What protects the streams, and what is to be done about it.
fn protection(tls: &TlsStatus) -> String {
    let on = match (&tls.expires, tls.on) {
        (Some(expires), _) => format!("on, certificate valid until {expires}"),
        (None, true) => "on".to_owned(),
        (None, false) => "off".to_owned(),
    };
    tls.warning.as_ref().map_or_else(|| on.clone(), |warning| format!("{on}; {warning}"))
}

fn disk_text(disk: &DiskStatus) -> String {
    let DiskStatus { state, resync, done, total, sent, eta_s, .. } = disk;
    if *state != CopyState::Copying {
        return state.to_string();
    }
    let kind = resync.map_or_else(String::new, |kind| format!(" ({kind})"));
    format!("{state}{kind}, {}, {} sent", progress(*done, *total, *eta_s), bytes(*sent))
}

fn claim(claim: &ClaimStatus) -> String {
    let ClaimStatus { kind, since_ms, error } = claim;
    let error = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    format!("{kind}, for {} s{error}", since_ms / 1000)
}

fn witness(witness: &WitnessStatus) -> String {
    let WitnessStatus { name, answered, error, .. } = witness;
    match answered {
        None => name.clone(),
        Some(true) => format!("{name} (answers)"),
        Some(false) => format!("{name} (no answer: {})", error.as_deref().unwrap_or("unknown")),
    }
}

/// A reason, and what to do about it.
fn blocker(blocker: &BlockerReport) -> String {
    let hint = blocker.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
    format!("{}{hint}", blocker.reason)
}

fn search_text(status: &Status, search: &SearchStatus) -> String {
    match (search.on, status.peer.is_some()) {
        (false, _) => "off: `ft protect` turns it on again".to_owned(),
        (true, true) => "on, when this standby is lost".to_owned(),
        (true, false) if search.waiting_for.is_empty() => "yes".to_owned(),
        // A VMM of an earlier release sends sentences only.
        (true, false) if search.blockers.is_empty() => format!("yes: {}", search.waiting_for.join("; ")),
        (true, false) => format!("yes: {}", search.blockers.iter().map(blocker).collect::<Vec<_>>().join("; ")),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people, to two digits")]
fn compressed(compression: &CompressionStatus) -> String {
    let CompressionStatus { setting, packing, raw, sent } = compression;
    let packed = if *packing { " (packed)" } else { "" };
    let ratio = *raw as f64 / (*sent).max(1) as f64;
    format!("{setting}{packed}, {} sent for {}: 1 to {ratio:.1}", bytes(*sent), bytes(*raw))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn pair(value: Percentiles, show: impl Fn(u64) -> String) -> String {
    format!("{} / {}", show(value.p50), show(value.p99))
}

fn progress(done: u64, total: u64, eta_s: Option<u64>) -> String {
    let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(0);
    let eta = eta_s.map_or_else(String::new, |seconds| format!(", {seconds} s left"));
    format!("{} of {} ({percent} %){eta}", bytes(done), bytes(total))
}

#[expect(clippy::cast_precision_loss, reason = "for people, to two digits")]
fn micros(value: u64) -> String {
    match value {
        0..1_000 => format!("{value} µs"),
        1_000..1_000_000 => format!("{:.2} ms", value as f64 / 1e3),
        _ => format!("{:.2} s", value as f64 / 1e6),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people, to two digits")]
fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit < UNITS.len() - 1 {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

fn peer_text(Peer { address, node, certificate }: &Peer) -> String {
    let shown = certificate.as_ref().map(|name| format!(", certificate of {name}"));
    format!("{address} ({node}){}", shown.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_for_people() {
        for (value, expected) in [(0, "0 µs"), (999, "999 µs"), (1250, "1.25 ms"), (2_500_000, "2.50 s")] {
            assert_eq!(micros(value), expected);
        }
        for (value, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(value), expected);
        }
        assert_eq!(progress(1 << 20, 4 << 20, Some(3)), "1.0 MiB of 4.0 MiB (25 %), 3 s left");
        assert_eq!(progress(0, 0, None), "0 B of 0 B (0 %)");
    }

    #[test]
    fn a_whole_status_and_an_empty_one() {
        let status = json!({"role": "primary", "state": "syncing", "term": 3, "epoch": 17, "node": "ab", "peer":
            {"address": "10.0.0.2:7000", "node": "cd", "certificate": "host-b"}, "links": [{"name": "replication", "state": "green", "silence_ms": 4}],
            "witness": {"name": "/w", "answered": false, "error": "gone", "record": "node cd runs this VM"}, "replica": "copying",
            "claim": {"kind": "go-alone", "since_ms": 7300, "error": "gone"}, "ignored_beats": 9, "pause_us": {"p50": 850, "p99": 2100}, "commit_us": {"p50": 1, "p99": 2}, "dirty_pages":
            {"p50": 10, "p99": 20}, "epoch_bytes": {"p50": 4096, "p99": 8192}, "held_frames": 2, "held_bytes": 128,
            "compression": {"setting": "auto", "packing": true, "raw": 7 << 20, "sent": 1 << 20}, "epochs": 16, "search": {"on": false, "waiting_for": []}, "memory_sync": {"done": 1, "total": 4, "eta_s": null}, "disks": [{"id": "_disk0", "state":
            "copying", "resync": "incremental", "done": 1, "total": 2, "sent": 1536, "eta_s": 1}], "takeover": null, "last_error": null});
        let text = table(&serde_json::from_value(status).unwrap()).to_string();
        for part in [
            "primary",
            "10.0.0.2:7000 (cd), certificate of host-b",
            "850 µs / 2.10 ms",
            "green, silent for 4 ms",
            "(25 %)",
            "disk _disk0",
            "copying (incremental), 1 B of 2 B (50 %), 1 s left, 1.5 KiB sent",
            "2 frames, 128 B",
            "auto (packed), 1.0 MiB sent for 7.0 MiB: 1 to 7.0",
            "/w (no answer: gone)",
            "`ft protect` turns it on",
            "copying",
            "node cd runs this VM",
            "go-alone, for 7 s: gone",
            "9: not of this session",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let text = table(&serde_json::from_value(json!({"role": "none"})).unwrap()).to_string();
        assert!(text.contains("none"));
    }
}
