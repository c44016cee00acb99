//! Upstreams with several addresses when there is no room for them. A process of its own: the limit is that of the
//! process.

#![allow(clippy::unwrap_used)]

use l4_core::{EndReason, Registry};
use l4_net::ConnectionLimit;
use l4_testkit::Router;
use tokio::net::TcpListener;

fn modules(registry: &mut Registry) {
    l4_proxy::register(registry);
}

/// The address of a server that ends every connection at once.
async fn backend() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    address
}

#[tokio::test]
async fn an_upstream_of_several_addresses_beyond_the_connection_limit_is_not_available() {
    let (a, b) = (backend().await, backend().await);
    let router = |dial: &[&str]| {
        let routes =
            format!(r#"[{{"handle":[{{"handler":"proxy","upstreams":[{{"dial":{dial:?}}}]}}]}}]"#);
        Router::new(modules, &routes)
    };
    let (one, both) = (router(&[&a]), router(&[&a, &b]));
    let end = async |router: &Router| router.exchange(&[]).await.1.end_reason();
    assert_eq!(end(&both).await, Some(EndReason::Completed));
    // Whatever is left, in pieces of halving size.
    let mut taken = Vec::new();
    for size in (0..=30).rev().map(|bit| 1 << bit) {
        while let Some(extra) = ConnectionLimit::process().extra(size) {
            taken.push(extra);
        }
    }
    assert_eq!(end(&both).await, Some(EndReason::NoUpstream));
    assert_eq!(end(&one).await, Some(EndReason::Completed));
    taken.pop();
    assert_eq!(end(&both).await, Some(EndReason::Completed));
    assert!(ConnectionLimit::process().extra(1).is_some(), "given back");
}
