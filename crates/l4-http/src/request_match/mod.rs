//! Request matchers: what the members of a set of `http` ask of a request.
//!
//! The namespace `http.matchers` is open: another crate can register modules of [`RequestMatchers`] and use them
//! inside `http`.

mod expression;
mod glob;
mod header;
mod header_regexp;
mod host;
mod ip;
mod method;
mod not;
mod path;
mod path_regexp;
mod protocol;
mod query;
mod tls;
mod vars;

use std::borrow::Cow;

use l4_core::config::ModuleMap;
use l4_core::conn::{Capture, TlsInfo};
use l4_core::registry::Kind;
use l4_core::{Cost, Keys, Provision, Registry, Rejected, Template, View};

use crate::HttpHead;

/// The namespace `http.matchers`.
pub enum RequestMatchers {}

impl Kind for RequestMatchers {
    const NAMESPACE: &'static str = "http.matchers";
    type Object = dyn RequestMatch;
}

/// Asks something of a request.
///
/// Pure as a [`Matcher`](l4_core::Matcher) is: the same request and connection give the same answer.
pub trait RequestMatch: Send + Sync + 'static {
    /// Whether the request is what it looks for.
    fn matches(&self, request: &mut Request<'_, '_>) -> bool;

    /// How expensive that is; members of a set are asked in this order.
    fn cost(&self) -> Cost {
        Cost::Prefix
    }

    /// See [`Matcher::keys`](l4_core::Matcher::keys).
    fn keys(&self) -> Option<Keys> {
        None
    }
}

/// A request and the connection it came on.
pub struct Request<'r, 'v> {
    head: &'r HttpHead,
    view: &'r View<'v>,
    captures: Vec<Capture>,
}

impl<'r, 'v> Request<'r, 'v> {
    pub(crate) fn new(head: &'r HttpHead, view: &'r View<'v>) -> Self {
        Self {
            head,
            view,
            captures: Vec::new(),
        }
    }

    /// The request.
    pub fn head(&self) -> &'r HttpHead {
        self.head
    }

    /// The connection.
    pub fn view(&self) -> &'r View<'v> {
        self.view
    }

    /// Whether it came through TLS that was terminated here.
    pub fn is_tls(&self) -> bool {
        self.view.extension::<TlsInfo>().is_some()
    }

    /// A template filled in for this request.
    pub fn expand<'t>(&self, template: &'t Template) -> Cow<'t, str> {
        self.view.expand(template)
    }

    /// Keeps what a regular expression captured. It stays only if the whole set matches.
    pub fn capture(&mut self, capture: Capture) {
        self.captures.push(capture);
    }

    /// Asks `question` and forgets what expressions captured meanwhile.
    pub(crate) fn without_captures(&mut self, question: impl FnOnce(&mut Self) -> bool) -> bool {
        let captured = self.captures.len();
        let answer = question(self);
        self.captures.truncate(captured);
        answer
    }

    pub(crate) fn into_captures(self) -> Vec<Capture> {
        self.captures
    }
}

/// Sets of request matchers, OR-ed; the members of a set are AND-ed.
pub(crate) struct RequestSets {
    sets: Vec<Vec<Box<dyn RequestMatch>>>,
}

impl RequestSets {
    /// Builds the sets; a `null` set is an empty one.
    pub(crate) fn provision(
        configs: &[Option<ModuleMap>],
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let sets = cx.all(configs, |cx, config| {
            let members = config.iter().flat_map(ModuleMap::iter);
            let mut set = cx.all(members, |cx, (name, node)| match out_of_scope(name) {
                Some(why) => Err(cx.reject(node, why)),
                None => cx.module::<RequestMatchers>(name, node),
            })?;
            set.sort_by_key(|member| member.cost());
            Ok(set)
        })?;
        Ok(Self { sets })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Whether some set holds.
    pub(crate) fn any(&self, request: &mut Request<'_, '_>) -> bool {
        let captured = request.captures.len();
        self.sets.iter().any(|set| {
            let holds = set.iter().all(|member| member.matches(request));
            if !holds {
                request.captures.truncate(captured);
            }
            holds
        })
    }

    pub(crate) fn cost(&self) -> Cost {
        self.sets
            .iter()
            .flatten()
            .map(|member| member.cost())
            .fold(Cost::Parse, Cost::max)
    }

    /// The keys one of which every request that some set matches must meet.
    pub(crate) fn keys(&self) -> Option<Keys> {
        let mut of_sets = self
            .sets
            .iter()
            .map(|set| set.iter().find_map(|member| member.keys()));
        let mut all = of_sets.next()??;
        for keys in of_sets {
            let keys = keys.filter(|keys| keys.dimension.name() == all.dimension.name())?;
            all.keys.extend(keys.keys);
        }
        Some(all)
    }
}

/// Why a request matcher of Caddy will never be here.
fn out_of_scope(name: &str) -> Option<&'static str> {
    match name {
        "expression" => Some(
            "http.matchers.expression is out of scope: CEL is not supported; combine the other request matchers",
        ),
        "file" => Some(
            "http.matchers.file is out of scope: connections are routed by what the client sends, not by local files",
        ),
        "url_pattern" => Some(
            "http.matchers.url_pattern is out of scope: URLPattern is not supported; use path, query and host",
        ),
        _ => None,
    }
}

pub(crate) fn register(registry: &mut Registry) {
    registry
        .add::<RequestMatchers, _>("client_ip", ip::provision)
        .add::<RequestMatchers, _>("header", header::provision)
        .add::<RequestMatchers, _>("header_regexp", header_regexp::provision)
        .add::<RequestMatchers, _>("host", host::provision)
        .add::<RequestMatchers, _>("method", method::provision)
        .add::<RequestMatchers, _>("not", not::provision)
        .add::<RequestMatchers, _>("path", path::provision)
        .add::<RequestMatchers, _>("path_regexp", path_regexp::provision)
        .add::<RequestMatchers, _>("protocol", protocol::provision)
        .add::<RequestMatchers, _>("query", query::provision)
        .add::<RequestMatchers, _>("remote_ip", ip::provision)
        .add::<RequestMatchers, _>("tls", tls::provision)
        .add::<RequestMatchers, _>("vars", vars::provision)
        .add::<RequestMatchers, _>("vars_regexp", vars::provision_regexp);
}
