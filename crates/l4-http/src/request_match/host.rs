//! `http.matchers.host`

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use l4_core::config::At;
use l4_core::{Dimension, Keys, Parsed, Provision, Rejected, Template, Verdict, View};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};
use crate::{HttpHead, uri};

/// The host names that match, for example `["example.com", "*.example.org"]`. An empty list matches nothing.
///
/// Compared with the host of the request without its port, without regard to case. `*` in place of a label stands for
/// exactly one label, at any position. Names of other scripts are compared in their ASCII form. Placeholders are filled
/// in for each connection. A name that is listed twice is an error.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct HostConfig(Vec<At<String>>);

struct MatchHost {
    /// Sorted, in lower case.
    names: Vec<Box<str>>,
    /// Names with `*` labels, in lower case.
    patterns: Vec<Box<str>>,
    templates: Vec<Template>,
}

impl RequestMatch for MatchHost {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let host = request.head().host_name();
        self.names
            .binary_search_by(|name| (**name).cmp(host))
            .is_ok()
            || self
                .patterns
                .iter()
                .any(|pattern| labels_match(pattern, host))
            || self.templates.iter().any(|template| {
                let expanded = request.expand(template);
                labels_match(&uri::lower(&expanded), host)
            })
    }

    fn keys(&self) -> Option<Keys> {
        if !self.templates.is_empty() || !self.patterns.iter().all(|pattern| stars_lead(pattern)) {
            return None;
        }
        let keys = self
            .names
            .iter()
            .chain(&self.patterns)
            .map(|key| key.to_string())
            .collect();
        Some(Keys {
            dimension: &HOST,
            keys,
        })
    }
}

/// Whether there are as many labels, and each is the same or stands for any.
fn labels_match(pattern: &str, host: &str) -> bool {
    let mut labels = host.split('.');
    let same = |label| {
        labels
            .next()
            .is_some_and(|given| label == "*" || label == given)
    };
    pattern.split('.').all(same) && labels.next().is_none()
}

fn stars_lead(pattern: &str) -> bool {
    pattern
        .split('.')
        .skip_while(|label| *label == "*")
        .all(|label| label != "*")
}

/// `http.host`: the host of a request without port and brackets, in lower case.
struct Host;

static HOST: Host = Host;

impl Dimension for Host {
    fn name(&self) -> &'static str {
        "http.host"
    }

    fn probe(&self, view: &View<'_>, name: &mut String) -> Verdict {
        match view.fact::<HttpHead>() {
            Parsed::Done(head) => {
                name.push_str(head.host_name());
                Verdict::Match
            }
            Parsed::Not => Verdict::No,
            Parsed::More(n) => Verdict::More(n),
        }
    }
}

pub(super) fn provision(
    config: HostConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let mut seen = HashMap::new();
    let mut matcher = MatchHost {
        names: Vec::new(),
        patterns: Vec::new(),
        templates: Vec::new(),
    };
    cx.all(config.0.iter().enumerate(), |cx, (index, host)| {
        let ascii = to_ascii(host).map_err(|()| {
            cx.reject(
                host.node(),
                format!("{:?} is not a host name: no ASCII form", **host),
            )
        })?;
        match seen.entry(ascii.to_ascii_lowercase()) {
            Entry::Vacant(first) => first.insert(index),
            Entry::Occupied(first) => {
                let first = first.get();
                let message = format!(
                    "host at index {first} is repeated at index {index}: {}",
                    **host
                );
                return Err(cx.reject(host.node(), message));
            }
        };
        let template = cx.template_at(&ascii, host.node())?;
        match template.constant().map(uri::lower) {
            None => matcher.templates.push(template),
            Some(name) => {
                if uri::split_host_port(&name) != (&name, None) {
                    let why =
                        "a host with a port or brackets never matches; only the name is compared";
                    cx.warn(host.node(), why);
                }
                let is_pattern = name.split('.').any(|label| label == "*");
                let list = if is_pattern {
                    &mut matcher.patterns
                } else {
                    &mut matcher.names
                };
                list.push(name.into());
            }
        }
        Ok(())
    })?;
    matcher.names.sort_unstable();
    Ok(Box::new(matcher))
}

/// Converts labels of other scripts; placeholders, whose names have dots too, are ASCII and stay as written.
fn to_ascii(host: &str) -> Result<Cow<'_, str>, ()> {
    if host.is_ascii() {
        return Ok(Cow::Borrowed(host));
    }
    let label = |label: &str| match label.is_ascii() {
        true => Ok(label.to_owned()),
        false => idna::domain_to_ascii(label).map_err(|_| ()),
    };
    let labels = host.split('.').map(label).collect::<Result<Vec<_>, ()>>()?;
    Ok(Cow::Owned(labels.join(".")))
}
