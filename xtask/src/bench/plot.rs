//! A scenario as a picture: a bar for each median, a line from minimum to maximum.

use std::fmt::Write as _;

use super::report::Table;

const LABELS: f64 = 220.0;
const BARS: f64 = 420.0;
const LINE: f64 = 24.0;

pub(super) fn bars(table: &Table) -> String {
    let rows: Vec<_> = table
        .rows
        .iter()
        .filter_map(|row| Some((&row.label, row.cost()?)))
        .collect();
    let most = rows.iter().map(|(_, [_, _, max])| *max).fold(0.0, f64::max);
    let scale = if most > 0.0 { BARS / most } else { 0.0 };
    let (width, height) = (LABELS + BARS + 70.0, LINE * (rows.len() as f64 + 2.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"8\" y=\"18\" \
         font-weight=\"bold\">{} ({})</text>\n",
        escaped(&table.title),
        escaped(table.unit)
    );
    for (i, (label, [min, median, max])) in rows.iter().enumerate() {
        let top = LINE * (i as f64 + 1.2);
        let middle = top + LINE / 2.0 - 3.0;
        let colour = if label.starts_with("conncept") {
            "#2a78c2"
        } else {
            "#b5bcc4"
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{label}</text>\n\
             <rect x=\"{LABELS}\" y=\"{top}\" width=\"{bar:.1}\" height=\"18\" fill=\"{colour}\"/>\n\
             <line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>\n\
             <text x=\"{after:.1}\" y=\"{y}\">{median:.1}</text>",
            x = LABELS - 8.0,
            y = top + 13.0,
            label = escaped(label),
            bar = median * scale,
            from = LABELS + min * scale,
            to = LABELS + max * scale,
            after = LABELS + max * scale + 6.0,
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
