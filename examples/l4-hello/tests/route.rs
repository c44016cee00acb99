//! The modules in a router, over connections in memory.

use l4_testkit::{Router, connection, received};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const ROUTES: &str = r#"[
    {"match": [{"hello": {"names": ["alice"]}}],
     "handle": [{"handler": "hello", "answer": "Hello {l4.vars.hello.name}"}, {"handler": "echo"}]},
    {"handle": [{"handler": "respond", "body": "who are you?"}]}
]"#;

fn router() -> Router {
    Router::new(
        |reg| {
            // Modules that every build has, as the routes use some of them.
            conncept::builtin(reg);
            l4_hello::register(reg);
        },
        ROUTES,
    )
}

// Sends the bytes whole, in two segments cut at every place, and byte by byte: the answer must be the same each time.
#[tokio::test]
async fn a_greeting_is_answered_however_it_is_cut_and_the_rest_is_left_to_the_next_handler() {
    let answer = router().exchange_however_cut(b"HELLO alice\r\nping").await;
    assert_eq!(answer, b"Hello alice\r\nping");
}

#[tokio::test]
async fn a_stranger_goes_to_the_next_route_however_the_greeting_is_cut() {
    let answer = router().exchange_however_cut(b"HELLO bob\r\n").await;
    assert_eq!(answer, b"who are you?");
}

#[tokio::test]
async fn the_answer_comes_before_the_client_says_more() {
    let (conn, mut client) = connection(1024);
    let (_record, _task) = router().serve(conn);
    client.write_all(b"HELLO alice\r\n").await.unwrap();
    let mut answer = [0; 13];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"Hello alice\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_let_go_after_the_timeout() {
    let routes = r#"[{"handle": [{"handler": "hello", "timeout": "1s"}]}]"#;
    let (conn, mut client) = connection(1024);
    let (record, task) = Router::new(l4_hello::register, routes).serve(conn);
    // Time is paused: it passes at once when everybody waits.
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    task.await.unwrap();
    assert_eq!(
        record.end_reason().map(|reason| reason.as_str()),
        Some("client_error")
    );
}

#[tokio::test]
async fn what_is_no_greeting_ends_the_connection() {
    let routes = r#"[{"handle": [{"handler": "hello"}]}]"#;
    let (record, task) =
        Router::new(l4_hello::register, routes).serve(received(b"GET / HTTP/1.1\r\n\r\n"));
    task.await.unwrap();
    assert_eq!(
        record.end_reason().map(|reason| reason.as_str()),
        Some("client_error")
    );
}
