//! The matcher `socks5`.

use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// Matches a SOCKS version 5 greeting (RFC 1928 section 3) whose offered methods are all listed.
///
/// A greeting is as short as three bytes, so list just the methods that your clients offer to make matches by accident
/// rare.
pub struct MatchSocks5 {
    /// By method number.
    listed: Box<[bool; 256]>,
}

/// Configuration of `socks5`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Socks5Config {
    /// The numbers of the authentication methods that a client may offer; one that offers another, too, does not match.
    /// 0 is none, 1 is GSSAPI, 2 is user name and password (IANA registry "SOCKS Methods"). Default: `[0, 1, 2]`.
    #[serde(default)]
    auth_methods: Vec<At<u16>>,
}

impl MatcherModule for MatchSocks5 {
    const NAME: &'static str = "socks5";
    type Config = Socks5Config;

    fn provision(config: Socks5Config, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let mut listed = Box::new([false; 256]);
        for method in &config.auth_methods {
            match listed.get_mut(usize::from(**method)) {
                Some(listed) => *listed = true,
                None => cx.warn(
                    method.node(),
                    format!(
                        "no client can offer method {}: they are numbered 0 to 255",
                        **method
                    ),
                ),
            }
        }
        if config.auth_methods.is_empty() {
            listed[..3].fill(true);
        }
        Ok(Self { listed })
    }
}

impl Matcher for MatchSocks5 {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        self.judge(view.bytes())
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

impl MatchSocks5 {
    /// The answer for the first bytes of a connection: 5, the number of methods, the methods.
    fn judge(&self, bytes: &[u8]) -> Verdict {
        // Any byte that is missing can refuse, and so is waited for alone.
        let Some((version, rest)) = bytes.split_first() else {
            return Verdict::More(1);
        };
        if *version != VERSION {
            return Verdict::No;
        }
        let Some((count, rest)) = rest.split_first() else {
            return Verdict::More(1);
        };
        // A server must choose one of the methods, so there is at least one.
        if *count == 0 {
            return Verdict::No;
        }
        let count = usize::from(*count);
        let offered = &rest[..rest.len().min(count)];
        if !offered
            .iter()
            .all(|method| self.listed[usize::from(*method)])
        {
            Verdict::No
        } else if offered.len() < count {
            Verdict::More(1)
        } else {
            Verdict::Match
        }
    }
}

const VERSION: u8 = 5;

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after};
    use proptest::prelude::*;

    use super::*;
    use crate::register;

    fn socks5(json: &str) -> MatchSocks5 {
        l4_testkit::matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
    }

    const CURL: &[u8] = include_bytes!("../testdata/socks5-curl.bin");
    const CURL_USER: &[u8] = include_bytes!("../testdata/socks5-curl-user.bin");
    const CURL_BASIC: &[u8] = include_bytes!("../testdata/socks5-curl-basic.bin");
    const NC: &[u8] = include_bytes!("../testdata/socks5-nc.bin");

    #[test]
    fn greetings_of_real_clients_match_at_their_last_byte() {
        for greeting in [CURL, CURL_USER, CURL_BASIC, NC] {
            check(&socks5("{}"), greeting, Verdict::Match);
            assert_eq!(decided_after(&socks5("{}"), greeting), Some(greeting.len()));
            // A client that does not wait for the answer.
            let eager = [greeting, b"\x05\x01\x00\x03"].concat();
            check(&socks5("{}"), &eager, Verdict::Match);
        }
    }

    #[test]
    fn every_offered_method_must_be_listed() {
        for (json, greeting, expected) in [
            (r#"{"auth_methods": [0]}"#, NC, true),
            (r#"{"auth_methods": [0]}"#, CURL, false),
            (r#"{"auth_methods": [0, 1]}"#, CURL, true),
            (r#"{"auth_methods": [0, 1]}"#, CURL_USER, false),
            (r#"{"auth_methods": [2, 0]}"#, CURL_BASIC, true),
            (r#"{"auth_methods": [2]}"#, NC, false),
            (r#"{"auth_methods": [300]}"#, NC, false),
            (r#"{"auth_methods": []}"#, CURL_USER, true),
            (r#"{"auth_methods": null}"#, CURL_USER, true),
            (r#"{"auth_methods": [0, 255]}"#, b"\x05\x02\xff\x00", true),
            ("{}", b"\x05\x02\x00\x80", false),
            // The same method twice.
            ("{}", b"\x05\x02\x00\x00", true),
        ] {
            check(&socks5(json), greeting, Verdict::from_bool(expected));
        }
    }

    /// Row M-35 of docs/defects.md.
    #[test]
    fn the_first_byte_that_cannot_be_refuses() {
        for (bytes, after) in [
            (&b"\x04\x01\x00\x50"[..], 1),
            (b"GET / HTTP/1.1\r\n\r\n", 1),
            (b"\x05\x00", 2),
            (b"\x05\x01\x03", 3),
            (b"\x05\x0a\x00\x01\x02\x03\x04", 6),
        ] {
            check(&socks5("{}"), bytes, Verdict::No);
            assert_eq!(decided_after(&socks5("{}"), bytes), Some(after));
        }
    }

    #[test]
    fn too_few_bytes_leave_it_open() {
        for bytes in [&b""[..], b"\x05", b"\x05\x02", b"\x05\x02\x00"] {
            check(&socks5("{}"), bytes, Verdict::More(0));
        }
    }

    #[test]
    fn what_is_no_method_number_is_refused_or_warned_about() {
        let refused = |json| {
            let made = l4_testkit::matcher::<MatchSocks5>(register, json);
            made.err().expect("errors")[0].pointer().to_owned()
        };
        assert_eq!(refused(r#"{"auth_methods": [65536]}"#), "/auth_methods/0");
        assert_eq!(refused(r#"{"auth_methods": ["none"]}"#), "/auth_methods/0");
        assert_eq!(refused(r#"{"auth_method": [0]}"#), "/auth_method");

        let loaded = l4_testkit::load(
            register,
            r#"{"apps": {"layer4": {"servers": {"a": {"listen": [":1"], "routes": [
                {"match": [{"socks5": {"auth_methods": [0, 256]}}]}]}}}}}"#,
        );
        assert_eq!(loaded.warnings.len(), 1);
        assert!(loaded.warnings[0].pointer().ends_with("/auth_methods/1"));
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_contract(
            start in proptest::sample::select(vec![&b""[..], b"\x05", b"\x05\x03"]),
            rest in proptest::collection::vec(0_u8..6, 0..8),
        ) {
            let matcher = socks5(r#"{"auth_methods": [0, 2, 4]}"#);
            let bytes = [start, &rest].concat();
            check(&matcher, &bytes, matcher.judge(&bytes));
        }
    }
}
