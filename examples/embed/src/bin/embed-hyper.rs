//! HTTP by hyper and ssh by sshd on one port: `embed-hyper [LISTEN [SSHD]]`. Stops on Ctrl-C, and lets sessions end.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use l4_embed::{Registry, Routes};
use tokio::net::TcpListener;

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

    let mut routed = routes.wrap(TcpListener::bind(listen).await?);
    let control = routed.control();
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        let (stream, remote) = tokio::select! {
            accepted = routed.accept() => accepted?,
            _ = &mut stop => break,
        };
        tokio::spawn(async move {
            let hello = service_fn(move |_: Request<_>| {
                let body = Full::new(Bytes::from(format!("hello {remote}\n")));
                async { Ok::<_, Infallible>(Response::new(body)) }
            });
            // An error is the client's.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), hello)
                .await;
        });
    }
    // Nothing new comes; those who are logged in have ten seconds.
    routed.close().await;
    control.drain(Duration::from_secs(10)).await;
    Ok(())
}
