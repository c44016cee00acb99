use l4_core::conn::MATCH_LIMIT;
use l4_core::prelude::*;
use l4_core::regexp::{Expression, expand_pattern};
use regex_syntax::hir::{Look, literal};
use schemars::JsonSchema;
use serde::Deserialize;
use smallvec::SmallVec;

/// Configuration of `regexp`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexpConfig {
    /// How many bytes are searched: exactly the first so many, and no answer is given before they are there. At most
    /// 16384. Default: 4. Example: `16`.
    #[serde(default)]
    count: Option<At<u16>>,
    /// The expression, in RE2 syntax. It may match anywhere in those bytes unless anchored with `^`, which also lets
    /// other connections go on at the first byte that cannot belong. Global placeholders are filled in at load: write
    /// `\{2,5\}` for a repetition. Default: empty, which matches everything. Example: `"^SSH-"`.
    #[serde(default)]
    pattern: Option<At<String>>,
    /// Search not the bytes but their hexadecimal text in upper case, two digits for each: the way to match bytes that
    /// are no UTF-8, each of which the expression sees as U+FFFD otherwise. Default: `false`. Example: `true`, with the
    /// pattern `"^1603"`.
    #[serde(default)]
    hex: bool,
}

/// Matches connections whose first bytes match a regular expression.
pub struct MatchRegexp {
    count: usize,
    hex: bool,
    expression: Expression,
    /// What the searched text must begin with, one of these, if the expression tells.
    beginnings: Option<Box<[Box<[u8]>]>>,
}

impl MatcherModule for MatchRegexp {
    const NAME: &'static str = "regexp";
    type Config = RegexpConfig;

    fn provision(config: RegexpConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let node = config.pattern.as_ref().map_or(cx.node(), At::node);
        let pattern = match &config.pattern {
            Some(pattern) => expand_pattern(pattern, cx)?,
            None => String::new(),
        };
        let expression = Expression::new(&pattern).map_err(|error| error.reject(node, cx));
        let count = match config.count.filter(|count| **count != 0) {
            Some(count) if usize::from(*count) > MATCH_LIMIT => Err(cx.reject_help(
                count.node(),
                format!("count {} is more than can be waited for", *count),
                format!("at most {MATCH_LIMIT} bytes are kept for matching"),
            )),
            Some(count) => Ok(usize::from(*count)),
            None => Ok(DEFAULT),
        };
        let (count, expression) = (count?, expression?);
        Ok(Self {
            count,
            hex: config.hex,
            beginnings: beginnings(expression.translated(), config.hex),
            expression,
        })
    }
}

/// The beginnings of all texts that an anchored expression can match; `None` if there are too many to list, or if it
/// can match further inside. `pattern` is in the dialect of the engine.
fn beginnings(pattern: &str, hex: bool) -> Option<Box<[Box<[u8]>]>> {
    let expression = regex_syntax::parse(pattern).ok()?;
    if !expression
        .properties()
        .look_set_prefix()
        .contains(Look::Start)
    {
        return None;
    }
    let found = literal::Extractor::new().extract(&expression);
    let beginnings: Box<[Box<[u8]>]> = (found.literals()?.iter())
        .map(|literal| literal.as_bytes().into())
        .collect();
    // U+FFFD, which no byte but this begins, stands for any invalid byte and so cannot be compared with what came.
    let literally = hex || !beginnings.iter().any(|text| text.contains(&0xef));
    literally.then_some(beginnings)
}

impl Matcher for MatchRegexp {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        self.judge(view.bytes())
    }

    fn cost(&self) -> Cost {
        Cost::Regex
    }
}

impl MatchRegexp {
    /// The answer for the first bytes of a connection.
    fn judge(&self, bytes: &[u8]) -> Verdict {
        let mut scratch = Scratch::new();
        if let Some(searched) = bytes.get(..self.count) {
            let text = match self.hex {
                true => hex(searched, &mut scratch),
                false => lossy(searched, &mut scratch),
            };
            return Verdict::from_bool(self.expression.is_match(text));
        }
        let missing = self.count - bytes.len();
        let Some(beginnings) = &self.beginnings else {
            return Verdict::More(missing);
        };
        let text = match self.hex {
            true => hex(bytes, &mut scratch).as_bytes(),
            false => bytes,
        };
        let mut verdict = Verdict::No;
        for beginning in beginnings {
            match Verdict::prefix(text, beginning) {
                Verdict::No => {}
                // Only the search can tell more.
                Verdict::Match => return Verdict::More(missing),
                more => verdict = more,
            }
        }
        verdict
    }
}

/// Room for the text of most windows without an allocation.
type Scratch = SmallVec<[u8; 512]>;

/// `9E79BC40`
fn hex<'a>(bytes: &[u8], scratch: &'a mut Scratch) -> &'a str {
    let digit = |n: u8| if n < 10 { b'0' + n } else { b'A' - 10 + n };
    scratch.extend(
        bytes
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]),
    );
    str::from_utf8(scratch).expect("digits and letters")
}

/// The bytes as text, with one U+FFFD for each byte that is not part of a character. (The standard library replaces
/// runs of such bytes by one.)
fn lossy<'a>(bytes: &'a [u8], scratch: &'a mut Scratch) -> &'a str {
    if let Ok(text) = str::from_utf8(bytes) {
        return text;
    }
    for chunk in bytes.utf8_chunks() {
        scratch.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            scratch.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    str::from_utf8(scratch).expect("made of characters")
}

/// How many bytes are searched if nothing is said.
const DEFAULT: usize = 4;

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after, matcher};
    use proptest::prelude::*;

    use super::*;
    use crate::register;

    fn made(pattern: &str, count: u16, hex: bool) -> MatchRegexp {
        let pattern = pattern.replace('\\', "\\\\").replace('"', "\\\"");
        regexp(&format!(
            r#"{{"pattern": "{pattern}", "count": {count}, "hex": {hex}}}"#
        ))
    }

    fn regexp(json: &str) -> MatchRegexp {
        matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
    }

    #[test]
    fn exactly_the_first_count_bytes_are_searched() {
        for (pattern, count, bytes, expected) in [
            ("^SSH-", 4, &b"SSH-2.0-x\r\n"[..], true),
            ("^SSH-", 0, b"SSH-2.0-x\r\n", true),
            ("^SSH-2", 4, b"SSH-2.0-x\r\n", false),
            ("^SSH-$", 4, b"SSH-2.0-x\r\n", true),
            ("2", 4, b"SSH-2.0-x\r\n", false),
            ("2", 5, b"SSH-2.0-x\r\n", true),
            ("H", 4, b"SSH-2.0-x\r\n", true),
            ("", 4, b"\x00\x01\x02\x03", true),
            ("^(GET|POST) /", 6, b"GET / HTTP/1.1\r\n\r\n", true),
            ("(?i)^get", 4, b"GeT / HTTP/1.1\r\n\r\n", true),
            ("(?P<name>S+)(?<other>H)", 4, b"SSH-", true),
        ] {
            let matcher = made(pattern, count, false);
            check(&matcher, bytes, Verdict::from_bool(expected));
        }
        check(&regexp("{}"), b"abcd", Verdict::Match);
        check(&regexp("{}"), b"abc", Verdict::More(0));
        let nulls = r#"{"count": null, "pattern": null, "hex": false}"#;
        check(&regexp(nulls), b"abcd", Verdict::Match);
    }

    #[test]
    fn hex_searches_upper_case_digits() {
        for (pattern, count, bytes, expected) in [
            ("^9E79BC40$", 4, &b"\x9e\x79\xbc\x40\x00"[..], true),
            ("^9e", 4, b"\x9e\x79\xbc\x40", false),
            ("^1603(01|03)", 3, b"\x16\x03\x01\x02\x00", true),
            ("^1603(01|03)", 3, b"\x16\x03\x02\x02\x00", false),
            ("^5$", 1, b"\x05", false),
            ("^05$", 1, b"\x05", true),
        ] {
            check(
                &made(pattern, count, true),
                bytes,
                Verdict::from_bool(expected),
            );
        }
    }

    #[test]
    fn each_invalid_byte_is_one_replacement_character() {
        for (pattern, bytes, expected) in [
            ("^.{0}...$", &b"\xff\xfe\xfd"[..], true),
            // A character whose third byte is missing: two bytes, not one run.
            ("^a..$", b"a\xe2\x82", true),
            ("^a.$", b"a\xe2\x82", false),
            ("^.$", b"\xe2\x82\xac", true),
            // A surrogate is no character.
            ("^...$", b"\xed\xa0\x80", true),
            ("^\\x{FFFD}+$", b"\x80\x81\x82", true),
            ("\\xFF", b"\xff\xff\xff", false),
            ("^\\xFFa$", "\u{ff}a".as_bytes(), true),
            ("^[^a]+$", b"\xc3\xc3\xc3", true),
        ] {
            // Braces are placeholders unless escaped.
            let pattern = pattern.replace('{', "\\{").replace('}', "\\}");
            check(
                &made(&pattern, 3, false),
                bytes,
                Verdict::from_bool(expected),
            );
        }
    }

    #[test]
    fn an_anchored_beginning_refuses_at_the_first_other_byte() {
        for (pattern, hex, bytes, after) in [
            ("^SSH-", false, &b"\x05\x01\x00"[..], Some(1)),
            ("^SSH-", false, b"SSX-", Some(3)),
            ("^(GET|POST)", false, b"PUT", Some(2)),
            ("^GET|^POST", false, b"PUT", Some(2)),
            ("(?i)^ssh", false, b"SX", Some(2)),
            ("^[ab]c", false, b"c", Some(1)),
            ("^\u{e9}", false, b"\xc3\xa8", Some(2)),
            ("^1603", true, b"\x16\x04", Some(2)),
            ("^1[67]", true, b"\x26", Some(1)),
            // No beginning to go by: only the whole window tells.
            ("SSH", false, b"\x05\x01\x00", None),
            ("GET|^POST", false, b"\x05\x01\x00", None),
            ("(?m)^SSH", false, b"\x05\x01\x00", None),
            ("^.SSH", false, b"\x05\x01\x00", None),
            ("^\u{fffd}", false, b"\x80\x01\x00", None),
            ("^[\u{fffc}\u{fffd}]", false, b"\x80\x01\x00", None),
        ] {
            let matcher = made(pattern, 4, hex);
            assert_eq!(decided_after(&matcher, bytes), after, "{pattern}");
            let expected = after.map_or(Verdict::More(0), |_| Verdict::No);
            check(&matcher, bytes, expected);
        }
        let known = made("^SSH-", 9, false);
        assert_eq!(l4_testkit::verdict(&known, b"SSH"), Verdict::More(1));
        assert_eq!(l4_testkit::verdict(&known, b"SSH-"), Verdict::More(5));
        assert_eq!(
            l4_testkit::verdict(&made("SSH-", 9, false), b"x"),
            Verdict::More(8)
        );
    }

    #[test]
    fn the_syntax_is_that_of_re2() {
        for (pattern, bytes, expected) in [
            // ASCII classes, which a digit or letter of another script is not in.
            ("^\\d", &b"\xd9\xa3aa"[..], false),
            ("^\\D", b"\xd9\xa3aa", true),
            ("^\\w", "\u{e9}aa".as_bytes(), false),
            // Not an intersection.
            ("^[a&&b]&", b"&&aa", true),
            ("^\\Qa.b\\E", b"a.bc", true),
            ("^\\Qa.b\\E", b"axbc", false),
            ("^\\123", b"Sabc", true),
        ] {
            let matcher = made(pattern, 4, false);
            check(&matcher, bytes, Verdict::from_bool(expected));
        }
        // What is known of the beginning is known of the translated pattern.
        assert_eq!(
            decided_after(&made("^\\QS.\\E", 4, false), b"SSH-"),
            Some(2)
        );
    }

    #[test]
    fn placeholders_are_filled_in_when_loading() {
        let with = regexp(r#"{"pattern": "^{env.CONNCEPT_SURELY_UNSET}SSH-"}"#);
        check(&with, b"SSH-", Verdict::Match);
        // What the reference makes of it; a warning says so.
        check(
            &regexp(r#"{"pattern": "^S{2,5}H", "count": 2}"#),
            b"SH",
            Verdict::Match,
        );
        check(
            &regexp(r#"{"pattern": "^S\\{2,5\\}H", "count": 3}"#),
            b"SSH",
            Verdict::Match,
        );
        let config = r#"{"apps": {"layer4": {"servers": {"a": {"listen": [":1"], "routes": [
            {"match": [{"regexp": {"pattern": "^S{2,5}H"}}]}]}}}}}"#;
        let loaded = l4_testkit::load(register, config);
        assert_eq!(loaded.warnings.len(), 1);
        assert!(loaded.warnings[0].pointer().ends_with("/regexp/pattern"));
    }

    /// Row M-36 of docs/defects.md.
    #[test]
    fn what_cannot_work_is_refused_in_its_place() {
        let refused = |json| {
            let errors = matcher::<MatchRegexp>(register, json).err().unwrap();
            (errors.iter())
                .map(|error| (error.pointer().to_owned(), error.message().to_owned()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            refused(r#"{"pattern": "(", "count": 16385}"#),
            [
                (
                    "/pattern".to_owned(),
                    "invalid regular expression: unclosed group".to_owned()
                ),
                (
                    "/count".to_owned(),
                    "count 16385 is more than can be waited for".to_owned()
                ),
            ]
        );
        assert_eq!(
            refused(r#"{"pattern": "(?=a)"}"#)[0].1,
            "invalid regular expression: unknown kind of group (?="
        );
        assert_eq!(refused(r#"{"count": 65536}"#)[0].0, "/count");
        assert_eq!(refused(r#"{"count": -1}"#)[0].0, "/count");
        assert_eq!(refused(r#"{"regex": "x"}"#)[0].0, "/regex");
        assert_eq!(regexp(r#"{"count": 16384}"#).count, MATCH_LIMIT);
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_contract_and_the_beginnings_never_refuse_a_match(
            pattern in proptest::sample::select(vec![
                "^SSH-", "^(S|SSH|T.)", "(?i)^sS", "^\u{e9}\u{fffd}?a", "^S*$", "^$", "^[^\\x00-\\x{10FFFF}]",
                "S", "^\\b", "^(\u{fffd}|S)", "^53", "^5[3-5]5", "^(53)*$", "\\A53|\\A16",
            ]),
            count in 1_u16..7,
            hex in any::<bool>(),
            bytes in proptest::collection::vec(
                proptest::sample::select(b"SsH-T\xc3\xa9\xef\xbf\xbd\x80a\x16\x53".to_vec()), 0..8,
            ),
        ) {
            let escaped = pattern.replace('{', "\\{").replace('}', "\\}");
            let matcher = made(&escaped, count, hex);
            let plain = MatchRegexp { beginnings: None, ..made(&escaped, count, hex) };
            let expected = match plain.judge(&bytes) {
                // Refused before the window was full. That no full one matches then, the other cases show: `check`
                // asks for each of their prefixes, too.
                Verdict::More(_) if matcher.judge(&bytes) == Verdict::No => Verdict::No,
                other => other,
            };
            check(&matcher, &bytes, expected);
            check(&plain, &bytes, plain.judge(&bytes));
        }

        #[test]
        fn as_many_characters_as_invalid_bytes_take_their_place(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut scratch = Scratch::new();
            let text = lossy(&bytes, &mut scratch).to_owned();
            let invalid: usize = bytes.utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
            let replaced = text.matches('\u{fffd}').count();
            let sent = String::from_utf8_lossy(&bytes).matches('\u{fffd}').count();
            prop_assert_eq!(text.len(), bytes.len() + 2 * invalid);
            prop_assert!(replaced >= sent);
        }
    }
}
