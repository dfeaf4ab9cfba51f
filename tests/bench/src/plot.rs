//! The records as a picture: latency, pause and their floors over the working set.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::record::{Record, System};

const SIZE: (u32, u32) = (900, 560);

/// Draws the times of the smallest number of vCPUs.
pub fn draw(records: &[Record], path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(vcpus) = records.iter().map(|record| record.vcpus).min() else { return Ok(()) };
    let points = |metric: &str, value: fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
        let wanted = records
            .iter()
            .filter(|record| record.system == System::Pollux && record.vcpus == vcpus && record.metric == metric);
        wanted.filter_map(|record| Some((record.pages as f64, value(record)?.max(1.0)))).collect()
    };
    let lines = [
        ("added latency p99", points("latency_added", |record| record.p99), RED.mix(0.5)),
        ("added latency p50", points("latency_added", |record| record.p50), RED.mix(1.0)),
        ("its floor: capture and transfer", points("latency_added", |record| record.floor), RED.mix(0.25)),
        ("pause p50", points("pause", |record| record.p50), BLUE.mix(1.0)),
        ("its floor: capture", points("pause", |record| record.floor), BLUE.mix(0.25)),
    ];
    let all = || lines.iter().flat_map(|(_, points, _)| points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = all().map(of).fold((f64::MAX, 1.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        low.min(high) / 1.5..high * 1.5
    };
    let (x, y) = (bounds(|point| point.0), bounds(|point| point.1));
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| error.to_string();
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("Protected guest, {vcpus} vCPU"), ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(x.log_scale(), y.log_scale())
        .map_err(failed)?;
    chart.configure_mesh().x_desc("pages per request").y_desc("µs").draw().map_err(failed)?;
    for (name, points, color) in lines {
        let series = LineSeries::new(points, color.stroke_width(2)).point_size(4);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
        chart.draw_series(series).map_err(failed)?.label(name).legend(legend);
    }
    let labels = SeriesLabelPosition::UpperLeft;
    chart.configure_series_labels().position(labels).background_style(WHITE).draw().map_err(failed)?;
    area.present().map_err(failed)?;
    Ok(())
}
