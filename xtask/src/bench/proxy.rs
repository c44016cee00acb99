//! A running contestant, pinned to a processor, and what it has used.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::program::{Job, Kind, Program};

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

/// A proxy in front of a backend; ends with this value.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    /// None where the load talks to the backend.
    process: Option<Child>,
    config: PathBuf,
}

impl Proxy {
    /// Starts `program` and waits until it listens. `reloads`: it shall be able to.
    pub(super) fn start(
        program: &Program,
        job: &Job,
        backend: SocketAddr,
        reloads: bool,
    ) -> Result<Self> {
        if let Kind::Direct = program.kind {
            return Ok(Self {
                address: backend,
                process: None,
                config: PathBuf::new(),
            });
        }
        let address = free_address()?;
        let config = std::env::temp_dir().join(format!("conncept-bench-{}.conf", address.port()));
        fs::write(
            &config,
            program.config(job, address, backend, &config, reloads)?,
        )?;
        let process = Command::new("taskset")
            .args(["-c", PROXY_CPU])
            .args(program.command(&config, reloads))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.label))?;
        let mut proxy = Self {
            address,
            process: Some(process),
            config,
        };
        proxy
            .wait_until_listening(matches!(job, Job::Udp))
            .with_context(|| program.command(&proxy.config, reloads).join(" "))?;
        Ok(proxy)
    }

    fn wait_until_listening(&mut self, datagrams: bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                bail!("the proxy ended with {status}");
            }
            // A port that somebody else has cannot be bound.
            let listening = match datagrams {
                false => TcpStream::connect(self.address).is_ok(),
                true => UdpSocket::bind(self.address).is_err(),
            };
            if listening {
                return Ok(());
            }
            pause(Duration::from_millis(20));
        }
        bail!("no proxy listens on {} after 60 s", self.address)
    }

    /// Processor time of all threads of all its processes so far. None without a proxy.
    pub(super) fn cpu(&self) -> Result<Option<Used>> {
        let Some(process) = &self.process else {
            return Ok(None);
        };
        let mut used = Used::default();
        for pid in family(process.id()) {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter();
            for thread in threads.flatten().flatten() {
                // Exact when the thread rests, unlike the ticks of 10 ms in `stat`.
                let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                let ran = stat.split_whitespace().next().and_then(|n| n.parse().ok());
                used.0
                    .insert(thread.file_name(), Duration::from_nanos(ran.unwrap_or(0)));
            }
        }
        Ok(Some(used))
    }

    /// Resident memory of all its processes, in bytes.
    pub(super) fn rss(&self) -> Result<u64> {
        let mut rss = 0;
        for pid in self.process.iter().flat_map(|p| family(p.id())) {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .context("VmRSS")?;
            let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
            rss += kib * 1024;
        }
        Ok(rss)
    }

    /// The process that was started; 0 without one.
    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// Makes it load its configuration anew; `program` is what it was started from.
    pub(super) fn reload(&self, program: &Program) -> Result<()> {
        let mut command = program
            .reload(self.pid(), &self.config)
            .context("there is nothing to reload")?;
        let done = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(done.success(), "{command:?} failed");
        Ok(())
    }
}

/// Processor time of each thread, by its number.
#[derive(Default)]
pub(super) struct Used(HashMap<OsString, Duration>);

impl Used {
    /// What was used since `before`. A thread that has ended in between counts for nothing: it has taken along what it used
    /// before, too.
    pub(super) fn since(&self, before: &Self) -> Duration {
        let threads = self.0.iter().map(|(thread, after)| {
            let before = before.0.get(thread).copied().unwrap_or_default();
            after.saturating_sub(before)
        });
        threads.sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        // A master that is killed leaves its workers behind.
        for pid in family(process.id()).into_iter().rev() {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
        }
        let _ = process.wait();
        for name in ["conf", "map", "pid", "sock"] {
            let _ = fs::remove_file(self.config.with_extension(name));
        }
    }
}

/// A process and those it has started, and so on.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        family.extend(
            children
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|word| word.parse::<u32>().ok()),
        );
        next += 1;
    }
    family
}

/// Waits; the load is on threads of its own, so blocking one is what is wanted.
#[allow(clippy::disallowed_methods)]
pub(super) fn pause(time: Duration) {
    thread::sleep(time);
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_ended_takes_nothing_of_the_others_along() {
        let used = |threads: &[(&str, u64)]| {
            let threads = threads.iter();
            Used(
                threads
                    .map(|(thread, ms)| (OsString::from(thread), Duration::from_millis(*ms)))
                    .collect(),
            )
        };
        let before = used(&[("1", 100), ("2", 5000)]);
        let after = used(&[("1", 130), ("3", 7)]);
        assert_eq!(after.since(&before), Duration::from_millis(37));
    }
}
