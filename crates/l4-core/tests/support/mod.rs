//! Matchers and handlers small enough to be understood at a glance, and a client that follows a script.

// Each test binary uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use l4_core::conn::Received;
use l4_core::prelude::*;
use l4_core::{Addr, EndReason, Record};
use l4_testkit::{Client, Router, connection, settle};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

/// A whole HTTP request head.
pub(crate) const HTTP: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
/// An SSH identification string.
pub(crate) const SSH: &[u8] = b"SSH-2.0-OpenSSH_9.6\r\n";

/// A record that has the shape of a ClientHello's: five bytes of header and 200 of body.
pub(crate) fn tls_record() -> Vec<u8> {
    let mut record = vec![0x16, 3, 1, 0, 200];
    record.resize(205, 0xAB);
    record
}

/// The modules below and those of `l4-std`.
pub(crate) fn register(reg: &mut Registry) {
    l4_std::register(reg);
    reg.origin(l4_core::origin!());
    reg.matcher::<Ssh>()
        .matcher::<Tls>()
        .matcher::<Http>()
        .matcher::<Xmpp>()
        .matcher::<Dns>()
        .matcher::<ProxyHeader>()
        .matcher::<Bug>();
    reg.handler::<EndTls>()
        .handler::<TakeProxyHeader>()
        .handler::<Sleep>()
        .handler::<Take>()
        .handler::<Panic>()
        .handler::<Fail>();
}

/// A module without options.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

macro_rules! matcher {
    ($(#[$doc:meta])* $type:ident, $name:literal, $matches:expr) => {
        $(#[$doc])*
        pub(crate) struct $type;

        impl MatcherModule for $type {
            const NAME: &'static str = $name;
            type Config = Empty;

            fn provision(_: Empty, _: &mut Provision<'_>) -> Result<Self, Rejected> {
                Ok(Self)
            }
        }

        impl Matcher for $type {
            fn matches(&self, view: &mut View<'_>) -> Verdict {
                let matches: fn(&[u8]) -> Verdict = $matches;
                matches(view.bytes())
            }
        }
    };
}

matcher!(Ssh, "ssh", |bytes| Verdict::prefix(bytes, b"SSH-"));
matcher!(ProxyHeader, "proxy_header", |bytes| Verdict::prefix(
    bytes, b"PROXY "
));
matcher!(
    /// One handshake record, whole.
    Tls,
    "tls",
    |bytes| match Verdict::prefix(bytes, &[0x16, 3]) {
        Verdict::Match if bytes.len() < 5 => Verdict::More(5 - bytes.len()),
        Verdict::Match => {
            let length = 5 + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            match length.saturating_sub(bytes.len()) {
                0 => Verdict::Match,
                missing => Verdict::More(missing),
            }
        }
        other => other,
    }
);
matcher!(
    /// A request head up to its empty line; refuses what cannot become a request line.
    Http,
    "http",
    |bytes| {
        let method = bytes
            .iter()
            .take_while(|b| b.is_ascii_uppercase())
            .count();
        let line_end = bytes.windows(2).position(|w| w == b"\r\n");
        let request = |line: &[u8]| line.ends_with(b" HTTP/1.1");
        if bytes.get(method).is_some_and(|b| *b != b' ' || method == 0)
            || line_end.is_some_and(|end| !request(&bytes[..end]))
        {
            Verdict::No
        } else if bytes.windows(4).any(|w| w == b"\r\n\r\n") {
            Verdict::Match
        } else {
            Verdict::More(1)
        }
    }
);
matcher!(
    /// Wants fifty bytes of what may begin with white space, but then with `<`.
    Xmpp,
    "xmpp",
    |bytes| match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'<') if bytes.len() >= 50 => Verdict::from_bool(bytes.windows(6).any(|w| w == b"jabber")),
        Some(b'<') => Verdict::More(50 - bytes.len()),
        Some(_) => Verdict::No,
        None => Verdict::More(1),
    }
);
matcher!(
    /// The header of a DNS query with one question.
    Dns,
    "dns",
    |bytes| match bytes.get(..12) {
        None => Verdict::More(12 - bytes.len()),
        Some(header) => Verdict::from_bool(header[2] & 0x80 == 0 && header[4..6] == [0, 1]),
    }
);
matcher!(
    /// Has a bug.
    Bug,
    "bug",
    |bytes| match bytes.len() {
        0 => Verdict::More(1),
        _ => panic!("a bug in a matcher"),
    }
);

macro_rules! handler {
    ($(#[$doc:meta])* $type:ident($config:ident), $name:literal) => {
        handler!($(#[$doc])* $type($config), $name, streams_only: false);
    };
    ($(#[$doc:meta])* $type:ident($config:ident), $name:literal, streams_only: $streams:literal) => {
        $(#[$doc])*
        pub(crate) struct $type($config);

        impl HandlerModule for $type {
            const NAME: &'static str = $name;
            type Config = $config;
            const STREAMS_ONLY: bool = $streams;

            fn provision(config: $config, _: &mut Provision<'_>) -> Result<Self, Rejected> {
                Ok(Self(config))
            }
        }
    };
}

/// How long a handler takes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pace {
    #[serde(default)]
    ms: u64,
}

handler!(
    /// Takes the four bytes `TLS!` and stacks a layer that passes the rest on.
    EndTls(Pace),
    "end_tls",
    streams_only: true
);

impl AsyncHandler for EndTls {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let layered = conn.layer(|mut below| async move {
            let mut handshake = [0; 4];
            below.read_exact(&mut handshake).await?;
            assert_eq!(&handshake, b"TLS!");
            tokio::time::sleep(Duration::from_millis(self.0.ms)).await;
            Ok(below)
        });
        Ok(Flow::Next(layered.await?))
    }
}

handler!(
    /// Takes a PROXY v1 line and adopts its source address.
    TakeProxyHeader(Empty),
    "take_proxy_header"
);

impl AsyncHandler for TakeProxyHeader {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let end = loop {
            if let Some(end) = conn.unread().iter().position(|b| *b == b'\n') {
                break end;
            }
            assert_ne!(conn.fill().await?, Received::End);
        };
        let line = String::from_utf8_lossy(&conn.unread()[..end]).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = |ip: &str, port: &str| Addr::Tcp(format!("{ip}:{port}").parse().unwrap());
        conn.consume(end + 1);
        conn.set_addresses(address(words[2], words[4]), address(words[3], words[5]));
        Ok(Flow::Next(conn))
    }
}

handler!(
    /// Does nothing, slowly.
    Sleep(Pace),
    "sleep"
);

impl AsyncHandler for Sleep {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        tokio::time::sleep(Duration::from_millis(self.0.ms)).await;
        Ok(Flow::Next(conn))
    }
}

/// How much to take.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amount {
    bytes: usize,
}

handler!(
    /// Takes exactly so many bytes of the stream.
    Take(Amount),
    "take"
);

impl AsyncHandler for Take {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        conn.read_exact(&mut vec![0; self.0.bytes]).await?;
        Ok(Flow::Next(conn))
    }
}

handler!(
    /// Has a bug.
    Panic(Empty),
    "panic"
);

impl AsyncHandler for Panic {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let _held = conn;
        tokio::task::yield_now().await;
        panic!("a bug in a handler")
    }
}

/// Whose fault it is.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Blame {
    client: bool,
}

handler!(
    /// Fails.
    Fail(Blame),
    "fail"
);

impl AsyncHandler for Fail {
    async fn handle(&self, _: Connection, _: Rest<'_>) -> Result<Flow> {
        use l4_core::{Error, Phase, Side};
        Err(if self.0.client {
            Error::client(Phase::Handshake, "bad greeting")
        } else {
            let reason = EndReason::DialFailed;
            Error::new(Side::Upstream, Phase::Dial, reason, "nobody there")
        })
    }
}

/// What a client does, step by step. Behind the last one it only listens.
pub(crate) enum Do<'a> {
    Send(&'a [u8]),
    Wait(u64),
    EndStream,
    Vanish,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What the client received before the server ended its direction.
    pub(crate) answer: String,
    /// When that was, by the paused clock.
    pub(crate) after: Duration,
    pub(crate) record: Arc<Record>,
}

impl Outcome {
    pub(crate) fn reason(&self) -> EndReason {
        self.record.end_reason().unwrap()
    }

    pub(crate) fn route(&self) -> Option<String> {
        self.record.route().map(|name| name.to_string())
    }
}

/// A route that answers with `name`.
pub(crate) fn says(matchers: &str, name: &str) -> String {
    format!(r#"{{"match": {matchers}, "handle": [{{"handler": "respond", "body": "{name}"}}]}}"#)
}

/// A router over the modules of [`register`].
pub(crate) fn router(routes: &[String]) -> Router {
    Router::new(register, &format!("[{}]", routes.join(",")))
}

/// Runs one in-memory connection through `routes`.
pub(crate) async fn play(routes: &[String], script: &[Do<'_>]) -> Outcome {
    let (conn, client) = connection(256 * 1024);
    play_on(&router(routes), conn, client, script).await
}

/// Runs `conn` through `router`.
pub(crate) async fn play_on(
    router: &Router,
    conn: Connection,
    client: Client,
    script: &[Do<'_>],
) -> Outcome {
    let started = Instant::now();
    let (record, task) = router.serve(conn);
    settle().await;
    let mut client = Some(client);
    for step in script {
        let open = client.as_mut().unwrap();
        match step {
            // The server may have hung up already, which the answer shows.
            Do::Send(bytes) => drop(open.write_all(bytes).await),
            Do::Wait(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Do::EndStream => open.shutdown().await.unwrap(),
            Do::Vanish => {
                client = None;
                break;
            }
        }
        settle().await;
    }
    let mut answer = String::new();
    if let Some(client) = &mut client {
        client.read_to_string(&mut answer).await.unwrap();
    }
    let after = started.elapsed();
    task.await.unwrap();
    Outcome {
        answer,
        after,
        record,
    }
}
