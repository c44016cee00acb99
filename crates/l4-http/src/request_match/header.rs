//! `http.matchers.header`

use std::collections::BTreeMap;

use l4_core::config::At;
use l4_core::{Cost, Provision, Rejected, Template};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};

/// Fields and the values that match, for example `{"Upgrade": ["websocket"], "X-Debug": null}`. Every field must hold.
///
/// A field holds if one of its lines equals one of the values; `v*` stands for values that begin with `v`, `*v` for
/// values that end with it, `*v*` for values that contain it, and `*` for any value. Values are compared with case and
/// may have placeholders; names have no case. `[]` holds if the field is there, `null` if it is not. `Host` is the host
/// of the request as sent, of whichever protocol.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct HeaderConfig(BTreeMap<String, Option<Vec<At<String>>>>);

struct MatchHeader {
    /// Names in lower case.
    fields: Vec<(Box<str>, Rule)>,
}

enum Rule {
    Absent,
    Present,
    OneOf(Vec<Value>),
}

enum Value {
    Fixed(Pattern<Box<str>>),
    Expanded(Template),
}

enum Pattern<T> {
    Any,
    Contains(T),
    EndsWith(T),
    StartsWith(T),
    Equals(T),
}

impl<'t> Pattern<&'t str> {
    fn new(text: &'t str) -> Self {
        if text == "*" {
            return Self::Any;
        }
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(tail), Some(_)) => Self::Contains(tail.strip_suffix('*').unwrap_or_default()),
            (Some(tail), None) => Self::EndsWith(tail),
            (None, Some(head)) => Self::StartsWith(head),
            (None, None) => Self::Equals(text),
        }
    }

    fn boxed(self) -> Pattern<Box<str>> {
        match self {
            Self::Any => Pattern::Any,
            Self::Contains(text) => Pattern::Contains(text.into()),
            Self::EndsWith(text) => Pattern::EndsWith(text.into()),
            Self::StartsWith(text) => Pattern::StartsWith(text.into()),
            Self::Equals(text) => Pattern::Equals(text.into()),
        }
    }
}

impl<T: AsRef<str>> Pattern<T> {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Contains(text) => contains(value, text.as_ref().as_bytes()),
            Self::EndsWith(text) => value.ends_with(text.as_ref().as_bytes()),
            Self::StartsWith(text) => value.starts_with(text.as_ref().as_bytes()),
            Self::Equals(text) => value == text.as_ref().as_bytes(),
        }
    }
}

fn contains(value: &[u8], text: &[u8]) -> bool {
    text.is_empty() || value.windows(text.len()).any(|window| window == text)
}

impl RequestMatch for MatchHeader {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let head = request.head();
        self.fields.iter().all(|(name, rule)| match rule {
            Rule::Absent => head.values(name).next().is_none(),
            Rule::Present => head.values(name).next().is_some(),
            Rule::OneOf(values) => values.iter().any(|value| match value {
                Value::Fixed(pattern) => head.values(name).any(|line| pattern.matches(line)),
                Value::Expanded(template) => {
                    let text = request.expand(template);
                    let pattern = Pattern::new(&text);
                    head.values(name).any(|line| pattern.matches(line))
                }
            }),
        })
    }

    fn cost(&self) -> Cost {
        Cost::Parse
    }
}

pub(super) fn provision(
    config: HeaderConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let fields = cx.all(config.0, |cx, (name, values)| {
        let rule = match values {
            None => Rule::Absent,
            Some(values) if values.is_empty() => Rule::Present,
            Some(values) => Rule::OneOf(cx.all(&values, |cx, value| {
                let template = cx.template(value)?;
                Ok(match template.constant() {
                    Some(text) => Value::Fixed(Pattern::new(text).boxed()),
                    None => Value::Expanded(template),
                })
            })?),
        };
        Ok((name.to_ascii_lowercase().into(), rule))
    })?;
    Ok(Box::new(MatchHeader { fields }))
}
