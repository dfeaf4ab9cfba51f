//! The records as tables for people: all of them, and side by side those that two systems or builds have in
//! common.

use comfy_table::{CellAlignment, LineStyle, Table, presets};

use crate::compare::{Figures, Row};
use crate::record::{Record, System};

/// All records of the system of this tree, one a line.
pub fn render(records: &[Record]) -> String {
    let mut table = table(&["vCPUs", "MiB", "pages", "metric", "p50", "p99", "floor", "ratio", "unit"]);
    for record in records.iter().filter(|record| record.system == System::Pollux) {
        table.add_row([
            record.vcpus.to_string(),
            record.mem_mib.to_string(),
            record.pages.to_string(),
            record.metric.clone(),
            number(record.p50),
            number(record.p99),
            number(record.floor),
            ratio(record.ratio),
            record.unit.clone(),
        ]);
    }
    align(table, &[0, 1, 2, 4, 5, 6, 7])
}

/// Medians and ranges of two builds, and the second one's median divided by the first one's.
pub fn of_builds(rows: &[Row]) -> String {
    let mut table = table(&["vCPUs", "pages", "metric", "first", "second", "ratio", "apart", "p99", "p99", "unit"]);
    let figures = |figures: &Figures| match figures.range() {
        Some([least, most]) => {
            format!("{} ({} to {})", number(figures.median()), number(Some(least)), number(Some(most)))
        }
        None => String::new(),
    };
    for row in rows {
        table.add_row([
            row.what.vcpus.to_string(),
            row.what.pages.to_string(),
            row.what.metric.clone(),
            figures(&row.p50[0]),
            figures(&row.p50[1]),
            ratio(row.ratio()),
            if row.is_apart() { "yes" } else { "" }.to_owned(),
            number(row.p99[0].median()),
            number(row.p99[1].median()),
            row.what.unit.clone(),
        ]);
    }
    align(table, &[0, 1, 3, 4, 5, 7, 8])
        + "\nfirst, second: median and range of the runs' p50; apart: every run of one is beyond all of the other"
}

/// The rival's records next to ours, and ours divided by the rival's; none without a rival.
pub fn compare(records: &[Record]) -> Option<String> {
    let header = ["vCPUs", "pages", "metric", "p50", "COLO's", "ratio", "p99", "COLO's", "ratio", "unit"];
    let mut table = table(&header);
    for (ours, rival) in pairs(records) {
        let divided = |ours: Option<f64>, rival: Option<f64>| Some(ours? / rival.filter(|rival| *rival > 0.0)?);
        let what = if rival.failure.is_some() { "failed" } else { &rival.unit };
        table.add_row([
            rival.vcpus.to_string(),
            rival.pages.to_string(),
            rival.metric.clone(),
            number(ours.p50),
            number(rival.p50),
            ratio(divided(ours.p50, rival.p50)),
            number(ours.p99),
            number(rival.p99),
            ratio(divided(ours.p99, rival.p99)),
            what.to_owned(),
        ]);
    }
    let failures = records.iter().filter_map(|record| {
        let reason = record.failure.as_ref()?;
        Some(format!("\nCOLO, {} pages, {} vCPUs, {}: {reason}", record.pages, record.vcpus, record.metric))
    });
    let failures: String = failures.collect();
    (table.row_count() > 0).then(|| align(table, &[0, 1, 3, 4, 5, 6, 7, 8]) + &failures)
}

/// Each record of the rival, and ours of the same thing.
fn pairs(records: &[Record]) -> impl Iterator<Item = (&Record, &Record)> {
    let what = |record: &Record| (record.metric.clone(), record.pages, record.vcpus, record.mem_mib);
    let rivals = records.iter().filter(|record| record.system == System::QemuColo);
    rivals.filter_map(move |rival| {
        let same = |record: &&Record| record.system == System::Pollux && what(record) == what(rival);
        Some((records.iter().find(same)?, rival))
    })
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(header.to_vec());
    table
}

fn align(mut table: Table, right: &[usize]) -> String {
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn number(value: Option<f64>) -> String {
    value
        .map(|value| if value.abs() < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") })
        .unwrap_or_default()
}

fn ratio(value: Option<f64>) -> String {
    value.map(|value| if value < 0.1 { format!("{value:.4}") } else { format!("{value:.2}") }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(system: System, metric: &str, pages: u64, p50: f64) -> Record {
        Record { system, metric: metric.to_owned(), pages, p50: Some(p50), ..Record::default() }
    }

    #[test]
    fn systems_are_compared_in_what_both_have() {
        let records = [
            record(System::Pollux, "pause", 10, 100.0),
            record(System::Pollux, "pause", 100, 200.0),
            record(System::Pollux, "commit", 100, 300.0),
            record(System::QemuColo, "pause", 100, 40_000.0),
            record(System::QemuColo, "pause", 1000, 50_000.0),
        ];
        let found: Vec<_> = pairs(&records).map(|(ours, rival)| (ours.p50, rival.p50)).collect();
        assert_eq!(found, [(Some(200.0), Some(40_000.0))]);
        let text = compare(&records).expect("a rival");
        assert!(text.contains("0.0050"), "{text}");
        assert_eq!(compare(&records[..3]), None);
    }

    #[test]
    fn a_failure_is_told_with_its_reason() {
        let failed = Record {
            failure: Some("QEMU ended at migrate".to_owned()),
            p50: None,
            ..record(System::QemuColo, "pause", 10, 0.0)
        };
        let text = compare(&[record(System::Pollux, "pause", 10, 100.0), failed]).expect("a rival");
        assert!(text.contains("QEMU ended at migrate") && text.contains("failed"), "{text}");
    }
}
