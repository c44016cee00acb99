//! What is measured.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::load::{Backend, QUESTION, ask, client_hello, short_connections};
use super::proxy::{Program, Proxy, pause};
use super::report::{Report, Row, Table};

/// All scenarios, in the order they run.
pub(super) const NAMES: &[&str] = &["short", "syscalls", "idle", "sni"];

pub(super) fn run(
    name: &str,
    binary: &Path,
    baseline: Option<&Path>,
    rounds: usize,
    descriptors: usize,
    report: &mut Report,
) -> Result<()> {
    let mut programs = vec![
        // Twice: how far apart two measurements of one thing are says how much the others mean.
        Program::Haproxy {
            label: "haproxy".to_owned(),
        },
        Program::Haproxy {
            label: "haproxy again".to_owned(),
        },
        Program::Conncept {
            label: "conncept".to_owned(),
            binary: binary.to_owned(),
        },
    ];
    if let Some(baseline) = baseline {
        let label = "conncept, baseline".to_owned();
        programs.push(Program::Conncept {
            label,
            binary: baseline.to_owned(),
        });
    }
    programs.retain(Program::present);
    report.add(match name {
        "short" => short(&programs, rounds)?,
        "syscalls" => syscalls(&programs)?,
        "idle" => idle(&programs, descriptors)?,
        _ => sni(binary, rounds)?,
    });
    Ok(())
}

/// Connections of one round of `short` and `sni`.
const CONNECTIONS: usize = 4000;

/// Connections open at a time in those.
const AT_A_TIME: usize = 8;

/// Connections of `idle`, where the system allows two descriptors for each.
const IDLE: usize = 10_000;

/// Connect, 64 bytes there and back, close: processor time of the proxy for each.
fn short(programs: &[Program], rounds: usize) -> Result<Table> {
    let backend = Backend::answering(AT_A_TIME)?;
    let routes = proxy_everything(&backend);
    let proxies = start_all(programs, &routes, &backend)?;
    let mut rows = rows(programs);
    for round in 0..=rounds {
        for (proxy, row) in proxies.iter().zip(&mut rows) {
            let cost = cost(proxy, || {
                short_connections(proxy.address, CONNECTIONS, AT_A_TIME, &QUESTION)
            })?;
            // The first round warms up.
            if round > 0 {
                row.figures.push(cost);
            }
        }
    }
    Ok(Table {
        title: "Short connection: connect, 64 bytes there and back, close".to_owned(),
        unit: "µs of proxy CPU per connection",
        rows,
        note: format!("{CONNECTIONS} connections a round, {AT_A_TIME} at a time."),
    })
}

/// System calls of the proxy for each short connection, as `strace -c -f` counts them.
fn syscalls(programs: &[Program]) -> Result<Table> {
    const TRACED: usize = 2000;
    let backend = Backend::answering(AT_A_TIME)?;
    let routes = proxy_everything(&backend);
    let mut rows = rows(programs);
    let mut note = format!(
        "{TRACED} connections, {AT_A_TIME} at a time, under `strace -c -f`; what the proxy called most:\n"
    );
    for (program, row) in programs.iter().zip(&mut rows) {
        let proxy = program.start(&routes, backend.address)?;
        short_connections(proxy.address, 50, 1, &QUESTION)?;
        let counts = traced(&proxy, || {
            short_connections(proxy.address, TRACED, AT_A_TIME, &QUESTION)
        })?;
        let total: usize = counts.iter().map(|(_, n)| n).sum();
        row.figures.push(total as f64 / TRACED as f64);
        let most: Vec<String> = counts
            .iter()
            .map(|(name, n)| format!("{name} {:.2}", *n as f64 / TRACED as f64))
            .collect();
        note.push_str(&format!("\n* {}: {}", program.label(), most.join(", ")));
    }
    Ok(Table {
        title: "System calls of a short connection".to_owned(),
        unit: "calls per connection",
        rows,
        note,
    })
}

/// Calls by name, the most frequent first.
fn traced(proxy: &Proxy, work: impl FnOnce() -> Result<()>) -> Result<Vec<(String, usize)>> {
    let summary = std::env::temp_dir().join(format!("conncept-bench-strace-{}", proxy.pid()));
    let mut strace = Command::new("strace")
        .args(["-c", "-f", "-qq", "-U", "calls,name", "-o"])
        .arg(&summary)
        .args(["-p", &proxy.pid().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run strace; install it with apt-get install strace")?;
    pause(Duration::from_secs(1));
    let worked = work();
    pause(Duration::from_millis(300));
    Command::new("kill")
        .args(["-INT", &strace.id().to_string()])
        .status()?;
    strace.wait()?;
    worked?;
    let text = std::fs::read_to_string(&summary)?;
    std::fs::remove_file(&summary)?;
    let mut counts: Vec<(String, usize)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let calls = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), calls))
        })
        .filter(|(name, _)| name != "total")
        .collect();
    counts.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
    Ok(counts)
}

/// Resident memory for each of many open connections, each used once.
fn idle(programs: &[Program], descriptors: usize) -> Result<Table> {
    let count = IDLE.min((descriptors / 2).saturating_sub(400));
    let mut rows = rows(programs);
    for (program, row) in programs.iter().zip(&mut rows) {
        let backend = Backend::keeping()?;
        let proxy = program.start(&proxy_everything(&backend), backend.address)?;
        let mut open = Vec::with_capacity(count);
        for _ in 0..100 {
            open.push(ask(proxy.address, &QUESTION)?);
        }
        pause(Duration::from_millis(500));
        let before = proxy.rss()?;
        for _ in 0..count {
            open.push(ask(proxy.address, &QUESTION)?);
        }
        pause(Duration::from_millis(500));
        row.figures
            .push(proxy.rss()?.saturating_sub(before) as f64 / count as f64 / 1024.0);
    }
    Ok(Table {
        title: "Idle proxied connection".to_owned(),
        unit: "KiB of resident memory per connection",
        rows,
        note: format!(
            "{IDLE} connections open at once, each used once for 64 bytes there and back."
        ),
    })
}

/// Choosing among many SNI routes: processor time for each connection.
fn sni(binary: &Path, rounds: usize) -> Result<Table> {
    const SIZES: [usize; 4] = [10, 100, 1000, 10_000];
    let backend = Backend::answering(AT_A_TIME)?;
    let program = Program::Conncept {
        label: "conncept".to_owned(),
        binary: binary.to_owned(),
    };
    let mut contestants = Vec::new();
    for size in SIZES {
        let routes: Vec<String> = (0..size)
            .map(|i| {
                let handle = proxy_handler(&backend);
                format!(
                    r#"{{"match":[{{"tls":{{"sni":["host{i}.example"]}}}}],"handle":[{handle}]}}"#
                )
            })
            .collect();
        let proxy = program.start(&format!("[{}]", routes.join(",")), backend.address)?;
        // A name from the second half: a scan would have to come by all before it.
        let hello = client_hello(&format!("host{}.example", size - 3));
        let label = format!("{size} routes");
        contestants.push((
            proxy,
            hello,
            Row {
                label,
                figures: Vec::new(),
            },
        ));
    }
    for round in 0..=rounds {
        for (proxy, hello, row) in &mut contestants {
            let cost = cost(proxy, || {
                short_connections(proxy.address, CONNECTIONS, AT_A_TIME, hello)
            })?;
            if round > 0 {
                row.figures.push(cost);
            }
        }
    }
    Ok(Table {
        title: "Choosing among SNI routes".to_owned(),
        unit: "µs of proxy CPU per connection",
        rows: contestants.into_iter().map(|(_, _, row)| row).collect(),
        note: format!(
            "{CONNECTIONS} connections a round, {AT_A_TIME} at a time, ClientHello there, 64 bytes back."
        ),
    })
}

fn proxy_handler(backend: &Backend) -> String {
    format!(
        r#"{{"handler":"proxy","upstreams":[{{"dial":["{}"]}}]}}"#,
        backend.address
    )
}

fn proxy_everything(backend: &Backend) -> String {
    format!(r#"[{{"handle":[{}]}}]"#, proxy_handler(backend))
}

fn start_all(programs: &[Program], routes: &str, backend: &Backend) -> Result<Vec<Proxy>> {
    programs
        .iter()
        .map(|program| program.start(routes, backend.address))
        .collect()
}

fn rows(programs: &[Program]) -> Vec<Row> {
    programs
        .iter()
        .map(|program| Row {
            label: program.label().to_owned(),
            figures: Vec::new(),
        })
        .collect()
}

/// Microseconds of the proxy's processor time for each connection of `work`.
fn cost(proxy: &Proxy, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = proxy.cpu()?;
    work()?;
    // What the last closes cost shall be in it.
    pause(Duration::from_millis(50));
    let used = proxy.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() * 1e6 / CONNECTIONS as f64)
}
