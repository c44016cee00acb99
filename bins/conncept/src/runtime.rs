//! The tokio runtime that everything runs on, and those that connections may be spread over beside it.

use std::io;
use std::num::NonZeroUsize;
use std::thread::{self, JoinHandle, available_parallelism};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// One worker per processor that this process may use: affinity and cgroup quotas count, machines do not.
pub(crate) fn workers(wanted: Option<NonZeroUsize>) -> NonZeroUsize {
    wanted
        .or_else(|| available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN)
}

/// A runtime with so many workers. One worker gets the single-threaded scheduler, which wakes tasks without locks.
pub(crate) fn build(workers: NonZeroUsize) -> io::Result<Runtime> {
    let mut builder = match workers.get() {
        1 => Builder::new_current_thread(),
        count => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(count);
            builder
        }
    };
    builder.thread_name("conncept").enable_all().build()
}

/// Runtimes of one thread each. Dropping it ends them, and what runs on them.
#[derive(Default)]
pub(crate) struct Threads {
    runtimes: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Threads {
    /// So many, that of `first` among them: it accepts the connections, and takes its share.
    pub(crate) fn beside(first: &Handle, count: NonZeroUsize) -> io::Result<Self> {
        let mut started = Self::default();
        started.runtimes.push(first.clone());
        for _ in 1..count.get() {
            let runtime = build(NonZeroUsize::MIN)?;
            started.runtimes.push(runtime.handle().clone());
            let stop = started.stop.clone();
            let run = move || {
                runtime.block_on(stop.cancelled());
                // Not by being dropped: that would wait for a name that is being looked up.
                runtime.shutdown_background();
            };
            let thread = thread::Builder::new().name("conncept".to_owned());
            started.threads.push(thread.spawn(run)?);
        }
        Ok(started)
    }

    /// The runtimes, for what is to be spread over them.
    pub(crate) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // One that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::RuntimeFlavor;

    use super::*;

    #[test]
    fn one_worker_is_single_threaded_and_more_are_not() {
        let flavor = |count| {
            let runtime = build(NonZeroUsize::new(count).unwrap()).unwrap();
            runtime.block_on(async { Handle::current().runtime_flavor() })
        };
        assert_eq!(flavor(1), RuntimeFlavor::CurrentThread);
        assert_eq!(flavor(2), RuntimeFlavor::MultiThread);
    }

    #[test]
    fn a_number_of_workers_that_was_asked_for_is_taken() {
        let five = NonZeroUsize::new(5);
        assert_eq!(workers(five), five.unwrap());
        assert_eq!(workers(None), available_parallelism().unwrap());
    }

    #[test]
    fn threads_are_as_many_as_asked_for_with_the_first_and_end_what_runs_on_them() {
        let first = build(NonZeroUsize::MIN).unwrap();
        let threads = Threads::beside(first.handle(), NonZeroUsize::new(3).unwrap()).unwrap();
        let ids: std::collections::HashSet<_> = threads.runtimes().iter().map(Handle::id).collect();
        assert_eq!(ids.len(), 3);
        let (alive, mut gone) = tokio::sync::oneshot::channel::<()>();
        threads.runtimes()[2].spawn(async move {
            let _alive = alive;
            std::future::pending::<()>().await
        });
        drop(threads);
        assert!(matches!(
            gone.try_recv(),
            Err(tokio::sync::oneshot::error::TryRecvError::Closed)
        ));
    }
}
