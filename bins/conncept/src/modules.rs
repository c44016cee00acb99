//! Which families of modules this build has, and which it could have.

use l4_core::Registry;

/// Enters the modules that the Cargo features of this build bring, and the names of those it was made without.
pub fn builtin(reg: &mut Registry) {
    l4_std::register(reg);
    #[cfg(feature = "tls_matcher")]
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
    let (built, left_out): (Vec<_>, Vec<_>) = FAMILIES.iter().partition(|family| family.built);
    leave_out(reg, &left_out, SETS.iter().find(|set| set.built), &built);
}

/// What `--with` names for this build with its manual.
#[cfg(not(feature = "schema"))]
pub(crate) fn with_schema() -> String {
    let built: Vec<&Family> = FAMILIES.iter().filter(|family| family.built).collect();
    with(SETS.iter().find(|set| set.built), &built, &SCHEMA)
}

/// Enters the names of modules that this build does not have.
fn leave_out(reg: &mut Registry, left_out: &[&Family], set: Option<&Set>, built: &[&Family]) {
    for family in left_out {
        for (namespace, name) in family.modules {
            reg.absent(namespace, name, with(set, built, family));
        }
    }
}

/// What `--with` names for a build that has `further` as well: a set if there is one, what is built in beside it, and
/// nothing that is part of something else.
fn with(set: Option<&Set>, built: &[&Family], further: &Family) -> String {
    let wanted = || built.iter().copied().chain([further]);
    let named = |family: &&Family| {
        !set.is_some_and(|set| (set.has)(family))
            && !wanted().any(|other| family.part_of == Some(other.feature))
    };
    let families = wanted().filter(named).map(|family| family.feature);
    let names: Vec<&str> = set
        .map(|set| set.name)
        .into_iter()
        .chain(families)
        .collect();
    names.join(",")
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
    /// The family that has this one in it.
    part_of: Option<&'static str>,
    /// Namespaces and names. What can only be written inside another module of the family is left out: who asks for
    /// it has asked for the other one first.
    modules: &'static [(&'static str, &'static str)],
}

/// Families under one name, as `Cargo.toml` defines it.
struct Set {
    name: &'static str,
    built: bool,
    has: fn(&Family) -> bool,
}

/// Larger ones first.
const SETS: &[Set] = &[
    Set {
        name: "permissive",
        built: cfg!(feature = "permissive"),
        has: |family| !family.copyleft,
    },
    Set {
        name: "tiny",
        built: cfg!(feature = "tiny"),
        has: |family| matches!(family.feature, "proxy" | "tls_matcher"),
    },
];

const MATCHERS: &str = "layer4.matchers";
const HANDLERS: &str = "layer4.handlers";
const PREAMBLES: &str = "layer4.proxy.preambles";
const TRANSPORTS: &str = "layer4.proxy.transports";
const APPS: &str = "";
const STORAGES: &str = "caddy.storage";
const CONDITIONS: &str = "tls.handshake_match";
/// `l4_tls::UNICODE`, which not every build knows.
const UNICODE: &str = "sni in Unicode";

const FAMILIES: &[Family] = &[
    Family {
        feature: "tls",
        built: cfg!(feature = "tls"),
        copyleft: false,
        part_of: None,
        modules: &[
            (HANDLERS, "tls"),
            (TRANSPORTS, "tls"),
            (APPS, "tls"),
            (APPS, "pki"),
            (STORAGES, "file_system"),
        ],
    },
    Family {
        feature: "tls_matcher",
        built: cfg!(feature = "tls_matcher"),
        copyleft: false,
        part_of: Some("tls"),
        modules: &[(MATCHERS, "tls")],
    },
    Family {
        feature: "http",
        built: cfg!(feature = "http"),
        copyleft: false,
        part_of: None,
        modules: &[(MATCHERS, "http")],
    },
    Family {
        feature: "ssh",
        built: cfg!(feature = "ssh"),
        copyleft: false,
        part_of: None,
        modules: &[(MATCHERS, "ssh")],
    },
    Family {
        feature: "postgres",
        built: cfg!(feature = "postgres"),
        copyleft: false,
        part_of: None,
        modules: &[(MATCHERS, "postgres"), (HANDLERS, "postgres_tls")],
    },
    Family {
        feature: "proxy_protocol",
        built: cfg!(feature = "proxy_protocol"),
        copyleft: false,
        part_of: None,
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
        part_of: None,
        modules: &[(MATCHERS, "socks4")],
    },
    Family {
        feature: "socks5_matcher",
        built: cfg!(feature = "socks5_matcher"),
        copyleft: false,
        part_of: Some("socks5"),
        modules: &[(MATCHERS, "socks5")],
    },
    Family {
        feature: "socks5",
        built: cfg!(feature = "socks5"),
        // By socks5-proto.
        copyleft: true,
        part_of: None,
        modules: &[(HANDLERS, "socks5")],
    },
    Family {
        feature: "xmpp",
        built: cfg!(feature = "xmpp"),
        copyleft: false,
        part_of: None,
        modules: &[(MATCHERS, "xmpp")],
    },
    Family {
        feature: "proxy",
        built: cfg!(feature = "proxy"),
        copyleft: false,
        part_of: None,
        modules: &[(HANDLERS, "proxy")],
    },
    Family {
        feature: "throttle",
        built: cfg!(feature = "throttle"),
        copyleft: false,
        part_of: None,
        modules: &[(HANDLERS, "throttle")],
    },
    Family {
        feature: "tee",
        built: cfg!(feature = "tee"),
        copyleft: false,
        part_of: None,
        modules: &[(HANDLERS, "tee")],
    },
    Family {
        feature: "regexp",
        built: cfg!(feature = "regexp"),
        copyleft: false,
        part_of: None,
        modules: &[
            (MATCHERS, "regexp"),
            (MATCHERS, "vars_regexp"),
            (CONDITIONS, "sni_regexp"),
        ],
    },
    Family {
        feature: "clock",
        built: cfg!(feature = "clock"),
        copyleft: false,
        part_of: None,
        modules: &[(MATCHERS, "clock")],
    },
    Family {
        feature: "idna",
        // The family `tls` needs the tables for more than that.
        built: cfg!(any(feature = "idna", feature = "tls")),
        copyleft: false,
        part_of: Some("tls"),
        // No module, but refused like one.
        modules: &[(CONDITIONS, UNICODE)],
    },
    SCHEMA,
];

/// No modules, but what is asked for like them, and has to stay when others are added.
const SCHEMA: Family = Family {
    feature: "schema",
    built: cfg!(feature = "schema"),
    copyleft: false,
    part_of: None,
    modules: &[],
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use l4_core::config::{Document, Errors};
    use l4_core::engine::App;

    use super::*;

    #[test]
    fn the_catalogue_lists_exactly_the_modules_that_are_not_in_every_build() {
        let mut reg = Registry::new();
        builtin(&mut reg);
        assert_eq!(reg.conflicts(), &[] as &[String]);
        let own_field = |id: &str| {
            !id.contains('.')
                || [MATCHERS, HANDLERS, PREAMBLES, TRANSPORTS, STORAGES]
                    .iter()
                    .any(|ns| {
                        id.strip_prefix(ns)
                            .and_then(|name| name.strip_prefix('.'))
                            .is_some()
                    })
        };
        let of_every_build = [
            "handlers.close",
            "handlers.echo",
            "handlers.respond",
            "handlers.subroute",
            "handlers.vars",
            "matchers.ip",
            "matchers.local_ip",
            "matchers.not",
            "matchers.remote_ip",
            "matchers.vars",
        ]
        .map(|name| format!("layer4.{name}"));
        let mut listed: BTreeSet<String> = FAMILIES
            .iter()
            .filter(|family| family.built)
            .flat_map(|family| family.modules)
            .map(|(namespace, name)| match *namespace {
                APPS => (*name).to_owned(),
                _ => format!("{namespace}.{name}"),
            })
            .chain(of_every_build)
            .collect();
        let present: BTreeSet<String> = reg
            .modules()
            .map(|module| module.id)
            .filter(|id| own_field(id) || listed.contains(id))
            .collect();
        listed.remove(&format!("{CONDITIONS}.{UNICODE}"));
        // A condition of the matcher `tls`, and so only there with it.
        if !cfg!(feature = "tls_matcher") {
            listed.remove("tls.handshake_match.sni_regexp");
        }
        assert_eq!(present, listed);
    }

    #[cfg(feature = "tls_matcher")]
    #[test]
    fn names_in_unicode_are_called_as_the_matcher_calls_them() {
        assert_eq!(UNICODE, l4_tls::UNICODE);
    }

    #[test]
    fn a_module_of_another_build_is_refused_with_the_command_that_adds_it() {
        let modules = |family: &&Family| !matches!(family.feature, "idna" | "schema");
        for family in FAMILIES.iter().filter(modules) {
            let mut reg = Registry::new();
            leave_out(&mut reg, &[family], None, &[]);
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
            let remedy = format!("cargo xtask build --with {}\n", family.feature);
            assert!(
                said.contains(&format!("unknown module: {namespace}.{name}")),
                "{said}"
            );
            assert!(said.contains(&remedy), "{said}");
        }
    }

    #[test]
    fn the_command_that_adds_a_module_keeps_what_is_there() {
        let family = |feature: &str| FAMILIES.iter().find(|f| f.feature == feature).unwrap();
        let case = |set: Option<&str>, built: &[&str], further: &str| {
            let set = SETS.iter().find(|known| Some(known.name) == set);
            let built: Vec<&Family> = built.iter().map(|name| family(name)).collect();
            with(set, &built, family(further))
        };
        let tiny = ["tls_matcher", "proxy"];
        assert_eq!(case(None, &[], "regexp"), "regexp");
        assert_eq!(case(None, &["proxy"], "tls"), "proxy,tls");
        assert_eq!(case(None, &tiny, "tls"), "proxy,tls");
        assert_eq!(case(None, &tiny, "regexp"), "tls_matcher,proxy,regexp");
        assert_eq!(case(Some("tiny"), &tiny, "regexp"), "tiny,regexp");
        assert_eq!(case(Some("tiny"), &tiny, "tls"), "tiny,tls");
        let more = ["tls_matcher", "ssh", "proxy"];
        assert_eq!(case(Some("tiny"), &more, "clock"), "tiny,ssh,clock");
        let manual = ["tls_matcher", "proxy", "schema"];
        assert_eq!(case(Some("tiny"), &manual, "clock"), "tiny,schema,clock");
        assert_eq!(case(Some("tiny"), &tiny, "schema"), "tiny,schema");
        assert_eq!(case(None, &["ssh"], "schema"), "ssh,schema");
        let free = ["tls", "http", "schema"];
        assert_eq!(
            case(Some("permissive"), &free, "socks5"),
            "permissive,socks5"
        );
        let free = ["tls", "tls_matcher", "http", "socks5_matcher"];
        assert_eq!(
            case(Some("permissive"), &free, "socks5"),
            "permissive,socks5"
        );
    }

    #[cfg(not(feature = "schema"))]
    #[test]
    fn the_command_that_adds_the_manual_keeps_what_is_there() {
        let command = with_schema();
        let named: Vec<&str> = command.split(',').collect();
        assert_eq!(named.last(), Some(&"schema"));
        for family in FAMILIES.iter().filter(|family| family.built) {
            let there = named.iter().any(|name| {
                let set = SETS.iter().find(|set| set.name == *name);
                *name == family.feature
                    || Some(*name) == family.part_of
                    || set.is_some_and(|set| (set.has)(family))
            });
            assert!(there, "{}: {command}", family.feature);
        }
    }

    #[test]
    fn sets_have_what_their_features_bring() {
        for set in SETS.iter().filter(|set| set.built) {
            let mut members = FAMILIES.iter().filter(|family| (set.has)(family));
            assert!(members.all(|family| family.built), "{}", set.name);
        }
    }

    #[cfg(feature = "proxy")]
    #[test]
    fn tls_to_upstreams_in_a_build_without_it_is_refused_with_the_command_that_adds_it() {
        let mut reg = Registry::new();
        l4_proxy::register(&mut reg);
        let all: Vec<&Family> = FAMILIES.iter().collect();
        leave_out(&mut reg, &all, None, &[]);
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
            part_of: None,
            modules: &[],
        };
        let (free, gpl) = (family(false), family(true));
        assert_eq!(licence_of([].into_iter()), "MIT OR Apache-2.0");
        assert_eq!(licence_of([&free].into_iter()), "MIT OR Apache-2.0");
        assert_eq!(licence_of([&free, &gpl].into_iter()), "GPL-3.0-or-later");
    }
}
