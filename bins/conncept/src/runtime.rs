//! The tokio runtime that everything runs on.

use std::io;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

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

#[cfg(test)]
mod tests {
    use tokio::runtime::RuntimeFlavor;

    use super::*;

    #[test]
    fn one_worker_is_single_threaded_and_more_are_not() {
        let flavor = |count| {
            let runtime = build(NonZeroUsize::new(count).unwrap()).unwrap();
            runtime.block_on(async { tokio::runtime::Handle::current().runtime_flavor() })
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
}
