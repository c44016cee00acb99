//! Figures, and how they are shown.

use std::fmt;
use std::process::Command;

/// Everything that was measured, as Markdown.
pub(super) struct Report {
    machine: String,
    tables: Vec<Table>,
}

/// One scenario: a row for each contestant.
pub(super) struct Table {
    pub(super) title: String,
    /// What one figure is, with its unit.
    pub(super) unit: &'static str,
    pub(super) rows: Vec<Row>,
    /// What a reader must know beside the figures.
    pub(super) note: String,
}

/// The figures of one contestant, one for each round.
pub(super) struct Row {
    pub(super) label: String,
    pub(super) figures: Vec<f64>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            machine: machine(),
            tables: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, table: Table) {
        eprint!("{table}");
        self.tables.push(table);
    }
}

impl Row {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.figures.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        writeln!(
            f,
            "| | median, {} | min | max | to the first |\n|---|---|---|---|---|",
            self.unit
        )?;
        let first = self.rows.first().map_or(f64::NAN, Row::median);
        for row in &self.rows {
            let sorted = row.sorted();
            let (min, max) = (sorted.first().copied(), sorted.last().copied());
            writeln!(
                f,
                "| {} | {:.2} | {:.2} | {:.2} | {:.2} |",
                row.label,
                row.median(),
                min.unwrap_or(f64::NAN),
                max.unwrap_or(f64::NAN),
                row.median() / first,
            )?;
        }
        writeln!(f, "\n{}\n", self.note)
    }
}

fn machine() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        Some(
            String::from_utf8_lossy(&output.stdout)
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
    format!(
        "Measured with `cargo xtask bench` on {} processors ({}), Linux {}; {}; {}.",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.map_or("unknown", |(_, name)| name),
        said("uname", &["-r"]).unwrap_or_default(),
        said("rustc", &["--version"]).unwrap_or_default(),
        said("haproxy", &["-v"]).unwrap_or_else(|| "no haproxy".to_owned()),
    )
}
