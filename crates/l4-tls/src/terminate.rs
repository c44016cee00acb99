//! The handler `tls`: ends the TLS of a client, so that what follows sees the plaintext.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use l4_core::conn::{MATCH_LIMIT, Received};
use l4_core::prelude::*;
use l4_core::{EndReason, Error, Phase, Side};
use rustls::pki_types::UnixTime;
use rustls::server::ServerConfig;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::app::TlsApp;
use crate::automate::Slot;
use crate::certs::{Certificates, Choice};
use crate::info::{Offered, agreed};
use crate::placeholders::version_name;
use crate::policy::{Policy, PolicyConfig};
use crate::route_program::leads_to_proxy;
use crate::stream::Sliced;
use crate::{ClientHello, HandshakeMatch};

/// How long a client may take for its handshake, unless configured.
pub(crate) const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Ends the TLS of a client with a certificate of the application `tls`. The handlers and routes that follow see the
/// plaintext.
///
/// ```json
/// {"handler": "tls", "connection_policies": [{"alpn": ["http/1.1"]}]}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TerminateConfig {
    /// How TLS is to be, by what the client says in its ClientHello. The first policy that matches counts; a client
    /// that none matches is refused. Default: one policy for everybody, with all defaults.
    #[serde(default)]
    #[schemars(with = "Option<Vec<PolicyConfig>>")]
    connection_policies: Option<Vec<RawNode>>,
    /// How long the handshake may take. 0 is no limit. Default: `"10s"`.
    #[serde(default)]
    handshake_timeout: Option<At<GoDuration>>,
}

/// The handler `tls`.
pub(crate) struct TlsTerminate {
    certificates: Arc<Certificates>,
    policies: Vec<Policy>,
    timeout: Option<Duration>,
}

impl HandlerModule for TlsTerminate {
    const NAME: &'static str = "tls";
    type Config = TerminateConfig;
    // There is no DTLS here.
    const STREAMS_ONLY: bool = true;

    fn provision(config: TerminateConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let timeout = cx.time_limit(config.handshake_timeout, DEFAULT_HANDSHAKE_TIMEOUT);
        let app = cx.app::<TlsApp>();
        let resumption = app.as_ref().map(|app| app.resumption).unwrap_or_default();
        let policies = cx.all(config.connection_policies.unwrap_or_default(), |cx, raw| {
            let config = cx.decode(raw.node())?;
            Policy::provision(config, resumption, cx)
        });
        let mut policies = policies?;
        if policies.is_empty() {
            policies.push(Policy::provision(PolicyConfig::default(), resumption, cx)?);
        }
        let (app, timeout) = (app?, timeout?);
        let certificates = app.for_handler(cx)?;
        if policies.iter().any(|policy| policy.lenient_alpn)
            && leads_to_proxy(cx.document(), cx.node())
        {
            let node = cx.node();
            cx.warn(
                node,
                "without alpn, h2 is agreed on with clients that offer it, whatever the upstream of the proxy speaks: \
                 set alpn in connection_policies, such as [\"http/1.1\"]",
            );
        }
        Ok(Self {
            certificates,
            policies,
            timeout,
        })
    }
}

impl AsyncHandler for TlsTerminate {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        if conn.is_datagram() {
            // Loading has said so to whoever can change it; what datagrams hold is up to their senders.
            return Err(Error::client(
                Phase::Handshake,
                "TLS needs a stream; there is no DTLS",
            ));
        }
        let terminated = match self.timeout {
            Some(limit) => tokio::time::timeout(limit, self.terminate(conn))
                .await
                .map_err(|_| {
                    Error::new(
                        Side::Client,
                        Phase::Handshake,
                        EndReason::HandshakeTimeout,
                        "the TLS handshake took too long",
                    )
                })?,
            None => self.terminate(conn).await,
        };
        terminated.map(Flow::Next)
    }
}

impl TlsTerminate {
    async fn terminate(&self, mut conn: Connection) -> Result<Connection> {
        let config = match read_hello(&mut conn).await {
            Ok(()) => self.config(&mut conn).await,
            Err(refusal) => Err(refusal),
        };
        let config = match config {
            Ok(config) => config,
            Err(Refusal { alert, why }) => {
                if let Some(alert) = alert {
                    // The client is refused either way.
                    let _ = conn.write_all(&fatal(alert)).await;
                    let _ = conn.shutdown().await;
                }
                return Err(Error::client(Phase::Handshake, why));
            }
        };
        let offered = conn.known_fact::<ClientHello>().cloned().map(Offered);
        let mut info = None;
        let mut conn = conn
            .layer(async |transport| {
                let stream = TlsAcceptor::from(config).accept(transport).await?;
                info = Some(agreed(stream.get_ref().1));
                io::Result::Ok(Sliced::new(stream))
            })
            .await
            .map_err(|error| Error::client(Phase::Handshake, error))?;
        if let Some(info) = info {
            debug!(
                conn = conn.record().id(),
                remote = %conn.remote(),
                server_name = info.server_name.as_deref().unwrap_or_default(),
                version = version_name(info.version),
                resumed = info.resumed,
                "terminated TLS",
            );
            // In place of an outer one: the innermost TLS is the one that placeholders speak of.
            conn.set_extension(info);
        }
        if let Some(offered) = offered {
            conn.set_extension(offered);
        }
        Ok(conn)
    }

    /// What the handshake is made with. Waits for a certificate that is being made for the first time, within the limit
    /// of the handshake: right after a start, a client should not be refused for having been too fast.
    async fn config(&self, conn: &mut Connection) -> Result<Arc<ServerConfig>, Refusal> {
        for verifier in self.policies.iter().filter_map(Policy::verifier) {
            verifier.refresh().await;
        }
        loop {
            match self.choose(conn)? {
                Chosen::Config(config) => return Ok(config),
                Chosen::Promised(slot) => slot.settled().await,
            }
        }
    }

    /// What the first policy that matches makes of the client's hello.
    fn choose(&self, conn: &mut Connection) -> Result<Chosen, Refusal> {
        conn.with_view(|view| {
            let mut captures = Vec::new();
            let Parsed::Done(hello) = view.fact::<ClientHello>() else {
                return Err(Refusal::internal("the hello is gone".to_owned()));
            };
            let policy = self.policies.iter().find(|policy| {
                captures.clear();
                let holds =
                    |member: &dyn HandshakeMatch| member.matches(hello, view, &mut captures);
                policy.matchers.iter().map(|member| &**member).all(holds)
            });
            let Some(policy) = policy else {
                return Err(Refusal::internal(format!(
                    "no connection policy is for server name {:?} and ALPN {}",
                    hello.server_name().unwrap_or_default(),
                    offered_protocols(hello),
                )));
            };
            if policy.drop {
                return Err(Refusal::internal("dropping connection".to_owned()));
            }
            // Most hellos carry a name, and then nobody asks the kernel for our address.
            let local: Option<IpAddr> = match hello.server_name() {
                None => view.local_ip(),
                Some(_) => None,
            };
            let chosen =
                self.certificates
                    .choose(hello, local, &policy.preferences, UnixTime::now());
            let certificate = match chosen {
                Choice::Found(certificate) => certificate,
                Choice::Promised(slot) => return Ok(Chosen::Promised(slot)),
                Choice::Nothing => {
                    return Err(Refusal::internal(format!(
                        "no certificate available for {:?}",
                        hello.server_name().unwrap_or_default(),
                    )));
                }
            };
            let Some(config) = policy.config(certificate.key.clone(), hello) else {
                return Err(Refusal {
                    alert: Some(NO_APPLICATION_PROTOCOL),
                    why: "the client offers only other protocols by ALPN".to_owned(),
                });
            };
            for capture in captures {
                view.capture(capture);
            }
            Ok(Chosen::Config(config))
        })
    }
}

/// The protocols of a hello for the log. The client chooses them, up to a length that fills a log: only the first are
/// named, escaped.
fn offered_protocols(hello: &ClientHello) -> String {
    const NAMED: usize = 8;
    const LENGTH: usize = 32;
    let mut names: Vec<String> = hello
        .alpn()
        .take(NAMED)
        .map(|name| match name.get(..LENGTH) {
            Some(begin) if name.len() > LENGTH => format!("\"{}…\"", begin.escape_ascii()),
            _ => format!("\"{}\"", name.escape_ascii()),
        })
        .collect();
    if hello.alpn().nth(NAMED).is_some() {
        names.push("…".to_owned());
    }
    format!("[{}]", names.join(", "))
}

/// What there is for a client's hello.
enum Chosen {
    Config(Arc<ServerConfig>),
    /// A certificate is being made.
    Promised(Arc<Slot>),
}

/// Waits until the client's hello is there; it stays unread.
async fn read_hello(conn: &mut Connection) -> Result<(), Refusal> {
    loop {
        match conn.with_view(|view| view.fact::<ClientHello>().map(|_| ())) {
            Parsed::Done(()) => return Ok(()),
            Parsed::Not => {
                let alert = match conn.unread().first() {
                    Some(&HANDSHAKE) => DECODE_ERROR,
                    _ => UNEXPECTED_MESSAGE,
                };
                return Err(Refusal {
                    alert: Some(alert),
                    why: "not a TLS ClientHello".to_owned(),
                });
            }
            Parsed::More(_) if conn.unread().len() > HELLO_LIMIT => {
                return Err(Refusal {
                    alert: Some(DECODE_ERROR),
                    why: "the ClientHello is cut into too many records".to_owned(),
                });
            }
            Parsed::More(_) => {}
        }
        match conn.fill().await {
            Ok(Received::Data(_)) => {}
            Ok(Received::End) => {
                return Err(Refusal {
                    alert: None,
                    why: "the client ended before its ClientHello was complete".to_owned(),
                });
            }
            Err(error) => {
                return Err(Refusal {
                    alert: None,
                    why: error.to_string(),
                });
            }
        }
    }
}

/// Why there will be no handshake, and what the client is told.
struct Refusal {
    alert: Option<u8>,
    why: String,
}

impl Refusal {
    fn internal(why: String) -> Self {
        Self {
            alert: Some(INTERNAL_ERROR),
            why,
        }
    }
}

/// An alert before any version was agreed on (RFC 8446 section 6); the record version is the one that every client
/// accepts there.
fn fatal(alert: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, alert]
}

/// The content type of records that carry handshake messages.
const HANDSHAKE: u8 = 22;
const UNEXPECTED_MESSAGE: u8 = 10;
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// A hello has at most 16 KiB; record headers may be added.
const HELLO_LIMIT: usize = 2 * MATCH_LIMIT;
