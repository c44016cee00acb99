//! The matcher `socks4`.

use std::net::Ipv4Addr;

use l4_core::config::IpRanges;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// Matches a SOCKS version 4 or 4a request by its first eight bytes: version, command, port and address.
///
/// Few protocols are told by so little, so binary data that begins with `04 01` or `04 02` matches, too. Name the
/// networks or ports that clients may ask for to make that rare.
pub struct MatchSocks4 {
    commands: Box<[u8]>,
    ports: Option<Box<[u16]>>,
    networks: Option<IpRanges>,
}

/// Configuration of `socks4`. A request must meet everything that is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Socks4Config {
    /// The commands that match: `"CONNECT"`, `"BIND"`, in upper or lower case. Global placeholders are filled in at
    /// load. Default: both. Example: `["CONNECT"]`.
    #[serde(default)]
    commands: Vec<At<String>>,
    /// The destinations that match, as addresses and prefixes; `"private_ranges"` stands for the private and loopback
    /// ones. Global placeholders are filled in at load. A client of version 4a that leaves the look-up of a name to the
    /// proxy asks for an address in `0.0.0.0/24`. Default: all. Example: `["10.0.0.0/8"]`.
    #[serde(default)]
    networks: Vec<At<String>>,
    /// The destination ports that match. Default: all. Example: `[80, 443]`.
    #[serde(default)]
    ports: Vec<u16>,
}

impl MatcherModule for MatchSocks4 {
    const NAME: &'static str = "socks4";
    type Config = Socks4Config;

    fn provision(config: Socks4Config, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        // Both are tried, so that the errors of both are reported.
        let commands = cx.all(&config.commands, |cx, name| command(name, cx));
        let networks = cx.all(&config.networks, |cx, network| {
            let text = cx.expand_load(network)?;
            IpRanges::parse([text.as_str()]).map_err(|(_, why)| {
                cx.reject_help(
                    network.node(),
                    why,
                    "write an address or a prefix, such as \"192.0.2.1\" or \"10.0.0.0/8\"",
                )
            })?;
            Ok(text)
        });
        let (commands, networks) = (commands?, networks?);
        let ranges = IpRanges::parse(networks.iter().map(String::as_str))
            .map_err(|(_, why)| cx.reject(cx.node(), why))?;
        Ok(Self {
            commands: match commands.is_empty() {
                true => [CONNECT, BIND].into(),
                false => commands.into(),
            },
            ports: (!config.ports.is_empty()).then(|| config.ports.into()),
            networks: (!networks.is_empty()).then_some(ranges),
        })
    }
}

fn command(name: &At<String>, cx: &mut Provision<'_>) -> Result<u8, Rejected> {
    match cx.expand_load(name)?.to_ascii_uppercase().as_str() {
        "CONNECT" => Ok(CONNECT),
        "BIND" => Ok(BIND),
        _ => Err(cx.reject(
            name.node(),
            format!(
                r#"unknown command "{}" has to be one of ["CONNECT", "BIND"]"#,
                **name
            ),
        )),
    }
}

impl Matcher for MatchSocks4 {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        self.judge(view.bytes())
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

impl MatchSocks4 {
    /// The answer for the first bytes of a connection.
    ///
    /// A request goes on with the user id, a NUL and, in version 4a, the name and another NUL. None of it tells more
    /// about the protocol, so eight bytes decide.
    fn judge(&self, bytes: &[u8]) -> Verdict {
        let part = |from: usize, to: usize| bytes.get(from..bytes.len().min(to)).unwrap_or(&[]);
        let (version, command, port) = (part(0, 1), part(1, 2), part(2, 4));
        if version.iter().any(|version| *version != VERSION)
            || command
                .iter()
                .any(|command| !self.commands.contains(command))
        {
            return Verdict::No;
        }
        if let Some(ports) = &self.ports {
            if !ports
                .iter()
                .any(|wanted| wanted.to_be_bytes().starts_with(port))
            {
                return Verdict::No;
            }
            // Each of these bytes can refuse, and so is waited for alone.
            if port.len() < 2 {
                return Verdict::More(1);
            }
        }
        match part(4, REQUEST).first_chunk::<4>() {
            None if command.is_empty() => Verdict::More(1),
            None => Verdict::More(REQUEST - bytes.len()),
            Some(address) => Verdict::from_bool(
                (self.networks.as_ref())
                    .is_none_or(|networks| networks.contains(Ipv4Addr::from(*address).into())),
            ),
        }
    }
}

/// Version, command, port and address.
const REQUEST: usize = 8;

const VERSION: u8 = 4;
const CONNECT: u8 = 1;
const BIND: u8 = 2;

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after};
    use proptest::prelude::*;

    use super::*;
    use crate::register;

    fn socks4(json: &str) -> MatchSocks4 {
        l4_testkit::matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
    }

    const CURL: &[u8] = include_bytes!("../testdata/socks4-curl.bin");
    const CURL_USER: &[u8] = include_bytes!("../testdata/socks4-curl-user.bin");
    const CURL_4A: &[u8] = include_bytes!("../testdata/socks4a-curl.bin");
    const NC: &[u8] = include_bytes!("../testdata/socks4-nc.bin");
    const BIND_REQUEST: &[u8] = b"\x04\x02\x00\x15\x0a\x01\x02\x03ftp\0";

    #[test]
    fn requests_of_real_clients_match_at_their_eighth_byte() {
        for request in [CURL, CURL_USER, CURL_4A, NC, BIND_REQUEST] {
            check(&socks4("{}"), request, Verdict::Match);
            assert_eq!(decided_after(&socks4("{}"), request), Some(8));
        }
    }

    #[test]
    fn a_request_must_meet_everything_that_is_given() {
        for (json, request, expected) in [
            (r#"{"commands": ["CONNECT"]}"#, CURL, true),
            (r#"{"commands": ["connect"]}"#, BIND_REQUEST, false),
            (r#"{"commands": ["Bind"]}"#, BIND_REQUEST, true),
            (r#"{"commands": ["BIND"]}"#, CURL, false),
            (r#"{"commands": ["BIND", "CONNECT"]}"#, CURL, true),
            (r#"{"ports": [8080]}"#, CURL, true),
            (r#"{"ports": [80, 443]}"#, CURL, false),
            (r#"{"ports": [80, 443]}"#, CURL_USER, true),
            (r#"{"networks": ["192.0.2.0/24"]}"#, CURL, true),
            (r#"{"networks": ["192.0.2.10", "10.0.0.0/8"]}"#, CURL, true),
            (r#"{"networks": ["192.0.2.11"]}"#, CURL, false),
            (r#"{"networks": ["private_ranges"]}"#, BIND_REQUEST, true),
            (r#"{"networks": ["private_ranges"]}"#, CURL, false),
            // The address is IPv4, so a range of all IPv6 addresses holds none.
            (r#"{"networks": ["::/0"]}"#, CURL, false),
            // What version 4a asks for in place of the address of a name.
            (
                r#"{"networks": ["0.0.0.0/24"], "ports": [80]}"#,
                CURL_4A,
                true,
            ),
            (r#"{"networks": ["10.0.0.0/8"]}"#, CURL_4A, false),
            (
                r#"{"ports": [8080], "networks": ["10.0.0.0/8"]}"#,
                CURL,
                false,
            ),
            (
                r#"{"commands": [], "networks": [], "ports": []}"#,
                CURL,
                true,
            ),
            (
                r#"{"commands": null, "networks": null, "ports": null}"#,
                CURL,
                true,
            ),
        ] {
            check(&socks4(json), request, Verdict::from_bool(expected));
        }
    }

    /// Row M-35 of docs/defects.md.
    #[test]
    fn the_first_byte_that_cannot_be_refuses() {
        for (json, bytes, after) in [
            ("{}", &b"\x05\x01\x00"[..], 1),
            ("{}", b"GET / HTTP/1.1\r\n\r\n", 1),
            ("{}", b"\x04\x00", 2),
            ("{}", b"\x04\x03\x00\x50\x01\x02\x03\x04", 2),
            (r#"{"commands": ["BIND"]}"#, CURL, 2),
            (
                r#"{"ports": [80, 443]}"#,
                b"\x04\x01\x02\x50\x01\x02\x03\x04",
                3,
            ),
            (
                r#"{"ports": [80, 443]}"#,
                b"\x04\x01\x01\x50\x01\x02\x03\x04",
                4,
            ),
            (r#"{"networks": ["10.0.0.0/8"]}"#, CURL, 8),
        ] {
            check(&socks4(json), bytes, Verdict::No);
            assert_eq!(
                decided_after(&socks4(json), bytes),
                Some(after),
                "{json} {bytes:?}"
            );
        }
    }

    #[test]
    fn too_few_bytes_leave_it_open() {
        let full = socks4(r#"{"ports": [8080], "networks": ["192.0.2.0/24"]}"#);
        for cut in 0..8 {
            check(&full, &CURL[..cut], Verdict::More(0));
            check(&socks4("{}"), &CURL[..cut], Verdict::More(0));
        }
    }

    #[test]
    fn placeholders_are_filled_in_when_loading() {
        let json = r#"{"commands": ["{env.CONNCEPT_SURELY_UNSET}bind"], "networks": ["10.{l4.vars.x}1.2.3"]}"#;
        check(&socks4(json), BIND_REQUEST, Verdict::Match);
        check(&socks4(json), CURL, Verdict::No);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_its_place() {
        let refused = |json| {
            let errors = l4_testkit::matcher::<MatchSocks4>(register, json)
                .err()
                .expect("errors");
            errors
                .iter()
                .map(|error| (error.pointer().to_owned(), error.message().to_owned()))
                .collect::<Vec<_>>()
        };
        let errors =
            refused(r#"{"commands": ["CONNECT", "UDP"], "networks": ["10.0.0.0/33", "x"]}"#);
        let pointers: Vec<_> = errors.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(pointers, ["/commands/1", "/networks/0", "/networks/1"]);
        assert_eq!(
            errors[0].1,
            r#"unknown command "UDP" has to be one of ["CONNECT", "BIND"]"#
        );
        assert!(
            errors[1]
                .1
                .starts_with("parsing CIDR expression: '10.0.0.0/33': ")
        );
        assert!(errors[2].1.starts_with("invalid IP address: 'x': "));
        assert_eq!(refused(r#"{"ports": [65536]}"#)[0].0, "/ports/0");
        assert_eq!(refused(r#"{"port": [1]}"#)[0].0, "/port");
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_contract(
            json in proptest::sample::select(vec![
                "{}",
                r#"{"commands": ["BIND"]}"#,
                r#"{"ports": [80, 443, 513]}"#,
                r#"{"networks": ["10.0.0.0/8"], "ports": [256]}"#,
            ]),
            start in proptest::sample::select(vec![&b""[..], &CURL_4A[..1], &CURL[..2], &CURL_USER[..3], &NC[..4]]),
            rest in proptest::collection::vec(0_u8..12, 0..10),
        ) {
            let matcher = socks4(json);
            let bytes = [start, &rest].concat();
            check(&matcher, &bytes, matcher.judge(&bytes));
        }
    }
}
