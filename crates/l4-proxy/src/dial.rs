//! Addresses of peers: fixed, or made for each connection from placeholders.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use l4_core::config::{Address, AddressDefaults, AddressError};
use l4_core::prelude::*;
use l4_net::dial::Target;
use thiserror::Error;

/// The address of a peer.
pub(crate) enum Dial {
    /// The same for every connection.
    Fixed(Target),
    /// Filled in for each connection.
    Dynamic(Template),
}

/// Why no address could be made for a connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum AddressRefused {
    /// What a placeholder gave is neither a host name nor an address nor a number.
    #[error("{value:?} is not a host or port; nothing else may be filled into a dial address")]
    Value {
        /// What the placeholder gave, cut to 128 characters.
        value: String,
    },
    /// The address is not one.
    #[error("dial address {text:?}: {source}")]
    Syntax {
        /// The address, filled in.
        text: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// It can be read, but not connected to.
    #[error("{0}")]
    Undialable(String),
}

impl Dial {
    pub(crate) fn provision(text: &At<String>, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let expanded = cx.expand_known(text)?;
        if expanded.contains('{') && expanded.contains('}') {
            let template = cx.template_at(&expanded, text.node())?;
            if !template.is_single_placeholder() {
                check(&shape(&template)).map_err(|why| reject(cx, text, &why))?;
            }
            return Ok(Self::Dynamic(template));
        }
        let address = check(&expanded).map_err(|why| reject(cx, text, &why))?;
        Ok(Self::Fixed(address))
    }

    /// Whether it takes datagrams, as far as that is known without a connection.
    pub(crate) fn is_datagram(&self) -> bool {
        match self {
            Self::Fixed(target) => target.is_datagram(),
            Self::Dynamic(template) => {
                check(&shape(template)).is_ok_and(|target| target.is_datagram())
            }
        }
    }

    /// The address for a connection.
    ///
    /// What a placeholder gives may come from the client. It can only be a host or a port: it never changes the network,
    /// names a socket file or moves the port. An address that is one single placeholder is the operator's own choice
    /// and may be anything.
    pub(crate) fn target(&self, conn: &Connection) -> Result<Cow<'_, Target>, AddressRefused> {
        let template = match self {
            Self::Fixed(target) => return Ok(Cow::Borrowed(target)),
            Self::Dynamic(template) => template,
        };
        if template.is_single_placeholder() {
            return check(&conn.expand(template)).map(Cow::Owned);
        }
        let mut text = String::new();
        for part in conn.expand_parts(template) {
            match part {
                Ok(literal) => text.push_str(literal),
                Err(value) if value.parse::<Ipv6Addr>().is_ok() && !text.ends_with('[') => {
                    text.push('[');
                    text.push_str(&value);
                    text.push(']');
                }
                Err(value) if is_host_or_port(&value) => text.push_str(&value),
                Err(value) => {
                    let value = value.chars().take(128).collect();
                    return Err(AddressRefused::Value { value });
                }
            }
        }
        check(&text).map(Cow::Owned)
    }

    /// `unix`, `unixgram` or `unixpacket`, if it is known to be one of them.
    pub(crate) fn unix_network(&self) -> Option<&'static str> {
        match self {
            Self::Fixed(target) => target.unix_network(),
            Self::Dynamic(_) => None,
        }
    }
}

/// The shape is the operator's; any number is a valid host, port and path to try it with.
fn shape(template: &Template) -> String {
    template.map_parts(|part| part.unwrap_or("1"))
}

fn reject(cx: &mut Provision<'_>, text: &At<String>, why: &AddressRefused) -> Rejected {
    cx.reject_help(
        text.node(),
        why.to_string(),
        "write [network/]host:port, such as \"10.0.0.1:443\", \"udp/[2001:db8::1]:53\" or \"unix//run/app.sock\"",
    )
}

/// Reads an address that somebody can connect to.
fn check(text: &str) -> Result<Target, AddressRefused> {
    let address = Address::parse(text, &AddressDefaults::default()).map_err(|source| {
        AddressRefused::Syntax {
            text: text.to_owned(),
            source,
        }
    })?;
    if let Some(why) = address.unsupported() {
        return Err(AddressRefused::Undialable(format!(
            "dial address {text:?}: {why}"
        )));
    }
    Target::new(&address).map_err(|why| AddressRefused::Undialable(why.to_string()))
}

/// A host name, an IP address or a number: letters, digits, hyphens, dots and underscores, or an IPv6 address.
fn is_host_or_port(value: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (!value.is_empty() && value.len() <= 253 && value.bytes().all(plain))
        || value.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use l4_core::Registry;
    use l4_core::config::{ConfigError, Document};
    use proptest::prelude::*;

    use super::*;

    fn dial(text: &str) -> Result<Dial, Vec<ConfigError>> {
        let json = format!("{text:?}");
        let document = Document::parse("test", json.as_bytes()).unwrap();
        let registry = Registry::new();
        let mut cx = Provision::new(&document, &registry);
        let dial = cx
            .decode(document.root())
            .and_then(|text| Dial::provision(&text, &mut cx));
        dial.map_err(|_| cx.finish().errors)
    }

    fn address(text: &str, value: &str) -> Result<String, String> {
        let (mut conn, _client) = l4_testkit::connection(1);
        conn.set_var("x", value);
        match dial(text).unwrap().target(&conn) {
            Ok(address) => Ok(address.to_string()),
            Err(why) => Err(why.to_string()),
        }
    }

    #[test]
    fn fixed_addresses_are_checked_at_load() {
        for good in [
            "10.0.0.1:443",
            "localhost:80",
            ":80",
            "udp/[::1]:53",
            "unix//run/x.sock",
            "unix/@x",
            "tcp/a:7-7",
        ] {
            assert!(matches!(dial(good), Ok(Dial::Fixed(_))), "{good}");
        }
        for (bad, word) in [
            ("10.0.0.1", "port 0"),
            ("10.0.0.1:0", "port 0"),
            ("a:1-3", "port ranges are currently not supported"),
            ("a:http", "invalid start port"),
            ("tpc/a:1", "did you mean tcp"),
            ("fd/3", "cannot be dialled"),
            ("unix/", "path"),
        ] {
            let errors = dial(bad).err().unwrap();
            assert!(errors[0].message().contains(word), "{bad}: {}", errors[0]);
        }
    }

    /// Row P14 of docs/defects.md.
    #[test]
    fn what_a_client_chose_can_only_be_a_host_or_a_port() {
        assert_eq!(
            address("{l4.vars.x}:443", "a.example").unwrap(),
            "a.example:443"
        );
        assert_eq!(
            address("{l4.vars.x}:443", "192.0.2.1").unwrap(),
            "192.0.2.1:443"
        );
        assert_eq!(
            address("{l4.vars.x}:443", "2001:db8::1").unwrap(),
            "[2001:db8::1]:443"
        );
        assert_eq!(
            address("[{l4.vars.x}]:443", "2001:db8::1").unwrap(),
            "[2001:db8::1]:443"
        );
        assert_eq!(
            address("10.0.0.1:{l4.vars.x}", "8080").unwrap(),
            "10.0.0.1:8080"
        );
        assert_eq!(address("{l4.vars.x}.svc:80", "web").unwrap(), "web.svc:80");
        for evil in [
            "udp/10.0.0.1",
            "unix//run/x",
            "a:22",
            "a b",
            "a\n",
            "",
            "[::1]",
            "{env.HOME}",
            "a/../b",
        ] {
            assert!(address("{l4.vars.x}:443", evil).is_err(), "{evil:?}");
        }
        assert!(address("10.0.0.1:{l4.vars.x}", "99999").is_err());
    }

    #[test]
    fn an_address_that_is_one_placeholder_is_whatever_the_operator_set() {
        assert_eq!(
            address("{l4.vars.x}", "udp/10.0.0.1:53").unwrap(),
            "udp/10.0.0.1:53"
        );
        assert!(address("{l4.vars.x}", "nonsense").is_err());
    }

    #[test]
    fn the_shape_of_a_dynamic_address_is_checked_at_load() {
        assert!(dial("tpc/{l4.vars.x}:1").is_err());
        assert!(dial("{l4.vars.x}").is_ok());
        assert!(dial("{l4.vars.x}:").is_err());
    }

    proptest! {
        /// Row P14 of docs/defects.md.
        #[test]
        fn no_value_changes_the_network_or_the_port(value in ".{0,40}") {
            let (mut conn, _client) = l4_testkit::connection(1);
            conn.set_var("x", &value);
            if let Ok(target) = dial("{l4.vars.x}:443").unwrap().target(&conn) {
                let text = target.to_string();
                prop_assert!(!target.is_datagram() && !text.contains('/') && text.ends_with(":443"), "{text}");
            }
        }
    }
}
