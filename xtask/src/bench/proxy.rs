//! A contestant: a proxy process pinned to a processor, and what it has used.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The processor of the proxy; load and backend run on the other.
const PROXY_CPU: &str = "0";
const LOAD_CPU: &str = "1";

/// Moves this process, the load, to its processor, and lets it and the proxies open as many descriptors as they may.
/// Returns how many that is.
pub(super) fn prepare() -> Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .context("limits")?;
    let hard: usize = files
        .split_whitespace()
        .nth(4)
        .and_then(|word| word.parse().ok())
        .unwrap_or(1024);
    let (pid, nofile) = (
        std::process::id().to_string(),
        format!("--nofile={hard}:{hard}"),
    );
    for command in [
        ["taskset", "-acp", LOAD_CPU, &pid],
        ["prlimit", &nofile, "--pid", &pid],
    ] {
        let done = Command::new(command[0])
            .args(&command[1..])
            .stdout(Stdio::null())
            .status();
        let done =
            done.with_context(|| format!("cannot run {}; install util-linux", command[0]))?;
        if !done.success() {
            bail!(
                "{} failed: the load needs a processor of its own",
                command.join(" ")
            );
        }
    }
    Ok(hard)
}

/// A running proxy; ends with this value.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    process: Child,
    config: PathBuf,
}

/// Which program, and which of its builds.
#[derive(Clone)]
pub(super) enum Program {
    Conncept { label: String, binary: PathBuf },
    Haproxy { label: String },
}

impl Program {
    pub(super) fn label(&self) -> &str {
        match self {
            Self::Conncept { label, .. } | Self::Haproxy { label } => label,
        }
    }

    /// Whether it is there; if not, says how to get it.
    pub(super) fn present(&self) -> bool {
        let Self::Haproxy { label } = self else {
            return true;
        };
        let present = Command::new("haproxy").arg("-v").output().is_ok();
        if !present {
            eprintln!("  without {label}: install it with apt-get install haproxy");
        }
        present
    }

    /// Starts it with `routes` (ours) or its plain TCP configuration, in front of `backend`.
    pub(super) fn start(&self, routes: &str, backend: SocketAddr) -> Result<Proxy> {
        let address = free_address()?;
        let text = match self {
            Self::Conncept { .. } => format!(
                r#"{{"apps":{{"layer4":{{"servers":{{"bench":{{"listen":["{address}"],"routes":{routes}}}}}}}}}}}"#
            ),
            Self::Haproxy { .. } => format!(
                "global\n  nbthread 1\n\
                 defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 300s\n  timeout server 300s\n\
                 listen bench\n  bind {address}\n  server backend {backend}\n"
            ),
        };
        let config = std::env::temp_dir().join(format!("conncept-bench-{}.conf", address.port()));
        fs::File::create(&config)?.write_all(text.as_bytes())?;
        let mut command = Command::new("taskset");
        command.args(["-c", PROXY_CPU]);
        match self {
            Self::Conncept { binary, .. } => command
                .arg(binary)
                .args(["run", "--log-level", "warn", "--config"])
                .arg(&config),
            Self::Haproxy { .. } => command.args(["haproxy", "-q", "-db", "-f"]).arg(&config),
        };
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.label()))?;
        let proxy = Proxy {
            address,
            process,
            config,
        };
        proxy.wait_until_listening()?;
        Ok(proxy)
    }
}

impl Proxy {
    fn wait_until_listening(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            pause(Duration::from_millis(20));
        }
        bail!("no proxy listens on {} after 10 s", self.address)
    }

    /// Processor time of all its threads so far, those that have ended included, to 10 ms.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        // The name, in parentheses, may contain anything; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').context("stat")?;
        let ticks = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>().context("stat")?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory, in bytes.
    pub(super) fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.process.id().to_string())
            .join(file)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.config);
    }
}

/// Waits; the load is on threads of its own, so blocking one is what is wanted.
#[allow(clippy::disallowed_methods)]
pub(super) fn pause(time: Duration) {
    thread::sleep(time);
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
