//! Figures, and how they are shown.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::plot;

/// Everything that was measured.
pub(super) struct Report {
    machine: String,
    tables: Vec<Table>,
}

/// Ends the label of a row that was measured in rounds of its own.
pub(super) const IN_FULL: &str = ", in full";

/// Whom the overview compares with.
const OTHERS: [&str; 6] = [
    "haproxy",
    "haproxy, splice",
    "haproxy, splice, 1 MiB pipes",
    "nginx",
    "caddy-l4",
    "conncept, baseline",
];

/// One scenario: a row for each contestant.
#[derive(Default)]
pub(super) struct Table {
    /// The scenario.
    pub(super) name: &'static str,
    pub(super) title: String,
    /// What one figure is, with its unit.
    pub(super) unit: &'static str,
    /// What one rate is, where rates were measured.
    pub(super) rate: Option<&'static str>,
    pub(super) rows: Vec<Row>,
    /// What a reader must know beside the figures.
    pub(super) note: String,
}

/// The figures of one contestant, one for each round.
pub(super) struct Row {
    pub(super) label: String,
    /// What a unit of work costs; none where there is no proxy.
    pub(super) costs: Vec<f64>,
    /// How much was done in a second.
    pub(super) rates: Vec<f64>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            machine: machine(),
            tables: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, table: Table) {
        eprint!("{}", table.markdown(false));
        self.tables.push(table);
    }

    /// As Markdown, with the plots beside it, `NAME.svg` for each scenario.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let directory = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).context("the directory of the report")?;
        for table in &self.tables {
            let plot = directory.join(format!("{}.svg", table.name));
            std::fs::write(plot, plot::bars(table))?;
        }
        let tables = self.tables.iter().map(|table| table.markdown(true));
        let tables: String = tables.collect();
        std::fs::write(
            file,
            format!(
                "# Report of `cargo xtask bench`\n\n{}\n\nMedians of the rounds, with minimum and maximum. \
                 \"To the first\" is the ratio to the first row within a round, the median over all rounds: what \
                 the machine did to both in that round is not in it.\n\n{}{}\n",
                self.machine,
                self.overview(),
                tables.trim_end()
            ),
        )
        .context("the report")
    }

    /// What Conncept takes in relation to each of the others, a line for each of its rows.
    fn overview(&self) -> String {
        let mut text = format!(
            "## Conncept in relation to the others\n\n| | {} |\n|---|{}\n",
            OTHERS.join(" | "),
            "---|".repeat(OTHERS.len())
        );
        for table in &self.tables {
            for own in &table.rows {
                // What a row is of may be behind the name: `conncept, 100 names`.
                let Some(of) = own.label.strip_prefix("conncept") else {
                    continue;
                };
                if own.costs.is_empty() || of.contains("baseline") {
                    continue;
                }
                let ratios = OTHERS.map(|other| {
                    let other = format!("{other}{of}");
                    let other = table.rows.iter().find(|row| row.label == other);
                    let ratio = other.and_then(|other| own.ratio_to(other));
                    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
                });
                text += &format!("| {}{of} | {} |\n", table.name, ratios.join(" | "));
            }
        }
        text + "\n"
    }

    /// All figures of all rounds, as JSON.
    pub(super) fn write_json(&self, file: &Path) -> Result<()> {
        let list = |figures: &[f64]| {
            let figures: Vec<_> = figures
                .iter()
                .map(|figure| format!("{figure:.4}"))
                .collect();
            figures.join(",")
        };
        let tables: Vec<String> = self
            .tables
            .iter()
            .map(|table| {
                let rows: Vec<String> = table
                    .rows
                    .iter()
                    .map(|row| {
                        format!(
                            "    {{\"label\":{:?},\"costs\":[{}],\"rates\":[{}]}}",
                            row.label,
                            list(&row.costs),
                            list(&row.rates)
                        )
                    })
                    .collect();
                format!(
                    "  {{\"scenario\":{:?},\"unit\":{:?},\"rate\":{:?},\"rows\":[\n{}\n  ]}}",
                    table.name,
                    table.unit,
                    table.rate.unwrap_or_default(),
                    rows.join(",\n")
                )
            })
            .collect();
        let text = format!(
            "{{\"machine\":{:?},\"scenarios\":[\n{}\n]}}\n",
            self.machine,
            tables.join(",\n")
        );
        std::fs::write(file, text).context("the figures as JSON")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        let mut tables = self.tables.iter();
        tables.try_for_each(|table| f.write_str(&table.markdown(false)))
    }
}

impl Row {
    pub(super) fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            costs: Vec::new(),
            rates: Vec::new(),
        }
    }

    /// Notes what a round gave; the first only warms up.
    pub(super) fn note(&mut self, round: usize, (cost, rate): (Option<f64>, f64)) {
        if round > 0 {
            self.costs.extend(cost);
            self.rates.push(rate);
        }
    }

    /// Minimum, median and maximum of the costs.
    pub(super) fn cost(&self) -> Option<[f64; 3]> {
        summary(&self.costs)
    }
}

impl Row {
    fn in_full(&self) -> bool {
        self.label.ends_with(IN_FULL)
    }

    /// The costs in relation to those of another in the same rounds; the median. None where that costs nothing.
    fn ratio_to(&self, other: &Self) -> Option<f64> {
        let rounds = self.costs.iter().zip(&other.costs);
        let ratios: Vec<f64> = rounds.map(|(own, other)| own / other).collect();
        summary(&ratios)
            .map(|[_, median, _]| median)
            .filter(|ratio| ratio.is_finite())
    }
}

/// Minimum, median and maximum.
fn summary(figures: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    };
    Some([min, median, max])
}

impl Table {
    fn markdown(&self, with_plot: bool) -> String {
        let rate = self.rate.map_or(String::new(), |rate| format!(" {rate} |"));
        let mut text = format!(
            "## {}\n\n| | median, {} | min | max | to the first |{rate}\n|---|---|---|---|---|{}\n",
            self.title,
            self.unit,
            if self.rate.is_some() { "---|" } else { "" },
        );
        let first = |of: &Row| {
            let mut rows = self.rows.iter();
            rows.find(|row| !row.costs.is_empty() && row.in_full() == of.in_full())
        };
        for row in &self.rows {
            text += &match row.cost() {
                Some([min, median, max]) => {
                    let ratio = first(row).and_then(|first| row.ratio_to(first));
                    let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
                    format!(
                        "| {} | {median:.2} | {min:.2} | {max:.2} | {ratio} |",
                        row.label
                    )
                }
                None => format!("| {} | - | - | - | - |", row.label),
            };
            if self.rate.is_some() {
                let rate = summary(&row.rates).map_or(f64::NAN, |[_, median, _]| median);
                let digits = if rate < 100.0 { 2 } else { 0 };
                text += &format!(" {rate:.digits$} |");
            }
            text.push('\n');
        }
        text += &format!("\n{}\n\n", self.note);
        if with_plot {
            text += &format!("![{}]({}.svg)\n\n", self.title, self.name);
        }
        text
    }
}

fn machine() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        // nginx tells it as if it were an error.
        let text = [output.stdout, output.stderr].concat();
        Some(
            String::from_utf8_lossy(&text)
                .lines()
                .next()?
                .trim()
                .to_owned(),
        )
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "Measured with `cargo xtask bench` on {} processors ({}), Linux {}; {}; {}; {}; {}. Load of the machine when it \
         began (1, 5, 15 minutes): {}.",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.map_or("unknown", |(_, name)| name),
        said("uname", &["-r"]).unwrap_or_default(),
        said("rustc", &["--version"]).unwrap_or_default(),
        said("haproxy", &["-v"]).unwrap_or_else(|| "no haproxy".to_owned()),
        said("nginx", &["-v"]).unwrap_or_else(|| "no nginx".to_owned()),
        said("openssl", &["version"]).unwrap_or_else(|| "no openssl".to_owned()),
        load.split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between_the_two_in_the_middle() {
        assert_eq!(summary(&[4.0, 1.0, 3.0, 2.0]), Some([1.0, 2.5, 4.0]));
        assert_eq!(summary(&[9.0, 1.0, 3.0]), Some([1.0, 3.0, 9.0]));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let mut rows = [Row::new("a"), Row::new("b")];
        for (i, (a, b)) in [(1.0, 2.0), (10.0, 20.0), (4.0, 4.0)]
            .into_iter()
            .enumerate()
        {
            rows[0].note(i + 1, (Some(a), 1.0));
            rows[1].note(i + 1, (Some(b), 1.0));
        }
        assert_eq!(rows[1].ratio_to(&rows[0]), Some(2.0));
        assert_eq!(rows[0].ratio_to(&Row::new("none")), None);
    }

    #[test]
    fn the_overview_compares_rows_of_the_same_kind() {
        let mut report = Report::new();
        let mut rows = [
            "nginx",
            "nginx, 100 names",
            "conncept",
            "conncept, 100 names",
        ]
        .map(Row::new);
        for (row, cost) in rows.iter_mut().zip([2.0, 4.0, 1.0, 1.0]) {
            row.note(1, (Some(cost), 1.0));
        }
        report.tables.push(Table {
            name: "sni",
            rows: rows.into(),
            ..Table::default()
        });
        let text = report.overview();
        assert!(
            text.contains("| sni | - | - | - | 0.50 | - | - |"),
            "{text}"
        );
        assert!(
            text.contains("| sni, 100 names | - | - | - | 0.25 | - | - |"),
            "{text}"
        );
    }

    #[test]
    fn rows_are_compared_with_the_first_that_has_a_cost() {
        let mut rows = vec![Row::new("direct"), Row::new("a"), Row::new("b")];
        rows[1].note(1, (Some(2.0), 10.0));
        rows[2].note(0, (Some(100.0), 1.0));
        rows[2].note(1, (Some(3.0), 5.0));
        let table = Table {
            rate: Some("n/s"),
            rows,
            ..Table::default()
        };
        let text = table.markdown(false);
        assert!(text.contains("| direct | - | - | - | - | NaN |"), "{text}");
        assert!(
            text.contains("| b | 3.00 | 3.00 | 3.00 | 1.50 | 5.00 |"),
            "{text}"
        );
    }
}
