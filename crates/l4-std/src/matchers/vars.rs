use std::borrow::Cow;
use std::collections::BTreeMap;

use l4_core::config::Node;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// What is compared: a variable by name, or a placeholder written as the whole key.
pub(super) enum Subject {
    Variable(Box<str>),
    Placeholder(Template),
}

impl Subject {
    /// A key with exactly one `{`, at its beginning, and a `}` at its end is a placeholder; any other is a name.
    pub(super) fn provision(
        key: &str,
        node: Node,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let placeholder =
            key.starts_with('{') && key.ends_with('}') && key.matches('{').count() == 1;
        Ok(if placeholder {
            Self::Placeholder(cx.template_at(key, node)?)
        } else {
            Self::Variable(key.into())
        })
    }

    pub(super) fn value<'a>(&'a self, view: &'a View<'_>) -> Cow<'a, str> {
        match self {
            Self::Variable(name) => Cow::Borrowed(view.var(name).unwrap_or_default()),
            Self::Placeholder(template) => view.expand(template),
        }
    }
}

/// Matches when some variable or placeholder equals some of the values listed for it. `{}` matches always; an unset
/// variable is empty.
pub struct MatchVars {
    wanted: Vec<(Subject, Vec<Template>)>,
}

/// Variables, or placeholders in braces, and the values that match, such as `{"{l4.tls.server_name}": ["a.example"]}`.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct VarsConfig(#[schemars(with = "BTreeMap<String, Vec<String>>")] ModuleMap);

impl MatcherModule for MatchVars {
    const NAME: &'static str = "vars";
    type Config = VarsConfig;

    fn provision(VarsConfig(config): VarsConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let pairs: Vec<(String, Node)> = config.iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let wanted = cx.all(pairs, |cx, (key, node)| {
            let subject = Subject::provision(&key, node, cx)?;
            let values: Vec<At<String>> = cx.decode(node)?;
            Ok((subject, cx.all(&values, |cx, value| cx.template(value))?))
        })?;
        Ok(Self { wanted })
    }
}

impl Matcher for MatchVars {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        let equal = |(subject, values): &(Subject, Vec<Template>)| {
            let value = subject.value(view);
            values.iter().any(|wanted| view.expand(wanted) == value)
        };
        Verdict::from_bool(self.wanted.is_empty() || self.wanted.iter().any(equal))
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}
