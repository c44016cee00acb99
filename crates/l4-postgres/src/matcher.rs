//! The matcher `postgres`.

use std::collections::HashMap;

use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::{FirstMessage, Kind, Startup};

/// Matches a PostgreSQL client by its first message: a request for TLS or GSSAPI encryption, a request to cancel a
/// query, or the start of a session (protocol 3).
///
/// A session is begun in the clear or, once the server has agreed, behind TLS. What Conncept sees first is the request
/// then, which names neither user nor program: `user` and `client` match only sessions that begin in the clear. A
/// client that begins with TLS itself (`sslnegotiation=direct`) is matched by `tls` with the ALPN `postgresql`.
pub struct MatchPostgres {
    tls: Tls,
    /// The databases of each user, none standing for all of them.
    users: HashMap<Box<[u8]>, Names>,
    clients: Names,
}

/// Configuration of `postgres`. A client must meet everything that is given; `{}` matches every PostgreSQL client.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// The users that match, each with the databases that they may ask for; an empty list stands for all. The user `*`
    /// is every user that is not listed. A client that names no database asks for the one with the name of its user, as
    /// the server understands it. Placeholders are not filled in. Default: all users. Example:
    /// `{"alice": ["shop", "stock"], "bob": [], "*": ["public"]}`.
    #[serde(default)]
    user: HashMap<String, Option<Vec<String>>>,
    /// The values of `application_name` that match. Placeholders are not filled in. Default: all. Example: `["psql"]`.
    #[serde(default)]
    client: Vec<String>,
    /// `"enabled"` matches only clients that ask for TLS, `"disabled"` only those that do not, `""` both. Default:
    /// both.
    #[serde(default)]
    #[schemars(extend("enum" = ["enabled", "disabled", ""]))]
    tls: Option<At<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    Either,
    Enabled,
    Disabled,
}

impl MatcherModule for MatchPostgres {
    const NAME: &'static str = "postgres";
    type Config = PostgresConfig;

    fn provision(config: PostgresConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let tls = match config.tls.as_ref().map_or("", |tls| tls.as_str()) {
            "" => Tls::Either,
            "enabled" => Tls::Enabled,
            "disabled" => Tls::Disabled,
            other => {
                let node = config.tls.as_ref().map_or(cx.node(), At::node);
                return Err(cx.reject(
                    node,
                    format!(
                        r#"postgres: invalid tls value "{other}"; must be "enabled" or "disabled""#
                    ),
                ));
            }
        };
        if tls == Tls::Enabled && !(config.user.is_empty() && config.client.is_empty()) {
            cx.warn(
                cx.node(),
                "never matches: a client that asks for TLS has not named user and application yet",
            );
        }
        Ok(Self {
            tls,
            users: config
                .user
                .into_iter()
                .map(|(user, databases)| (bytes(user), Names::new(databases.unwrap_or_default())))
                .collect(),
            clients: Names::new(config.client),
        })
    }
}

/// Names as they are sent: bytes, in the encoding of the client.
struct Names(Box<[Box<[u8]>]>);

impl Names {
    fn new(names: Vec<String>) -> Self {
        Self(names.into_iter().map(bytes).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn contains(&self, name: &[u8]) -> bool {
        self.0.iter().any(|listed| **listed == *name)
    }
}

fn bytes(text: String) -> Box<[u8]> {
    text.into_bytes().into()
}

impl Matcher for MatchPostgres {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match FirstMessage::parse(view.bytes(), |kind| self.wants(kind)) {
            Parsed::Done(FirstMessage::Request(_)) => Verdict::Match,
            Parsed::Done(FirstMessage::Startup(startup)) => {
                Verdict::from_bool(self.user_matches(&startup) && self.client_matches(&startup))
            }
            Parsed::Not => Verdict::No,
            Parsed::More(n) => Verdict::More(n),
        }
    }
}

impl MatchPostgres {
    /// Whether a message of that kind can match.
    fn wants(&self, kind: Kind) -> bool {
        let named = kind == Kind::Startup || (self.users.is_empty() && self.clients.is_empty());
        let encrypted = match self.tls {
            Tls::Either => true,
            Tls::Enabled => kind == Kind::SslRequest,
            Tls::Disabled => kind != Kind::SslRequest,
        };
        named && encrypted
    }

    fn user_matches(&self, startup: &Startup<'_>) -> bool {
        if self.users.is_empty() {
            return true;
        }
        let user = startup.parameter("user");
        let own = user.and_then(|user| self.users.get(user));
        let Some(databases) = own.or_else(|| self.users.get(&b"*"[..])) else {
            return false;
        };
        // No server accepts a session without a user, so there is none to be one of all users.
        let any = databases.is_empty() && user.is_some();
        any || startup
            .parameter("database")
            .or(user)
            .is_some_and(|database| databases.contains(database))
    }

    fn client_matches(&self, startup: &Startup<'_>) -> bool {
        self.clients.is_empty()
            || startup
                .parameter("application_name")
                .is_some_and(|name| self.clients.contains(name))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use l4_testkit::{check, decided_after};
    use proptest::prelude::*;

    use super::*;
    use crate::register;

    macro_rules! vector {
        ($name:literal) => {
            include_bytes!(concat!("../testdata/", $name, ".bin")).as_slice()
        };
    }

    fn postgres(json: &str) -> MatchPostgres {
        l4_testkit::matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
    }

    /// A StartupMessage of protocol 3.0.
    pub(crate) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
        let texts: String = parameters
            .iter()
            .map(|(name, value)| format!("{name}\0{value}\0"))
            .collect();
        let length = u32::try_from(texts.len() + 9).unwrap();
        [
            &length.to_be_bytes()[..],
            &[0, 3, 0, 0],
            texts.as_bytes(),
            &[0],
        ]
        .concat()
    }

    const SSL: &[u8] = vector!("psql-require");
    const GSS: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x30";
    const CANCEL: &[u8] = vector!("psql-cancel");
    const PSQL: &[u8] = vector!("psql-disable");

    /// Row M-22 of docs/defects.md.
    #[test]
    fn first_messages_of_real_clients_match_at_their_last_byte() {
        for message in [
            PSQL,
            SSL,
            CANCEL,
            GSS,
            vector!("psql-allow"),
            vector!("psql-prefer"),
            vector!("psql-no-database"),
            vector!("psql-options"),
            vector!("pgbench"),
            vector!("openssl-starttls"),
        ] {
            let any = postgres("{}");
            check(&any, message, Verdict::Match);
            assert_eq!(decided_after(&any, message), Some(message.len()));
            let followed = [message, b"p\0\0\0\x08abc\0"].concat();
            check(&any, &followed, Verdict::Match);
        }
    }

    #[test]
    fn anything_else_is_refused_at_the_first_byte_that_cannot_be() {
        for (json, other, after) in [
            ("{}", &b"GET / HTTP/1.1\r\n\r\n"[..], 1),
            ("{}", b"\x16\x03\x01\0\xf8", 1),
            ("{}", b"\0\x1d\xab\xcd\x01\0\0\x01", 2),
            ("{}", b"\0\0\x41\0", 3),
            ("{}", b"\0\0\0\x07", 4),
            ("{}", b"\0\0\x40\x05", 4),
            // A CancelRequest is never this short, a StartupMessage neither.
            ("{}", b"\0\0\0\x08\0\x03", 5),
            ("{}", b"\0\0\0\x08\x04\xd2\x16\x2e", 8),
            ("{}", b"\0\0\0\x10\x04\xd2\x16\x2f", 8),
            ("{}", b"\0\0\0\x20\0\x02", 6),
            ("{}", b"\0\0\0\x20\0\x03\0\0\0", 9),
            ("{}", b"\0\0\0\x20\0\x03\0\0user\0alice\0\0", 20),
            ("{}", b"\0\0\0\x0d\0\x03\0\0user\0", 13),
            ("{}", b"\0\0\0\x0b\0\x03\0\0u\0a", 11),
            (r#"{"tls": "enabled"}"#, PSQL, 4),
            (r#"{"tls": "enabled"}"#, CANCEL, 4),
            (r#"{"tls": "enabled"}"#, GSS, 8),
            (r#"{"tls": "disabled"}"#, SSL, 8),
            (r#"{"user": {"alice": []}}"#, SSL, 4),
            (r#"{"user": {"alice": []}}"#, CANCEL, 5),
        ] {
            check(&postgres(json), other, Verdict::No);
            assert_eq!(
                decided_after(&postgres(json), other),
                Some(after),
                "{json} {}",
                other.escape_ascii()
            );
        }
    }

    #[test]
    fn too_few_bytes_leave_it_open() {
        for message in [PSQL, SSL, CANCEL, GSS] {
            for cut in 0..message.len() {
                check(&postgres("{}"), &message[..cut], Verdict::More(0));
            }
        }
    }

    #[test]
    fn tls_tells_clients_that_ask_for_it_from_others() {
        for (json, ssl, others) in [
            (r#"{"tls": ""}"#, true, true),
            (r#"{"tls": null}"#, true, true),
            (r#"{"tls": "enabled"}"#, true, false),
            (r#"{"tls": "disabled"}"#, false, true),
        ] {
            check(&postgres(json), SSL, Verdict::from_bool(ssl));
            for other in [PSQL, CANCEL, GSS] {
                check(&postgres(json), other, Verdict::from_bool(others));
            }
        }
    }

    /// Rows M-20 and M-21 of docs/defects.md.
    #[test]
    fn users_and_their_databases_are_told_apart() {
        let rules = r#"{"user": {"alice": ["shop", "alice"], "bob": [], "carol": null, "*": ["public", "dave"]}}"#;
        for (parameters, expected) in [
            (&[("user", "alice"), ("database", "shop")][..], true),
            (&[("user", "alice"), ("database", "public")], false),
            (&[("database", "shop"), ("x", "y"), ("user", "alice")], true),
            // Without a database, or with an empty one, it is the user's own.
            (&[("user", "alice")], true),
            (&[("user", "alice"), ("database", "")], true),
            (&[("user", "bob"), ("database", "anything")], true),
            (&[("user", "bob")], true),
            (&[("user", "carol"), ("database", "anything")], true),
            // Everybody else.
            (&[("user", "erin"), ("database", "public")], true),
            (&[("user", "erin"), ("database", "shop")], false),
            (&[("user", "erin")], false),
            (&[("user", "dave")], true),
            // The last one counts, for servers as for us.
            (
                &[("user", "bob"), ("user", "erin"), ("database", "shop")],
                false,
            ),
            (&[("user", "Alice"), ("database", "shop")], false),
            (&[("database", "public")], true),
            (&[("database", "shop")], false),
            (&[], false),
        ] {
            let message = startup(parameters);
            check(&postgres(rules), &message, Verdict::from_bool(expected));
        }
        let named = r#"{"user": {"alice": ["shop"]}}"#;
        check(&postgres(named), PSQL, Verdict::Match);
        check(
            &postgres(named),
            &startup(&[("user", "alice")]),
            Verdict::No,
        );
        check(&postgres(named), vector!("psql-no-database"), Verdict::No);
        check(
            &postgres(named),
            &startup(&[("user", "erin"), ("database", "shop")]),
            Verdict::No,
        );
        let all = r#"{"user": {"*": []}}"#;
        check(&postgres(all), PSQL, Verdict::Match);
        check(
            &postgres(all),
            &startup(&[("database", "shop")]),
            Verdict::No,
        );
    }

    #[test]
    fn programs_are_told_apart_by_application_name() {
        let clients = r#"{"client": ["psql", "shop backend"]}"#;
        for (message, expected) in [
            (PSQL, true),
            (vector!("psql-options"), true),
            (vector!("pgbench"), false),
            (&startup(&[("user", "alice")]), false),
            (SSL, false),
        ] {
            check(&postgres(clients), message, Verdict::from_bool(expected));
        }
        let both = r#"{"client": ["psql"], "user": {"bob": []}, "tls": "disabled"}"#;
        check(&postgres(both), PSQL, Verdict::No);
        let both = r#"{"client": ["psql"], "user": {"alice": []}, "tls": "disabled"}"#;
        check(&postgres(both), PSQL, Verdict::Match);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_or_warned_about() {
        let refused = |json| {
            let made = l4_testkit::matcher::<MatchPostgres>(register, json);
            let errors = made.err().expect("errors");
            (
                errors[0].pointer().to_owned(),
                errors[0].message().to_owned(),
            )
        };
        assert_eq!(
            refused(r#"{"tls": "on"}"#),
            (
                "/tls".to_owned(),
                r#"postgres: invalid tls value "on"; must be "enabled" or "disabled""#.to_owned()
            )
        );
        assert_eq!(refused(r#"{"user": {"alice": "shop"}}"#).0, "/user/alice");
        assert_eq!(refused(r#"{"users": {}}"#).0, "/users");

        let warnings = |json: &str| {
            let config = format!(
                r#"{{"apps": {{"layer4": {{"servers": {{"a": {{"listen": [":1"], "routes": [
                    {{"match": [{{"postgres": {json}}}]}}]}}}}}}}}}}"#
            );
            l4_testkit::load(register, &config).warnings
        };
        assert_eq!(
            warnings(r#"{"tls": "enabled", "client": ["psql"]}"#).len(),
            1
        );
        assert_eq!(warnings(r#"{"tls": "enabled"}"#).len(), 0);
    }

    proptest! {
        #[test]
        fn changed_messages_keep_the_contract(
            json in proptest::sample::select(vec![
                "{}", r#"{"tls": "disabled"}"#, r#"{"user": {"alice": ["shop"], "*": []}, "client": ["psql"]}"#,
            ]),
            message in proptest::sample::select(vec![PSQL, SSL, CANCEL, vector!("psql-options")]),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), 0_u8..8), 0..4),
        ) {
            let mut bytes = message.to_vec();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let matcher = postgres(json);
            check(&matcher, &bytes, l4_testkit::verdict(&matcher, &bytes));
        }

        #[test]
        fn any_body_keeps_the_contract(
            length in 8_u32..40,
            code in proptest::sample::select(vec![0x0003_0000_u32, 80_877_102, 80_877_103, 80_877_104]),
            body in proptest::collection::vec(proptest::sample::select(b"\0\0au".to_vec()), 0..40),
        ) {
            let bytes = [&length.to_be_bytes()[..], &code.to_be_bytes(), &body].concat();
            let matcher = postgres(r#"{"user": {"u": []}}"#);
            check(&matcher, &bytes, l4_testkit::verdict(&matcher, &bytes));
            check(&postgres("{}"), &bytes, l4_testkit::verdict(&postgres("{}"), &bytes));
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            check(&postgres("{}"), &bytes, l4_testkit::verdict(&postgres("{}"), &bytes));
        }
    }
}
