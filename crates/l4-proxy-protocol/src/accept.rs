//! The handler `proxy_protocol`: takes the header off and lets it say who the client is.

use std::time::Duration;

use bytes::Bytes;
use l4_core::config::IpRanges;
use l4_core::conn::{DatagramFilter, Filtered, Received};
use l4_core::prelude::*;
use l4_core::{Addr, EndReason, Error, Phase, Side, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;
use thiserror::Error as ThisError;
use tracing::debug;

use crate::guard::Guard;
use crate::header::{Header, HeaderError, Parsed, beginning, parse};

/// The `proxy_protocol` handler.
pub struct AcceptProxyProtocol {
    timeout: Option<Duration>,
    allow: IpRanges,
    deny: IpRanges,
    /// For those on neither list.
    fallback: Policy,
}

/// Receives a PROXY protocol header, version 1 or 2, in front of a stream or of each datagram, as load balancers send it
/// to say who the client is. What follows it is what later routes and handlers see, and the addresses it names are the
/// connection's from then on: for `remote_ip` and `local_ip`, `ip_hash`, and the header that `proxy` sends.
///
/// Anybody can send a header. List those who may in `allow`, unless nobody else can connect.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptConfig {
    /// How long to wait for a header. A client that has sent none by then, or that waits for the server to speak, goes
    /// on without; a header that has begun must be complete. 0 is no limit. Default: `"10s"`.
    #[serde(default)]
    timeout: Option<GoDuration>,
    /// Whose headers are believed: addresses and prefixes, such as `"10.0.0.0/8"`; `"private_ranges"` stands for the
    /// private and loopback ones. Global placeholders are filled in at load. Default: everybody's, unless `deny` or
    /// `fallback_policy` is given.
    #[serde(default)]
    allow: Option<Vec<At<String>>>,
    /// Who may not send a header, written as in `allow`, which it precedes. A connection of theirs that begins with one
    /// is closed. Default: nobody.
    #[serde(default)]
    deny: Option<Vec<At<String>>>,
    /// What those get who are on neither list, in any case: `"IGNORE"` takes a header off and keeps the addresses,
    /// `"USE"` believes it, `"REQUIRE"` closes a connection without, `"REJECT"` closes one with, `"SKIP"` leaves it in
    /// front of the bytes. Default: `"IGNORE"` with `allow` or `deny`, else `"USE"`.
    #[serde(default)]
    #[schemars(extend("examples" = ["IGNORE", "USE", "REQUIRE", "REJECT", "SKIP"]))]
    fallback_policy: Option<At<String>>,
}

/// What is done about a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Taken off if there is one, and disregarded.
    Ignore,
    /// Taken off if there is one, and believed.
    Use,
    /// There must be none.
    Reject,
    /// There must be one, and it is believed.
    Require,
    /// Nobody looks.
    Skip,
}

/// Why a connection is closed.
#[derive(Debug, ThisError)]
enum Refused {
    #[error("PROXY header: {0}")]
    Malformed(HeaderError),
    #[error("PROXY header: truncated: the stream ended")]
    Ended,
    #[error("PROXY header: truncated: not complete within {0:?}")]
    Late(Duration),
    #[error("PROXY header: truncated: it does not fit the datagram")]
    Datagram,
    #[error("PROXY header required but not received")]
    Missing,
    #[error("PROXY header: not allowed from {0}")]
    NotAllowed(Addr),
}

impl HandlerModule for AcceptProxyProtocol {
    const NAME: &'static str = "proxy_protocol";
    type Config = AcceptConfig;

    fn provision(config: AcceptConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let timeout = match config.timeout {
            // As in the reference, less than nothing is no limit.
            Some(timeout) => timeout.positive(),
            None => Some(DEFAULT_TIMEOUT),
        };
        let listed = config.allow.is_some() || config.deny.is_some();
        let allow = ranges(config.allow.unwrap_or_default(), cx);
        let deny = ranges(config.deny.unwrap_or_default(), cx);
        let fallback = match config.fallback_policy {
            Some(policy) => Policy::provision(&policy, cx)?,
            None => None,
        };
        Ok(Self {
            timeout,
            allow: allow?,
            deny: deny?,
            fallback: fallback.unwrap_or(if listed { Policy::Ignore } else { Policy::Use }),
        })
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl Policy {
    /// The policy of that name; the empty one is as good as none.
    fn provision(name: &At<String>, cx: &mut Provision<'_>) -> Result<Option<Self>, Rejected> {
        Ok(Some(match name.to_ascii_uppercase().as_str() {
            "" => return Ok(None),
            "IGNORE" => Self::Ignore,
            "USE" => Self::Use,
            "REJECT" => Self::Reject,
            "REQUIRE" => Self::Require,
            "SKIP" => Self::Skip,
            _ => {
                return Err(cx.reject_help(
                    name.node(),
                    format!("{} is invalid policy", **name),
                    "write one of IGNORE, USE, REJECT, REQUIRE, SKIP",
                ));
            }
        }))
    }
}

fn ranges(texts: Vec<At<String>>, cx: &mut Provision<'_>) -> Result<IpRanges, Rejected> {
    let texts = cx.all(&texts, |cx, text| {
        let expanded = cx.expand_load(text)?;
        match IpRanges::parse([expanded.as_str()]) {
            Ok(_) => Ok(expanded),
            Err((_, why)) => Err(cx.reject_help(
                text.node(),
                why,
                "write an address or a prefix, such as \"192.0.2.1\" or \"10.0.0.0/8\", or \"private_ranges\"",
            )),
        }
    })?;
    IpRanges::parse(texts.iter().map(String::as_str)).map_err(|(_, why)| cx.reject(cx.node(), why))
}

impl AsyncHandler for AcceptProxyProtocol {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let policy = self.policy(&conn);
        let header = match policy {
            Policy::Skip => return Ok(Flow::Next(conn)),
            Policy::Reject => return self.reject(conn).await,
            Policy::Use | Policy::Require | Policy::Ignore => match conn.is_datagram() {
                true => self.of_datagram(&mut conn).await?,
                false => self.of_stream(&mut conn).await?,
            },
        };
        match header {
            None if policy == Policy::Require => return Err(refused(&conn, Refused::Missing)),
            None => debug!(target: LOG, conn = conn.record().id(), "no PROXY header received"),
            Some(header) => {
                debug!(target: LOG, conn = conn.record().id(), version = ?header.version, ?policy, "received PROXY header");
                if policy != Policy::Ignore {
                    if let Some(addresses) = &header.addresses {
                        conn.set_addresses(addresses.source.clone(), addresses.destination.clone());
                    }
                    conn.set_extension(header);
                }
            }
        }
        debug!(
            target: LOG, conn = conn.record().id(), remote = %conn.remote(), local = %conn.local(), "connection established"
        );
        Ok(Flow::Next(match conn.is_datagram() {
            true => conn.filter_datagrams(EachDatagram(policy)),
            false => conn,
        }))
    }
}

pub(crate) const LOG: &str = "layer4.handlers.proxy_protocol";

impl AcceptProxyProtocol {
    /// What is done about a header of `conn`. It depends on the effective address: that of the last sender, where one
    /// load balancer stands behind another.
    fn policy(&self, conn: &Connection) -> Policy {
        let Some(ip) = conn.remote().ip() else {
            // Who may connect to a Unix socket is for the file system to say.
            return Policy::Use;
        };
        if self.deny.contains(ip) {
            return Policy::Reject;
        }
        if self.allow.contains(ip) {
            return Policy::Use;
        }
        if !self.allow.is_empty() {
            debug!(
                target: LOG, conn = conn.record().id(), remote = %conn.remote(), fallback_policy = ?self.fallback,
                "untrusted party not allowed"
            );
        }
        self.fallback
    }

    /// Takes the header off a stream. `None`: it begins with something else, or with nothing in time.
    async fn of_stream(&self, conn: &mut Connection) -> Result<Option<Header>> {
        let receiving = async {
            loop {
                match parse(conn.unread()) {
                    Parsed::NotAHeader => return Ok(None),
                    Parsed::Complete(header, length) => {
                        conn.consume(length);
                        return Ok(Some(header));
                    }
                    Parsed::Malformed(error) => {
                        return Err(refused(conn, Refused::Malformed(error)));
                    }
                    Parsed::More => {}
                }
                if conn.fill().await? == Received::End {
                    return without_the_rest(conn, Refused::Ended);
                }
            }
        };
        match self.timeout {
            None => receiving.await,
            // What was read so far stays unread: `fill` is cancel safe.
            Some(limit) => match tokio::time::timeout(limit, receiving).await {
                Ok(received) => received,
                Err(_) => without_the_rest(conn, Refused::Late(limit)),
            },
        }
    }

    /// Reads the header of the first datagram, and leaves it there for [`EachDatagram`].
    async fn of_datagram(&self, conn: &mut Connection) -> Result<Option<Header>> {
        if conn.datagrams().next().is_none() {
            let receiving = conn.fill();
            let received = match self.timeout {
                None => receiving.await?,
                Some(limit) => match tokio::time::timeout(limit, receiving).await {
                    Ok(received) => received?,
                    Err(_) => Received::End,
                },
            };
            if received == Received::End {
                return Ok(None);
            }
        }
        match parse(conn.unread()) {
            Parsed::Complete(header, _) => Ok(Some(header)),
            Parsed::NotAHeader => Ok(None),
            Parsed::More => without_the_rest(conn, Refused::Datagram),
            Parsed::Malformed(error) => Err(refused(conn, Refused::Malformed(error))),
        }
    }

    /// Closes the connection if it begins with a header, now or when its first bytes come. It is not kept waiting: it may
    /// be one on which the server speaks first.
    async fn reject(&self, conn: Connection) -> Result<Flow> {
        if conn.is_datagram() {
            if conn
                .datagrams()
                .any(|datagram| beginning(datagram) == Verdict::Match)
            {
                let sender = conn.remote().clone();
                return Err(refused(&conn, Refused::NotAllowed(sender)));
            }
            return Ok(Flow::Next(
                conn.filter_datagrams(EachDatagram(Policy::Reject)),
            ));
        }
        match beginning(conn.unread()) {
            Verdict::No => Ok(Flow::Next(conn)),
            Verdict::Match => {
                let sender = conn.remote().clone();
                Err(refused(&conn, Refused::NotAllowed(sender)))
            }
            Verdict::More(_) => {
                let (id, timeout) = (conn.record().id(), self.timeout);
                let guarded = conn.layer(|below| async move { Ok(Guard::new(below, id, timeout)) });
                Ok(Flow::Next(guarded.await?))
            }
        }
    }
}

/// No more bytes come: is what there is the beginning of a header, or something else?
fn without_the_rest(conn: &Connection, why: Refused) -> Result<Option<Header>> {
    match beginning(conn.unread()) {
        Verdict::Match => Err(refused(conn, why)),
        Verdict::No | Verdict::More(_) => Ok(None),
    }
}

fn refused(conn: &Connection, why: Refused) -> Error {
    let message = match why {
        Refused::NotAllowed(_) => "connection rejected by policy",
        _ => "policy check in handler failed",
    };
    debug!(target: LOG, conn = conn.record().id(), remote = %conn.remote(), error = %why, "{message}");
    Error::new(Side::Client, Phase::Handshake, EndReason::ClientError, why)
}

/// Takes the header off every datagram: senders put it in front of each.
struct EachDatagram(Policy);

impl DatagramFilter for EachDatagram {
    fn filter(&mut self, datagram: Bytes) -> Filtered {
        if self.0 == Policy::Reject {
            return match beginning(&datagram) {
                Verdict::Match => {
                    debug!(target: LOG, "connection rejected in handler by policy");
                    Filtered::End
                }
                _ => Filtered::Pass(datagram),
            };
        }
        match parse(&datagram) {
            Parsed::Complete(_, length) => {
                Filtered::Pass(datagram.slice(length.min(datagram.len())..))
            }
            Parsed::Malformed(error) => {
                debug!(target: LOG, %error, "datagram with a malformed PROXY header dropped");
                Filtered::Drop
            }
            Parsed::More if beginning(&datagram) == Verdict::Match => {
                debug!(target: LOG, "datagram with a truncated PROXY header dropped");
                Filtered::Drop
            }
            _ if self.0 == Policy::Require => {
                debug!(target: LOG, "datagram without a PROXY header dropped");
                Filtered::Drop
            }
            _ => Filtered::Pass(datagram),
        }
    }
}
