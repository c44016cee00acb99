//! Routes as data: what the oracle walks over, and what the engine is built from.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use l4_core::conn::{Capture, Record};
use l4_core::prelude::*;
use l4_core::route::Sets;
use l4_core::{Addr, Dimension, EndReason, Handler, Io, Keys, Program};
use l4_testkit::CLIENT;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// A matcher, as data. All are prefix-monotone and ask for no more than they need.
#[derive(Clone, Debug)]
pub(crate) enum Model {
    /// The stream begins with this.
    Begins(Vec<u8>),
    /// The byte at this offset is that.
    Byte(usize, u8),
    /// The first byte gives a length; the byte at its end is that.
    Length(u8),
    /// This byte is among the first so many.
    Within(u8, usize),
    /// Needs no bytes.
    Fixed(bool),
    /// The first line is a name, and one of these stands for it. The flag: waits for further datagrams.
    Line(Vec<String>, bool),
    /// The second byte is a name, and one of these.
    Second(Vec<String>),
    /// Captures under this number when the inner one matches.
    Captures(usize, Box<Self>),
    Not(Vec<Vec<Self>>),
}

/// The first line, if it is a name: letters `a`, `b` and dots, at most ten bytes.
pub(crate) struct Line;
/// The second byte, if it is a letter.
pub(crate) struct Second;

/// `Ok` the name, `Err` why there is none (yet).
pub(crate) fn line(bytes: &[u8]) -> std::result::Result<&str, Verdict> {
    for (i, byte) in bytes.iter().enumerate().take(11) {
        match byte {
            b'\n' => return std::str::from_utf8(&bytes[..i]).map_err(|_| Verdict::No),
            b'a' | b'b' | b'.' => {}
            _ => return Err(Verdict::No),
        }
    }
    Err(if bytes.len() > 10 {
        Verdict::No
    } else {
        Verdict::More(1)
    })
}

pub(crate) fn second(bytes: &[u8]) -> std::result::Result<&str, Verdict> {
    match bytes.get(1) {
        None => Err(Verdict::More(2 - bytes.len())),
        Some(b'a') => Ok("a"),
        Some(b'b') => Ok("b"),
        Some(_) => Err(Verdict::No),
    }
}

impl Dimension for Line {
    fn name(&self) -> &'static str {
        "line"
    }

    fn probe(&self, view: &View<'_>, name: &mut String) -> Verdict {
        match line(view.bytes()) {
            Ok(found) => {
                name.push_str(found);
                Verdict::Match
            }
            Err(verdict) => verdict,
        }
    }
}

impl Dimension for Second {
    fn name(&self) -> &'static str {
        "second"
    }

    fn probe(&self, view: &View<'_>, name: &mut String) -> Verdict {
        match second(view.bytes()) {
            Ok(found) => {
                name.push_str(found);
                Verdict::Match
            }
            Err(verdict) => verdict,
        }
    }
}

/// Leading labels `*` stand for one label each.
pub(crate) fn stands_for(key: &str, name: &str) -> bool {
    let (key, name): (Vec<&str>, Vec<&str>) = (key.split('.').collect(), name.split('.').collect());
    let stars = key.iter().take_while(|label| **label == "*").count();
    key.len() == name.len() && key[stars..] == name[stars..]
}

pub(crate) fn keyed(keys: &[String], name: std::result::Result<&str, Verdict>) -> Verdict {
    name.map_or_else(
        |verdict| verdict,
        |name| Verdict::from_bool(keys.iter().any(|key| stands_for(key, name))),
    )
}

impl Model {
    pub(crate) fn verdict(&self, bytes: &[u8]) -> Verdict {
        match self {
            Self::Begins(beginning) => Verdict::prefix(bytes, beginning),
            Self::Byte(offset, wanted) => match bytes.get(*offset) {
                None => Verdict::More(offset + 1 - bytes.len()),
                Some(byte) => Verdict::from_bool(byte == wanted),
            },
            Self::Length(wanted) => match bytes.first().map(|b| usize::from(b % 8)) {
                None => Verdict::More(1),
                Some(n) if bytes.len() <= n => Verdict::More(n + 1 - bytes.len()),
                Some(n) => Verdict::from_bool(bytes[n] == *wanted),
            },
            Self::Within(wanted, limit) => {
                let seen = &bytes[..bytes.len().min(*limit)];
                if seen.contains(wanted) {
                    Verdict::Match
                } else if seen.len() == *limit {
                    Verdict::No
                } else {
                    Verdict::More(1)
                }
            }
            Self::Fixed(yes) => Verdict::from_bool(*yes),
            Self::Line(keys, _) => keyed(keys, line(bytes)),
            Self::Second(keys) => keyed(keys, second(bytes)),
            Self::Captures(_, inner) => inner.verdict(bytes),
            Self::Not(sets) => match any_of(sets, bytes) {
                Verdict::Match => Verdict::No,
                Verdict::No => Verdict::Match,
                more => more,
            },
        }
    }

    /// The engine's form of it.
    pub(crate) fn build(&self) -> Box<dyn Matcher> {
        match self {
            Self::Not(sets) => Box::new(Negated(build_sets(sets))),
            Self::Captures(id, inner) => Box::new(Capturing(*id, inner.build())),
            model => Box::new(Plain(model.clone())),
        }
    }

    /// What it captures when it matches.
    pub(crate) fn captured(&self) -> Vec<usize> {
        match self {
            Self::Captures(id, inner) => [vec![*id], inner.captured()].concat(),
            _ => Vec::new(),
        }
    }
}

pub(crate) fn all_of(set: &[Model], bytes: &[u8]) -> Verdict {
    let verdicts: Vec<Verdict> = set.iter().map(|m| m.verdict(bytes)).collect();
    if verdicts.contains(&Verdict::No) {
        Verdict::No
    } else {
        verdicts
            .into_iter()
            .find(|v| *v != Verdict::Match)
            .unwrap_or(Verdict::Match)
    }
}

pub(crate) fn any_of(sets: &[Vec<Model>], bytes: &[u8]) -> Verdict {
    let verdicts: Vec<Verdict> = sets.iter().map(|set| all_of(set, bytes)).collect();
    if verdicts.contains(&Verdict::Match) {
        Verdict::Match
    } else {
        verdicts
            .into_iter()
            .find(|v| *v != Verdict::No)
            .unwrap_or(Verdict::No)
    }
}

pub(crate) fn build_sets(sets: &[Vec<Model>]) -> Sets {
    Sets::from_matchers(
        sets.iter()
            .map(|set| set.iter().map(Model::build).collect())
            .collect(),
    )
}

pub(crate) struct Plain(Model);

impl Matcher for Plain {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        self.0.verdict(view.bytes())
    }

    fn cost(&self) -> Cost {
        match self.0 {
            Model::Fixed(_) => Cost::Meta,
            Model::Begins(_) => Cost::Prefix,
            _ => Cost::Parse,
        }
    }

    fn keys(&self) -> Option<Keys> {
        match &self.0 {
            Model::Line(keys, _) => Some(Keys {
                dimension: &Line,
                keys: keys.clone(),
            }),
            Model::Second(keys) => Some(Keys {
                dimension: &Second,
                keys: keys.clone(),
            }),
            _ => None,
        }
    }

    fn spans_datagrams(&self) -> bool {
        matches!(self.0, Model::Line(_, true))
    }
}

pub(crate) struct Negated(Sets);

impl Matcher for Negated {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match self.0.any(view) {
            Verdict::Match => Verdict::No,
            Verdict::No => Verdict::Match,
            more => more,
        }
    }

    fn spans_datagrams(&self) -> bool {
        true
    }
}

pub(crate) struct Capturing(usize, Box<dyn Matcher>);

impl Matcher for Capturing {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        let verdict = self.1.matches(view);
        if verdict == Verdict::Match {
            view.capture(Capture {
                prefix: "l4.regexp",
                name: Some(format!("c{}", self.0).into()),
                groups: vec![("0".into(), "yes".into())],
            });
        }
        verdict
    }

    fn cost(&self) -> Cost {
        self.1.cost()
    }

    fn spans_datagrams(&self) -> bool {
        self.1.spans_datagrams()
    }
}

/// A route, as data.
#[derive(Clone, Debug)]
pub(crate) struct RouteModel {
    pub(crate) sets: Vec<Vec<Model>>,
    pub(crate) chain: Vec<Act>,
}

/// A handler, as data.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Goes on.
    Pass(usize),
    /// Takes so many bytes and goes on.
    Take(usize),
    /// Takes the rest and ends.
    End(usize),
    Subroute(Vec<RouteModel>),
}

impl RouteModel {
    pub(crate) fn always(&self) -> bool {
        self.sets.is_empty() || self.sets.iter().any(Vec::is_empty)
    }

    pub(crate) fn verdict(&self, bytes: &[u8]) -> Verdict {
        if self.always() {
            Verdict::Match
        } else {
            any_of(&self.sets, bytes)
        }
    }
}

/// What a handler saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) handler: usize,
    pub(crate) captures: BTreeSet<usize>,
    /// What a handler that ends the connection received.
    pub(crate) bytes: Vec<u8>,
}

/// What a handler should see.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) handler: usize,
    /// Sets of a route are asked together, so which of several that match decides depends on how many bytes there
    /// are. The captures are always those of one set that matches.
    pub(crate) captures: BTreeSet<BTreeSet<usize>>,
    pub(crate) bytes: Vec<u8>,
}

impl Expected {
    pub(crate) fn is(&self, event: &Event) -> bool {
        self.handler == event.handler
            && self.bytes == event.bytes
            && self.captures.contains(&event.captures)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Off the end of the list.
    Next,
    /// A handler kept the connection, or nothing took it before it ended.
    Done(Option<EndReason>),
    Failed,
}

pub(crate) struct Oracle<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) captures: BTreeSet<BTreeSet<usize>>,
    pub(crate) events: Vec<Expected>,
}

impl<'a> Oracle<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            captures: [BTreeSet::new()].into(),
            events: Vec::new(),
        }
    }

    pub(crate) fn walk(&mut self, routes: &[RouteModel]) -> End {
        let mut base = 0;
        loop {
            let verdicts: Vec<Verdict> = routes[base..]
                .iter()
                .map(|r| r.verdict(self.bytes))
                .collect();
            let Some(taken) = verdicts.iter().position(|v| *v == Verdict::Match) else {
                let settled = verdicts.iter().all(|v| *v == Verdict::No);
                return if settled {
                    End::Next
                } else {
                    End::Done(Some(EndReason::MatchEof))
                };
            };
            let route = &routes[base + taken];
            if !route.always() {
                let bytes = self.bytes;
                let sets = route.sets.iter();
                let matching = sets.filter(|set| all_of(set, bytes) == Verdict::Match);
                self.captures = matching
                    .flat_map(|set| {
                        let new: BTreeSet<usize> = set.iter().flat_map(Model::captured).collect();
                        self.captures.iter().map(move |old| old | &new)
                    })
                    .collect();
            }
            for act in &route.chain {
                match self.act(act) {
                    End::Next => {}
                    end => return end,
                }
            }
            base += taken + 1;
        }
    }

    pub(crate) fn act(&mut self, act: &Act) -> End {
        match act {
            Act::Pass(id) => self.event(*id, &[]),
            Act::Take(n) if self.bytes.len() < *n => return End::Failed,
            Act::Take(n) => self.bytes = &self.bytes[*n..],
            Act::End(id) => {
                self.event(*id, self.bytes);
                return End::Done(None);
            }
            Act::Subroute(routes) => return self.walk(routes),
        }
        End::Next
    }

    pub(crate) fn event(&mut self, handler: usize, bytes: &[u8]) {
        self.events.push(Expected {
            handler,
            captures: self.captures.clone(),
            bytes: bytes.to_vec(),
        });
    }
}

pub(crate) type Log = Arc<Mutex<Vec<Event>>>;

pub(crate) fn program(routes: &[RouteModel], log: &Log) -> Program {
    let routes = routes
        .iter()
        .map(|route| {
            let chain = route.chain.iter().map(|act| handler(act, log)).collect();
            (build_sets(&route.sets), chain)
        })
        .collect();
    Program::from_routes(routes, Duration::from_secs(3))
}

pub(crate) fn handler(act: &Act, log: &Log) -> Box<dyn Handler> {
    match act {
        Act::Subroute(routes) => Box::new(Inner(program(routes, log))),
        act => Box::new(Acting(act.clone(), log.clone())),
    }
}

pub(crate) struct Inner(Program);

impl AsyncHandler for Inner {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        self.0.run(conn).await
    }
}

pub(crate) struct Acting(Act, Log);

impl AsyncHandler for Acting {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let captures = visible_captures(&conn);
        let (handler, bytes, flow) = match self.0 {
            Act::Take(n) => {
                conn.read_exact(&mut vec![0; n]).await?;
                return Ok(Flow::Next(conn));
            }
            Act::End(id) => {
                let mut bytes = Vec::new();
                conn.read_to_end(&mut bytes).await?;
                (id, bytes, Flow::Done)
            }
            Act::Pass(id) => (id, Vec::new(), Flow::Next(conn)),
            Act::Subroute(_) => unreachable!("built as `Inner`"),
        };
        self.1.lock().unwrap().push(Event {
            handler,
            captures,
            bytes,
        });
        Ok(flow)
    }
}

/// How many different captures there are.
pub(crate) const CAPTURES: usize = 6;

pub(crate) fn visible_captures(conn: &Connection) -> BTreeSet<usize> {
    let registry = Registry::new();
    (0..CAPTURES)
        .filter(|id| {
            let text = format!("{{l4.regexp.c{id}.0}}");
            let template = Template::compile(&text, registry.placeholder_table()).unwrap();
            conn.expand(&template) == "yes"
        })
        .collect()
}

/// Gives one segment per read, then the end.
pub(crate) struct Segments(VecDeque<Vec<u8>>);

impl Segments {
    /// `bytes` cut at these places.
    pub(crate) fn cut(bytes: &[u8], cuts: &[usize]) -> Self {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        Self(
            cuts.windows(2)
                .map(|w| bytes[w[0]..w[1]].to_vec())
                .collect(),
        )
    }
}

impl AsyncRead for Segments {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some(segment) = self.0.front_mut() {
            let n = segment.len().min(buf.remaining());
            buf.put_slice(&segment[..n]);
            segment.drain(..n);
            if segment.is_empty() {
                self.0.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Segments {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub(crate) fn connection(segments: Segments) -> Connection {
    let record = Arc::new(Record::new(Addr::Tcp(CLIENT.parse().unwrap())));
    Connection::new(Io::Layer(Box::new(segments)), record, Some(Addr::UNNAMED))
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Runs `routes` over the bytes cut so, and says what happened and how many bytes had been read by then.
pub(crate) fn run(routes: &[RouteModel], bytes: &[u8], cuts: &[usize]) -> (End, Vec<Event>) {
    let log = Log::default();
    let program = program(routes, &log);
    let conn = connection(Segments::cut(bytes, cuts));
    let record = conn.record().clone();
    let end = match block_on(program.run(conn)) {
        Ok(Flow::Next(_)) => End::Next,
        Ok(Flow::Done) => End::Done(record.end_reason()),
        Err(_) => End::Failed,
    };
    let events = log.lock().unwrap().clone();
    (end, events)
}
