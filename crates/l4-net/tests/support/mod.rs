//! Applications for the tests of sockets: every server greets with its name and what it knows of the connection, then
//! sends back what it gets.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "not every test file needs everything")]

use std::collections::HashMap;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use l4_core::Io;
use l4_core::conn::Received;
use l4_core::engine::App;
use l4_core::prelude::*;
use l4_net::{BindError, ConnectionLimit, ListenerPool};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// A handler whose greeting says which server took the connection, from whom, at which address, what was there
/// already, and with which socket options.
struct Greet(String);

impl HandlerModule for Greet {
    const NAME: &'static str = "greet";
    type Config = HashMap<String, String>;

    fn provision(mut config: Self::Config, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(config.remove("name").unwrap_or_default()))
    }
}

/// A port that nobody has, below those that the kernel chooses from unless told otherwise: nobody is given it by accident
/// while it is free. Never the same one twice in a process.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    loop {
        let nth = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(nth % 20_000).unwrap();
        let both = (
            TcpListener::bind(("0.0.0.0", port)),
            UdpSocket::bind(("0.0.0.0", port)),
        );
        if let (Ok(_), Ok(_)) = both {
            return port;
        }
    }
}

/// What makes it panic.
pub(crate) const BUG: &[u8] = b"bug";

/// What makes it end.
pub(crate) const BYE: &[u8] = b"bye";

/// What makes it answer with the thread that it runs on.
pub(crate) const WHERE: &[u8] = b"where are you?";

impl AsyncHandler for Greet {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        if !conn.is_datagram() {
            let (name, remote, local) = (&self.0, conn.remote(), conn.local());
            let mut greeting = format!("{name} {remote} {local}");
            if !conn.unread().is_empty() {
                let unread = String::from_utf8_lossy(conn.unread());
                greeting.push_str(&format!(" unread={unread}"));
            }
            if let Io::Tcp(socket) = conn.transport().io() {
                let socket = SockRef::from(socket);
                greeting.push_str(&format!(
                    " nodelay={} keepalive={} idle={} interval={} probes={}",
                    socket.tcp_nodelay()?,
                    socket.keepalive()?,
                    socket.tcp_keepalive_time()?.as_secs(),
                    socket.tcp_keepalive_interval()?.as_secs(),
                    socket.tcp_keepalive_retries()?,
                ));
            }
            conn.send(format!("{greeting}\n").as_bytes()).await?;
        }
        let mut buffer = vec![0; 65_535];
        while let Received::Data(n) = conn.receive(&mut buffer).await? {
            assert_ne!(&buffer[..n], BUG, "a bug in a handler");
            let mut answer = match &buffer[..n] {
                BYE => break,
                WHERE => format!("{:?}", std::thread::current().id()).into_bytes(),
                same => same.to_vec(),
            };
            if conn.is_datagram() {
                answer.splice(..0, format!("{}: ", self.0).into_bytes());
            }
            conn.send(&answer).await?;
        }
        Ok(Flow::Done)
    }
}

/// An application with these servers, each a name and its `listen` list.
pub(crate) fn app(servers: &[(&str, &[&str])]) -> App {
    let servers: Vec<String> = servers
        .iter()
        .map(|(name, listen)| {
            let routes = format!(r#"[{{"handle":[{{"handler":"greet","name":{name:?}}}]}}]"#);
            format!(r#"{name:?}:{{"listen":{listen:?},"routes":{routes}}}"#)
        })
        .collect();
    let json = format!(
        r#"{{"apps":{{"layer4":{{"servers":{{{}}}}}}}}}"#,
        servers.join(",")
    );
    let loaded = l4_testkit::load(
        |registry| {
            registry.origin(l4_core::origin!()).handler::<Greet>();
        },
        &json,
    );
    loaded
        .app
        .unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
}

pub(crate) fn pool() -> ListenerPool {
    ListenerPool::new(ConnectionLimit::new(10_000))
}

/// Puts `servers` in force.
pub(crate) async fn load(pool: &ListenerPool, servers: &[(&str, &[&str])]) {
    match pool.stage(&app(servers)).await {
        Ok(staged) => staged.commit(),
        Err(errors) => panic!("{}", messages(&errors).join("\n")),
    }
}

/// The errors of staging `servers`.
pub(crate) async fn refusal(pool: &ListenerPool, servers: &[(&str, &[&str])]) -> Vec<BindError> {
    match pool.stage(&app(servers)).await {
        Ok(_) => panic!("{servers:?} can be listened on"),
        Err(errors) => errors,
    }
}

pub(crate) fn messages(errors: &[BindError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// A pool that listens on `listen`, and the addresses of its sockets.
pub(crate) async fn listening(listen: &[&str]) -> (ListenerPool, Vec<Addr>) {
    let pool = pool();
    load(&pool, &[("one", listen)]).await;
    let addresses = pool.addresses().into_iter().map(|a| a.actual).collect();
    (pool, addresses)
}

/// The port of the only, or first, socket.
pub(crate) fn port(pool: &ListenerPool) -> u16 {
    pool.addresses()[0].actual.socket().unwrap().port()
}

/// Reads one line.
pub(crate) async fn line(socket: impl AsyncRead + Unpin) -> String {
    let mut line = String::new();
    soon(BufReader::new(socket).read_line(&mut line))
        .await
        .unwrap();
    line.trim_end().to_owned()
}

/// What the server says to a new TCP client.
pub(crate) async fn greeting(address: impl tokio::net::ToSocketAddrs) -> String {
    line(soon(tokio::net::TcpStream::connect(address)).await.unwrap()).await
}

/// Waits for what must not take long.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("takes too long")
}
