//! What the end-to-end tests share: the program under test, servers behind it, and clients in front of it.
//!
//! Start reading at [`Conncept`]. Only the kernel and this crate take part in the tests that run by default; those that
//! need programs of others are behind the feature `interop`.
//!
//! Every test listens on a loopback address of its own ([`loopback`]), so that ports can be fixed and tests still run
//! side by side. For tests only: everything here panics when something is wrong.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod backends;
pub mod network;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything that should happen may take. Generous: test machines are slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The program under test. Cargo builds it before the tests of this package and puts it one level above them. The
/// environment variable `CONNCEPT_UNDER_TEST` names another one, such as a release build.
pub fn program() -> PathBuf {
    if let Some(other) = std::env::var_os("CONNCEPT_UNDER_TEST") {
        return other.into();
    }
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("conncept-under-test");
    assert!(program.exists(), "{} was not built", program.display());
    program
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Finished {
    run_with(args, |_| {}, b"")
}

/// Runs the program to its end, with `input` as its standard input.
pub fn run_with(args: &[&str], prepare: impl FnOnce(&mut Command), input: &[u8]) -> Finished {
    let mut command = Command::new(program());
    command
        .args(args)
        // Whatever the user who runs the tests has there is none of their business.
        .env("XDG_DATA_HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    prepare(&mut command);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that refuses its arguments does not read.
    let _ = stdin.write_all(input);
    drop(stdin);
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let process = rustix::process::Pid::from_child(&child);
    // A program that should end and does not fails its test rather than stopping all of them.
    let watchdog = thread::spawn(move || {
        if end.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    watchdog.join().unwrap();
    Finished::from(output)
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A running program. Killed when dropped.
pub struct Conncept {
    child: Child,
    logs: Arc<Logs>,
    dir: TempDir,
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    Done,
    Unchanged,
    Refused,
}

impl Conncept {
    /// Runs with `config` and waits until it serves.
    pub fn serving(config: &Value) -> Self {
        Self::serving_with(config, &[])
    }

    /// Runs with `config` and further arguments, and waits until it serves.
    pub fn serving_with(config: &Value, args: &[&str]) -> Self {
        Self::serving_prepared(config, args, |_| {})
    }

    /// The same in an environment of its own, or however `prepare` changes the command.
    pub fn serving_prepared(
        config: &Value,
        args: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        Self::serving_by(&program(), config, args, prepare)
    }

    /// Runs another build with `config` and waits until it serves.
    pub fn serving_from(program: &Path, config: &Value) -> Self {
        Self::serving_by(program, config, &[], |_| {})
    }

    fn serving_by(
        program: &Path,
        config: &Value,
        args: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("l4.json");
        fs::write(&file, config.to_string()).unwrap();
        let args = [&["--config", file.to_str().unwrap()], args].concat();
        let this = Self::start_in(program, dir, &args, prepare);
        this.logged("serving initial configuration");
        this
    }

    /// Runs an example of the repository as it is, and waits until it serves.
    pub fn serving_example(name: &str) -> Self {
        let file = backends::example(name);
        let this = Self::start(&["--config", file.to_str().unwrap()]);
        this.logged("serving initial configuration");
        this
    }

    /// Starts `run` with `args` and waits for nothing.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(&program(), tempfile::tempdir().unwrap(), args, |_| {})
    }

    fn start_in(
        program: &Path,
        dir: TempDir,
        args: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new(program);
        command.args(["run", "--log-format", "json"]).args(args);
        // Standard output goes to a file: nobody has to read it, and nothing is lost.
        let stdout = fs::File::create(dir.path().join("stdout")).unwrap();
        command
            .current_dir(dir.path())
            // Certificates that it makes are not for the user's own directory.
            .env("XDG_DATA_HOME", dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let logs = Logs::read(child.stderr.take().unwrap());
        Self { child, logs, dir }
    }

    /// A directory of the test's own: working directory of the program and home of its configuration.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it keeps certificates and keys unless the configuration says otherwise.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data/conncept")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("l4.json")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, signal).unwrap();
    }

    /// Waits for a log line with this message and returns it.
    pub fn logged(&self, message: &str) -> Value {
        self.log_where(message, |line| line["msg"] == message)
    }

    /// Waits for the first log line that `wanted` accepts and returns it.
    pub fn log_where(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.logs.wait(0, what, wanted).1
    }

    /// All log lines so far.
    pub fn logs(&self) -> Vec<Value> {
        self.logs.lines()
    }

    /// How many log lines there are so far.
    pub fn log_count(&self) -> usize {
        self.logs.state.lock().unwrap().lines.len()
    }

    /// All that came to standard error that is not a log line.
    pub fn complaints(&self) -> String {
        self.logs.state.lock().unwrap().other.join("\n")
    }

    /// What it printed.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    /// The summary records of ended connections so far.
    pub fn records(&self) -> Vec<Value> {
        let lines = self.logs();
        lines
            .into_iter()
            .filter(|line| line["logger"] == "conncept::access")
            .collect()
    }

    /// Waits for the record of the connection or session from `client`.
    pub fn record_of(&self, client: SocketAddr) -> Value {
        let client = client.to_string();
        let what = format!("a record of {client}");
        self.log_where(&what, |line| {
            line["logger"] == "conncept::access" && line["remote"] == client
        })
    }

    /// The addresses it said it listens on, with the real ports.
    pub fn listening(&self) -> Vec<SocketAddr> {
        let lines = self
            .logs()
            .into_iter()
            .filter(|line| line["msg"] == "listening");
        lines
            .map(|line| line["address"].as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// Writes a configuration, signals, and waits until it is said what became of it.
    pub fn reload(&self, config: &str) -> Reload {
        fs::write(self.config_file(), config).unwrap();
        self.reload_unwritten()
    }

    /// Signals and waits until it is said what became of it.
    pub fn reload_unwritten(&self) -> Reload {
        let before = self.log_count();
        self.signal(Signal::USR1);
        self.reloaded_after(before)
    }

    /// Waits for the end of the first reload that was logged after so many lines.
    pub fn reloaded_after(&self, lines: usize) -> Reload {
        let outcome = |line: &Value| match line["msg"].as_str() {
            Some("serving the new configuration") => Some(Reload::Done),
            Some("config is unchanged") => Some(Reload::Unchanged),
            Some("the new configuration was refused; the old one goes on") => Some(Reload::Refused),
            _ => None,
        };
        let (_, line) = self
            .logs
            .wait(lines, "the end of a reload", |line| outcome(line).is_some());
        outcome(&line).unwrap()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.logs.finished();
        status.unwrap()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// What its descriptors are, sorted: sockets by number, so that another socket shows.
    pub fn open_files(&self) -> BTreeSet<PathBuf> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        files
            .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
            .collect()
    }

    /// Threads.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .count()
    }

    /// Memory in use, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time used so far.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // After the name, which is in parentheses: fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    }
}

impl Drop for Conncept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            for line in self.logs.lines().iter().rev().take(60).rev() {
                eprintln!("{line}");
            }
            eprintln!("{}", self.complaints());
        }
    }
}

/// What came to standard error, read as it comes.
#[derive(Default)]
struct Logs {
    state: Mutex<LogState>,
    more: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<Value>,
    other: Vec<String>,
    finished: bool,
}

impl Logs {
    fn read(from: ChildStderr) -> Arc<Self> {
        let this = Arc::new(Self::default());
        let logs = this.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                let line = line.unwrap();
                let mut state = logs.state.lock().unwrap();
                match serde_json::from_str(&line) {
                    Ok(value) => state.lines.push(value),
                    Err(_) => state.other.push(line),
                }
                logs.more.notify_all();
            }
            logs.state.lock().unwrap().finished = true;
            logs.more.notify_all();
        });
        this
    }

    fn lines(&self) -> Vec<Value> {
        self.state.lock().unwrap().lines.clone()
    }

    /// Waits until the program has closed its standard error.
    fn finished(&self) {
        let state = self.state.lock().unwrap();
        let unfinished = |state: &mut LogState| !state.finished;
        let (state, _) = self
            .more
            .wait_timeout_while(state, PATIENCE, unfinished)
            .unwrap();
        assert!(state.finished, "standard error stays open");
    }

    fn wait(&self, from: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> (usize, Value) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = from;
        let mut state = self.state.lock().unwrap();
        loop {
            let new = state.lines.iter().enumerate().skip(seen);
            if let Some((at, line)) = new.into_iter().find(|(_, line)| wanted(line)) {
                return (at, line.clone());
            }
            seen = state.lines.len().max(from);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.finished {
                let other = state.other.join("\n");
                drop(state);
                panic!("waited in vain for {what:?} in the log\n{other}");
            }
            state = self.more.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// A loopback address that no other test uses.
pub fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(
        (1..250).contains(&last),
        "more addresses than this was made for"
    );
    let [.., high, low] = std::process::id().to_be_bytes();
    // 127.0.0.* is left to everybody else.
    Ipv4Addr::new(127, high | 0x80, low, last)
}

/// The address that connections to [`loopback`] addresses come from unless they are bound.
pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A configuration with these servers.
pub fn config(servers: Value) -> Value {
    json!({"apps": {"layer4": {"servers": servers}}})
}

/// A server that answers every connection with `text`.
pub fn responder(listen: &str, text: &str) -> Value {
    json!({"listen": [listen], "routes": [{"handle": [{"handler": "respond", "body": text}]}]})
}

/// A server that sends back what it gets.
pub fn echo(listen: &str) -> Value {
    json!({"listen": [listen], "routes": [{"handle": [{"handler": "echo"}]}]})
}

/// Waits for `condition`, looking every few milliseconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        pause(Duration::from_millis(5));
    }
}

/// Lets time pass. For clients that are slow on purpose, not for hoping that something has happened.
pub fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        thread::park_timeout(left);
    }
}

/// Connects.
pub fn connect(address: impl Into<SocketAddr>) -> TcpStream {
    try_connect(address.into()).unwrap()
}

/// Connects, if somebody listens.
pub fn try_connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Whether nobody listens.
pub fn refused(address: impl Into<SocketAddr>) -> bool {
    try_connect(address.into()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Sends `bytes` and the end of the stream, and returns all that comes back.
pub fn ask(address: impl Into<SocketAddr>, bytes: &[u8]) -> String {
    try_ask(address.into(), bytes).unwrap()
}

/// As [`ask`], with what goes wrong.
pub fn try_ask(address: SocketAddr, bytes: &[u8]) -> std::io::Result<String> {
    let mut stream = try_connect(address)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Sends `bytes` over a connection and expects them back.
pub fn echoes(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
}

/// Reads to the end of the stream. That the peer ended it with a reset is no error.
pub fn drain(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => all,
    }
}

/// A UDP client of one server.
pub fn datagrams(server: impl Into<SocketAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    socket.connect(server.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram and returns the answer.
pub fn exchange(socket: &UdpSocket, datagram: &[u8]) -> String {
    try_exchange(socket, datagram).unwrap()
}

/// As [`exchange`], with what goes wrong.
pub fn try_exchange(socket: &UdpSocket, datagram: &[u8]) -> std::io::Result<String> {
    socket.send(datagram)?;
    let mut answer = [0; 2048];
    let n = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

/// The first flight of a TLS 1.3 client, RFC 8446 section 4.1.2, with this server name and these protocols.
pub fn client_hello(server_name: &str, alpn: &[&str]) -> Vec<u8> {
    fn sized<const BYTES: usize>(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length[4 - BYTES..], body].concat()
    }
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes(), &*sized::<2>(body)].concat();
    let name = [&[0], &*sized::<2>(server_name.as_bytes())].concat();
    let alpn: Vec<u8> = alpn
        .iter()
        .flat_map(|name| sized::<1>(name.as_bytes()))
        .collect();
    let extensions = [
        extension(0, &sized::<2>(&name)),
        // An empty list would be malformed, RFC 7301 section 3.1.
        if alpn.is_empty() {
            Vec::new()
        } else {
            extension(16, &sized::<2>(&alpn))
        },
        extension(43, &sized::<1>(&[3, 4])),
        // Random-looking filler of the size of a post-quantum key share, as browsers send it.
        extension(0xFE0D, &[0xA5; 1216]),
    ]
    .concat();
    let hello = [
        &[3, 3],
        &[0x5A; 32][..],
        &sized::<1>(&[0xC3; 32]),
        &sized::<2>(&[0x13, 0x01, 0x13, 0x02]),
        &sized::<1>(&[0]),
        &sized::<2>(&extensions),
    ]
    .concat();
    let handshake = [&[1], &*sized::<3>(&hello)].concat();
    [&[22, 3, 1], &*sized::<2>(&handshake)].concat()
}

/// A TCP server in this process, to proxy to. Stops accepting when dropped.
pub struct Backend {
    pub address: SocketAddr,
    /// Bytes received over all connections.
    pub received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Backend {
    /// Sends back what it gets.
    pub fn echo() -> Self {
        Self::new(|mut stream, received| {
            let mut buf = [0; 16 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                received.fetch_add(n as u64, Ordering::Relaxed);
                if stream.write_all(&buf[..n]).is_err() {
                    return;
                }
            }
        })
    }

    /// Swallows what it gets.
    pub fn sink() -> Self {
        Self::new(|mut stream, received| {
            let mut buf = [0; 16 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                received.fetch_add(n as u64, Ordering::Relaxed);
            }
        })
    }

    /// Speaks first: sends `text`, then ends.
    pub fn banner(text: &'static str) -> Self {
        Self::new(move |mut stream, _| {
            let _ = stream.write_all(text.as_bytes());
            // Closing with unread input would be a reset.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        })
    }

    fn new(serve: impl Fn(TcpStream, &AtomicU64) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (received, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, stopped, serve) = (received.clone(), stop.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (serve, counter) = (serve.clone(), counter.clone());
                thread::spawn(move || serve(stream.unwrap(), &counter));
            }
        });
        Self {
            address,
            received,
            stop,
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}
