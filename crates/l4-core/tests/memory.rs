//! What a connection costs while it waits, and that refusing it costs no allocation.

#![allow(clippy::unwrap_used)]

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::measure;
use l4_core::engine::Server;
use l4_core::prelude::*;
use l4_core::route::{Routed, Sets};
use l4_core::{Addr, Dimension, Generation, Io, Keys, Program, Record};
use l4_testkit::{connection, received};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const ROUTES: usize = 1000;

/// A fixed beginning.
struct Begins(String);

impl Matcher for Begins {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        Verdict::prefix(view.bytes(), self.0.as_bytes())
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

/// The first line is this name.
struct Line(String);

struct FirstLine;

/// The first line; other than lower-case letters are refused.
fn first_line(bytes: &[u8]) -> std::result::Result<&[u8], Verdict> {
    match bytes.iter().position(|b| !b.is_ascii_lowercase()) {
        Some(end) if bytes[end] == b'\n' => Ok(&bytes[..end]),
        Some(_) => Err(Verdict::No),
        None => Err(Verdict::More(1)),
    }
}

impl Dimension for FirstLine {
    fn name(&self) -> &'static str {
        "first line"
    }

    fn probe(&self, view: &View<'_>, name: &mut String) -> Verdict {
        match first_line(view.bytes()) {
            Ok(line) => {
                name.push_str(std::str::from_utf8(line).unwrap());
                Verdict::Match
            }
            Err(verdict) => verdict,
        }
    }
}

impl Matcher for Line {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match first_line(view.bytes()) {
            Ok(line) => Verdict::from_bool(line == self.0.as_bytes()),
            Err(verdict) => verdict,
        }
    }

    fn keys(&self) -> Option<Keys> {
        Some(Keys {
            dimension: &FirstLine,
            keys: vec![self.0.clone()],
        })
    }
}

fn program<M: Matcher>(matcher: impl Fn(usize) -> M) -> Program {
    let routes = (0..ROUTES).map(|i| {
        let sets = Sets::from_matchers(vec![vec![Box::new(matcher(i)) as Box<dyn Matcher>]]);
        (sets, Vec::new())
    });
    Program::from_routes(routes.collect(), Duration::from_secs(3))
}

fn allocations_of_a_step(program: &Program, bytes: &[u8], expected: &Routed) -> u64 {
    let mut conn = received(bytes);
    let mut undecided = Vec::new();
    let counted = measure(|| {
        let routed = conn.with_view(|view| program.step(view, 0, false, &mut undecided));
        assert_eq!(routed, *expected);
    });
    counted.count_total
}

#[test]
fn a_connection_is_one_word_and_a_handlers_answer_two() {
    assert_eq!(size_of::<Connection>(), size_of::<usize>());
    assert!(size_of::<Result<Flow>>() <= 2 * size_of::<usize>());
}

#[tokio::test]
async fn a_served_connection_is_a_small_task() {
    let program = program(|i| Begins(format!("R{i}")));
    let server = Arc::new(Server::new(
        "s",
        program,
        Duration::from_secs(1),
        Generation::new(),
    ));
    let (conn, _client) = connection(1);
    let serving = server.serve(conn);
    assert!(
        size_of_val(&serving) <= 512,
        "{} bytes",
        size_of_val(&serving)
    );
}

#[test]
fn refusing_by_a_thousand_prefixes_allocates_nothing() {
    let program = program(|i| Begins(format!("R{i:03}")));
    assert_eq!(
        allocations_of_a_step(&program, b"GET / HTTP/1.1\r\n\r\n", &Routed::Exhausted),
        0
    );
    let undecided = Routed::Undecided { route: 0, more: 1 };
    assert_eq!(allocations_of_a_step(&program, b"R", &undecided), 0);
    assert_eq!(
        allocations_of_a_step(&program, b"R999 and more", &Routed::Take(999)),
        0
    );
}

#[test]
fn refusing_by_a_thousand_keys_allocates_nothing() {
    let program = program(|i| Line(format!("name{}", "x".repeat(i))));
    assert_eq!(
        allocations_of_a_step(&program, b"GET / HTTP/1.1\r\n\r\n", &Routed::Exhausted),
        0
    );
    let undecided = Routed::Undecided { route: 0, more: 1 };
    assert_eq!(allocations_of_a_step(&program, b"name", &undecided), 0);
    // The name that is looked up, and nothing per route.
    assert!(allocations_of_a_step(&program, b"other\n", &Routed::Exhausted) <= 1);
}

/// Gives its bytes in one read, then the end.
struct Once(Vec<u8>);

impl AsyncRead for Once {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buf.put_slice(&self.0);
        self.0.clear();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Once {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_connection_that_no_route_takes_costs_its_read_buffer() {
    let program = program(|i| Begins(format!("R{i:03}")));
    let waste = |program: &Program| {
        let record = Arc::new(Record::new(Addr::UNNAMED));
        let io = Io::Layer(Box::new(Once(b"GET / HTTP/1.1\r\n\r\n".to_vec())));
        let conn = Connection::new(io, record, Some(Addr::UNNAMED));
        let counted = measure(|| {
            let mut run = pin!(program.run(conn));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(matches!(
                run.as_mut().poll(&mut cx),
                Poll::Ready(Ok(Flow::Next(_)))
            ));
        });
        counted.count_total
    };
    // Once per thread there is the buffer that all its connections read into.
    waste(&program);
    assert_eq!(waste(&program), 1, "the bytes that were read");
}
