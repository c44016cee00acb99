//! What runs when no configuration was given: something to try at once.

use std::net::SocketAddr;

use l4_core::Registry;
use serde_json::Value;

/// The configuration, without the routes whose matchers this build does not have.
pub(crate) fn text(registry: &Registry) -> String {
    let known = |name: &str| {
        registry
            .modules()
            .any(|module| module.id.strip_prefix("layer4.matchers.") == Some(name))
    };
    // The text is ours and a test reads it; if it were broken, the loader's message would say so.
    let Ok(mut config) = serde_json::from_str::<Value>(TEXT) else {
        return TEXT.to_owned();
    };
    let routes = config.pointer_mut("/apps/layer4/servers/welcome/routes");
    if let Some(routes) = routes.and_then(Value::as_array_mut) {
        routes.retain(|route| {
            let sets = route.get("match").and_then(Value::as_array);
            let names = sets.into_iter().flatten().filter_map(Value::as_object);
            names
                .flat_map(serde_json::Map::keys)
                .all(|name| known(name))
        });
    }
    config.to_string()
}

/// What to type to see it work.
pub(crate) fn invitation(address: SocketAddr) -> String {
    format!(
        "\
No configuration was given (--config FILE), so this one only shows what Conncept does. It listens on {address},
looks at the first bytes of every connection and answers in the language it sees. From another terminal, try

  curl http://{address}/hello
  openssl s_client -connect {address} -servername hello.example -debug </dev/null
  echo hello | nc {address_with_space}

openssl ends with the alert \"unrecognized name\", because there is no certificate here, and shows the answer in the last
lines of its dump. `ssh -v -p {port} {ip}` works, too. Each connection leaves a line here. Ctrl-C ends it.
",
        address_with_space = format_args!("{} {}", address.ip(), address.port()),
        ip = address.ip(),
        port = address.port(),
    )
}

const TEXT: &str = include_str!("default.json");

#[cfg(test)]
mod tests {
    use l4_core::config::Document;
    use l4_core::engine::App;

    use super::*;

    #[test]
    fn the_embedded_configuration_loads_without_warnings_in_this_build() {
        let mut registry = Registry::new();
        crate::builtin(&mut registry);
        let document = Document::parse("default", text(&registry).as_bytes()).unwrap();
        let loaded = App::load(&document, &registry);
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let app = loaded.app.unwrap();
        assert_eq!(app.listens.len(), 1);
        assert_eq!(app.listens[0].address.to_string(), "127.0.0.1:5000");
    }

    #[test]
    fn a_build_without_any_family_still_answers() {
        let mut registry = Registry::new();
        l4_std::register(&mut registry);
        let text = text(&registry);
        let document = Document::parse("default", text.as_bytes()).unwrap();
        assert!(App::load(&document, &registry).app.is_ok(), "{text}");
        let routes = document
            .find("/apps/layer4/servers/welcome/routes")
            .unwrap();
        assert_eq!(document.items(routes).count(), 1);
    }
}
