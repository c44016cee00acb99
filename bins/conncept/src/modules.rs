//! Which families of modules this build has, and which it could have.

use l4_core::Registry;

/// Enters the modules that the Cargo features of this build bring, and the names of those it was made without.
pub fn builtin(reg: &mut Registry) {
    l4_std::register(reg);
    #[cfg(feature = "tls")]
    l4_tls::register(reg);
    #[cfg(feature = "http")]
    l4_http::register(reg);
    #[cfg(feature = "ssh")]
    l4_ssh::register(reg);
    #[cfg(feature = "postgres")]
    l4_postgres::register(reg);
    #[cfg(feature = "proxy_protocol")]
    l4_proxy_protocol::register(reg);
    #[cfg(feature = "socks4")]
    l4_socks::register_socks4(reg);
    #[cfg(feature = "socks5_matcher")]
    l4_socks::register_socks5(reg);
    #[cfg(feature = "socks5")]
    l4_socks::register_server(reg);
    #[cfg(feature = "xmpp")]
    l4_xmpp::register(reg);
    #[cfg(feature = "proxy")]
    l4_proxy::register(reg);
    #[cfg(feature = "throttle")]
    l4_throttle::register(reg);
    #[cfg(feature = "tee")]
    l4_tee::register(reg);
    leave_out(reg, FAMILIES.iter().filter(|family| !family.built));
}

/// Enters the names of modules that this build does not have.
fn leave_out<'a>(reg: &mut Registry, families: impl Iterator<Item = &'a Family>) {
    for family in families {
        for (namespace, name) in family.modules {
            reg.absent(namespace, name, family.feature);
        }
    }
}

/// The licence that this build may be passed on under.
pub(crate) fn licence() -> &'static str {
    licence_of(FAMILIES.iter().filter(|family| family.built))
}

fn licence_of<'a>(mut families: impl Iterator<Item = &'a Family>) -> &'static str {
    match families.any(|family| family.copyleft) {
        true => "GPL-3.0-or-later",
        false => "MIT OR Apache-2.0",
    }
}

/// Whether this build has every module family.
#[cfg(feature = "schema")]
pub(crate) fn has_all() -> bool {
    FAMILIES.iter().all(|family| family.built)
}

/// Modules that come and go together.
struct Family {
    /// The Cargo feature, and the name for `cargo xtask build --with`.
    feature: &'static str,
    /// Whether this build has it.
    built: bool,
    /// Whether it brings a dependency under GPL-3.0-or-later.
    copyleft: bool,
    /// Namespaces and names. What can only be written inside another module of the family is left out: who asks for
    /// it has asked for the other one first.
    modules: &'static [(&'static str, &'static str)],
}

const MATCHERS: &str = "layer4.matchers";
const HANDLERS: &str = "layer4.handlers";
const PREAMBLES: &str = "layer4.proxy.preambles";
const TRANSPORTS: &str = "layer4.proxy.transports";
const APPS: &str = "";
const STORAGES: &str = "caddy.storage";

const FAMILIES: &[Family] = &[
    Family {
        feature: "tls",
        built: cfg!(feature = "tls"),
        copyleft: false,
        modules: &[
            (MATCHERS, "tls"),
            (HANDLERS, "tls"),
            (TRANSPORTS, "tls"),
            (APPS, "tls"),
            (APPS, "pki"),
            (STORAGES, "file_system"),
        ],
    },
    Family {
        feature: "http",
        built: cfg!(feature = "http"),
        copyleft: false,
        modules: &[(MATCHERS, "http")],
    },
    Family {
        feature: "ssh",
        built: cfg!(feature = "ssh"),
        copyleft: false,
        modules: &[(MATCHERS, "ssh")],
    },
    Family {
        feature: "postgres",
        built: cfg!(feature = "postgres"),
        copyleft: false,
        modules: &[(MATCHERS, "postgres"), (HANDLERS, "postgres_tls")],
    },
    Family {
        feature: "proxy_protocol",
        built: cfg!(feature = "proxy_protocol"),
        copyleft: false,
        modules: &[
            (MATCHERS, "proxy_protocol"),
            (HANDLERS, "proxy_protocol"),
            (PREAMBLES, "v1"),
            (PREAMBLES, "v2"),
        ],
    },
    Family {
        feature: "socks4",
        built: cfg!(feature = "socks4"),
        copyleft: false,
        modules: &[(MATCHERS, "socks4")],
    },
    Family {
        feature: "socks5_matcher",
        built: cfg!(feature = "socks5_matcher"),
        copyleft: false,
        modules: &[(MATCHERS, "socks5")],
    },
    Family {
        feature: "socks5",
        built: cfg!(feature = "socks5"),
        // By socks5-proto.
        copyleft: true,
        modules: &[(HANDLERS, "socks5")],
    },
    Family {
        feature: "xmpp",
        built: cfg!(feature = "xmpp"),
        copyleft: false,
        modules: &[(MATCHERS, "xmpp")],
    },
    Family {
        feature: "proxy",
        built: cfg!(feature = "proxy"),
        copyleft: false,
        modules: &[(HANDLERS, "proxy")],
    },
    Family {
        feature: "throttle",
        built: cfg!(feature = "throttle"),
        copyleft: false,
        modules: &[(HANDLERS, "throttle")],
    },
    Family {
        feature: "tee",
        built: cfg!(feature = "tee"),
        copyleft: false,
        modules: &[(HANDLERS, "tee")],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use l4_core::App;
    use l4_core::config::{Document, Errors};

    use super::*;

    #[test]
    fn the_catalogue_lists_exactly_the_matchers_and_handlers_of_the_optional_crates() {
        let mut reg = Registry::new();
        builtin(&mut reg);
        assert_eq!(reg.conflicts(), &[] as &[String]);
        let top_level = |id: &str| {
            !id.contains('.')
                || [MATCHERS, HANDLERS, PREAMBLES, TRANSPORTS, STORAGES]
                    .iter()
                    .any(|ns| {
                        id.strip_prefix(ns)
                            .and_then(|name| name.strip_prefix('.'))
                            .is_some()
                    })
        };
        let present: BTreeSet<String> = reg
            .modules()
            .filter(|module| module.origin.package != "l4-std" && top_level(&module.id))
            .map(|module| module.id)
            .collect();
        let listed: BTreeSet<String> = FAMILIES
            .iter()
            .filter(|family| family.built)
            .flat_map(|family| family.modules)
            .map(|(namespace, name)| match *namespace {
                APPS => (*name).to_owned(),
                _ => format!("{namespace}.{name}"),
            })
            .collect();
        assert_eq!(present, listed);
    }

    #[test]
    fn a_module_of_another_build_is_refused_with_the_command_that_adds_it() {
        let mut reg = Registry::new();
        l4_std::register(&mut reg);
        leave_out(&mut reg, FAMILIES.iter());
        for family in FAMILIES {
            let (namespace, name) = family.modules[0];
            let route = match namespace {
                MATCHERS => format!(r#"{{"match":[{{"{name}":{{}}}}]}}"#),
                _ => format!(r#"{{"handle":[{{"handler":"{name}"}}]}}"#),
            };
            let text =
                format!(r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"routes":[{route}]}}}}}}}}}}"#);
            let document = Document::parse("l4.json", text.as_bytes()).unwrap();
            let Err(errors) = App::load(&document, &reg).app else {
                panic!("{name} was accepted");
            };
            let said = Errors::from(errors).to_string();
            let remedy = format!("cargo xtask build --with {}", family.feature);
            assert!(
                said.contains(&format!("unknown module: {namespace}.{name}")),
                "{said}"
            );
            assert!(said.contains(&remedy), "{said}");
        }
    }

    #[cfg(feature = "proxy")]
    #[test]
    fn tls_to_upstreams_in_a_build_without_it_is_refused_with_the_command_that_adds_it() {
        let mut reg = Registry::new();
        l4_proxy::register(&mut reg);
        leave_out(&mut reg, FAMILIES.iter());
        let text = r#"{"apps":{"layer4":{"servers":{"a":{"routes":[{"handle":[
            {"handler":"proxy","upstreams":[{"dial":["a:1"],"tls":{}}]}]}]}}}}}"#;
        let document = Document::parse("l4.json", text.as_bytes()).unwrap();
        let errors = App::load(&document, &reg).app.err().unwrap();
        let said = Errors::from(errors).to_string();
        for part in [
            "unknown module: layer4.proxy.transports.tls",
            "cargo xtask build --with tls",
            "/upstreams/0/tls",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn the_licence_of_this_build_follows_from_its_features() {
        let expected = match cfg!(feature = "socks5") {
            true => "GPL-3.0-or-later",
            false => "MIT OR Apache-2.0",
        };
        assert_eq!(licence(), expected);
    }

    #[test]
    fn one_copyleft_family_decides_the_licence() {
        let family = |copyleft| Family {
            feature: "x",
            built: true,
            copyleft,
            modules: &[],
        };
        let (free, gpl) = (family(false), family(true));
        assert_eq!(licence_of([].into_iter()), "MIT OR Apache-2.0");
        assert_eq!(licence_of([&free].into_iter()), "MIT OR Apache-2.0");
        assert_eq!(licence_of([&free, &gpl].into_iter()), "GPL-3.0-or-later");
    }
}
