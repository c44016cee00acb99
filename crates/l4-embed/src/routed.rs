//! The wrapper: a task that accepts, a task for every connection, and what comes out at the end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use l4_core::engine::{Generation, Record, Server};
use l4_core::{Addr, Connection, EndReason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::trouble::Trouble;
use crate::{Accepted, Listener, Routes, Yielded};

/// So many connections that nobody took wait for [`Routed::accept`]; others wait in their tasks.
const QUEUE: usize = 64;

/// After accepting this many connections other tasks get their turn, even if the listener always has another.
const BURST: u32 = 32;

/// A listener with routes in front of it.
///
/// Dropping it closes the listener and ends what the modules run in the background, such as health checks. Connections
/// that handlers are busy with go on to their end, and those that would have come out of it are closed.
pub struct Routed {
    yields: mpsc::Receiver<Yielded>,
    local: io::Result<Addr>,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Routed {
    pub(crate) fn new(mut routes: Routes, listener: impl Listener) -> Self {
        let local = listener.local_addr();
        let max_pending = routes.max_pending.clamp(1, Semaphore::MAX_PERMITS);
        let server = routes.embedded.server.clone();
        let shared = Arc::new(Shared {
            max_pending,
            room: Arc::new(Semaphore::new(max_pending)),
            full: AtomicBool::new(false),
            generations: Mutex::new(vec![server.generation().clone()]),
            server: ArcSwap::new(server),
            stop: CancellationToken::new(),
        });
        let (queue, yields) = mpsc::channel(QUEUE);
        let accepting = tokio::spawn({
            let shared = shared.clone();
            async move {
                let stop = shared.stop.clone();
                stop.run_until_cancelled(shared.accept(listener, queue))
                    .await;
            }
        });
        routes.embedded.start();
        Self {
            yields,
            local,
            shared,
            accepting,
        }
    }

    /// The next connection that no route took, and who its client is. Cancel safe.
    ///
    /// # Errors
    /// The listener has panicked, so that nothing can come any more. Errors that it returns are survived.
    pub async fn accept(&mut self) -> io::Result<(Yielded, Addr)> {
        let Some(mut yielded) = self.yields.recv().await else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the listener has panicked",
            ));
        };
        let conn = yielded.0.connection_mut();
        // It is the program's now.
        conn.drop_extension::<Pending>();
        conn.end(EndReason::HandedOver);
        let remote = conn.remote().clone();
        Ok((yielded, remote))
    }

    /// Where the listener listens.
    ///
    /// # Errors
    /// It could not be found out when it was wrapped.
    pub fn local_addr(&self) -> io::Result<Addr> {
        match &self.local {
            Ok(address) => Ok(address.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    /// Exchanges the routes and waits for connections, also once `self` was given away.
    pub fn control(&self) -> Control {
        Control(self.shared.clone())
    }

    /// Drops it, and returns when the listener is closed.
    pub async fn close(mut self) {
        self.shared.close();
        // An error is a panic of the listener, which closes it as well.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A handle on the routes of a [`Routed`].
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Has `routes` take the place of those there are, for connections that are accepted from now on. Others go on under
    /// the routes they began with, whose background tasks end. Their limit on pending connections stays the first one's.
    /// Nothing happens once the wrapper was dropped. To be called within the runtime.
    pub fn replace(&self, mut routes: Routes) {
        let mut generations = self.0.generations();
        // Under the lock: a wrapper that is dropped now retires the new one as well.
        if self.0.stop.is_cancelled() {
            return;
        }
        generations.retain(|generation| generation.active() > 0);
        let server = routes.embedded.server.clone();
        generations.push(server.generation().clone());
        let old = self.0.server.swap(server);
        routes.embedded.start();
        old.generation().retire();
        // One that had no connection may have got its last just now.
        if !generations.iter().any(|g| Arc::ptr_eq(g, old.generation())) {
            generations.push(old.generation().clone());
        }
    }

    /// How many connections routes are being looked for or handlers are busy with. Those that came out are not among
    /// them.
    pub fn active(&self) -> usize {
        let generations = self.0.generations();
        generations.iter().map(|g| g.active()).sum()
    }

    /// Waits until there are no such connections, but not longer than `limit`; then ends them and says how many there
    /// were. For after the wrapper was dropped; before that only those of replaced routes are ended.
    pub async fn drain(&self, limit: Duration) -> usize {
        let end = Instant::now().checked_add(limit);
        let generations = self.0.generations().clone();
        let mut left = 0;
        for generation in generations {
            let limit = end.map_or(limit, |end| end.saturating_duration_since(Instant::now()));
            left += generation.drained(limit).await;
            // Routes that are in use have connections to come.
            if self.0.stop.is_cancelled() || !self.0.is_current(&generation) {
                generation.end(EndReason::Shutdown);
            }
        }
        left
    }
}

/// What the wrapper, its tasks and its handles share.
struct Shared {
    /// What takes the connections: exchanged when the routes are.
    server: ArcSwap<Server>,
    /// Those of the current routes and of earlier ones that still have connections.
    generations: Mutex<Vec<Arc<Generation>>>,
    max_pending: usize,
    room: Arc<Semaphore>,
    /// There is no room, this was logged, and there has not been much since.
    full: AtomicBool,
    stop: CancellationToken,
}

/// The place that a connection takes while it is pending. It is left on the connection, so that it is free again as soon
/// as a handler lets go of what is known about it and only relays.
struct Pending(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Shared {
    /// Never ends. May be dropped at any time.
    async fn accept(&self, mut listener: impl Listener, queue: mpsc::Sender<Yielded>) {
        let mut trouble = Trouble::default();
        let mut burst = 0;
        loop {
            let pending = self.room().await;
            match listener.accept().await {
                Ok(accepted) => {
                    trouble.passed();
                    self.route(accepted, pending, queue.clone());
                }
                Err(error) => {
                    drop(pending);
                    let pause = trouble.pause(&error);
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
            }
            burst += 1;
            if burst == BURST {
                burst = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    async fn room(&self) -> Option<Pending> {
        if self.room.available_permits() > self.max_pending / 5 {
            self.full.store(false, Ordering::Relaxed);
        } else if self.room.available_permits() == 0 && !self.full.swap(true, Ordering::Relaxed) {
            warn!(
                target: "layer4", limit = self.max_pending,
                "as many connections are pending as may be: new ones wait in the listener's queue"
            );
        }
        // Never closed, so always granted.
        let permit = self.room.clone().acquire_owned().await;
        permit.ok().map(Pending)
    }

    /// Starts a task that looks for a route of the connection.
    fn route(&self, accepted: Accepted, pending: Option<Pending>, queue: mpsc::Sender<Yielded>) {
        let Accepted { io, remote, local } = accepted;
        let mut conn = Connection::new(io, Arc::new(Record::new(remote)), local);
        if let Some(pending) = pending {
            conn.set_extension(pending);
        }
        let offered = self.server.load_full().offer(conn);
        tokio::spawn(async move {
            if let Some(leftover) = offered.await {
                // An error is that nobody accepts any more: it is closed.
                let _ = queue.send(Yielded(leftover)).await;
            }
        });
    }

    fn close(&self) {
        let generations = self.generations();
        self.stop.cancel();
        for generation in generations.iter() {
            generation.retire();
        }
    }

    fn is_current(&self, generation: &Arc<Generation>) -> bool {
        Arc::ptr_eq(self.server.load().generation(), generation)
    }

    fn generations(&self) -> MutexGuard<'_, Vec<Arc<Generation>>> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
