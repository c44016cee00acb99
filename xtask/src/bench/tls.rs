//! The load of the TLS scenarios: openssl's own client programs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::load::{ANSWER, QUESTION, loopback};

/// A certificate made for this run, and its key.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// One after the other in one file, as HAProxy wants it.
    pub(super) both: PathBuf,
}

/// What a certificate is signed with, and handshakes with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    /// ECDSA with P-256.
    P256,
    /// RSA with 2048 bits: a signature costs twenty times as much.
    Rsa,
}

impl Identity {
    /// A self-signed certificate for `localhost`.
    pub(super) fn make(directory: &Path, signature: Signature) -> Result<Self> {
        let file = |name| directory.join(format!("conncept-bench-{name}.pem"));
        let identity = Self {
            certificate: file("certificate"),
            key: file("key"),
            both: file("both"),
        };
        let mut command = Command::new("openssl");
        let key = match signature {
            Signature::P256 => "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1",
            Signature::Rsa => "-newkey rsa:2048",
        };
        command.args("req -x509 -nodes -days 3".split(' '));
        command.args(key.split(' '));
        command.args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ]);
        command.arg("-keyout").arg(&identity.key);
        command.arg("-out").arg(&identity.certificate);
        output(&mut command)?;
        let both = [fs::read(&identity.certificate)?, fs::read(&identity.key)?].concat();
        fs::write(&identity.both, both)?;
        Ok(identity)
    }
}

/// Whether handshakes are full ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// TLS 1.3.
    Full,
    /// TLS 1.2, whose sessions `openssl s_time` can resume.
    Resumed,
    /// TLS 1.3, whose sessions it cannot, because it does not wait for a ticket: a process for each connection.
    Resumed13,
}

/// Makes connections for so many seconds, each no more than a handshake. How many.
pub(super) fn handshakes(target: SocketAddr, kind: Handshake, seconds: u32) -> Result<f64> {
    loopback(target)?;
    let how = match kind {
        Handshake::Full => ["-new", "-tls1_3"],
        Handshake::Resumed => ["-reuse", "-tls1_2"],
        Handshake::Resumed13 => return resumed_by_ticket(target),
    };
    let mut command = Command::new("openssl");
    command.args([
        "s_time",
        "-connect",
        &target.to_string(),
        "-time",
        &seconds.to_string(),
    ]);
    let said = output(command.args(how))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    // One mark for each connection: `r` was resumed.
    let resumed = said.lines().map(|line| marks(line, "r")).max();
    let full = said.lines().map(|line| marks(line, "*t")).max();
    let (wanted, other) = match kind {
        Handshake::Full => (full, resumed),
        Handshake::Resumed | Handshake::Resumed13 => (resumed, full),
    };
    let (wanted, other) = (wanted.unwrap_or(0), other.unwrap_or(0));
    ensure!(
        wanted > 10 && other < wanted / 10,
        "{wanted} of the wanted kind of handshake, {other} of the other"
    );
    Ok((wanted + other) as f64)
}

/// Connections with a ticket of TLS 1.3 in one round.
pub(super) const WITH_TICKET: usize = 40;

/// Makes a connection to get a ticket, and [`WITH_TICKET`] with it, each by a process of its own. How many there were.
fn resumed_by_ticket(target: SocketAddr) -> Result<f64> {
    let file = std::env::temp_dir().join(format!("conncept-bench-session-{}", target.port()));
    fs::remove_file(&file).ok();
    let mut first = Idle::start(
        target,
        &["-tls1_3", "-sess_out", &file.display().to_string()],
    )?;
    // The ticket comes before the answer.
    first.ask()?;
    drop(first);
    for _ in 0..WITH_TICKET {
        alone(target, &["-sess_in", &file.display().to_string()], "Reused")?;
    }
    fs::remove_file(&file).ok();
    Ok((WITH_TICKET + 1) as f64)
}

/// As many connections as with a ticket of TLS 1.3, made in the same way, without one. How many.
pub(super) fn full_alone(target: SocketAddr) -> Result<f64> {
    loopback(target)?;
    for _ in 0..=WITH_TICKET {
        alone(target, &[], "New")?;
    }
    Ok((WITH_TICKET + 1) as f64)
}

/// One connection of a process of its own: a handshake and no more, of the kind that openssl calls `kind`.
fn alone(target: SocketAddr, options: &[&str], kind: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_3", "-connect", &target.to_string()]);
    let said = output(command.args(options).stdin(Stdio::null()))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(
        said.contains(&format!("{kind}, TLSv1.3")),
        "not a handshake of the kind {kind:?}"
    );
    Ok(())
}

/// A connection over TLS that stays open until this value is dropped.
pub(super) struct Idle(Child);

impl Idle {
    pub(super) fn start(target: SocketAddr, options: &[&str]) -> Result<Self> {
        loopback(target)?;
        let client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &target.to_string()])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run openssl; apt-get install openssl")?;
        Ok(Self(client))
    }

    /// Sends the question and waits for the answer.
    pub(super) fn ask(&mut self) -> Result<()> {
        let input = self.0.stdin.as_mut().context("stdin")?;
        input.write_all(&QUESTION)?;
        let output = self.0.stdout.as_mut().context("stdout")?;
        output
            .read_exact(&mut [0; ANSWER.len()])
            .context("waiting for the answer over TLS")
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many of `kinds` a line of nothing but marks holds.
fn marks(line: &str, kinds: &str) -> usize {
    if line.is_empty() || line.contains(|c| !"r*t.".contains(c)) {
        return 0;
    }
    line.chars().filter(|c| kinds.contains(*c)).count()
}

/// Sends `order` and reads the answer to its end. How long it was.
pub(super) fn download(target: SocketAddr, order: &[u8]) -> Result<u64> {
    loopback(target)?;
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &target.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run openssl; apt-get install openssl")?;
    let mut input = client.stdin.take().context("stdin")?;
    input.write_all(order)?;
    let mut output = client.stdout.take().context("stdout")?;
    let length = std::io::copy(&mut output, &mut std::io::sink())?;
    drop(input);
    client.wait()?;
    Ok(length)
}

fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .context("cannot run openssl; apt-get install openssl")?;
    ensure!(
        output.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}
