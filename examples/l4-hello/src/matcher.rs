use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Greeting;

/// Matches a connection whose client introduces itself with a name that is wanted.
pub struct MatchHello {
    names: Vec<String>,
}

/// Configuration of the matcher `hello`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchHelloConfig {
    /// The names to match, such as `["alice", "bob"]`. Default: any.
    #[serde(default)]
    names: Vec<At<String>>,
}

impl MatcherModule for MatchHello {
    const NAME: &'static str = "hello";
    type Config = MatchHelloConfig;

    fn provision(config: MatchHelloConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        // `all` tries every item, so that a file's errors come at once.
        let names = cx.all(config.names, |cx, name| {
            if name.is_empty() || name.contains(' ') {
                return Err(cx.reject_help(
                    name.node(),
                    format!("{:?} is not a name", *name),
                    "write a word, such as \"alice\"",
                ));
            }
            Ok((*name).clone())
        })?;
        Ok(Self { names })
    }
}

impl Matcher for MatchHello {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match view.fact::<Greeting>() {
            Parsed::Done(greeting) => {
                Verdict::from_bool(self.names.is_empty() || self.names.contains(&greeting.name))
            }
            Parsed::More(missing) => Verdict::More(missing),
            Parsed::Not => Verdict::No,
        }
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after};

    use super::*;

    fn matcher(json: &str) -> MatchHello {
        l4_testkit::matcher(crate::register, json).expect("a sound configuration")
    }

    /// What `nc` sent for `printf 'HELLO alice\r\nping\r\n'`.
    const ALICE: &[u8] = include_bytes!("../testdata/alice.bin");

    // `check` asks for every prefix of the bytes and holds the matcher to its contract: an answer stays, and no more bytes
    // are asked for than are needed.
    #[test]
    fn a_greeting_matches_at_the_end_of_its_line() {
        check(&matcher("{}"), ALICE, Verdict::Match);
        assert_eq!(
            decided_after(&matcher("{}"), ALICE),
            Some(b"HELLO alice\r\n".len())
        );
    }

    #[test]
    fn only_the_names_that_are_wanted_match() {
        check(
            &matcher(r#"{"names": ["bob", "alice"]}"#),
            ALICE,
            Verdict::Match,
        );
        check(&matcher(r#"{"names": ["bob"]}"#), ALICE, Verdict::No);
    }

    #[test]
    fn anything_else_is_refused_at_the_first_other_byte() {
        for (other, after) in [
            (&b"GET / HTTP/1.1\r\n"[..], 1),
            (b"HELP\r\n", 4),
            (b"HELLO \r\n", 7),
            (b"HELLO alice bob\r\n", 12),
            (b"HELLO alice\n", 12),
            (b"HELLO alice\r\r\n", 13),
            (&[b"HELLO ", [b'a'; 65].as_slice()].concat(), 71),
        ] {
            check(&matcher("{}"), other, Verdict::No);
            assert_eq!(
                decided_after(&matcher("{}"), other),
                Some(after),
                "{}",
                other.escape_ascii()
            );
        }
    }

    #[test]
    fn a_name_that_cannot_come_is_refused_with_its_place() {
        let errors =
            l4_testkit::matcher::<MatchHello>(crate::register, r#"{"names": ["a b", ""]}"#)
                .err()
                .expect("errors");
        let places: Vec<_> = errors.iter().map(|error| error.pointer()).collect();
        assert_eq!(places, ["/names/0", "/names/1"]);
    }
}
