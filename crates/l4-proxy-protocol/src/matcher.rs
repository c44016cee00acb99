//! The matcher `proxy_protocol`.

use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::header::V2;

/// Matches a connection that begins with a PROXY protocol header, as load balancers send it to say who the client is:
/// version 1 (`PROXY TCP4 …`, `PROXY TCP6 …`, `PROXY UNKNOWN …`) or version 2 (binary).
///
/// It only tells such connections apart; the addresses in the header are not used and the header stays in front of
/// what the client sent, for the handler `proxy_protocol` to take off. There are no settings: `{"proxy_protocol": {}}`.
pub struct MatchProxyProtocol;

/// The matcher `proxy_protocol` has no settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyProtocolConfig {}

impl MatcherModule for MatchProxyProtocol {
    const NAME: &'static str = "proxy_protocol";
    type Config = ProxyProtocolConfig;

    fn provision(_: ProxyProtocolConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl Matcher for MatchProxyProtocol {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        signature(view.bytes())
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

/// Whether `bytes` begin as a header of version 1 or 2 does.
pub fn signature(bytes: &[u8]) -> Verdict {
    let mut verdict = Verdict::No;
    for beginning in V1 {
        match Verdict::prefix(bytes, beginning) {
            Verdict::No => {}
            // No beginning is one of another, so none of the others can match.
            possible => verdict = possible,
        }
    }
    match Verdict::prefix(bytes, V2) {
        Verdict::No => verdict,
        Verdict::More(n) => Verdict::More(n),
        // The next byte is version and command. Only the version tells senders of this protocol from others.
        Verdict::Match => match bytes.get(V2.len()) {
            None => Verdict::More(1),
            Some(byte) => Verdict::from_bool(byte >> 4 == 2),
        },
    }
}

/// How version 1 can begin (section 2.1 of the PROXY protocol). What follows `UNKNOWN` is for the receiver to skip, so
/// it is not looked at.
const V1: [&[u8]; 3] = [b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"];

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after};
    use proptest::prelude::*;

    use super::*;
    use crate::register;

    macro_rules! vector {
        ($name:literal) => {
            include_bytes!(concat!("../testdata/", $name, ".bin"))
        };
    }

    #[test]
    fn what_haproxy_and_curl_send_matches_as_soon_as_it_is_certain() {
        for (header, after) in [
            (&vector!("haproxy-v1-tcp4")[..], 11),
            (vector!("haproxy-v1-tcp6"), 11),
            (vector!("haproxy-v1-check"), 11),
            (vector!("haproxy-v1-unknown"), 13),
            (vector!("curl"), 11),
            (vector!("haproxy-v2-tcp4"), 13),
            (vector!("haproxy-v2-tcp6"), 13),
            (vector!("haproxy-v2-unix"), 13),
            (vector!("haproxy-v2-tlv"), 13),
            (vector!("haproxy-v2-local"), 13),
        ] {
            check(&MatchProxyProtocol, header, Verdict::Match);
            assert_eq!(decided_after(&MatchProxyProtocol, header), Some(after));
        }
    }

    #[test]
    fn anything_else_is_refused_at_the_first_other_byte() {
        for (other, after) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], 1),
            (b"proxy tcp4 ", 1),
            (b"PUT / HTTP/1.1\r\n\r\n", 2),
            (b"PROXYING ", 6),
            (b"PROXY\r\n", 6),
            (b"PROXY UDP4 1.2.3.4", 8),
            (b"PROXY TCP5 ", 10),
            (b"PROXY TCP4\r\n", 11),
            (b"\x16\x03\x01", 1),
            (b"\r\nGET / HTTP/1.1", 3),
            (b"\r\n\r\n\0\r\nQUIT\r", 12),
            // Version 1 in the binary form, and a version that does not exist.
            (b"\r\n\r\n\0\r\nQUIT\n\x11\x11", 13),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11", 13),
        ] {
            check(&MatchProxyProtocol, other, Verdict::No);
            assert_eq!(
                decided_after(&MatchProxyProtocol, other),
                Some(after),
                "{}",
                other.escape_ascii()
            );
        }
    }

    #[test]
    fn too_few_bytes_leave_it_open() {
        for start in [
            &b""[..],
            b"P",
            b"PROXY ",
            b"PROXY TCP4",
            b"PROXY UNKNOW",
            b"\r\n\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
        ] {
            check(&MatchProxyProtocol, start, Verdict::More(0));
        }
    }

    #[test]
    fn settings_are_refused_by_name() {
        let made = |json| l4_testkit::matcher::<MatchProxyProtocol>(register, json).err();
        assert!(made("{}").is_none());
        let errors = made(r#"{"allow": []}"#).expect("errors");
        assert_eq!(errors[0].pointer(), "/allow");
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_contract(
            start in proptest::sample::select(vec![&b""[..], b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", V2]),
            cut in 0_usize..14,
            rest in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let bytes = [&start[..cut.min(start.len())], &rest].concat();
            check(&MatchProxyProtocol, &bytes, signature(&bytes));
        }
    }
}
