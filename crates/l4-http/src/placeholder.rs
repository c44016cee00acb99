//! Placeholders that read the request: `{l4.http.host}`, `{http.request.*}` and `{http.vars.*}`.
//!
//! They have values once a matcher has parsed the request and until its bytes are consumed: in `http`, in the matchers
//! behind it and in the handlers of its route. Captures, `{http.regexp.*}`, are known to the engine itself.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use l4_core::conn::TlsInfo;
use l4_core::placeholder::{Placeholder, Scope};
use l4_core::{Addr, Registry};

use crate::{HttpHead, head, query, uri};

pub(crate) fn register(registry: &mut Registry) {
    registry
        .placeholders("l4.http.", l4_http)
        .placeholders("http.request.", http_request)
        .placeholders("http.vars.", http_vars);
}

type Found = Option<Arc<dyn Placeholder>>;

fn l4_http(name: &str) -> Found {
    match name {
        "host" => of_head(hostport),
        _ => None,
    }
}

/// The variables that every request has.
fn http_vars(name: &str) -> Found {
    match name {
        "client_ip" => of_scope(remote_host),
        // There are no trusted proxies here: a PROXY header that was accepted changes the address itself.
        "trusted_proxy" => of_head(|_, out| out.push_str("false")),
        _ => None,
    }
}

fn http_request(name: &str) -> Found {
    if name == "scheme" {
        return of_scope(|scope, out| {
            if scope.known_fact::<HttpHead>().is_some() {
                let tls = scope.extension::<TlsInfo>().is_some();
                out.push_str(if tls { "https" } else { "http" });
            }
        });
    }
    let write: fn(&HttpHead, &mut String) = match name {
        "method" | "orig_method" => |head, out| out.push_str(head.method()),
        "proto" => proto,
        "proto_name" => |head, out| match head.version() {
            (major @ (2 | 3), _) => {
                let _ = write!(out, "HTTP/{major}");
            }
            _ => proto(head, out),
        },
        "host" => |head, out| out.push_str(host_and_port(&uri::to_text(head.host())).0),
        "port" => |head, out| {
            out.push_str(&number(
                host_and_port(&uri::to_text(head.host())).1.unwrap_or(""),
            ));
        },
        "hostport" => hostport,
        "uri" => |head, out| out.push_str(&request_uri(head)),
        "uri_escaped" => |head, out| query::escape(request_uri(head).as_bytes(), out),
        "uri.path" | "orig_uri.path" => |head, out| out.push_str(head.path()),
        "uri.path_escaped" => |head, out| {
            query::escape(&uri::unescape(head.raw_path()).unwrap_or_default(), out);
        },
        "uri.path.file" | "orig_uri.path.file" => |head, out| out.push_str(split(head.path()).1),
        "uri.path.dir" | "orig_uri.path.dir" => |head, out| out.push_str(split(head.path()).0),
        "uri.path.file.base" => |head, out| {
            let (base, extension) = (base(head.path()), extension(head.path()));
            out.push_str(base.strip_suffix(extension).unwrap_or(base));
        },
        "uri.path.file.ext" => |head, out| out.push_str(extension(head.path())),
        "uri.query" | "orig_uri.query" => |head, out| out.push_str(&query_text(head)),
        "uri.query_escaped" => |head, out| query::escape(head.query().unwrap_or_default(), out),
        "uri.prefixed_query" | "orig_uri.prefixed_query" => |head, out| {
            let query = query_text(head);
            if !query.is_empty() {
                out.push('?');
                out.push_str(&query);
            }
        },
        "orig_uri" => |head, out| out.push_str(&uri::to_text(head.target())),
        _ => return with_argument(name).or_else(|| address(name)),
    };
    of_head(write)
}

/// Names that end in a key of the request's own.
fn with_argument(name: &str) -> Found {
    if let Some(key) = name.strip_prefix("uri.query.") {
        let key: Box<str> = key.into();
        return of_head(move |head, out| {
            let parameters = query::parameters(head.query().unwrap_or_default());
            let given = parameters.flatten().filter(|given| given.is(&key));
            let values = given.map(|given| given.value().collect::<Vec<_>>());
            join(values, out);
        });
    }
    if let Some(field) = name.strip_prefix("header.") {
        let field = field.to_ascii_lowercase();
        // As in the reference `Host` is not among them: it is `{http.request.hostport}`.
        return of_head(move |head, out| {
            let lines = head.fields().filter(|(name, _)| *name == field.as_bytes());
            join(lines.map(|(_, value)| value), out);
        });
    }
    if let Some(name) = name.strip_prefix("cookie.") {
        let name: Box<str> = name.into();
        return of_head(move |head, out| out.push_str(cookie(head, &name).unwrap_or_default()));
    }
    if let Some(index) = name.strip_prefix("host.labels.") {
        let index: usize = index.parse().ok()?;
        return of_head(move |head, out| {
            let host = uri::to_text(head.host());
            let label = host_and_port(&host).0.rsplit('.').nth(index);
            out.push_str(&label.unwrap_or_default().to_lowercase());
        });
    }
    let index = name
        .strip_prefix("orig_")
        .unwrap_or(name)
        .strip_prefix("uri.path.")?;
    let index: usize = index.parse().ok()?;
    of_head(move |head, out| {
        let path = head.path();
        let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
        out.push_str(segments.nth(index).unwrap_or_default());
    })
}

/// Names that read the connection the request came on.
fn address(name: &str) -> Found {
    if let Some(bits) = name.strip_prefix("remote.host/") {
        let (v4, v6) = bits.split_once(',').unwrap_or((bits, bits));
        let (v4, v6) = (v4.parse::<u32>().ok(), v6.parse::<u32>().ok());
        return of_scope(move |scope, out| match scope.remote().ip() {
            Some(IpAddr::V4(ip)) => {
                if let Some(bits) = v4.filter(|bits| *bits <= 32) {
                    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                    let _ = write!(out, "{}/{bits}", Ipv4Addr::from_bits(ip.to_bits() & mask));
                }
            }
            Some(IpAddr::V6(ip)) => {
                if let Some(bits) = v6.filter(|bits| *bits <= 128) {
                    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                    let _ = write!(out, "{}/{bits}", Ipv6Addr::from_bits(ip.to_bits() & mask));
                }
            }
            None => remote_host(scope, out),
        });
    }
    let write: fn(&Scope<'_>, &mut String) = match name {
        "remote" => |scope, out| push(scope.remote(), out),
        "remote.host" => remote_host,
        "remote.port" => |scope, out| port(scope.remote(), out),
        "local" => |scope, out| push(scope.local(), out),
        "local.host" => |scope, out| host(scope.local(), out),
        "local.port" => |scope, out| port(scope.local(), out),
        _ => return None,
    };
    of_scope(write)
}

fn of_head(write: impl Fn(&HttpHead, &mut String) + Send + Sync + 'static) -> Found {
    of_scope(move |scope, out| {
        if let Some(head) = scope.known_fact::<HttpHead>() {
            write(head, out);
        }
    })
}

fn of_scope(write: impl Fn(&Scope<'_>, &mut String) + Send + Sync + 'static) -> Found {
    Some(Arc::new(write))
}

fn remote_host(scope: &Scope<'_>, out: &mut String) {
    host(scope.remote(), out);
}

fn push(addr: &Addr, out: &mut String) {
    let _ = write!(out, "{addr}");
}

/// The IP address, or all of an address that has none.
fn host(addr: &Addr, out: &mut String) {
    match addr.ip() {
        Some(ip) => {
            let _ = write!(out, "{ip}");
        }
        None => push(addr, out),
    }
}

fn port(addr: &Addr, out: &mut String) {
    if let Some(socket) = addr.socket() {
        let _ = write!(out, "{}", socket.port());
    }
}

/// The host as sent, with its port.
fn hostport(head: &HttpHead, out: &mut String) {
    out.push_str(&uri::to_text(head.host()));
}

/// Without a port, brackets belong to the host: the text is not taken apart then.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    match uri::split_host_port(text) {
        (host, Some(port)) => (host, Some(port)),
        _ => (text, None),
    }
}

/// A number in its plain form; what is none stays.
fn number(text: &str) -> Cow<'_, str> {
    match text.parse::<i64>() {
        Ok(number) => number.to_string().into(),
        Err(_) => text.into(),
    }
}

fn proto(head: &HttpHead, out: &mut String) {
    let (major, minor) = head.version();
    let _ = write!(out, "HTTP/{major}.{minor}");
}

fn query_text(head: &HttpHead) -> Cow<'_, str> {
    uri::to_text(head.query().unwrap_or_default())
}

/// Path and query of the target, whichever form it has.
fn request_uri(head: &HttpHead) -> String {
    let mut out = match opaque(head) {
        Some(opaque) => uri::to_text(opaque).into_owned(),
        None => uri::escaped(head.raw_path()).into_owned(),
    };
    if out.is_empty() {
        out.push('/');
    }
    if head.query().is_some() {
        out.push('?');
        out.push_str(&query_text(head));
    }
    out
}

/// What follows the scheme of a target that has neither authority nor path: `mailto:somebody`.
fn opaque(head: &HttpHead) -> Option<&[u8]> {
    let target = head.target();
    if target.starts_with(b"/") || head.method() == "CONNECT" {
        return None;
    }
    let target = target.split(|&b| b == b'?').next()?;
    let colon = target.iter().position(|&b| b == b':')?;
    let rest = target.get(colon + 1..)?;
    (!rest.starts_with(b"/")).then_some(rest)
}

/// A path up to its last slash, and what follows.
fn split(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |slash| slash + 1))
}

/// The last segment without the slashes behind it.
fn base(path: &str) -> &str {
    match (path, path.trim_end_matches('/')) {
        ("", _) => ".",
        (_, "") => "/",
        (_, trimmed) => split(trimmed).1,
    }
}

/// From the last dot of the last segment.
fn extension(path: &str) -> &str {
    let file = split(path).1;
    file.rfind('.').map_or("", |dot| &file[dot..])
}

/// The first cookie of that name, in any case, RFC 6265 section 4.2.1. Quotes around the value are no part of it, and a
/// value with an octet that may not be there is none.
fn cookie<'h>(head: &'h HttpHead, wanted: &str) -> Option<&'h str> {
    let lines = head.fields().filter(|(name, _)| *name == b"cookie");
    let pairs = lines.flat_map(|(_, line)| line.split(|&b| b == b';'));
    let mut cookies = pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let (name, value) = match pair.iter().position(|&b| b == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        let name = name.trim_ascii();
        let value = match value {
            [b'"', value @ .., b'"'] => value,
            value => value,
        };
        let is_sound = !name.is_empty()
            && name.iter().all(|&b| head::is_token(b))
            && value
                .iter()
                .all(|&b| matches!(b, 0x20..=0x7e) && !b"\"\\".contains(&b));
        let value = std::str::from_utf8(value).ok()?;
        (is_sound && name.eq_ignore_ascii_case(wanted.as_bytes())).then_some(value)
    });
    cookies.next()
}

/// Writes texts with commas between them.
fn join<T: AsRef<[u8]>>(texts: impl Iterator<Item = T>, out: &mut String) {
    for (i, text) in texts.enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&uri::to_text(text.as_ref()));
    }
}
