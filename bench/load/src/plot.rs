//! A picture of one row: a bar for each median, a line from the least to the most, one scale for each unit.

use crate::report::number;
use crate::sample::Series;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const LABELS: f64 = 430.0;
const VALUES: f64 = 130.0;
const LINE: f64 = 24.0;
const HEAD: f64 = 40.0;

/// The row as SVG.
///
/// # Errors
/// Never: it is written to memory.
pub(crate) fn svg(title: &str, series: &[Series]) -> Result<String, std::fmt::Error> {
    let mut most: BTreeMap<&str, f64> = BTreeMap::new();
    for one in series {
        let most = most.entry(&one.unit).or_default();
        *most = most.max(one.max);
    }
    let height = HEAD + LINE * series.len() as f64 + LINE / 2.0;
    let mut text = String::new();
    writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>",
        escaped(title)
    )?;
    for (index, one) in series.iter().enumerate() {
        let scale =
            (WIDTH - LABELS - VALUES) / most.get(one.unit.as_str()).copied().unwrap_or(1.0).max(f64::EPSILON);
        let (top, middle) = (HEAD + LINE * index as f64, HEAD + LINE * (index as f64 + 0.5));
        let (from, to) = (LABELS + one.min.max(0.0) * scale, LABELS + one.max.max(0.0) * scale);
        writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"#4a7fb5\"/>\n\
             <path d=\"M{from:.1} {middle}H{to:.1}\" stroke=\"#1d3557\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{} {}</text>",
            LABELS - 8.0,
            middle + 4.0,
            escaped(&one.name),
            top + 4.0,
            one.median.max(0.0) * scale,
            LINE - 8.0,
            to + 6.0,
            middle + 4.0,
            number(one.median),
            escaped(&one.unit),
        )?;
    }
    text.push_str("</svg>\n");
    Ok(text)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_bar_on_the_scale_of_its_unit() {
        let series = [
            Series::new("a < b", "ms", vec![1.0, 2.0, 4.0]).unwrap(),
            Series::new("c", "MB/s", vec![500.0]).unwrap(),
        ];
        let svg = svg("Row 0", &series).unwrap();
        assert!(svg.contains("a &lt; b") && svg.contains("2.00 ms"), "{svg}");
        assert!(svg.contains("width=\"200.0\"") && svg.contains("width=\"400.0\""), "{svg}");
    }
}
