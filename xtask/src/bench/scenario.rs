//! What is measured.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::flow::{self, Datagrams, MESSAGE, PingPong, Way};
use super::load::{Backend, QUESTION, ask, ask_again, client_hello, short_connections};
use super::program::{Job, Kind, Program, Splice};
use super::proxy::{Proxy, pause};
use super::report::{IN_FULL, Row, Table};
use super::tls::{self, Handshake, Identity, Idle, Signature};

/// All scenarios, in the order they run.
pub(super) const NAMES: &[&str] = &[
    "bulk-up",
    "bulk-down",
    "bulk-16",
    "short",
    "syscalls",
    "ping-pong",
    "idle",
    "sni",
    "tls-full",
    "tls-resumed",
    "tls-resumed-1.3",
    "tls-resumed-1.3-rsa",
    "tls-bulk",
    "tls-idle",
    "udp-ping-pong",
    "udp-one-way",
    "udp-flood",
    "reload",
];

/// What all scenarios are given.
pub(super) struct Bench {
    pub(super) programs: Vec<Program>,
    pub(super) rounds: usize,
    /// How many this process may open.
    pub(super) descriptors: usize,
}

/// Connections of one round of `short` and `sni`.
const CONNECTIONS: usize = 1000;

/// Connections open at a time in those.
const AT_A_TIME: usize = 32;

/// Connections of `idle`, where the system allows two descriptors for each.
const IDLE: usize = 10_000;

/// Bytes of one round of bulk, and of bulk over TLS.
const BULK: u64 = 1 << 28;
const TLS_BULK: u64 = 1 << 27;

/// Those whose rounds are over in a blink, and differ the more for it: they have so many times the rounds.
const SHORT_ROUNDS: &[&str] = &["short", "ping-pong", "sni", "udp-ping-pong"];
const TIMES: usize = 3;

/// What a figure per byte is multiplied with.
const GIB: f64 = (1u64 << 30) as f64;

impl Bench {
    pub(super) fn run(&mut self, name: &'static str) -> Result<Table> {
        let rounds = self.rounds;
        if SHORT_ROUNDS.contains(&name) {
            self.rounds *= TIMES;
        }
        let table = self.scenario(name);
        self.rounds = rounds;
        table
            .map(|table| Table { name, ..table })
            .with_context(|| format!("scenario {name}"))
    }

    fn scenario(&self, name: &str) -> Result<Table> {
        match name {
            "bulk-up" => self.bulk(Way::Up, 1),
            "bulk-down" => self.bulk(Way::Down, 1),
            "bulk-16" => self.bulk(Way::Down, 16),
            "short" => self.short(),
            "syscalls" => self.syscalls(),
            "ping-pong" => self.ping_pong(),
            "idle" => self.idle(),
            "sni" => self.sni(),
            "tls-full" => self.handshakes(Handshake::Full, Signature::P256),
            "tls-resumed" => self.handshakes(Handshake::Resumed, Signature::P256),
            "tls-resumed-1.3" => self.handshakes(Handshake::Resumed13, Signature::P256),
            "tls-resumed-1.3-rsa" => self.handshakes(Handshake::Resumed13, Signature::Rsa),
            "tls-bulk" => self.tls_bulk(),
            "tls-idle" => self.tls_idle(),
            "udp-ping-pong" => self.udp_ping_pong(),
            "udp-one-way" => self.udp_one_way(),
            "udp-flood" => self.udp_flood(),
            _ => self.reload(),
        }
    }

    /// Bulk on so many connections: processor time of the proxy for each GiB.
    fn bulk(&self, way: Way, streams: usize) -> Result<Table> {
        let backend = flow::bulk_server()?;
        let (rows, direction) = (
            self.rounds(&self.programs, &Job::Tcp, backend, |_, proxy| {
                let each = BULK / streams as u64;
                flow::bulk(proxy.address, way, streams, each)?;
                Ok((each * streams as u64) as f64)
            })?,
            if way == Way::Up {
                "from client to server"
            } else {
                "from server to client"
            },
        );
        Ok(Table {
            title: format!("Bulk {direction}, {streams} at a time"),
            unit: "ms of proxy CPU per GiB",
            rate: Some("GiB/s"),
            rows: scaled(rows, 1e3 * GIB, 1.0 / GIB),
            note: "256 MiB a round.".to_owned(),
            ..Table::default()
        })
    }

    /// Connect, 64 bytes there and back, close: processor time of the proxy for each.
    fn short(&self) -> Result<Table> {
        let backend = Backend::answering(AT_A_TIME)?;
        let rows = self.rounds(&self.simple(), &Job::Tcp, backend.address, |_, proxy| {
            short_connections(proxy.address, CONNECTIONS, AT_A_TIME, &QUESTION)?;
            Ok(CONNECTIONS as f64)
        })?;
        Ok(Table {
            title: "Short connection: connect, 64 bytes there and back, close".to_owned(),
            unit: "µs of proxy CPU per connection",
            rate: Some("connections/s"),
            rows: scaled(rows, 1e6, 1.0),
            note: format!("{CONNECTIONS} connections a round, {AT_A_TIME} at a time."),
            ..Table::default()
        })
    }

    /// System calls of the proxy for each short connection, as `strace -c -f` counts them.
    fn syscalls(&self) -> Result<Table> {
        const TRACED: usize = 2000;
        let backend = Backend::answering(AT_A_TIME)?;
        let mut note = format!(
            "{TRACED} connections, {AT_A_TIME} at a time, under `strace -c -f`; what the proxy called most:\n"
        );
        let mut rows = Vec::new();
        for program in self.simple() {
            if let Kind::Direct = program.kind {
                continue;
            }
            let proxy = Proxy::start(&program, &Job::Tcp, backend.address, false)?;
            short_connections(proxy.address, 50, 1, &QUESTION)?;
            let counts = traced(&proxy, || {
                short_connections(proxy.address, TRACED, AT_A_TIME, &QUESTION)
            })?;
            let total: usize = counts.iter().map(|(_, n)| n).sum();
            let most: Vec<String> = counts
                .iter()
                .filter(|(_, n)| n * 100 >= TRACED)
                .map(|(name, n)| format!("{name} {:.2}", *n as f64 / TRACED as f64))
                .collect();
            note.push_str(&format!("\n* {}: {}", program.label, most.join(", ")));
            let mut row = Row::new(&program.label);
            row.costs.push(total as f64 / TRACED as f64);
            rows.push(row);
        }
        Ok(Table {
            title: "System calls of a short connection".to_owned(),
            unit: "calls per connection",
            rows,
            note,
            ..Table::default()
        })
    }

    /// Messages of 100 bytes to and fro on many connections: processor time for each round trip.
    fn ping_pong(&self) -> Result<Table> {
        const OPEN: usize = 200;
        const TURNS: usize = 100;
        let backend = flow::echo_server()?;
        let mut open = HashMap::new();
        let rows = self.rounds(&self.programs, &Job::Tcp, backend, |i, proxy| {
            if let std::collections::hash_map::Entry::Vacant(entry) = open.entry(i) {
                entry.insert(PingPong::open(proxy.address, OPEN)?);
            }
            let flows = open.get_mut(&i).context("just opened")?;
            flows.play(TURNS)?;
            Ok((OPEN * TURNS) as f64)
        })?;
        Ok(Table {
            title: format!("Messages of {MESSAGE} bytes to and fro on {OPEN} connections"),
            unit: "µs of proxy CPU per round trip",
            rate: Some("round trips/s"),
            rows: scaled(rows, 1e6, 1.0),
            note: format!(
                "{TURNS} messages on each connection a round; all connections have one under way at a time."
            ),
            ..Table::default()
        })
    }

    /// Resident memory for each of many open connections, each used once.
    fn idle(&self) -> Result<Table> {
        let count = IDLE.min((self.descriptors / 2).saturating_sub(400));
        let mut rows = Vec::new();
        for program in self.simple() {
            if let Kind::Direct = program.kind {
                continue;
            }
            let backend = Backend::keeping()?;
            let proxy = Proxy::start(&program, &Job::Tcp, backend.address, false)?;
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
            let used = proxy.rss()?.saturating_sub(before);
            let mut row = Row::new(&program.label);
            row.costs.push(used as f64 / count as f64 / 1024.0);
            rows.push(row);
        }
        Ok(Table {
            title: "Idle proxied connection".to_owned(),
            unit: "KiB of resident memory per connection",
            rows,
            note: format!(
                "{count} connections open at once, each used once for 64 bytes there and back."
            ),
            ..Table::default()
        })
    }

    /// Choosing by name among few and many: processor time for each connection.
    fn sni(&self) -> Result<Table> {
        const SIZES: [usize; 3] = [1, 100, 10_000];
        let backend = Backend::answering(AT_A_TIME)?;
        let mut contestants = Vec::new();
        for program in self.simple() {
            if program.label.ends_with("again") {
                continue;
            }
            for size in SIZES {
                let job = Job::Names(size);
                if !program.does(&job) {
                    continue;
                }
                let proxy = Proxy::start(&program, &job, backend.address, false)?;
                // A name from the second half: a scan would have to come by all before it.
                let hello = client_hello(&format!("host{}.example", size - size / 3 - 1));
                let label = match size {
                    1 => format!("{}, 1 name", program.label),
                    _ => format!("{}, {size} names", program.label),
                };
                // One program is known to take 18 ms for each at ten thousand.
                let slow = matches!(program.kind, Kind::Caddy(_)) && size > 100;
                let count = if slow { CONNECTIONS / 40 } else { CONNECTIONS };
                contestants.push((proxy, hello, count, Row::new(&label)));
            }
        }
        for round in 0..=self.rounds {
            self.progress(round);
            for (proxy, hello, count, row) in &mut contestants {
                let measured = measure(proxy, || {
                    short_connections(proxy.address, *count, AT_A_TIME, hello)?;
                    Ok(*count as f64)
                })?;
                row.note(round, measured);
            }
        }
        let rows = contestants.into_iter().map(|(_, _, _, row)| row).collect();
        Ok(Table {
            title: "Choosing among names (SNI)".to_owned(),
            unit: "µs of proxy CPU per connection",
            rate: Some("connections/s"),
            rows: scaled(rows, 1e6, 1.0),
            note: format!(
                "{CONNECTIONS} connections a round, {AT_A_TIME} at a time, ClientHello there, 64 bytes back."
            ),
            ..Table::default()
        })
    }

    /// TLS handshakes, and nothing else on the connection.
    fn handshakes(&self, kind: Handshake, signature: Signature) -> Result<Table> {
        let backend = Backend::answering(AT_A_TIME)?;
        let job = Job::Tls(Identity::make(&std::env::temp_dir(), signature)?);
        let rounds = |make: &dyn Fn(SocketAddr) -> Result<f64>| {
            self.rounds(&self.simple(), &job, backend.address, |_, proxy| {
                make(proxy.address)
            })
        };
        let mut rows = rounds(&|target| tls::handshakes(target, kind, 1))?;
        if kind == Handshake::Resumed13 {
            let mut full = rounds(&tls::full_alone)?;
            full.iter_mut().for_each(|row| row.label.push_str(IN_FULL));
            rows.extend(full);
        }
        Ok(Table {
            title: match (kind, signature) {
                (Handshake::Full, _) => "Terminating TLS 1.3: full handshakes",
                (Handshake::Resumed, _) => "Terminating TLS 1.2: resumed handshakes",
                (Handshake::Resumed13, Signature::P256) => {
                    "Terminating TLS 1.3: resumed handshakes"
                }
                (Handshake::Resumed13, Signature::Rsa) => {
                    "Terminating TLS 1.3 with an RSA certificate: resumed handshakes"
                }
            }
            .to_owned(),
            unit: "µs of proxy CPU per handshake",
            // A process for each connection says nothing about the rate of the proxy.
            rate: (kind != Handshake::Resumed13).then_some("handshakes/s"),
            rows: scaled(rows, 1e6, 1.0),
            note: match kind {
                Handshake::Resumed13 => format!(
                    "{} connections with a ticket a round, each made by an `openssl s_client` of its own, one after the other, \
                     and full handshakes made in the same way. Between two of them the proxy's caches grow cold, so these figures \
                     compare with each other only. A connection to the backend belongs to each.",
                    tls::WITH_TICKET
                ),
                _ => "1 s of `openssl s_time` a round, one connection after the other, P-256 certificate. A connection \
                      to the backend belongs to each."
                    .to_owned(),
            },
            ..Table::default()
        })
    }

    /// Bulk that leaves the proxy encrypted.
    fn tls_bulk(&self) -> Result<Table> {
        let backend = flow::bulk_server()?;
        let job = Job::Tls(Identity::make(&std::env::temp_dir(), Signature::P256)?);
        let order = [&[1][..], &TLS_BULK.to_be_bytes()].concat();
        let rows = self.rounds(&self.simple(), &job, backend, |_, proxy| {
            let received = tls::download(proxy.address, &order)?;
            ensure!(received == TLS_BULK, "{received} of {TLS_BULK} bytes");
            Ok(received as f64)
        })?;
        Ok(Table {
            title: "Terminating TLS: bulk from server to client".to_owned(),
            unit: "ms of proxy CPU per GiB",
            rate: Some("GiB/s"),
            rows: scaled(rows, 1e3 * GIB, 1.0 / GIB),
            note: "128 MiB a round, read by `openssl s_client`.".to_owned(),
            ..Table::default()
        })
    }

    /// Resident memory for each of many open connections over TLS, each used once.
    fn tls_idle(&self) -> Result<Table> {
        // A process on the other end of each.
        const OPEN: usize = 200;
        let job = Job::Tls(Identity::make(&std::env::temp_dir(), Signature::P256)?);
        let mut rows = Vec::new();
        for program in self.simple().into_iter().filter(|p| p.does(&job)) {
            let backend = Backend::keeping()?;
            let proxy = Proxy::start(&program, &job, backend.address, false)?;
            let mut open = Vec::with_capacity(OPEN + WARM);
            let mut more = |count| -> Result<u64> {
                for _ in 0..count {
                    let mut connection = Idle::start(proxy.address, &["-tls1_3"])?;
                    connection.ask()?;
                    open.push(connection);
                }
                pause(Duration::from_millis(500));
                proxy.rss()
            };
            const WARM: usize = 50;
            let before = more(WARM)?;
            let used = more(OPEN)?.saturating_sub(before);
            let mut row = Row::new(&program.label);
            row.costs.push(used as f64 / OPEN as f64 / 1024.0);
            rows.push(row);
        }
        Ok(Table {
            title: "Idle connection over terminated TLS".to_owned(),
            unit: "KiB of resident memory per connection",
            rows,
            note: format!(
                "{OPEN} connections of TLS 1.3 open at once, each used once for 64 bytes there and back, plain TCP behind the proxy."
            ),
            ..Table::default()
        })
    }

    fn udp_ping_pong(&self) -> Result<Table> {
        const CLIENTS: usize = 32;
        const TURNS: usize = 300;
        let backend = Datagrams::server(true)?;
        let lost = AtomicUsize::new(0);
        let rows = self.rounds(&self.simple(), &Job::Udp, backend.address, |_, proxy| {
            let back = flow::datagrams_to_and_fro(proxy.address, CLIENTS, TURNS)?;
            lost.fetch_add(CLIENTS * TURNS - back as usize, Ordering::Relaxed);
            Ok(2.0 * (CLIENTS * TURNS) as f64)
        })?;
        Ok(Table {
            title: format!("Datagrams of {MESSAGE} bytes to and fro, {CLIENTS} clients"),
            unit: "µs of proxy CPU per datagram",
            rate: Some("datagrams/s"),
            rows: scaled(rows, 1e6, 1.0),
            note: format!(
                "{TURNS} there and back for each client a round; {} were lost over all rounds and contestants.",
                lost.into_inner()
            ),
            ..Table::default()
        })
    }

    fn udp_one_way(&self) -> Result<Table> {
        const RATE: u32 = 20_000;
        const TIME: Duration = Duration::from_secs(1);
        let (rows, lost) = self.one_way(|target| flow::datagrams_one_way(target, RATE, TIME))?;
        Ok(Table {
            title: format!("Datagrams of {MESSAGE} bytes one way, {RATE} a second"),
            unit: "µs of proxy CPU per datagram",
            rows: scaled(rows, 1e6, 1.0),
            note: format!("1 s a round. Lost: {lost}."),
            ..Table::default()
        })
    }

    /// As fast as one sender can: how much a proxy loses, and what the rest costs.
    fn udp_flood(&self) -> Result<Table> {
        const COUNT: u64 = 100_000;
        let (rows, lost) = self.one_way(|target| flow::datagrams_unpaced(target, COUNT))?;
        Ok(Table {
            title: format!("Datagrams of {MESSAGE} bytes one way, as fast as one sender can"),
            unit: "µs of proxy CPU per datagram sent",
            rows: scaled(rows, 1e6, 1.0),
            note: format!(
                "{COUNT} a round. Lost on the way, beside what the backend itself was too slow for: {lost}."
            ),
            ..Table::default()
        })
    }

    /// Has `send` send datagrams to a backend that only counts: the cost of each, and the share that was lost.
    fn one_way(&self, send: impl Fn(SocketAddr) -> Result<u64>) -> Result<(Vec<Row>, String)> {
        let backend = Datagrams::server(false)?;
        let mut tally: HashMap<usize, (u64, u64)> = HashMap::new();
        let programs = self.simple();
        let rows = self.rounds(&programs, &Job::Udp, backend.address, |i, proxy| {
            let before = backend.arrived()?;
            let sent = send(proxy.address)?;
            pause(Duration::from_millis(200));
            let (all_sent, all_lost) = tally.entry(i).or_default();
            *all_sent += sent;
            *all_lost += sent.saturating_sub(backend.arrived()? - before);
            Ok(sent as f64)
        })?;
        let lost = rows.iter().enumerate().filter_map(|(i, row)| {
            let (sent, lost) = tally.get(&i)?;
            let share = 100.0 * *lost as f64 / *sent as f64;
            Some(format!("{} {share:.2} %", row.label))
        });
        let lost = lost.collect::<Vec<_>>().join(", ");
        Ok((rows, lost))
    }

    /// Twenty reloads while connections come and others last: how many fail, and how many break.
    fn reload(&self) -> Result<Table> {
        const RELOADS: usize = 20;
        let backend = Backend::answering(2 * AT_A_TIME)?;
        let mut rows = Vec::new();
        for program in self.simple() {
            if let Kind::Direct = program.kind {
                continue;
            }
            let mut short = Row::new(&format!("{}, short connections failed", program.label));
            let mut lasting = Row::new(&format!("{}, lasting connections broken", program.label));
            eprintln!("  {}", program.label);
            for _ in 0..self.rounds.min(3) {
                let proxy = Proxy::start(&program, &Job::Tcp, backend.address, true)?;
                let (over, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
                let mut last = Vec::with_capacity(AT_A_TIME);
                for _ in 0..AT_A_TIME {
                    last.push(ask(proxy.address, &QUESTION)?);
                }
                thread::scope(|scope| -> Result<()> {
                    for _ in 0..AT_A_TIME {
                        scope.spawn(|| {
                            while !over.load(Ordering::Relaxed) {
                                if ask(proxy.address, &QUESTION).is_err() {
                                    failed.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        });
                    }
                    let reloaded = (0..RELOADS).try_for_each(|_| {
                        pause(Duration::from_millis(150));
                        last.retain_mut(|connection| ask_again(connection, &QUESTION).is_ok());
                        proxy.reload(&program)
                    });
                    pause(Duration::from_millis(500));
                    over.store(true, Ordering::Relaxed);
                    reloaded
                })?;
                last.retain_mut(|connection| ask_again(connection, &QUESTION).is_ok());
                short.costs.push(failed.into_inner() as f64);
                lasting.costs.push((AT_A_TIME - last.len()) as f64);
            }
            rows.extend([short, lasting]);
        }
        Ok(Table {
            title: format!("{RELOADS} reloads under load"),
            unit: "connections",
            rows,
            note: format!(
                "Short connections, {AT_A_TIME} at a time, beside {AT_A_TIME} that last and ask between reloads; reloads \
                 150 ms apart, by the program's signal, or by its command where it is without one (caddy-l4)."
            ),
            ..Table::default()
        })
    }

    /// Those for which splicing is no question.
    fn simple(&self) -> Vec<Program> {
        let spliced = |program: &&Program| {
            matches!(program.kind, Kind::Haproxy(Splice::Default | Splice::Large))
        };
        let programs = self.programs.iter();
        programs.filter(|p| !spliced(p)).cloned().collect()
    }

    /// Rounds of all that can do the job, interleaved. `work` is given the contestant's number and says how many units
    /// it did; the rows hold seconds per unit and units per second.
    fn rounds(
        &self,
        programs: &[Program],
        job: &Job,
        backend: SocketAddr,
        mut work: impl FnMut(usize, &Proxy) -> Result<f64>,
    ) -> Result<Vec<Row>> {
        let mut contestants = Vec::new();
        for program in programs.iter().filter(|program| program.does(job)) {
            let proxy = Proxy::start(program, job, backend, false)?;
            contestants.push((contestants.len(), proxy, Row::new(&program.label)));
        }
        let mut unable = Vec::new();
        for round in 0..=self.rounds {
            self.progress(round);
            for i in order(round, contestants.len()) {
                let (number, proxy, row) = &mut contestants[i];
                match measure(proxy, || work(*number, proxy)) {
                    Ok(measured) => row.note(round, measured),
                    // The others are measured all the same: not all can do everything, such as resume a session.
                    Err(error) if round == 0 && !row.label.starts_with("conncept") => {
                        eprintln!("\n  without {}: {error:#}", row.label);
                        unable.push(*number);
                    }
                    Err(error) => return Err(error.context(row.label.clone())),
                }
            }
            contestants.retain(|(number, ..)| !unable.contains(number));
        }
        Ok(contestants.into_iter().map(|(.., row)| row).collect())
    }

    fn progress(&self, round: usize) {
        match round {
            0 => eprint!("  warming up"),
            n if n == self.rounds => eprintln!(" {n}"),
            n => eprint!(" {n}"),
        }
    }
}

/// In which order so many contestants have their turn: each begins now and then, and all go the other way round as often, so that
/// none always comes behind the same other.
fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|i| (i + round / 2) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Seconds of processor time per unit, where there is a proxy, and units per second.
fn measure(proxy: &Proxy, work: impl FnOnce() -> Result<f64>) -> Result<(Option<f64>, f64)> {
    let (before, started) = (proxy.cpu()?, Instant::now());
    let units = work()?;
    let took = started.elapsed();
    // What the last closes cost shall be in it.
    pause(Duration::from_millis(50));
    let used = match (before, proxy.cpu()?) {
        (Some(before), Some(after)) => Some(after.since(&before).as_secs_f64() / units),
        _ => None,
    };
    Ok((used, units / took.as_secs_f64()))
}

fn scaled(mut rows: Vec<Row>, cost: f64, rate: f64) -> Vec<Row> {
    for row in &mut rows {
        row.costs.iter_mut().for_each(|figure| *figure *= cost);
        row.rates.iter_mut().for_each(|figure| *figure *= rate);
    }
    rows
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
        .context("cannot run strace; apt-get install strace")?;
    pause(Duration::from_secs(1));
    let worked = work();
    pause(Duration::from_millis(300));
    Command::new("kill")
        .args(["-INT", &strace.id().to_string()])
        .status()?;
    strace.wait()?;
    worked?;
    let text = std::fs::read_to_string(Path::new(&summary))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_always_comes_first_or_behind_the_same_other() {
        let mut firsts = [0; 4];
        let mut behind = std::collections::HashSet::new();
        for round in 0..8 {
            let order = order(round, 4);
            firsts[order[0]] += 1;
            behind.extend(order.windows(2).map(|pair| (pair[0], pair[1])));
        }
        assert!(firsts.iter().all(|first| *first == 2), "{firsts:?}");
        assert!(
            (0..4)
                .all(|i| behind.contains(&(i, (i + 1) % 4)) && behind.contains(&((i + 1) % 4, i)))
        );
    }
}
