//! HTTP by axum and ssh by sshd on one port: `embed-axum [LISTEN [SSHD]]`.

use std::error::Error;
use std::io;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use l4_embed::{Addr, Registry, Routed, Routes, Yielded};
use tokio::net::TcpListener;

/// What axum accepts from: the connections that no route took.
struct Rest(Routed);

impl Listener for Rest {
    type Io = Yielded;
    type Addr = Addr;

    async fn accept(&mut self) -> (Yielded, Addr) {
        match self.0.accept().await {
            Ok(accepted) => accepted,
            // Nothing can come any more.
            Err(_) => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Addr> {
        self.0.local_addr()
    }
}

/// What handlers of requests are told about the connection.
#[derive(Clone)]
struct Client {
    address: Addr,
    server_name: Option<Box<str>>,
}

impl Connected<IncomingStream<'_, Rest>> for Client {
    fn connect_info(stream: IncomingStream<'_, Rest>) -> Self {
        let yielded = stream.io();
        Self {
            address: yielded.remote().clone(),
            server_name: yielded.tls().and_then(|tls| tls.server_name.clone()),
        }
    }
}

async fn hello(ConnectInfo(client): ConnectInfo<Client>) -> String {
    let by = client.server_name.as_deref().unwrap_or("no TLS");
    format!("hello {} by {by}\n", client.address)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8022".to_owned());
    let sshd = args.next().unwrap_or_else(|| "127.0.0.1:22".to_owned());

    let mut registry = Registry::new();
    l4_ssh::register(&mut registry);
    l4_proxy::register(&mut registry);
    let routes = Routes::from_json(
        &registry,
        &format!(
            r#"[{{
                "match": [{{"ssh": {{}}}}],
                "handle": [{{"handler": "proxy", "upstreams": [{{"dial": ["{sshd}"]}}]}}]
            }}]"#
        ),
    )?;

    let app = Router::new()
        .route("/", get(hello))
        .into_make_service_with_connect_info::<Client>();
    let rest = Rest(routes.wrap(TcpListener::bind(listen).await?));
    axum::serve(rest, app).await?;
    Ok(())
}
