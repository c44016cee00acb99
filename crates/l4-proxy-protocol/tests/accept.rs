//! The handler, seen from its clients and from what stands behind it.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use l4_core::prelude::*;
use l4_core::{Addr, Connection, EndReason, Io, Record, Registry};
use l4_testkit::{CLIENT, Client, Router, connection, load, session, settle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

/// Of a client of 203.0.113.9 that connected to 198.51.100.80.
const V1: &[u8] = b"PROXY TCP4 203.0.113.9 198.51.100.80 56324 443\r\n";

/// The same in version 2.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xCB\x00\x71\x09\xC6\x33\x64\x50\xDC\x04\x01\xBB";

/// As [`V2`], over UDP.
const UDP: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0C\xCB\x00\x71\x09\xC6\x33\x64\x50\xDC\x04\x01\xBB";

/// The 16 bytes of a family without a transport.
const CRASH: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x40\0\0";

fn modules(reg: &mut Registry) {
    l4_std::register(reg);
    l4_proxy_protocol::register(reg);
}

/// The handler with these fields, and then the routes.
fn routes(fields: &str, routes: &str) -> Router {
    let handler = format!(r#"{{"handler":"proxy_protocol"{fields}}}"#);
    Router::new(modules, &format!(r#"[{{"handle":[{handler}]}},{routes}]"#))
}

/// Says which addresses the connection has, and echoes.
fn accept(fields: &str) -> Router {
    let from = |ip: &str, name: &str| {
        format!(
            r#"{{"match":[{{"remote_ip":{{"ranges":["{ip}"]}}}}],"handle":[{{"handler":"vars","who":"{name}"}}]}}"#
        )
    };
    let to = |ip: &str, name: &str| {
        format!(
            r#"{{"match":[{{"local_ip":{{"ranges":["{ip}"]}}}}],"handle":[{{"handler":"vars","to":"{name}"}}]}}"#
        )
    };
    let list = [
        from("203.0.113.9", "header"),
        from("192.0.2.7", "socket"),
        to("198.51.100.80", "header"),
        to("198.51.100.1", "socket"),
        r#"{"match":[{"regexp":{"pattern":"^say"}}],"handle":[{"handler":"respond","body":"{l4.vars.who} {l4.vars.to} {l4.conn.remote_addr} [{l4.proxy_protocol.version} {l4.proxy_protocol.remote_addr} {l4.proxy_protocol.local_addr}]"}]}"#.to_owned(),
        r#"{"handle":[{"handler":"echo"}]}"#.to_owned(),
    ];
    routes(fields, &list.join(","))
}

async fn ask(router: &Router, segments: &[&[u8]]) -> String {
    String::from_utf8(router.exchange(segments).await.0).unwrap()
}

/// The header followed by a question for the addresses.
async fn addresses(router: &Router, header: &[u8]) -> String {
    ask(router, &[&[header, b"say!"].concat()]).await
}

const BELIEVED: &str = "header header 192.0.2.7:40000 [";
const DISREGARDED: &str = "socket socket 192.0.2.7:40000 [  ]";

#[tokio::test(start_paused = true)]
async fn a_bare_handler_believes_every_header_of_either_version() {
    let router = accept("");
    let ends = "203.0.113.9:56324 198.51.100.80:443]";
    assert_eq!(addresses(&router, V1).await, format!("{BELIEVED}1 {ends}"));
    assert_eq!(addresses(&router, V2).await, format!("{BELIEVED}2 {ends}"));
    assert_eq!(addresses(&router, b"").await, DISREGARDED);
}

/// Row D-20 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn r1_peers_outside_allow_cannot_spoof_their_address() {
    for fields in [
        r#","allow":["10.0.0.0/8"]"#,
        r#","allow":["10.0.0.0/8"],"fallback_policy":"ignore""#,
        r#","deny":["10.0.0.0/8"]"#,
        r#","allow":[]"#,
        r#","fallback_policy":"IGNORE""#,
    ] {
        let router = accept(fields);
        assert_eq!(addresses(&router, V1).await, DISREGARDED, "{fields}");
        assert_eq!(addresses(&router, V2).await, DISREGARDED, "{fields}");
        assert_eq!(
            ask(&router, &[V1, b"payload"]).await,
            "payload",
            "taken off"
        );
    }
    let skip = accept(r#","fallback_policy":"Skip""#);
    let bytes = [V1, b"payload"].concat();
    assert_eq!(
        ask(&skip, &[&bytes]).await.as_bytes(),
        bytes,
        "left where it is"
    );
}

#[tokio::test(start_paused = true)]
async fn peers_in_allow_are_believed_and_deny_comes_first() {
    for list in [
        r#"["192.0.2.0/24"]"#,
        r#"["192.0.2.7"]"#,
        r#"["private_ranges","192.0.2.0/24"]"#,
    ] {
        let router = accept(&format!(r#","allow":{list},"fallback_policy":"REJECT""#));
        assert!(addresses(&router, V2).await.starts_with(BELIEVED), "{list}");
    }
    let both = accept(r#","allow":["192.0.2.0/24"],"deny":["192.0.2.7"]"#);
    assert_eq!(addresses(&both, V2).await, "");
}

#[tokio::test(start_paused = true)]
async fn r2_a_header_from_somebody_denied_closes_the_connection() {
    for fields in [r#","deny":["192.0.2.7"]"#, r#","fallback_policy":"reject""#] {
        let router = accept(fields);
        for segments in [
            vec![V1],
            vec![V2],
            vec![&V1[..3], &V1[3..]],
            vec![&V2[..11], &V2[11..], b"payload"],
            V1.chunks(1).collect(),
        ] {
            let (answer, record) = router.exchange(&segments).await;
            assert_eq!(answer, b"", "{fields}");
            assert_eq!(
                record.end_reason(),
                Some(EndReason::ClientError),
                "{fields}"
            );
        }
        for bytes in [
            &b"payload"[..],
            b"PROX",
            b"PROXYING",
            b"\r\n\r\n\0\r\nQUIT",
            b"P",
        ] {
            assert_eq!(
                ask(&router, &[bytes]).await.as_bytes(),
                bytes,
                "one without passes"
            );
        }
    }
}

/// Greets, as a server does that speaks first, and then echoes.
async fn greeted(router: &Router, within: Duration) -> Client {
    let (conn, mut client) = connection(1024);
    router.serve(conn);
    let started = Instant::now();
    let mut greeting = [0; 5];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    assert!(started.elapsed() <= within, "{:?}", started.elapsed());
    client
}

/// A handler that greets and goes on.
struct Greet;

impl HandlerModule for Greet {
    const NAME: &'static str = "greet";
    type Config = std::collections::BTreeMap<String, String>;

    fn provision(_: Self::Config, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Greet {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        conn.send(b"hello").await?;
        Ok(Flow::Next(conn))
    }
}

fn greeting(fields: &str) -> Router {
    Router::new(
        |reg| {
            modules(reg);
            reg.handler::<Greet>();
        },
        &format!(
            r#"[{{"handle":[{{"handler":"proxy_protocol"{fields}}},{{"handler":"greet"}},{{"handler":"echo"}}]}}]"#
        ),
    )
}

#[tokio::test(start_paused = true)]
async fn reject_does_not_keep_a_server_waiting_that_speaks_first() {
    let router = greeting(r#","fallback_policy":"REJECT""#);
    let mut client = greeted(&router, Duration::ZERO).await;
    client.write_all(b"PRO").await.unwrap();
    settle().await;
    client.write_all(b"TOCOL").await.unwrap();
    let mut echoed = [0; 8];
    client.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"PROTOCOL");
    let mut client = greeted(&router, Duration::ZERO).await;
    client.write_all(V2).await.unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(rest, b"", "closed, and nothing of the header was passed on");
}

#[tokio::test(start_paused = true)]
async fn the_first_letter_of_a_header_alone_is_passed_on_after_the_timeout() {
    let router = greeting(r#","fallback_policy":"REJECT","timeout":"2s""#);
    let mut client = greeted(&router, Duration::ZERO).await;
    let started = Instant::now();
    client.write_all(b"P").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'P');
    assert_eq!(started.elapsed(), Duration::from_secs(2));
    client.write_all(V1).await.unwrap();
    let mut echoed = vec![0; V1.len()];
    client.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, V1, "it does not begin the stream");
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_the_signature_does_not_get_a_header_past_reject() {
    let router = greeting(r#","fallback_policy":"REJECT","timeout":"2s""#);
    for (header, cut) in [(V1, 5), (V1, 1), (V2, 11), (V2, 3)] {
        let mut client = greeted(&router, Duration::ZERO).await;
        client.write_all(&header[..cut]).await.unwrap();
        let mut before = vec![0; cut];
        client.read_exact(&mut before).await.unwrap();
        assert_eq!(before, header[..cut], "given out after the timeout");
        client.write_all(&header[cut..]).await.unwrap();
        let _ = client.shutdown().await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert_eq!(rest, b"", "closed, and nothing more of it was passed on");
    }
    let mut client = greeted(&router, Duration::ZERO).await;
    for part in [&b"PRO"[..], b"TO", b"COL and more than fits the signature"] {
        client.write_all(part).await.unwrap();
        let mut echoed = vec![0; part.len()];
        client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, part, "something else is passed on whole");
    }
}

/// Row D-17 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn r5_a_silent_client_is_waited_for_ten_seconds_or_as_long_as_is_said() {
    for (fields, seconds) in [("", 10), (r#","timeout":"3s""#, 3)] {
        let started = Instant::now();
        greeted(&greeting(fields), Duration::from_secs(seconds)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(seconds));
    }
    for unlimited in [r#","timeout":0"#, r#","timeout":"-1s""#] {
        let (conn, mut client) = connection(1024);
        greeting(unlimited).serve(conn);
        let hour = Duration::from_secs(3600);
        let early = tokio::time::timeout(hour, client.read_u8()).await;
        assert!(early.is_err(), "{unlimited}");
        client.write_all(V1).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'h');
    }
}

#[tokio::test(start_paused = true)]
async fn require_closes_a_connection_without_a_header() {
    let router = accept(r#","fallback_policy":"require""#);
    assert!(addresses(&router, V1).await.starts_with(BELIEVED));
    for segments in [vec![&b"payload"[..]], vec![b"PROX"], vec![]] {
        let (answer, record) = router.exchange(&segments).await;
        assert_eq!(answer, b"");
        assert_eq!(record.end_reason(), Some(EndReason::ClientError));
    }
    let (conn, mut silent) = connection(64);
    let (record, task) = router.serve(conn);
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    task.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::ClientError));
}

#[tokio::test(start_paused = true)]
async fn r4_a_malformed_header_ends_the_connection_before_anything_else_runs() {
    for fields in [
        "",
        r#","fallback_policy":"REQUIRE""#,
        r#","fallback_policy":"IGNORE""#,
    ] {
        let router = accept(fields);
        for bytes in [
            &b"PROXY TCP4 1.2.3.4 5.6.7.8 9 x\r\n"[..],
            b"PROXY UDP4 1.2.3.4 5.6.7.8 9 10\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
            CRASH,
        ] {
            let (answer, record) = router.exchange(&[bytes, b"say!"]).await;
            assert_eq!(answer, b"");
            assert_eq!(record.end_reason(), Some(EndReason::ClientError));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r3_a_family_without_a_transport_is_an_error_and_nothing_worse() {
    let router = accept("");
    for byte in 0..=u8::MAX {
        for command in [0x20, 0x21] {
            let bytes = [&V2[..12], &[command, byte, 0, 0]].concat();
            let (_, record) = router.exchange(&[&bytes]).await;
            let sound = command == 0x20 || byte == 0;
            let reason = if sound {
                EndReason::Completed
            } else {
                EndReason::ClientError
            };
            assert_eq!(
                record.end_reason(),
                Some(reason),
                "{command:02x} {byte:02x}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_that_is_not_finished_in_time_is_an_error() {
    for cut in [6, V1.len() - 1] {
        let (conn, mut client) = connection(1024);
        let (record, task) = accept("").serve(conn);
        let started = Instant::now();
        client.write_all(&V1[..cut]).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(started.elapsed(), Duration::from_secs(10));
        task.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::ClientError));
    }
    assert_eq!(
        ask(&accept(""), &[&V2[..V2.len() - 1]]).await,
        "",
        "nor one that ends with the stream"
    );
    assert_eq!(
        ask(&accept(""), &[b"PROX"]).await,
        "PROX",
        "what may be anything is passed on"
    );
}

#[tokio::test(start_paused = true)]
async fn r6_proxy_without_addresses_is_accepted_and_the_addresses_stay() {
    let router = accept(r#","fallback_policy":"REQUIRE""#);
    for (header, version) in [
        (&b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"[..], "2"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\0", "2"),
        (b"PROXY UNKNOWN\r\n", "1"),
    ] {
        let expected = format!("socket socket 192.0.2.7:40000 [{version}  ]");
        assert_eq!(addresses(&router, header).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn r8_a_header_may_come_in_any_number_of_segments() {
    for header in [V1, V2] {
        let bytes = [header, b"say!"].concat();
        for cut in 1..bytes.len() {
            let router = accept("");
            let said = ask(&router, &[&bytes[..cut], &bytes[cut..]]).await;
            assert!(said.starts_with(BELIEVED), "{cut}: {said}");
        }
    }
}

fn from(remote: Addr) -> (Connection, Client) {
    let (ours, theirs) = tokio::io::duplex(1024);
    let local = Some(Addr::Tcp("198.51.100.1:443".parse().unwrap()));
    (
        Connection::new(
            Io::Layer(Box::new(ours)),
            Arc::new(Record::new(remote)),
            local,
        ),
        theirs,
    )
}

/// What a client at `remote` gets that sends a header and the question for its addresses.
async fn from_addr(router: &Router, remote: Addr) -> String {
    let (conn, mut client) = from(remote);
    router.serve(conn);
    client.write_all(&[V1, b"say!"].concat()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    said
}

#[tokio::test(start_paused = true)]
async fn r7_bare_addresses_private_ranges_and_zones_are_understood() {
    let private = accept(r#","allow":["private_ranges"]"#);
    for ip in ["[::1]:5", "10.1.2.3:5", "[::ffff:10.1.2.3]:5"] {
        let said = from_addr(&private, Addr::Tcp(ip.parse().unwrap())).await;
        assert!(said.starts_with("header header"), "{ip}: {said}");
    }
    let zoned = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 5, 0, 2);
    let denied = accept(r#","deny":["fe80::/10"]"#);
    assert_eq!(from_addr(&denied, Addr::Tcp(zoned.into())).await, "");
}

#[tokio::test(start_paused = true)]
async fn on_a_unix_socket_headers_are_believed() {
    let strict = accept(r#","allow":["10.0.0.0/8"],"fallback_policy":"REJECT""#);
    let said = from_addr(&strict, Addr::UNNAMED).await;
    assert!(said.starts_with("header header @"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn of_several_handlers_the_last_header_counts_and_each_asks_who_sent_it() {
    let outer = b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n";
    let stacked = |second: &str| accept(&format!(r#"}},{{"handler":"proxy_protocol"{second}"#));
    let both = [outer, V1].concat();
    assert!(addresses(&stacked(""), &both).await.starts_with(BELIEVED));
    let allowed = stacked(r#","allow":["10.0.0.1"],"fallback_policy":"REJECT""#);
    assert!(addresses(&allowed, &both).await.starts_with(BELIEVED));
    let not_allowed = stacked(r#","allow":["10.0.0.9"],"fallback_policy":"REJECT""#);
    assert_eq!(addresses(&not_allowed, &both).await, "");
    let once = addresses(&stacked(r#","timeout":"1s""#), V1).await;
    assert!(
        once.starts_with(BELIEVED),
        "the first stays if the second finds none: {once}"
    );
}

#[tokio::test(start_paused = true)]
async fn r11_conn_placeholders_keep_the_socket_and_proxy_protocol_ones_tell_the_header() {
    let said = addresses(&accept(""), V1).await;
    assert!(
        said.contains(CLIENT) && said.contains("203.0.113.9:56324"),
        "{said}"
    );
}

#[tokio::test(start_paused = true)]
async fn r10_what_a_header_says_beside_addresses_can_be_read() {
    let tlv = |kind: u8, value: &[u8]| {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind], &length[..], value].concat()
    };
    let inner = [
        tlv(0x21, b"TLSv1.3"),
        tlv(0x22, b"someone"),
        tlv(0x23, b"TLS_AES_128_GCM_SHA256"),
        tlv(0x24, b"SHA256"),
        tlv(0x25, b"RSA2048"),
    ];
    let ssl = [&[0x07, 0, 0, 0, 0][..], &inner.concat()].concat();
    let rest = [
        V2[16..].to_vec(),
        tlv(0x01, b"h2"),
        tlv(0x02, b"a.example"),
        tlv(0x05, &[0xAB, 0x01]),
        tlv(0x20, &ssl),
        tlv(0x30, b"blue"),
        tlv(0xE4, b"\x00\xFF"),
    ]
    .concat();
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let header = [&V2[..14], &length, &rest].concat();
    let names = [
        "tlv.alpn",
        "tlv.authority",
        "tlv.unique_id",
        "tlv.netns",
        "tlv.0xe4",
        "tlv.0xE4",
        "tlv.0x01",
        "tlv.0x77",
        "tlv.ssl",
        "tlv.ssl.verified",
        "tlv.ssl.version",
        "tlv.ssl.cn",
        "tlv.ssl.cipher",
        "tlv.ssl.sig_alg",
        "tlv.ssl.key_alg",
    ];
    let body: Vec<String> = names
        .iter()
        .map(|name| format!("{{l4.proxy_protocol.{name}}}"))
        .collect();
    let respond = format!(
        r#"{{"handle":[{{"handler":"respond","body":"{}"}}]}}"#,
        body.join(" ")
    );
    let router = routes("", &respond);
    assert_eq!(
        ask(&router, &[&header]).await,
        "h2 a.example ab01 blue 00ff 00ff 6832  true true TLSv1.3 someone TLS_AES_128_GCM_SHA256 SHA256 RSA2048"
    );
    assert_eq!(ask(&router, &[V1]).await.trim(), "");
}

#[tokio::test(start_paused = true)]
async fn r9_the_header_is_taken_off_every_datagram() {
    let router = accept("");
    let (conn, mut peer) = session();
    // Two before anybody reads, and one later.
    peer.send(&[UDP, b"one"].concat());
    peer.send(&[UDP, b"two"].concat());
    router.serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "one");
    assert_eq!(peer.receive().await.unwrap(), "two");
    peer.send(&[UDP, b"three"].concat());
    assert_eq!(peer.receive().await.unwrap(), "three");
    peer.send(b"bare");
    assert_eq!(
        peer.receive().await.unwrap(),
        "bare",
        "a header is optional"
    );
    peer.send(UDP);
    assert_eq!(peer.receive().await.unwrap(), "", "a datagram may be empty");
    peer.send(CRASH);
    peer.send(&UDP[..20]);
    peer.send(b"PROX");
    assert_eq!(
        peer.receive().await.unwrap(),
        "PROX",
        "broken headers are dropped with what follows"
    );
    let (conn, mut peer) = session();
    peer.send(&[UDP, b"say!"].concat());
    router.serve(conn);
    let said = String::from_utf8(peer.receive().await.unwrap().to_vec()).unwrap();
    assert!(said.starts_with(BELIEVED), "{said}");
}

#[tokio::test(start_paused = true)]
async fn policies_hold_for_datagrams_too() {
    let cases = [
        (
            r#","fallback_policy":"IGNORE""#,
            vec![Some("one"), Some("bare"), Some("two")],
        ),
        (
            r#","fallback_policy":"REQUIRE""#,
            vec![Some("one"), Some("two")],
        ),
    ];
    for (fields, expected) in cases {
        let (conn, peer) = session();
        for datagram in [
            &[UDP, b"one"].concat()[..],
            b"bare",
            &[UDP, b"two"].concat(),
        ] {
            peer.send(datagram);
        }
        accept(fields).serve(conn);
        settle().await;
        let echoed: Vec<_> = peer
            .end()
            .await
            .iter()
            .map(|d| String::from_utf8(d.to_vec()).unwrap())
            .collect();
        assert_eq!(
            echoed.iter().map(|d| Some(d.as_str())).collect::<Vec<_>>(),
            expected,
            "{fields}"
        );
    }
    let skip = accept(r#","fallback_policy":"SKIP""#);
    let (conn, mut peer) = session();
    skip.serve(conn);
    peer.send(UDP);
    assert_eq!(peer.receive().await.unwrap(), UDP);
    let strict = accept(r#","fallback_policy":"REJECT""#);
    let (conn, mut peer) = session();
    peer.send(b"bare");
    let (record, task) = strict.serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "bare");
    peer.send(UDP);
    assert_eq!(peer.receive().await, None, "the session is over");
    task.await.unwrap();
    assert!(record.end_reason().is_some());
    let (conn, mut peer) = session();
    peer.send(UDP);
    strict.serve(conn);
    assert_eq!(peer.receive().await, None);
    for malformed in [CRASH, &UDP[..20]] {
        let (conn, mut peer) = session();
        peer.send(malformed);
        let (record, _) = accept("").serve(conn);
        assert_eq!(peer.receive().await, None);
        assert_eq!(record.end_reason(), Some(EndReason::ClientError));
    }
}

#[test]
fn bad_configurations_are_refused_where_they_are_wrong() {
    for (fields, pointer, word) in [
        (r#""timeout":"soon""#, "timeout", "soon"),
        (r#""allow":["10.0.0.0/33"]"#, "allow/0", "10.0.0.0/33"),
        (r#""allow":["::1","10.0.0.x"]"#, "allow/1", "10.0.0.x"),
        (r#""deny":["a.example"]"#, "deny/0", "a.example"),
        (r#""deny":"10.0.0.0/8""#, "deny", "list"),
        (
            r#""fallback_policy":"TRUST""#,
            "fallback_policy",
            "TRUST is invalid policy",
        ),
        (r#""policy":"USE""#, "policy", "fallback_policy"),
    ] {
        let json = format!(
            r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"listen":["127.0.0.1:1"],"routes":[{{"handle":[
                {{"handler":"proxy_protocol",{fields}}}]}}]}}}}}}}}}}"#
        );
        let errors = load(modules, &json).app.err().unwrap();
        let [error] = errors.as_slice() else {
            panic!("{errors:?}")
        };
        let place = format!("/apps/layer4/servers/a/routes/0/handle/0/{pointer}");
        assert_eq!(error.pointer(), place);
        assert!(error.render().contains(word), "{}", error.render());
    }
}
