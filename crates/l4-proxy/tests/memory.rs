//! What a proxied connection allocates from its beginning to its end, and what it holds while nothing moves.
//!
//! Clients and the upstream are on threads of their own: only what the router's thread allocates is counted.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use l4_core::Generation;
use l4_net::{ConnectionLimit, ListenerPool};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

const MESSAGE: [u8; 64] = [b'm'; 64];

/// A router in front of an upstream that answers once and waits for the end.
struct Served {
    runtime: Runtime,
    _pool: ListenerPool,
    generation: Arc<Generation>,
    address: SocketAddr,
}

impl Served {
    /// `matching` is the route's condition, with the comma behind it.
    fn with(matching: &str) -> Self {
        let upstream = upstream();
        let json = format!(
            r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"listen":["127.0.0.1:0"],"routes":[
                {{{matching}"handle":[{{"handler":"proxy","upstreams":[{{"dial":["{upstream}"]}}]}}]}}]}}}}}}}}}}"#
        );
        let loaded = l4_testkit::load(
            |reg| {
                l4_std::register(reg);
                l4_proxy::register(reg);
            },
            &json,
        );
        let app = loaded.app.unwrap_or_else(|errors| panic!("{errors:?}"));
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let pool = ListenerPool::new(ConnectionLimit::new(10_000));
        runtime.block_on(async {
            match pool.stage(&app).await {
                Ok(staged) => staged.commit(),
                Err(errors) => panic!("{errors:?}"),
            }
        });
        let address = pool.addresses()[0].actual.socket().unwrap();
        Self {
            runtime,
            _pool: pool,
            generation: app.generation.clone(),
            address,
        }
    }

    /// Serves `count` clients, one after the other, to the end; those that are to stay are returned.
    fn serve(&self, count: usize, stay: bool) -> Vec<TcpStream> {
        let (done, finished) = oneshot::channel();
        let address = self.address;
        thread::spawn(move || {
            let clients = (0..count).map(|_| ask(address));
            let open: Vec<TcpStream> = if stay {
                clients.collect()
            } else {
                clients.for_each(drop);
                Vec::new()
            };
            done.send(open).unwrap();
        });
        self.runtime.block_on(async {
            let open = finished.await.unwrap();
            if !stay {
                assert_eq!(self.generation.drained(Duration::from_secs(30)).await, 0);
            }
            open
        })
    }
}

fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut message = MESSAGE;
                connection.read_exact(&mut message).unwrap();
                connection.write_all(&message).unwrap();
                let _ = connection.read(&mut message);
            });
        }
    });
    address
}

fn ask(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(&MESSAGE).unwrap();
    let mut answer = [0; MESSAGE.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, MESSAGE);
    client
}

/// How often is measured; the thread that connects and what grows now and then are spread over all.
const COUNT: usize = 200;

fn cost_of(served: &Served, stay: bool) -> AllocationInfo {
    // What is made once: buffers of the thread, tables.
    let before = served.serve(20, stay);
    let mut open = Vec::new();
    let cost = measure(|| open = served.serve(COUNT, stay));
    assert_eq!(open.len(), if stay { COUNT } else { 0 });
    drop((before, open));
    cost
}

#[test]
fn a_short_connection_is_nine_allocations() {
    let cost = cost_of(&Served::with(""), false);
    // The task, what the runtime knows of each socket (2), the connection, its record, dialling, relaying, the runtime's
    // list of sockets to forget, and what the client had sent by the time it was accepted.
    let each = cost.count_total as f64 / COUNT as f64;
    assert!(each < 9.5, "{each}");
}

#[test]
fn a_connection_chosen_by_its_first_bytes_is_one_more_at_most() {
    let matching = r#""match":[{"regexp":{"pattern":"^m","count":1}}],"#;
    let cost = cost_of(&Served::with(matching), false);
    // The bytes are waited for where they were not there: then there is a time limit.
    let each = cost.count_total as f64 / COUNT as f64;
    assert!(each < 10.5, "{each}");
}

#[test]
fn an_idle_connection_holds_less_than_two_kibibytes() {
    let cost = cost_of(&Served::with(""), true);
    let each = cost.bytes_current / COUNT as i64;
    // Without what the allocator adds: 16 bytes for each of five allocations, and gaps where one is aligned to 128.
    assert!(each <= 1800, "{each} bytes");
    let blocks = cost.count_current as f64 / COUNT as f64;
    assert!(blocks < 5.5, "{blocks}");
}
