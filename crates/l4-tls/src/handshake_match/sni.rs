//! `sni`: the server name that the client asks for.

use schemars::JsonSchema;
use serde::Deserialize;

use l4_core::config::At;
use l4_core::conn::Capture;
use l4_core::{Cost, Dimension, Keys, Parsed, Provision, Rejected, Template, Verdict, View};

use super::{HandshakeMatch, HandshakeScope};
use crate::ClientHello;
use crate::client_hello::HostName;

/// Server names, such as `["example.com", "*.example.com"]`. The condition holds if the client asks for one of them by
/// SNI.
///
/// Case does not matter, and names may be written in Unicode (`bücher.example`). `*` stands for one whole label, and
/// only the first labels may be `*`: `*.example.com` is `a.example.com` but neither `example.com` nor
/// `a.b.example.com`, which `*.*.example.com` is. `""` is a client that sends no SNI. May contain placeholders, filled
/// in per connection; lists without them are found by look-up, however many routes have one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct SniConfig(Vec<At<String>>);

/// The client asks for one of some server names.
pub(crate) struct MatchSni {
    /// Sorted.
    names: Vec<Pattern>,
    /// The most labels that a wildcard in `names` stands for.
    longest_wildcard: usize,
    templates: Vec<Template>,
}

impl MatchSni {
    /// Makes the condition.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    pub(crate) fn provision(config: SniConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let mut names = Vec::new();
        let mut templates = Vec::new();
        for entry in cx.all(&config.0, |cx, entry| {
            #[cfg(not(feature = "idna"))]
            refuse_unicode(entry, cx)?;
            Ok((entry.node(), cx.template(entry)?))
        })? {
            let (node, template) = entry;
            let Some(text) = template.constant() else {
                templates.push(template);
                continue;
            };
            let pattern = Pattern::new(text);
            if !pattern.can_match() {
                cx.warn(
                    node,
                    format!("no client can ask for {text:?}: it is not a host name"),
                );
            }
            names.push(pattern);
        }
        names.sort_unstable();
        names.dedup();
        let longest_wildcard = names.last().map_or(0, |pattern| pattern.wildcards);
        Ok(Self {
            names,
            longest_wildcard,
            templates,
        })
    }

    fn lists(&self, name: &str) -> bool {
        let mut rest = name;
        for wildcards in 0..=self.longest_wildcard {
            let wanted = (wildcards, rest);
            if self
                .names
                .binary_search_by(|p| (p.wildcards, &*p.rest).cmp(&wanted))
                .is_ok()
            {
                return true;
            }
            if rest.is_empty() {
                return false;
            }
            rest = without_label(rest);
        }
        false
    }
}

impl HandshakeMatch for MatchSni {
    fn matches(
        &self,
        hello: &ClientHello,
        conn: &dyn HandshakeScope,
        _captures: &mut Vec<Capture>,
    ) -> bool {
        let name = hello.server_name_lower();
        self.lists(name)
            || self
                .templates
                .iter()
                .any(|text| Pattern::new(&conn.expand(text)).stands_for(name))
    }

    fn keys(&self) -> Option<Keys> {
        // Without names and without templates nothing ever matches; that is for `matches` to say.
        if self.names.is_empty() || !self.templates.is_empty() {
            return None;
        }
        Some(Keys {
            dimension: &ServerName,
            keys: self.names.iter().map(Pattern::key).collect(),
        })
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

/// The server name as something that route lists can be indexed by.
struct ServerName;

impl Dimension for ServerName {
    fn name(&self) -> &'static str {
        "tls.sni"
    }

    fn probe(&self, view: &View<'_>, name: &mut String) -> Verdict {
        match view.fact::<ClientHello>() {
            Parsed::Done(hello) => {
                name.clear();
                name.push_str(hello.server_name_lower());
                Verdict::Match
            }
            Parsed::Not => Verdict::No,
            Parsed::More(n) => Verdict::More(n),
        }
    }
}

/// A name whose first labels may be wildcards, in lower case and ASCII.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    wildcards: usize,
    /// What follows them, without the dot between; empty if nothing does.
    rest: Box<str>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let ascii = ascii(text);
        let mut rest = &*ascii;
        let mut wildcards = 0;
        loop {
            match rest.strip_prefix('*') {
                Some("") => rest = "",
                Some(tail) if tail.len() > 1 && tail.starts_with('.') => rest = &tail[1..],
                _ => {
                    return Self {
                        wildcards,
                        rest: rest.into(),
                    };
                }
            }
            wildcards += 1;
        }
    }

    fn stands_for(&self, name: &str) -> bool {
        let mut rest = name;
        for _ in 0..self.wildcards {
            if rest.is_empty() {
                return false;
            }
            rest = without_label(rest);
        }
        *rest == *self.rest
    }

    /// Whether some server name a client may send is one of those it stands for.
    fn can_match(&self) -> bool {
        let mut host = HostName::default();
        self.rest.is_empty() || host.goes_on_with(self.rest.as_bytes()) && host.is_complete()
    }

    fn key(&self) -> String {
        let stars = "*.".repeat(self.wildcards);
        if self.rest.is_empty() {
            stars.trim_end_matches('.').into()
        } else {
            stars + &self.rest
        }
    }
}

fn without_label(name: &str) -> &str {
    name.split_once('.').map_or("", |(_, rest)| rest)
}

/// Without the tables of Unicode nobody can say what clients send for such a name.
#[cfg(not(feature = "idna"))]
fn refuse_unicode(name: &At<String>, cx: &mut Provision<'_>) -> Result<(), Rejected> {
    use l4_core::Kind as _;

    if name.is_ascii() {
        return Ok(());
    }
    let help = cx.explain_missing(super::HandshakeMatchers::NAMESPACE, super::UNICODE);
    Err(cx.reject_help(
        name.node(),
        format!("{:?} is not ASCII", &**name),
        format!("write it as clients send it, with xn--; or: {help}"),
    ))
}

/// A configured name as it appears in a hello. One that is no valid internationalised name stays as it is, and so
/// equals no server name.
fn ascii(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    #[cfg(feature = "idna")]
    if let Ok(ascii) = idna::domain_to_ascii(name) {
        return ascii;
    }
    name.to_lowercase()
}
