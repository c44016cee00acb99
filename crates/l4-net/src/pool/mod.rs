//! The listening sockets of the process, across configurations.
//!
//! A reload goes in two steps. [`ListenerPool::stage`] opens what the new configuration needs and does not have yet, and
//! may fail without a trace. [`Staged::commit`] cannot fail: it gives every socket its new server, and lets go of the
//! sockets that are no longer wanted.
//!
//! *Invariant:* a socket that both configurations have is never closed or opened again, so that no connection waiting in
//! its queue is lost. What makes two addresses the same socket is decided by the kernel's view of them, not their text.

mod datagrams;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use l4_core::Addr;
use l4_core::config::{Address, Node};
use l4_core::engine::{App, Listen, Server};
use l4_core::handler::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use self::datagrams::{Member, Spare, serve_datagrams};
use crate::accept::StreamListener;
use crate::dial::{Resolve, SystemResolver};
use crate::limits::ConnectionLimit;
use crate::listener::{Bound, Carries, Endpoint, ListenError, Sharing, SocketFile, mode};
use crate::owner;
use crate::shards::Shards;
use crate::udp::{Group, Phase};

/// The listening sockets of the process. There is one; clones are the same.
///
/// Dropping the last clone closes all of them at once; [`close_all`](Self::close_all) does it in order.
#[derive(Clone)]
pub struct ListenerPool {
    shared: Arc<Shared>,
}

/// What one load needs beyond what runs already, opened but not used. Dropping it closes that again.
#[must_use = "nothing is listened on before it is committed"]
pub struct Staged {
    shared: Arc<Shared>,
    runtime: Handle,
    planned: Vec<Planned>,
    /// One load at a time: two could bind the same socket file.
    _turn: OwnedMutexGuard<()>,
}

/// An address that is listened on.
#[derive(Clone)]
pub struct Listening {
    /// As configured, a single port.
    pub configured: Address,
    /// What the socket is bound to, with the port that was chosen for port 0.
    pub actual: Addr,
    /// What takes its connections.
    pub server: Arc<Server>,
}

/// An address of the configuration that cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    pointer: String,
    node: Node,
    related: Option<Node>,
    address: String,
    reason: ListenError,
}

impl ListenerPool {
    /// An empty pool whose connections count towards `limit`.
    pub fn new(limit: ConnectionLimit) -> Self {
        Self::spread_over(Shards::default(), limit)
    }

    /// As [`new`](Self::new), with the connections and the sessions of UDP spread over `shards`.
    pub fn spread_over(shards: Shards, limit: ConnectionLimit) -> Self {
        let shared = Shared {
            limit,
            shards,
            turn: Arc::default(),
            state: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Opens the sockets that `app` needs and that are not open yet. They begin to queue connections, which are
    /// served once committed. Nothing that runs is touched.
    ///
    /// Loads take turns: this waits while another [`Staged`] exists, so do not stage while holding one.
    ///
    /// # Errors
    /// One for every address that cannot be listened on. Whatever was opened is closed again.
    pub async fn stage(&self, app: &App) -> Result<Staged, Vec<BindError>> {
        self.stage_with(&SystemResolver, app).await
    }

    /// As [`stage`](Self::stage), with another resolver.
    ///
    /// # Errors
    /// As [`stage`](Self::stage).
    pub async fn stage_with(
        &self,
        resolver: &(impl Resolve + Sync),
        app: &App,
    ) -> Result<Staged, Vec<BindError>> {
        let turn = self.shared.turn.clone().lock_owned().await;
        let wanted = wanted(app, resolver).await?;
        self.shared.left(&wanted).await;
        let mut staged = Staged {
            shared: self.shared.clone(),
            runtime: Handle::current(),
            planned: Vec::with_capacity(wanted.len()),
            _turn: turn,
        };
        let running = self.shared.state().running();
        let mut errors = Vec::new();
        let mut taken = Vec::new();
        for (i, (key, listen)) in wanted.iter().enumerate() {
            let mut how = self.shared.plan(&running, key, &listen.address);
            if matches!(how, Err(ListenError::InUse { .. }))
                && self.shared.left(&wanted[i..=i]).await
            {
                // It was ours, and has come to its end just now.
                how = self.shared.plan(&running, key, &listen.address);
            }
            match how {
                Ok(how) => staged.add(i, listen, how),
                Err(ListenError::InUse { address, .. }) => taken.push((i, address)),
                Err(reason) => errors.push((i, reason)),
            }
            if i % 64 == 63 {
                // A range may have thousands of ports.
                tokio::task::yield_now().await;
            }
        }
        staged.share(&wanted, &taken, &mut errors);
        if errors.is_empty() {
            staged
                .planned
                .sort_unstable_by_key(|planned| planned.position);
            staged.tell_single();
            for (i, address) in taken {
                if !staged.overlaps(&address, i) {
                    warn!(
                        %address,
                        "another process of this user listens here, too: the kernel splits connections between both"
                    );
                }
            }
            return Ok(staged);
        }
        // At once: who connects to what was opened is not served.
        drop(staged);
        errors.sort_unstable_by_key(|(i, _)| *i);
        let errors = errors.into_iter().enumerate().map(|(n, (i, reason))| {
            let reason = match n < OWNERS {
                true => reason.with_owner(),
                false => reason,
            };
            BindError::new(wanted[i].1, reason)
        });
        Err(errors.collect())
    }

    /// What is listened on now, in the order of the configuration.
    pub fn addresses(&self) -> Vec<Listening> {
        let state = self.shared.state();
        let listening = state.current.iter().filter_map(|(configured, listener)| {
            Some(Listening {
                configured: configured.clone(),
                actual: listener.actual.clone(),
                server: listener.slot.load_full()?,
            })
        });
        listening.collect()
    }

    /// The limit that all connections count towards.
    pub fn limit(&self) -> &ConnectionLimit {
        &self.shared.limit
    }

    /// Stops listening for good: socket files are removed, connections that were waiting are accepted, and stream
    /// sockets are closed when this returns, at most about a second later. Connections that exist go on; a datagram
    /// socket closes when its last session has ended. What is staged afterwards comes to nothing.
    pub async fn close_all(&self) {
        let closing = {
            let mut state = self.shared.state();
            state.closed = true;
            let all = std::mem::take(&mut state.current);
            for (_, listener) in all {
                state.leave(listener);
            }
            state.leaving.clone()
        };
        for listener in closing.iter().filter(|listener| listener.is_stream()) {
            listener.done.cancelled().await;
        }
    }
}

impl Staged {
    /// Puts the configuration in force: every socket gets its server, and sockets that it does not have are closed,
    /// after the connections waiting in their queues were accepted under the configuration before.
    pub fn commit(mut self) {
        let shared = self.shared.clone();
        let mut tasks = Vec::new();
        let mut state = shared.state();
        if state.closed {
            return;
        }
        let before = std::mem::take(&mut state.current);
        for Planned {
            configured,
            server,
            how,
            position: _,
        } in self.planned.drain(..)
        {
            let listener = match how {
                How::Kept(listener) => listener,
                How::Revived(listener) => {
                    state.leaving.retain(|other| !Arc::ptr_eq(other, &listener));
                    listener
                }
                How::Opened(opened) => {
                    debug!(address = %opened.actual, server = server.name(), "listening");
                    let (listener, started) = opened.start(&shared, server.clone());
                    tasks.extend(started);
                    listener
                }
            };
            listener.slot.store(Some(server));
            listener.set_mode(mode(&configured));
            state.current.push((configured, listener));
        }
        for (_, listener) in before {
            if !state
                .current
                .iter()
                .any(|(_, current)| Arc::ptr_eq(current, &listener))
            {
                debug!(address = %listener.actual, "no longer listening");
                state.leave(listener);
            }
        }
        drop(state);
        // Without the lock: a task that is dropped instead of started, in a runtime that is going down, takes it.
        for (runtime, task) in tasks {
            runtime.as_ref().unwrap_or(&self.runtime).spawn(task);
        }
    }
}

impl Staged {
    fn add(&mut self, position: usize, listen: &Listen, how: How) {
        self.planned.push(Planned {
            position,
            configured: listen.address.clone(),
            server: listen.server.clone(),
            how,
        });
    }

    /// Opens, beside others, the addresses that are `taken`. As soon as such a socket is open the kernel gives it a part
    /// of what arrives, and closing it again resets those connections, so this comes last: nothing is given to any while
    /// there may still be errors.
    fn share(
        &mut self,
        wanted: &[(Key, &Listen)],
        taken: &[(usize, Addr)],
        errors: &mut Vec<(usize, ListenError)>,
    ) {
        let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
        for (i, address) in taken {
            let (key, listen) = &wanted[*i];
            match &key.endpoint {
                Endpoint::Ip {
                    datagrams: true, ..
                } => datagrams.push((*i, address)),
                // Gets nothing before it listens.
                Endpoint::Ip { .. } => match key.endpoint.open(&listen.address, Sharing::Allowed) {
                    Ok((_, bound)) => streams.push((*i, bound)),
                    Err(reason) => errors.push((*i, reason)),
                },
                _ => errors.push((*i, in_use(address))),
            }
        }
        let had = match datagrams.is_empty() || self.shared.shards.runtimes().len() < 2 {
            true => None,
            false => owner::udp_addresses(),
        };
        for (i, address) in datagrams {
            let (key, listen) = &wanted[i];
            if !errors.is_empty() {
                // To find out whether it can be shared is to take datagrams away.
                if !self.overlaps(address, i) {
                    errors.push((i, in_use(address)));
                }
                continue;
            }
            // Each socket that somebody else closes sends peers elsewhere among those of the very same address.
            let several = had.as_ref().zip(address.socket());
            let several = several
                .is_some_and(|(had, address)| !had.contains(&(address.ip(), address.port())));
            let opened = (key.endpoint)
                .open(&listen.address, Sharing::Allowed)
                .and_then(|(file, bound)| Opened::new(key, file, bound, &self.shared, several));
            match opened {
                Ok(opened) => self.add(i, listen, How::Opened(Box::new(opened))),
                Err(reason) => errors.push((i, reason)),
            }
        }
        if !errors.is_empty() {
            return;
        }
        for (i, bound) in streams {
            let (key, listen) = &wanted[i];
            let opened = bound
                .listen()
                .and_then(|()| Opened::new(key, None, bound, &self.shared, true));
            match opened {
                Ok(opened) => self.add(i, listen, How::Opened(Box::new(opened))),
                Err(reason) => errors.push((i, reason)),
            }
        }
    }

    /// Whether this process has a socket, running, leaving or just opened for an address before `position`, whose address
    /// takes in `wanted` or is taken in by it.
    fn overlaps(&self, wanted: &Addr, position: usize) -> bool {
        let overlap = |ours: &Addr| {
            let (Some(a), Some(b)) = (ours.socket(), wanted.socket()) else {
                return false;
            };
            let meet = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
            ours.network() == wanted.network() && a.port() == b.port() && meet
        };
        let opened = self.planned.iter().any(|planned| match &planned.how {
            How::Opened(opened) => planned.position < position && overlap(&opened.actual),
            How::Kept(_) | How::Revived(_) => false,
        });
        let state = self.shared.state();
        let current = state.current.iter().map(|(_, listener)| listener);
        opened || (current.chain(&state.leaving)).any(|listener| overlap(&listener.actual))
    }

    /// Says for which new addresses there is one socket, and could be one for each thread.
    fn tell_single(&self) {
        for (cause, why) in [
            (
                Single::Had,
                "others have them, too, and it stays so until they are opened anew",
            ),
            (
                Single::Few,
                "a socket for each would take more than a quarter of the descriptors",
            ),
        ] {
            let mut single = self.planned.iter().filter(|planned| {
                matches!(&planned.how, How::Opened(opened) if opened.single == Some(cause))
            });
            if let Some(first) = single.next() {
                let addresses = 1 + single.count();
                warn!(address = %first.configured, addresses, "one thread serves these addresses: {why}");
            }
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for planned in &self.planned {
            if let How::Revived(listener) = &planned.how {
                // Never committed: it goes on leaving.
                listener.tell(Phase::Drain);
            }
        }
    }
}

impl BindError {
    fn new(listen: &Listen, reason: ListenError) -> Self {
        Self {
            pointer: listen.pointer.clone(),
            node: listen.node,
            related: None,
            address: listen.address.to_string(),
            reason,
        }
    }

    /// The JSON pointer of the `listen` entry.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }

    /// The entry's place in the document.
    pub fn node(&self) -> Node {
        self.node
    }

    /// The other entry, if two stand for one socket.
    pub fn related(&self) -> Option<Node> {
        self.related
    }

    /// What went wrong.
    pub fn reason(&self) -> &ListenError {
        &self.reason
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.address, self.reason)
    }
}

impl std::error::Error for BindError {}

/// For so many addresses that are taken it is found out by whom, which means reading much of `/proc` each time.
const OWNERS: usize = 4;

struct Shared {
    limit: ConnectionLimit,
    shards: Shards,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Never locked across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// [`ListenerPool::close_all`] was called.
    closed: bool,
    /// What the configuration in force listens on, in its order.
    current: Vec<(Address, Arc<Listener>)>,
    /// What it no longer has, and which is not closed yet.
    leaving: Vec<Arc<Listener>>,
}

/// What makes a socket the same one in two configurations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    endpoint: Endpoint,
    /// Tells apart the entries of one configuration that leave the port to the kernel.
    nth: usize,
}

/// A socket that a task receives from; for a UDP address there may be several, each with its task.
struct Listener {
    key: Key,
    actual: Addr,
    /// What takes its connections. A stream listener that leaves keeps its last one, for the connections that wait; a
    /// datagram listener has none then.
    slot: Arc<ArcSwapOption<Server>>,
    /// None once it leaves, and for what has none.
    file: Mutex<Option<SocketFile>>,
    has_file: bool,
    task: Task,
    /// A datagram listener that was leaving has nothing left to do, and cannot come back. Set under the lock of the state.
    over: AtomicBool,
    /// Cancelled when all tasks have ended.
    done: CancellationToken,
}

/// How the tasks are told what to do.
enum Task {
    Stream(CancellationToken),
    Datagrams(watch::Sender<Phase>),
}

struct Planned {
    /// Among the addresses of the configuration.
    position: usize,
    configured: Address,
    server: Arc<Server>,
    how: How,
}

/// Where the socket for an address comes from.
enum How {
    Kept(Arc<Listener>),
    /// A datagram socket that was leaving, and still had sessions. A second one beside it would get only a part of the
    /// datagrams.
    Revived(Arc<Listener>),
    Opened(Box<Opened>),
}

/// An open socket without a task.
struct Opened {
    key: Key,
    actual: Addr,
    slot: Arc<ArcSwapOption<Server>>,
    /// Before the socket, which is dropped after it.
    file: Option<SocketFile>,
    socket: Unstarted,
    /// Why it is one, where threads could have one each.
    single: Option<Single>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Single {
    /// Somebody has sockets of this very address.
    Had,
    /// More would take too many descriptors.
    Few,
}

enum Unstarted {
    Stream(StreamListener),
    /// At least one.
    Datagrams(Vec<Member>),
}

/// What a socket needs to run, and where if that matters.
type Start = (Option<Handle>, BoxFuture<'static, ()>);

/// The sockets that `app` wants, no two of them the same.
async fn wanted<'a>(
    app: &'a App,
    resolver: &(impl Resolve + Sync),
) -> Result<Vec<(Key, &'a Listen)>, Vec<BindError>> {
    let resolver = Remembering {
        resolver,
        known: Mutex::default(),
    };
    let mut wanted = Vec::with_capacity(app.listens.len());
    let mut errors = Vec::new();
    let mut taken: HashMap<Endpoint, &Listen> = HashMap::new();
    let mut any_port: HashMap<Endpoint, usize> = HashMap::new();
    for listen in &app.listens {
        let endpoint = match Endpoint::of(&listen.address, &resolver).await {
            Ok(endpoint) => endpoint,
            Err(reason) => {
                errors.push(BindError::new(listen, reason));
                continue;
            }
        };
        let mut nth = 0;
        if endpoint.is_any_port() {
            let count = any_port.entry(endpoint.clone()).or_default();
            nth = *count;
            *count += 1;
        } else if let Some(first) = taken.get(&endpoint.place()) {
            let (address, pointer) = (first.address.to_string(), first.pointer.clone());
            let error = BindError::new(listen, ListenError::Twice { address, pointer });
            errors.push(BindError {
                related: Some(first.node),
                ..error
            });
            continue;
        } else {
            taken.insert(endpoint.place(), listen);
        }
        wanted.push((Key { endpoint, nth }, listen));
    }
    if errors.is_empty() {
        Ok(wanted)
    } else {
        Err(errors)
    }
}

/// Looks up every name once in a load: the ports of a range share theirs.
struct Remembering<'a, R> {
    resolver: &'a R,
    known: Mutex<HashMap<Box<str>, Vec<SocketAddr>>>,
}

impl<R: Resolve + Sync> Resolve for Remembering<'_, R> {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let known = lock(&self.known).get(host).cloned();
        let mut found = match known {
            Some(found) => found,
            None => self.resolver.lookup(host, port).await?,
        };
        lock(&self.known).insert(host.into(), found.clone());
        found.iter_mut().for_each(|address| address.set_port(port));
        Ok(found)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until none of the `wanted` sockets is on its way out, and cannot come back: an abstract name, for one, is taken
    /// until its socket is closed. Whether there were any.
    async fn left(&self, wanted: &[(Key, &Listen)]) -> bool {
        let mut leaving = self.state().leaving.clone();
        leaving.retain(|listener| {
            (listener.is_stream() || listener.is_over())
                && wanted.iter().any(|(key, _)| *key == listener.key)
        });
        for listener in &leaving {
            listener.done.cancelled().await;
        }
        !leaving.is_empty()
    }

    /// Finds the socket for an address, or opens it.
    fn plan(
        &self,
        running: &HashMap<Endpoint, Vec<Arc<Listener>>>,
        key: &Key,
        address: &Address,
    ) -> Result<How, ListenError> {
        for listener in running.get(&key.endpoint.place()).into_iter().flatten() {
            if listener.key == *key && listener.is_in_place() {
                return Ok(How::Kept(listener.clone()));
            }
            if let (Endpoint::Unix { path, .. }, true) =
                (&key.endpoint, listener.key.endpoint != key.endpoint)
            {
                return Err(ListenError::OtherKind { path: path.clone() });
            }
        }
        if let Some(listener) = self.revive(key) {
            return Ok(How::Revived(listener));
        }
        let opened = Opened::open(key, address, self)?;
        Ok(How::Opened(Box::new(opened)))
    }

    /// The datagram socket for `key` that was leaving, made to stay.
    fn revive(&self, key: &Key) -> Option<Arc<Listener>> {
        // It is over under this lock only, so that its tasks either see the new phase or it is not found.
        let state = self.state();
        let same = |listener: &&Arc<Listener>| {
            listener.key == *key
                && !listener.is_stream()
                && !listener.is_over()
                && listener.is_in_place()
        };
        let listener = state.leaving.iter().find(same)?.clone();
        listener.tell(Phase::Serve);
        Some(listener)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let current = state.current.drain(..).map(|(_, listener)| listener);
        for listener in current.chain(state.leaving.drain(..)) {
            lock(&listener.file).take();
            listener.tell(Phase::Stop);
        }
    }
}

impl State {
    /// The listeners in use, by the place they occupy.
    fn running(&self) -> HashMap<Endpoint, Vec<Arc<Listener>>> {
        let mut running: HashMap<_, Vec<_>> = HashMap::new();
        for (_, listener) in &self.current {
            running
                .entry(listener.key.endpoint.place())
                .or_default()
                .push(listener.clone());
        }
        running
    }

    /// Tells a listener to come to its end.
    fn leave(&mut self, listener: Arc<Listener>) {
        // Now, not when the task ends: by then the file may be the next configuration's.
        lock(&listener.file).take();
        if !listener.is_stream() {
            listener.slot.store(None);
        }
        listener.tell(Phase::Drain);
        self.leaving.push(listener);
    }
}

impl Listener {
    fn is_stream(&self) -> bool {
        matches!(self.task, Task::Stream(_))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Whether clients find the socket by its address.
    fn is_in_place(&self) -> bool {
        lock(&self.file)
            .as_ref()
            .map_or(!self.has_file, SocketFile::is_in_place)
    }

    fn tell(&self, phase: Phase) {
        match &self.task {
            Task::Stream(stop) if phase != Phase::Serve => stop.cancel(),
            Task::Stream(_) => {}
            Task::Datagrams(phases) => drop(phases.send_replace(phase)),
        }
    }

    fn set_mode(&self, mode: u32) {
        let Some(Err(error)) = lock(&self.file).as_ref().map(|file| file.set_mode(mode)) else {
            return;
        };
        error!(address = %self.actual, %error, "the mode of the socket file stays as it was");
    }
}

impl Opened {
    fn open(key: &Key, address: &Address, shared: &Shared) -> Result<Self, ListenError> {
        let (file, bound) = key.endpoint.open(address, Sharing::Not)?;
        Self::new(key, file, bound, shared, true)
    }

    /// With `several` there may be a socket for each thread.
    fn new(
        key: &Key,
        file: Option<SocketFile>,
        bound: Bound,
        shared: &Shared,
        several: bool,
    ) -> Result<Self, ListenError> {
        let slot = Arc::default();
        let actual = bound.actual.clone();
        let mut single = None;
        let socket = match bound.carries {
            Carries::Tcp | Carries::Unix | Carries::Packets => {
                StreamListener::new(bound, Arc::clone(&slot), shared.limit.clone())
                    .map(Unstarted::Stream)
                    .map_err(preparing)?
            }
            Carries::Udp | Carries::Unixgrams => {
                let runtimes = shared.shards.runtimes();
                let permits = match key.endpoint {
                    Endpoint::Ip { .. } if runtimes.len() < 2 => None,
                    Endpoint::Ip { .. } if !several => {
                        single = Some(Single::Had);
                        None
                    }
                    Endpoint::Ip { .. } => {
                        let permits = Spare::room(runtimes.len() - 1, &shared.limit);
                        single = permits.is_none().then_some(Single::Few);
                        permits
                    }
                    // Nobody knows what else an inherited socket was given.
                    Endpoint::Inherited { .. } | Endpoint::Unix { .. } => None,
                };
                let permits = permits.unwrap_or_default();
                Unstarted::Datagrams(Member::all(bound, runtimes, permits, &shared.limit)?)
            }
        };
        Ok(Self {
            key: key.clone(),
            actual,
            slot,
            file,
            socket,
            single,
        })
    }

    /// The listener, and the tasks that it needs.
    fn start(self, shared: &Arc<Shared>, server: Arc<Server>) -> (Arc<Listener>, Vec<Start>) {
        let Self {
            key,
            actual,
            slot,
            file,
            socket,
            single: _,
        } = self;
        slot.store(Some(server));
        let done = CancellationToken::new();
        let listener = |task| {
            let has_file = file.is_some();
            Arc::new(Listener {
                key,
                actual,
                slot,
                file: Mutex::new(file),
                has_file,
                task,
                over: AtomicBool::new(false),
                done,
            })
        };
        match socket {
            Unstarted::Stream(stream) => {
                let stream = stream.spread_over(shared.shards.clone());
                let stop = CancellationToken::new();
                let listener = listener(Task::Stream(stop.clone()));
                let ended = Ended::of(&listener, shared);
                let task = async move {
                    // Closes the socket before it is said to be closed.
                    stream.run(stop).await;
                    drop(ended);
                };
                (listener, vec![(None, Box::pin(task))])
            }
            Unstarted::Datagrams(members) => {
                let (phases, phase) = watch::channel(Phase::Serve);
                let listener = listener(Task::Datagrams(phases));
                let ended = Arc::new(Ended::of(&listener, shared));
                let tasks = members.into_iter().map(|member| -> Start {
                    let Member {
                        listener,
                        spare,
                        runtime,
                    } = member;
                    let task = serve_datagrams(ended.clone(), listener, spare, phase.clone());
                    (runtime, Box::pin(task))
                });
                (listener, tasks.collect())
            }
        }
    }
}

/// Says that all tasks of a listener have ended, when dropped.
struct Ended {
    listener: Arc<Listener>,
    shared: Weak<Shared>,
}

impl Ended {
    fn of(listener: &Arc<Listener>, shared: &Arc<Shared>) -> Self {
        Self {
            listener: listener.clone(),
            shared: Arc::downgrade(shared),
        }
    }

    /// Whether the task that asks is to end, which is decided for all datagram sockets of the address and for good.
    fn is_due(&self, group: &Group, phase: &watch::Receiver<Phase>) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return true;
        };
        // Under the lock, so that nobody revives it after this.
        let _state = shared.state();
        let over = match *phase.borrow() {
            Phase::Serve => false,
            Phase::Drain => !group.is_needed(),
            Phase::Stop => true,
        };
        self.listener.over.fetch_or(over, Ordering::Relaxed) || over
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared
                .state()
                .leaving
                .retain(|other| !Arc::ptr_eq(other, &self.listener));
        }
        self.listener.done.cancel();
    }
}

fn preparing(source: io::Error) -> ListenError {
    ListenError::System {
        doing: "preparing the socket",
        source,
    }
}

fn in_use(address: &Addr) -> ListenError {
    ListenError::InUse {
        address: address.clone(),
        owner: None,
    }
}

/// A panic elsewhere leaves nothing half done in what these locks guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
