//! The records as a table for people.

use comfy_table::{CellAlignment, Table, presets};

use crate::record::Record;

/// All records, one a line.
pub fn render(records: &[Record]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["vCPUs", "pages", "metric", "p50", "p99", "floor", "ratio", "unit"]);
    for record in records {
        let number = |value: Option<f64>| value.map(figure).unwrap_or_default();
        table.add_row([
            record.vcpus.to_string(),
            record.pages.to_string(),
            record.metric.to_owned(),
            figure(record.p50),
            number(record.p99),
            number(record.floor),
            record.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            record.unit.to_owned(),
        ]);
    }
    for column in [0, 1, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn figure(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}
