//! A storage for tests, which tells what is done with it and can be held up.

use std::io;
use std::path::Path;
use std::sync::Arc;

use l4_core::{BoxFuture, Lease, Storage};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use super::FileStorage;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody writes, which takes until [`Stalled::go_on`].
    Writing,
    /// Somebody wants the lock that nobody gets.
    Locking,
    /// A lock was given back.
    Unlocked,
}

/// Files; but writing waits, and so does locking for ever if another one has all locks.
#[derive(Debug)]
pub(crate) struct Stalled {
    files: FileStorage,
    events: mpsc::Sender<Event>,
    gate: Semaphore,
    taken: bool,
}

impl Stalled {
    pub(crate) fn new(folder: &Path) -> (Arc<Self>, mpsc::Receiver<Event>) {
        Self::with(folder, false)
    }

    /// One on which somebody else has all locks.
    pub(crate) fn taken(folder: &Path) -> (Arc<Self>, mpsc::Receiver<Event>) {
        Self::with(folder, true)
    }

    fn with(folder: &Path, taken: bool) -> (Arc<Self>, mpsc::Receiver<Event>) {
        let (events, seen) = mpsc::channel(100);
        let this = Self {
            files: FileStorage::new(folder),
            events,
            gate: Semaphore::new(0),
            taken,
        };
        (Arc::new(this), seen)
    }

    pub(crate) fn go_on(&self) {
        self.gate.close();
    }
}

impl Storage for Stalled {
    fn load(&self, key: &str) -> io::Result<Vec<u8>> {
        self.files.load(key)
    }

    fn store(&self, key: &str, value: &[u8]) -> io::Result<()> {
        let _ = self.events.try_send(Event::Writing);
        let closed = Handle::current().block_on(self.gate.acquire());
        assert!(closed.is_err());
        self.files.store(key, value)
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        self.files.delete(key)
    }

    fn lock<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Lease>>> {
        Box::pin(async move {
            if self.taken {
                let _ = self.events.try_send(Event::Locking);
                std::future::pending::<()>().await;
            }
            Ok(Box::new(Lock(self.events.clone())) as Box<dyn Lease>)
        })
    }

    fn describe(&self, key: &str) -> String {
        self.files.describe(key)
    }
}

#[derive(Debug)]
struct Lock(mpsc::Sender<Event>);

impl Lease for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.try_send(Event::Unlocked);
    }
}
