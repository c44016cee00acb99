use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::*;

/// A line of `testdata/re2.jsonl`: what Go's `regexp` says of a pattern.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    pattern: String,
    /// Why it does not compile.
    invalid: Option<String>,
    /// The names of groups 1 and up, if there is one.
    #[serde(default)]
    names: Vec<String>,
    /// Texts, or their bytes where they are not UTF-8, and what the groups took.
    #[serde(default)]
    cases: Vec<(Value, Option<Vec<String>>)>,
}

fn vectors() -> impl Iterator<Item = Vector> {
    include_str!("../../testdata/re2.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        bytes => lossy(&serde_json::from_value::<Vec<u8>>(bytes.clone()).unwrap()).into_owned(),
    }
}

#[test]
fn patterns_mean_what_they_mean_in_go() {
    let mut wrong = Vec::new();
    let mut cases = 0;
    for vector in vectors() {
        let pattern = &vector.pattern;
        let expression = match (Expression::new(pattern), &vector.invalid) {
            (Ok(expression), None) => expression,
            (Err(_), Some(_)) => continue,
            (Ok(_), Some(why)) => {
                wrong.push(format!("{pattern:?} is accepted: {why}"));
                continue;
            }
            (Err(error), None) => {
                wrong.push(format!("{pattern:?} is refused: {error}"));
                continue;
            }
        };
        for (value, expected) in &vector.cases {
            let text = text(value);
            let found = expression.captures(&text);
            assert_eq!(expression.is_match(&text), found.is_some(), "{pattern:?}");
            let expected = expected
                .as_ref()
                .map(|groups| by_name(groups, &vector.names));
            if found != expected {
                wrong.push(format!(
                    "{pattern:?} in {text:?}: {found:?}, not {expected:?}"
                ));
            }
            cases += 1;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(cases > 1000, "{cases} cases");
}

/// Groups as the reference enters them: by number, then by name, so that the last of a name stays.
fn by_name(groups: &[String], names: &[String]) -> Vec<(Arc<str>, Box<str>)> {
    let mut entered: Vec<(Arc<str>, Box<str>)> = Vec::new();
    let numbered = groups
        .iter()
        .enumerate()
        .map(|(i, text)| (i.to_string(), text));
    let named = names.iter().cloned().zip(groups.iter().skip(1));
    for (name, text) in numbered.chain(named.filter(|(name, _)| !name.is_empty())) {
        match entered.iter_mut().find(|(taken, _)| **taken == *name) {
            Some((_, old)) => *old = text.as_str().into(),
            None => entered.push((name.into(), text.as_str().into())),
        }
    }
    entered
}

#[test]
fn patterns_may_be_read_as_if_they_began_with_ignore_case() {
    // Every seventh: to fold large classes takes a debug build long.
    let valid = vectors().filter(|vector| vector.invalid.is_none());
    for vector in valid.step_by(7) {
        let implied = Expression::ignoring_case(&vector.pattern).unwrap();
        let written = Expression::new(&format!("(?i){}", vector.pattern)).unwrap();
        for (value, _) in &vector.cases {
            let text = text(value);
            assert_eq!(
                implied.captures(&text),
                written.captures(&text),
                "{}",
                vector.pattern
            );
        }
    }
    let lower = Expression::ignoring_case("(?-i)a").unwrap();
    assert!(lower.is_match("a") && !lower.is_match("A"));
}

#[test]
fn refusals_are_one_sentence_and_say_what_would_be_right() {
    for (pattern, message, help) in [
        ("(a", "unclosed group", "close it with )"),
        ("a)", "unopened group", r"write \)"),
        ("[a", "unclosed character class [a", "close it with ]"),
        ("x[z-a]", "the range z-a ends before it begins", r"write \-"),
        ("[[:foo:]]", "unknown character class [:foo:]", "alnum"),
        (
            r"\p{Klingon}",
            r"unknown character class \p{Klingon}",
            r"\p{Greek}",
        ),
        (r"(a)\1", r"unknown escape \1", "no back-references"),
        (r"a\Z", r"unknown escape \Z", r"\z"),
        (r"\C", r"unknown escape \C", "single bytes are not matched"),
        (r"\u0041", r"unknown escape \u", r"\x{1F600}"),
        (r"\y", r"unknown escape \y", "only punctuation"),
        (r"a\", "a backslash at the end escapes nothing", r"write \\"),
        ("*a", "nothing to repeat before *", r"write \*"),
        ("a{2}{3}", "a repetition is repeated: {2}{3}", "in a group"),
        (
            "a{2,1}",
            "the repetition {2,1} ends before it begins",
            "smaller number first",
        ),
        (
            "(a{100}){11}",
            "the repetition {11} makes more than 1000 copies",
            "use * or +",
        ),
        ("(?=a)", "unknown kind of group (?=", "no look-around"),
        ("(?<!a)", "invalid group name in (?<!a)", "no look-around"),
        (
            "(?x)",
            "unknown kind of group (?x",
            "the flags i, m, s and U",
        ),
        (
            "(?P<a b>c)",
            "invalid group name in (?P<a b>",
            "letters, digits and underscores",
        ),
    ] {
        let error = Expression::new(pattern).unwrap_err();
        assert_eq!(error.to_string(), message, "{pattern}");
        let given = error.help().unwrap_or_default();
        assert!(given.contains(help), "{pattern}: {given}");
    }
    let long = Expression::new(&format!("[{}", "é".repeat(1000))).unwrap_err();
    assert!(long.to_string().chars().count() < 80, "{long}");
}

#[test]
fn nesting_and_size_have_a_limit() {
    let nested = |depth: usize| "(".repeat(depth) + &")".repeat(depth);
    assert!(Expression::new(&nested(200)).is_ok());
    // The engine's limit (a sequence and a group are two levels), then the translator's own.
    for pattern in [
        "(a".repeat(200) + &")".repeat(200),
        nested(251),
        nested(100_000),
        "a*".to_owned() + &"(?)*".repeat(300),
    ] {
        assert_eq!(Expression::new(&pattern).unwrap_err(), RegexpError::TooDeep);
    }
    let error = Expression::new(r"\pL{1000}\pL{1000}").unwrap_err();
    assert_eq!(error, RegexpError::TooLarge);
}

#[test]
fn searches_that_find_nothing_take_no_memory() {
    let expression = Expression::new(r"^(\w+)\.example\.(?P<tld>com|net)$").unwrap();
    let search = || {
        assert!(expression.is_match("www.example.net"));
        assert!(expression.captures("www.example.org").is_none());
    };
    // The engine works out its states at the first texts that need them.
    search();
    assert_eq!(allocation_counter::measure(search).count_total, 0);
}

#[test]
fn every_invalid_byte_is_one_replacement_character() {
    for (bytes, text) in [
        (&b"plain"[..], "plain"),
        ("é€😀".as_bytes(), "é€😀"),
        (b"\xff", "\u{FFFD}"),
        (b"a\xe2\x82b", "a\u{FFFD}\u{FFFD}b"),
        (b"\xf0\x9f\x98", "\u{FFFD}\u{FFFD}\u{FFFD}"),
        (b"\xed\xa0\x80", "\u{FFFD}\u{FFFD}\u{FFFD}"),
        (b"\xc0\xafz", "\u{FFFD}\u{FFFD}z"),
    ] {
        assert_eq!(lossy(bytes), text, "{bytes:x?}");
    }
    assert!(matches!(lossy(b"plain"), Cow::Borrowed(_)));
}

/// Patterns of the syntax that both dialects read alike.
fn common() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "[a-c]{1,3}",
        Just(r"[^\n]".to_owned()),
        Just("[a-b]".to_owned()),
        Just("[^c]".to_owned()),
        Just(r"\.".to_owned()),
        Just("(?i:B)".to_owned()),
        Just("^".to_owned()),
        Just("$".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), "[*+?]|[*+?][?]|[{]1,2[}]").prop_map(|(a, op)| format!("({a}){op}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}{b}")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("(?:{a}|{b})")),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_compiled_or_refused(pattern in r"(?s).{0,20}", fold in any::<bool>()) {
        if let Ok(translated) = re2::translate(&pattern, fold) {
            prop_assert!(Regex::new(&translated.pattern).is_ok(), "{}", translated.pattern);
        }
    }

    #[test]
    fn any_syntax_is_compiled_or_refused(
        pattern in r"([(|)*+?{},\\\[\]^$.:<>\-&~]|\(\?|P<|\\[a-zA-Z0-9]|\[:|:\]|[a-zA-Z0-9é_]){0,14}",
    ) {
        if let Ok(translated) = re2::translate(&pattern, false) {
            let engine = RegexBuilder::new(&translated.pattern).size_limit(MAX_SIZE).build();
            prop_assert!(engine.is_ok(), "{}", translated.pattern);
            prop_assert!(engine.unwrap().captures_len() <= translated.names.len() + 1);
        }
    }

    #[test]
    fn what_both_dialects_read_alike_keeps_its_meaning(
        pattern in common(),
        text in "[a-cB.\n]{0,8}",
    ) {
        let ours = Expression::new(&pattern).unwrap().captures(&text);
        let plain = Regex::new(&pattern).unwrap();
        let theirs = plain.captures(&text).map(|found| {
            let group = |group| found.get(group).map_or("", |taken| taken.as_str());
            let numbered = (0..plain.captures_len()).map(|i| (i.to_string().into(), group(i).into()));
            numbered.collect::<Vec<_>>()
        });
        prop_assert_eq!(ours, theirs);
    }
}
