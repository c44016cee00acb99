//! Where a route list leads behind one of its handlers, as far as the configuration alone tells.

use l4_core::config::{Document, Node, Value};

/// Whether what `handler` passes on, HTTP/2 spoken by a client, can reach a `proxy`: behind it in its chain, in routes
/// further on, in subroutes of these, and behind the subroute that it stands in.
pub(crate) fn leads_to_proxy(document: &Document, handler: Node) -> bool {
    // Each turn goes up to the list that the last one stood in.
    let mut handler = handler;
    loop {
        let Some(chain) = document.parent(handler) else {
            return false;
        };
        let later = document.items(chain).skip_while(|item| *item != handler);
        match end_of(document, later.skip(1)) {
            End::Proxy => return true,
            End::Other => return false,
            End::Open => {}
        }
        let Some(route) = document.parent(chain) else {
            return false;
        };
        // The branch of a `tee` is a chain, too, but none of a route.
        if document.member(route, "handle") != Some(chain) {
            return false;
        }
        let Some(list) = document.parent(route) else {
            return false;
        };
        let later = document.items(list).skip_while(|item| *item != route);
        if routes_lead_to_proxy(document, later.skip(1)) {
            return true;
        }
        let Some(owner) = document.parent(list) else {
            return false;
        };
        if name(document, owner).is_none() {
            return false;
        }
        handler = owner;
    }
}

/// How a chain ends.
enum End {
    Proxy,
    /// Something else keeps the connection.
    Other,
    /// The routes behind it go on.
    Open,
}

fn end_of(document: &Document, chain: impl Iterator<Item = Node>) -> End {
    for handler in chain {
        match name(document, handler) {
            Some("proxy") => return End::Proxy,
            Some("echo" | "respond" | "close") => return End::Other,
            Some("subroute") => {
                let routes = document.member(handler, "routes");
                let mut routes = routes.into_iter().flat_map(|list| document.items(list));
                if routes_lead_to_proxy(document, &mut routes) {
                    return End::Proxy;
                }
            }
            _ => {}
        }
    }
    End::Open
}

fn routes_lead_to_proxy(document: &Document, routes: impl Iterator<Item = Node>) -> bool {
    let mut routes = routes.filter(|route| takes_http(document, *route));
    routes.any(|route| {
        let chain = document.member(route, "handle");
        let chain = chain.into_iter().flat_map(|chain| document.items(chain));
        matches!(
            end_of(document, Box::new(chain) as Box<dyn Iterator<Item = Node>>),
            End::Proxy
        )
    })
}

/// Whether a client that speaks HTTP/2 can be taken by `route`: no set of matchers, or one that asks for no other
/// protocol.
fn takes_http(document: &Document, route: Node) -> bool {
    let Some(sets) = document.member(route, "match") else {
        return true;
    };
    let mut sets = document.items(sets).peekable();
    sets.peek().is_none()
        || sets.any(|set| {
            let mut names = document.members(set).map(|(name, _)| name);
            !names.any(|name| OTHER_PROTOCOLS.contains(&name))
        })
}

fn name(document: &Document, handler: Node) -> Option<&str> {
    match document.value(document.member(handler, "handler")?) {
        Value::String(name) => Some(name),
        _ => None,
    }
}

/// Matchers that no HTTP/2 meets.
const OTHER_PROTOCOLS: [&str; 13] = [
    "dns",
    "openvpn",
    "postgres",
    "proxy_protocol",
    "quic",
    "rdp",
    "socks4",
    "socks5",
    "ssh",
    "tls",
    "winbox",
    "wireguard",
    "xmpp",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the handler `tls` of a list of routes leads to a proxy.
    fn leads(routes: &str) -> bool {
        let text = format!(r#"{{"listen":[],"routes":{routes}}}"#);
        let document = Document::parse("test", text.as_bytes()).unwrap();
        let tls = find(&document, document.root()).unwrap();
        leads_to_proxy(&document, tls)
    }

    fn find(document: &Document, node: Node) -> Option<Node> {
        if name(document, node) == Some("tls") {
            return Some(node);
        }
        let members = document.members(node).map(|(_, member)| member);
        let mut children = members
            .chain(document.items(node))
            .collect::<Vec<_>>()
            .into_iter();
        children.find_map(|child| find(document, child))
    }

    #[test]
    fn l13_the_chain_the_later_routes_and_the_subroutes_are_followed() {
        const T: &str = r#"{"handler":"tls"}"#;
        const P: &str = r#"{"handler":"proxy"}"#;
        for (routes, expected) in [
            (format!(r#"[{{"handle":[{T},{P}]}}]"#), true),
            (
                format!(r#"[{{"handle":[{T},{{"handler":"vars"}},{P}]}}]"#),
                true,
            ),
            (format!(r#"[{{"handle":[{P},{T}]}}]"#), false),
            (
                format!(r#"[{{"handle":[{T},{{"handler":"echo"}}]}},{{"handle":[{P}]}}]"#),
                false,
            ),
            (format!(r#"[{{"handle":[{T}]}},{{"handle":[{P}]}}]"#), true),
            (format!(r#"[{{"handle":[{P}]}},{{"handle":[{T}]}}]"#), false),
            (
                format!(r#"[{{"handle":[{T}]}},{{"match":[{{"http":[]}}],"handle":[{P}]}}]"#),
                true,
            ),
            (
                format!(r#"[{{"handle":[{T}]}},{{"match":[{{"ssh":{{}}}}],"handle":[{P}]}}]"#),
                false,
            ),
            (
                format!(
                    r#"[{{"handle":[{T}]}},{{"match":[{{"ssh":{{}}}},{{"remote_ip":{{}}}}],"handle":[{P}]}}]"#
                ),
                true,
            ),
            (
                format!(
                    r#"[{{"handle":[{T},{{"handler":"subroute","routes":[{{"handle":[{P}]}}]}}]}}]"#
                ),
                true,
            ),
            (
                format!(
                    r#"[{{"handle":[{{"handler":"subroute","routes":[{{"handle":[{T}]}}]}},{P}]}}]"#
                ),
                true,
            ),
            (
                format!(
                    r#"[{{"handle":[{{"handler":"subroute","routes":[{{"handle":[{T}]}}]}}]}},{{"handle":[{P}]}}]"#
                ),
                true,
            ),
            (
                format!(
                    r#"[{{"handle":[{{"handler":"subroute","routes":[{{"handle":[{T}]}}]}}]}}]"#
                ),
                false,
            ),
            (
                format!(r#"[{{"handle":[{{"handler":"tee","branch":[{T}]}},{P}]}}]"#),
                false,
            ),
            (
                r#"[{"handle":[{"handler":"tls"},{"handler":3},null]},null,3]"#.to_owned(),
                false,
            ),
        ] {
            assert_eq!(leads(&routes), expected, "{routes}");
        }
    }
}
