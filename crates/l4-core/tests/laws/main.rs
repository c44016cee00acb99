//! Laws of routing, over random route lists and random bytes.
//!
//! The oracle knows neither segments nor waiting nor the index: it looks at all the bytes at once and takes the first
//! route that matches. The engine must come to the same end however the bytes arrive.

#![allow(clippy::unwrap_used)]

mod model;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use l4_core::prelude::*;
use l4_core::route::{Routed, Sets};
use l4_core::{Handler, Program};
use l4_testkit::{CLIENT, received, received_datagrams};
use model::{
    Act, CAPTURES, End, Log, Model, Oracle, RouteModel, Segments, block_on, build_sets, connection,
    program, run,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn byte() -> impl Strategy<Value = u8> {
    select(b"aab.\n*".as_slice())
}

fn name() -> impl Strategy<Value = String> {
    vec(select(["a", "b", "ab", ""].as_slice()), 1..4).prop_map(|labels| labels.join("."))
}

fn key() -> impl Strategy<Value = String> {
    let label = select(["a", "b", "ab"].as_slice());
    (0..4_usize, vec(label, 0..3)).prop_map(|(stars, labels)| {
        let labels: Vec<&str> = std::iter::repeat_n("*", stars).chain(labels).collect();
        if labels.is_empty() {
            "a".to_owned()
        } else {
            labels.join(".")
        }
    })
}

/// Bytes, half of them beginning with a line that is a name.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let free = vec(byte(), 0..24);
    (any_bool(), name(), free).prop_map(|(named, name, mut free)| {
        if named {
            free.splice(..0, format!("{name}\n").into_bytes());
        }
        free
    })
}

fn any_bool() -> impl Strategy<Value = bool> {
    proptest::bool::ANY
}

fn keyed_model() -> impl Strategy<Value = Model> {
    prop_oneof![
        3 => (vec(key(), 0..4), any_bool()).prop_map(|(keys, spans)| Model::Line(keys, spans)),
        1 => vec(select(["a", "b"].as_slice()).prop_map(String::from), 0..3)
            .prop_map(Model::Second),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let leaf = prop_oneof![
        vec(byte(), 1..6).prop_map(Model::Begins),
        (0..8_usize, byte()).prop_map(|(offset, byte)| Model::Byte(offset, byte)),
        byte().prop_map(Model::Length),
        (byte(), 1..8_usize).prop_map(|(byte, limit)| Model::Within(byte, limit)),
        any_bool().prop_map(Model::Fixed),
        keyed_model(),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(vec(inner.clone(), 0..3), 0..3).prop_map(Model::Not),
            (0..CAPTURES, inner).prop_map(|(id, inner)| Model::Captures(id, Box::new(inner))),
        ]
    })
}

fn sets() -> impl Strategy<Value = Vec<Vec<Model>>> {
    vec(
        vec(prop_oneof![4 => model(), 1 => keyed_model()], 0..3),
        0..3,
    )
}

fn routes() -> impl Strategy<Value = Vec<RouteModel>> {
    let act = prop_oneof![
        3 => (0..99_usize).prop_map(Act::End),
        2 => (0..99_usize).prop_map(Act::Pass),
        1 => (0..4_usize).prop_map(Act::Take),
    ];
    let act = act.prop_recursive(2, 12, 3, |inner| {
        let route = (sets(), vec(inner, 0..3)).prop_map(|(sets, chain)| RouteModel { sets, chain });
        vec(route, 0..3).prop_map(Act::Subroute)
    });
    let route = (sets(), vec(act, 0..3)).prop_map(|(sets, chain)| RouteModel { sets, chain });
    vec(route, 0..8)
}

/// Lists long enough in keyed routes for the index to do look-ups.
fn keyed_routes() -> impl Strategy<Value = Vec<Vec<Vec<Model>>>> {
    let keyed_set = (keyed_model(), vec(model(), 0..2)).prop_map(|(first, mut rest)| {
        rest.push(first);
        rest
    });
    let route = prop_oneof![
        4 => vec(keyed_set, 1..3),
        1 => sets(),
    ];
    vec(route, 4..16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Rows D-01 and M-18 of docs/defects.md.
    #[test]
    fn the_same_bytes_have_the_same_outcome_however_they_are_cut(
        routes in routes(),
        bytes in stream(),
        cuts in vec(vec(any::<usize>(), 0..6), 3),
    ) {
        let mut oracle = Oracle::new(&bytes);
        let end = oracle.walk(&routes);
        let every_byte: Vec<usize> = (0..bytes.len()).collect();
        for cuts in cuts.iter().chain([&every_byte, &Vec::new()]) {
            let (ended, events) = run(&routes, &bytes, cuts);
            let same = events.len() == oracle.events.len()
                && oracle.events.iter().zip(&events).all(|(expected, event)| expected.is(event));
            prop_assert!(same, "cut at {:?}: {:?}, expected {:?}", cuts, events, oracle.events);
            prop_assert_eq!(ended, end, "cut at {:?}", cuts);
        }
    }

    #[test]
    fn the_index_finds_what_a_walk_over_all_routes_finds(
        routes in keyed_routes(),
        bytes in stream(),
        base in 0..6_usize,
    ) {
        let routes = routes.iter().map(|sets| (build_sets(sets), Vec::new())).collect();
        let program = Program::from_routes(routes, Duration::from_secs(3));
        for n in 0..=bytes.len() {
            let stream = received(&bytes[..n]);
            let datagram = received_datagrams(&[&bytes[..n]]);
            for mut conn in [stream, datagram] {
                for (base, last) in [(0, false), (0, true), (base, false), (base, true)] {
                    let (indexed, linear) = conn.with_view(|view| {
                        let mut undecided = Vec::new();
                        let indexed = program.step(view, base, last, &mut undecided);
                        (indexed, program.step_linear(view, base, last))
                    });
                    prop_assert_eq!(indexed, linear, "after {} bytes, {} {}", n, base, last);
                }
            }
        }
    }

    #[test]
    fn a_route_is_taken_at_the_first_byte_that_decides(
        sets in vec(sets(), 1..6),
        bytes in stream(),
    ) {
        let routes: Vec<RouteModel> = sets
            .into_iter()
            .map(|sets| RouteModel { sets, chain: Vec::new() })
            .collect();
        let program = program(&routes, &Log::default());
        // By the oracle: after how many bytes is the first route that is not a no a match?
        let decided = (0..=bytes.len()).find_map(|n| {
            let verdicts = routes.iter().map(|route| route.verdict(&bytes[..n]));
            match verdicts.enumerate().find(|(_, v)| *v != Verdict::No) {
                Some((i, Verdict::Match)) => Some((n, Routed::Take(i))),
                None => Some((n, Routed::Exhausted)),
                Some(_) => None,
            }
        });
        // As the engine does it: ask, wait for what was asked for, ask again.
        let mut n = 0;
        let found = loop {
            let routed = received(&bytes[..n])
                .with_view(|view| program.step(view, 0, false, &mut Vec::new()));
            match routed {
                Routed::Undecided { more, .. } if n + more <= bytes.len() => n += more,
                Routed::Undecided { .. } => break None,
                routed => break Some((n, routed)),
            }
        };
        prop_assert_eq!(found, decided);
    }

    #[test]
    fn any_text_is_a_template_or_refused(text in "([{}\\\\]|[a-z.]|\\{l4\\.vars\\.x\\}){0,60}") {
        let compiled = Template::compile(&text, Registry::new().placeholder_table());
        if let Ok(template) = compiled {
            let conn = received(b"");
            let whole = conn.expand(&template);
            prop_assert!(template.constant().is_none_or(|constant| constant == whole));
        }
    }

    #[test]
    fn a_template_is_its_pieces_in_order(
        pieces in vec(prop_oneof![
            "[a-z }]{1,6}".prop_map(|text| (text.clone(), text)),
            Just(("{l4.vars.x}".to_owned(), "{value}".to_owned())),
            Just(("{l4.vars.unset}".to_owned(), String::new())),
            Just(("{l4.conn.remote_addr}".to_owned(), CLIENT.to_owned())),
            Just(("{no.such.name}".to_owned(), String::new())),
        ], 0..8),
    ) {
        let (text, expected): (String, String) = pieces.into_iter().unzip();
        let template = Template::compile(&text, Registry::new().placeholder_table()).unwrap();
        let mut conn = received(b"");
        conn.set_var("x", "{value}");
        prop_assert_eq!(conn.expand(&template), expected);
    }

    #[test]
    fn escaped_braces_are_literal(text in "[{}a-z \\\\]{0,40}") {
        let escaped = text.replace('{', "\\{").replace('}', "\\}");
        let template = Template::compile(&escaped, Registry::new().placeholder_table()).unwrap();
        prop_assert_eq!(template.constant(), Some(&*text));
        prop_assert!(template.unknown().is_empty());
    }

    #[test]
    fn a_value_is_never_scanned_for_placeholders_again(value in "[{}a-z.\\\\]{0,20}") {
        let mut conn = received(b"");
        conn.set_var("x", &value);
        let template = Template::compile("<{l4.vars.x}>", Registry::new().placeholder_table()).unwrap();
        prop_assert_eq!(conn.expand(&template), format!("<{value}>"));
    }

    #[test]
    fn each_handler_of_a_chain_runs_at_most_once_and_in_order(
        steps in vec(select(Step::ALL), 0..8),
    ) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let chain: Vec<Box<dyn Handler>> = steps
            .iter()
            .enumerate()
            .map(|(i, step)| Box::new(Stepping(i, *step, log.clone())) as Box<dyn Handler>)
            .collect();
        let conn = connection(Segments::cut(b"", &[]));
        let id = conn.record().id();
        let program = Program::from_routes(
            vec![(Sets::from_matchers(Vec::new()), chain)],
            Duration::from_secs(3),
        );
        let end = match block_on(program.run(conn)) {
            Ok(Flow::Next(conn)) => {
                prop_assert_eq!(conn.record().id(), id);
                End::Next
            }
            Ok(Flow::Done) => End::Done(None),
            Err(_) => End::Failed,
        };
        let (ran, expected) = steps_model(&steps);
        prop_assert_eq!(&*log.lock().unwrap(), &(0..ran).map(|i| (i, id)).collect::<Vec<_>>());
        prop_assert_eq!(end, expected);
    }
}

/// What a handler of a chain does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Next,
    Done,
    Fail,
    /// Runs the rest itself and passes on what came of it.
    Around,
    /// Runs the rest itself and keeps the connection.
    AroundAndDone,
}

impl Step {
    const ALL: &'static [Self] = &[
        Self::Next,
        Self::Next,
        Self::Around,
        Self::Around,
        Self::AroundAndDone,
        Self::Done,
        Self::Fail,
    ];
}

/// How many handlers run, and the end.
fn steps_model(steps: &[Step]) -> (usize, End) {
    let Some((first, rest)) = steps.split_first() else {
        return (0, End::Next);
    };
    let (ran, end) = match first {
        Step::Next | Step::Around => steps_model(rest),
        Step::AroundAndDone => match steps_model(rest) {
            (ran, End::Failed) => (ran, End::Failed),
            (ran, _) => (ran, End::Done(None)),
        },
        Step::Done => (0, End::Done(None)),
        Step::Fail => (0, End::Failed),
    };
    (ran + 1, end)
}

struct Stepping(usize, Step, Arc<Mutex<Vec<(usize, u64)>>>);

impl AsyncHandler for Stepping {
    async fn handle(&self, conn: Connection, rest: Rest<'_>) -> Result<Flow> {
        self.2.lock().unwrap().push((self.0, conn.record().id()));
        match self.1 {
            Step::Next => Ok(Flow::Next(conn)),
            Step::Done => Ok(Flow::Done),
            Step::Fail => Err(std::io::Error::other("failed").into()),
            Step::Around => rest.run(conn).await,
            Step::AroundAndDone => rest.run(conn).await.map(|_| Flow::Done),
        }
    }
}
