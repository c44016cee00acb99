//! One server: a name, its route list, and what happens around a connection.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::future::FutureExt as _;
use tracing::{debug, error, info};

use crate::generation::Active;
use crate::{Connection, EndReason, Flow, Generation, Program, Record, Result, Side};

/// How long a datagram session may be silent, unless configured.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// One server of the configuration, provisioned.
pub struct Server {
    pub(crate) name: Arc<str>,
    pub(crate) program: Program,
    pub(crate) idle_timeout: Duration,
    pub(crate) generation: Arc<Generation>,
}

impl Server {
    /// A server that runs `program`; datagram sessions end when silent for `idle_timeout` in both directions.
    pub fn new(
        name: &str,
        program: Program,
        idle_timeout: Duration,
        generation: Arc<Generation>,
    ) -> Self {
        Self {
            name: name.into(),
            program,
            idle_timeout,
            generation,
        }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its route list.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// How long a datagram session may be silent in both directions.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// The generation it belongs to.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// Runs a connection from its first byte to its end, and writes its summary record.
    ///
    /// The connection counts as running as soon as this is called, before the future is first polled. Dropping the
    /// future at any time ends the connection; the record is written all the same.
    pub fn serve(
        self: Arc<Self>,
        mut conn: Connection,
    ) -> impl Future<Output = ()> + Send + 'static {
        let ending = self.begin(&mut conn);
        async move {
            // Not `run_until_cancelled`, an `async` function: its future would hold the other one twice.
            let running = self.program.run(conn);
            match running
                .with_cancellation_token(self.generation.cancelled())
                .await
            {
                Some(result) => ending.finish(result),
                None => ending.record.end(self.generation.end_reason()),
            }
        }
    }

    /// As [`serve`](Self::serve), but gives back a connection that no route took, if its client is still there.
    pub fn offer(
        self: Arc<Self>,
        mut conn: Connection,
    ) -> impl Future<Output = Option<Leftover>> + Send + 'static {
        let mut ending = self.begin(&mut conn);
        async move {
            let running = self.program.offer(conn);
            match running
                .with_cancellation_token(self.generation.cancelled())
                .await
            {
                Some(Ok(Flow::Next(conn))) => {
                    ending.active = None;
                    return Some(Leftover {
                        conn,
                        _ending: ending,
                    });
                }
                Some(result) => ending.finish(result),
                None => ending.record.end(self.generation.end_reason()),
            }
            None
        }
    }

    fn begin(&self, conn: &mut Connection) -> Ending {
        conn.set_generation(self.generation.clone());
        let record = conn.record().clone();
        debug!(
            target: "layer4",
            conn = record.id(), server = self.name(), remote = %record.remote(),
            network = record.remote().network(), "started handling connection"
        );
        Ending {
            server: self.name.clone(),
            record,
            active: Some(self.generation.enter()),
        }
    }
}

/// A connection that no route took. Its summary record is written when this is dropped, so that it covers whatever was
/// done with it; the generation waits for it no longer.
pub struct Leftover {
    /// Dropped, and so closed, before the record is written.
    conn: Connection,
    _ending: Ending,
}

impl Leftover {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// The connection.
    pub fn connection_mut(&mut self) -> &mut Connection {
        &mut self.conn
    }
}

/// Writes the summary when the connection is over, however that came about.
struct Ending {
    server: Arc<str>,
    record: Arc<Record>,
    /// Dropped after the record is written: whoever waits for the drain sees all records.
    active: Option<Active>,
}

impl Ending {
    fn finish(&self, result: Result<Flow>) {
        let record = &self.record;
        match result {
            Ok(Flow::Done) => {}
            Ok(Flow::Next(_)) if record.route().is_none() => record.end(EndReason::NoRoute),
            Ok(Flow::Next(_)) => {}
            Err(failure) => {
                record.end(failure.reason());
                let (conn, server, remote) = (record.id(), &*self.server, record.remote());
                let (side, phase) = (failure.side(), failure.phase());
                // What a client does to its own connection is not the operator's problem.
                if side == Side::Client {
                    debug!(target: "layer4", conn, server, %remote, ?side, ?phase, error = %failure, "handling connection");
                } else {
                    error!(target: "layer4", conn, server, %remote, ?side, ?phase, error = %failure, "handling connection");
                }
            }
        }
        record.end(EndReason::Completed);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let record = &self.record;
        record.end(if std::thread::panicking() {
            EndReason::Panic
        } else {
            EndReason::Shutdown
        });
        info!(
            target: "conncept::access",
            conn = record.id(),
            server = &*self.server,
            remote = %record.remote(),
            network = record.remote().network(),
            route = record.route().as_deref().unwrap_or("-"),
            upstream = record.upstream().as_deref().unwrap_or("-"),
            read = record.bytes_read(),
            written = record.bytes_written(),
            duration_ms = milliseconds(record.age()),
            reason = record.end_reason().unwrap_or(EndReason::Completed).as_str(),
            "connection"
        );
    }
}

/// To a microsecond: more digits would only be noise of the conversion.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
