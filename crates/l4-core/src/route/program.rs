//! A route list, compiled.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout};
use tracing::{debug, trace, warn};

use super::index::Index;
use super::{DEFAULT_MATCHING_TIMEOUT, Sets};
use crate::config::{GoDuration, ModuleMap, Node, Raw};
use crate::conn::{MATCH_LIMIT, Received};
use crate::matcher::{Cost, Verdict, View};
use crate::provision::{Provision, Rejected};
use crate::registry::{Handlers, Matchers};
use crate::schema::{InlineOf, MapOf};
use crate::{Connection, EndReason, Flow, Handler, Rest, Result};

/// One route: when `match` says so, run `handle`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Matcher sets. One of them must match; within a set all matchers must. Absent, `null`, `[]` and `[{}]` match
    /// every connection. Default: every connection.
    #[serde(rename = "match", default)]
    #[schemars(with = "Option<Vec<Option<MapOf<Matchers>>>>")]
    matcher_sets: Option<Vec<Option<ModuleMap>>>,
    /// Handlers, run in this order. A route without handlers matches and does nothing; matching goes on behind it.
    /// Default: none.
    #[serde(default)]
    #[schemars(with = "Option<Vec<InlineOf<Handlers>>>")]
    handle: Option<Vec<Raw>>,
}

/// A route list, compiled.
pub struct Program {
    routes: Vec<Route>,
    index: Index,
    matching_timeout: Duration,
}

struct Route {
    sets: Sets,
    /// Matches whatever comes, without looking.
    always: bool,
    chain: Vec<Box<dyn Handler>>,
    /// The position in the configuration, such as `1` or `1.0` inside a subroute.
    name: Arc<str>,
}

/// Where a walk over the list came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Routed {
    /// Every earlier route said no and this one matches.
    Take(usize),
    /// This route is the first undecided one; at least so many more bytes are needed.
    Undecided {
        /// The route.
        route: usize,
        /// Bytes, at least 1.
        more: usize,
    },
    /// All said no.
    Exhausted,
}

impl Program {
    /// Compiles a list of routes. `matching_timeout` absent, zero or negative is 3 s.
    ///
    /// # Errors
    /// A route was refused; the errors of all were reported.
    pub fn provision(
        routes: &[Raw],
        matching_timeout: Option<GoDuration>,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let nodes: Vec<Node> = routes.iter().map(Raw::node).collect();
        let routes = cx.all(nodes.iter().enumerate(), |cx, (i, node)| {
            Route::provision(i, *node, cx)
        })?;
        let mut unreachable_after = None;
        for (i, (route, node)) in routes.iter().zip(nodes).enumerate() {
            if let Some(by) = unreachable_after {
                cx.warn(
                    node,
                    format!("this route can never be reached: route {by} takes everything"),
                );
            } else if route.always && route.is_terminal() {
                unreachable_after = Some(i);
            }
        }
        let matching_timeout = matching_timeout.and_then(|t| t.positive());
        Ok(Self::new(
            routes,
            matching_timeout.unwrap_or(DEFAULT_MATCHING_TIMEOUT),
        ))
    }

    /// A list of routes that exist already: sets and handlers.
    pub fn from_routes(
        routes: Vec<(Sets, Vec<Box<dyn Handler>>)>,
        matching_timeout: Duration,
    ) -> Self {
        let routes = routes
            .into_iter()
            .enumerate()
            .map(|(i, (sets, chain))| Route {
                always: sets.always(),
                sets,
                chain,
                name: i.to_string().into(),
            });
        Self::new(routes.collect(), matching_timeout)
    }

    fn new(routes: Vec<Route>, matching_timeout: Duration) -> Self {
        let index = Index::new(routes.iter().map(|route| {
            let keys = if route.always {
                None
            } else {
                route.sets.keys()
            };
            (keys, route.sets.spans_datagrams())
        }));
        Self {
            routes,
            index,
            matching_timeout,
        }
    }

    /// How many routes the list has.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// How long it waits for the bytes that decide it.
    pub fn matching_timeout(&self) -> Duration {
        self.matching_timeout
    }

    /// The route that takes every connection, if a silent client reaches it only after the matching timeout.
    pub fn catch_all_behind_bytes(&self) -> Option<usize> {
        // A catch-all that sets variables and lets the connection go on takes nothing.
        let catch_all = self
            .routes
            .iter()
            .position(|route| route.always && route.is_terminal())
            .or_else(|| self.routes.iter().rposition(|route| route.always))?;
        let waits = self.routes[..catch_all]
            .iter()
            .any(|route| route.sets.cost() > Cost::Meta);
        waits.then_some(catch_all)
    }

    /// Walks the list from route `base` over the bytes received so far. With `last` no more can come: what is undecided
    /// counts as no and is added to `undecided`.
    ///
    /// Pure: nothing is read, no handler runs.
    pub fn step(
        &self,
        view: &mut View<'_>,
        base: usize,
        last: bool,
        undecided: &mut Vec<usize>,
    ) -> Routed {
        let mut candidates = self.index.candidates(base);
        while let Some(i) = candidates.next(view, last) {
            match self.routes[i].matches(view) {
                Verdict::Match => return Routed::Take(i),
                Verdict::No => {}
                Verdict::More(_) if last => undecided.push(i),
                Verdict::More(more) => {
                    return Routed::Undecided {
                        route: i,
                        more: more.max(1),
                    };
                }
            }
        }
        Routed::Exhausted
    }

    /// The same walk without the index: what the index must agree with.
    #[doc(hidden)]
    pub fn step_linear(&self, view: &mut View<'_>, base: usize, last: bool) -> Routed {
        for (i, route) in self.routes.iter().enumerate().skip(base) {
            match route.matches(view) {
                Verdict::Match => return Routed::Take(i),
                Verdict::More(more) if !last => {
                    return Routed::Undecided {
                        route: i,
                        more: more.max(1),
                    };
                }
                Verdict::No | Verdict::More(_) => {}
            }
        }
        Routed::Exhausted
    }

    /// Matches and handles `conn` until a terminal handler ends it or the list does.
    ///
    /// `Flow::Next` gives back a connection that ran off the end of the list. A list that could not be decided in time,
    /// and in which no catch-all took the connection in the last pass, ends it.
    ///
    /// # Errors
    /// Those of the handlers.
    pub fn run(&self, conn: Connection) -> impl Future<Output = Result<Flow>> + Send {
        self.walk(conn, false)
    }

    /// As [`run`](Self::run), for somebody who has a use for what no route takes: `Flow::Next` gives back a connection
    /// that the list could not be decided for, too, unless its client is gone.
    ///
    /// # Errors
    /// Those of the handlers.
    pub(crate) fn offer(&self, conn: Connection) -> impl Future<Output = Result<Flow>> + Send {
        self.walk(conn, true)
    }

    async fn walk(&self, mut conn: Connection, give_back: bool) -> Result<Flow> {
        let mut base = 0;
        let mut patience = self.matching_timeout;
        loop {
            let taken = match self.decide(&mut conn, base, &mut patience).await {
                Decision::Take(i) => i,
                Decision::Exhausted => return Ok(Flow::Next(conn)),
                Decision::GaveUp(reason) if give_back && is_there(&conn, reason) => {
                    return Ok(Flow::Next(conn));
                }
                Decision::GaveUp(reason) => {
                    conn.end(reason);
                    return Ok(Flow::Done);
                }
            };
            let route = &self.routes[taken];
            conn.record().set_route(route.name.clone());
            debug!(
                target: "layer4",
                conn = conn.record().id(), route = &*route.name, "route matched"
            );
            match Rest::new(&route.chain).run(conn).await? {
                Flow::Next(next) => conn = next,
                Flow::Done => return Ok(Flow::Done),
            }
            base = taken + 1;
        }
    }

    /// Waits until the list from `base` on is decided. Only time spent waiting for bytes is taken from `patience`.
    async fn decide(
        &self,
        conn: &mut Connection,
        base: usize,
        patience: &mut Duration,
    ) -> Decision {
        let (route, mut more) = match self.step_on(conn, base) {
            Routed::Take(i) => return Decision::Take(i),
            Routed::Exhausted => return Decision::Exhausted,
            Routed::Undecided { route, more } => (route, more),
        };
        // Routes before the first undecided one have said no for good.
        let mut base = route;
        let reason = loop {
            let target = conn.unread().len().saturating_add(more);
            match wait_for(conn, target, patience).await {
                Ok(None) => {}
                Ok(Some(reason)) => break reason,
                // Nobody is there any more: a catch-all would dial an upstream for nothing.
                Err(error) => return gone(conn, &error),
            }
            match self.step_on(conn, base) {
                Routed::Take(i) => return Decision::Take(i),
                Routed::Exhausted => return Decision::Exhausted,
                Routed::Undecided { route, more: n } => (base, more) = (route, n),
            }
        };
        self.decide_finally(conn, base, reason)
    }

    fn step_on(&self, conn: &mut Connection, base: usize) -> Routed {
        let routed = self.step(&mut View::new(conn.inner()), base, false, &mut Vec::new());
        trace!(
            target: "layer4",
            conn = conn.record().id(), bytes = conn.unread().len(), ?routed, "matching"
        );
        routed
    }

    /// The last pass: no more bytes can come.
    fn decide_finally(&self, conn: &mut Connection, base: usize, reason: Undecided) -> Decision {
        let mut undecided = Vec::new();
        let routed = self.step(&mut View::new(conn.inner()), base, true, &mut undecided);
        let undecided: SmallVec<[&str; 4]> = undecided
            .iter()
            .take(16)
            .map(|i| &*self.routes[*i].name)
            .collect();
        let (id, remote) = (conn.record().id(), conn.record().remote());
        let error = reason.as_str();
        if matches!(reason, Undecided::BufferFull) {
            warn!(target: "layer4", conn = id, %remote, error, ?undecided, "matching connection");
        } else {
            debug!(target: "layer4", conn = id, %remote, error, ?undecided, "matching connection");
        }
        match routed {
            Routed::Take(i) => Decision::Take(i),
            _ => Decision::GaveUp(reason.end_reason()),
        }
    }
}

impl Route {
    fn provision(i: usize, node: Node, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let config: RouteConfig = cx.decode_sound(node)?;
        let outer = cx.enter_route(i);
        let name = cx.route_name().into();
        let sets = Sets::provision(&config.matcher_sets.unwrap_or_default(), cx);
        // Of a condition that was refused nothing is known; it is not complained about twice.
        let asks = sets.as_ref().map_or(true, Sets::ask_for_bytes);
        let chain = cx.behind(asks, |cx| {
            cx.all(config.handle.unwrap_or_default(), |cx, handler| {
                cx.inline::<Handlers>(handler.node(), "handler")
            })
        });
        cx.leave_route(outer);
        let (sets, chain) = (sets?, chain?);
        Ok(Self {
            always: sets.always(),
            sets,
            chain,
            name,
        })
    }

    fn matches(&self, view: &mut View<'_>) -> Verdict {
        if self.always {
            Verdict::Match
        } else {
            self.sets.any(view)
        }
    }

    fn is_terminal(&self) -> bool {
        self.chain.iter().any(|handler| handler.is_terminal())
    }
}

enum Decision {
    Take(usize),
    Exhausted,
    GaveUp(EndReason),
}

/// Why no more bytes can come.
#[derive(Debug, Clone, Copy)]
enum Undecided {
    Timeout,
    EndOfStream,
    BufferFull,
}

impl Undecided {
    fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "aborted matching according to timeout",
            Self::EndOfStream => "EOF",
            Self::BufferFull => "matching buffer is full",
        }
    }

    fn end_reason(self) -> EndReason {
        match self {
            Self::Timeout => EndReason::MatchTimeout,
            Self::EndOfStream => EndReason::MatchEof,
            Self::BufferFull => EndReason::MatchBufferFull,
        }
    }
}

/// Fills until `target` bytes are unread (one datagram on a session), or says why that will not happen.
///
/// What can be looked at ends at exactly [`MATCH_LIMIT`] bytes: were the last read allowed to go beyond, the outcome
/// would depend on how much that read happened to bring.
async fn wait_for(
    conn: &mut Connection,
    target: usize,
    patience: &mut Duration,
) -> io::Result<Option<Undecided>> {
    loop {
        let room = MATCH_LIMIT.saturating_sub(conn.held());
        if room == 0 {
            return Ok(Some(Undecided::BufferFull));
        }
        let filled = match fill_now(conn, room).await {
            Some(filled) => filled,
            None => {
                let started = Instant::now();
                // Boxed: a timer is as large as the rest of the task, which lives on while the connection is relayed.
                let filled = Box::pin(timeout(*patience, conn.fill_at_most(room))).await;
                *patience = patience.saturating_sub(started.elapsed());
                match filled {
                    Ok(filled) => filled,
                    Err(_) => return Ok(Some(Undecided::Timeout)),
                }
            }
        };
        match filled? {
            Received::End => return Ok(Some(Undecided::EndOfStream)),
            Received::Data(_) if conn.is_datagram() || conn.unread().len() >= target => {
                return Ok(None);
            }
            Received::Data(_) => {}
        }
    }
}

/// Whether the client may still want something, though no route could be found for it. One that has ended its stream
/// without a byte does not; one that sent something before waits for the answer.
fn is_there(conn: &Connection, reason: EndReason) -> bool {
    match reason {
        EndReason::MatchTimeout | EndReason::MatchBufferFull => true,
        EndReason::MatchEof => !conn.unread().is_empty(),
        _ => false,
    }
}

/// Fills with what is there already, if anything is: that needs no timer.
fn fill_now(
    conn: &mut Connection,
    room: usize,
) -> impl Future<Output = Option<io::Result<Received>>> {
    poll_fn(move |cx| {
        Poll::Ready(match pin!(conn.fill_at_most(room)).poll(cx) {
            Poll::Ready(filled) => Some(filled),
            Poll::Pending => None,
        })
    })
}

/// The client's side failed while matching. Quiet: resets are what port scans and health checks look like.
fn gone(conn: &Connection, error: &io::Error) -> Decision {
    let (id, remote) = (conn.record().id(), conn.record().remote());
    debug!(target: "layer4", conn = id, %remote, %error, "matching connection");
    Decision::GaveUp(match error.kind() {
        io::ErrorKind::ConnectionReset => EndReason::ClientReset,
        _ => EndReason::ClientError,
    })
}
