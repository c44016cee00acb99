use std::borrow::Cow;
use std::collections::BTreeMap;

use l4_core::config::Node;
use l4_core::prelude::*;
use l4_core::regexp::NamedExpression;
use schemars::JsonSchema;
use serde::Deserialize;

/// What is compared: a variable by name, or a placeholder written as the whole key.
enum Subject {
    Variable(Box<str>),
    Placeholder(Template),
}

impl Subject {
    /// A key with exactly one `{`, at its beginning, and a `}` at its end is a placeholder; any other is a name.
    fn provision(key: &str, node: Node, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let placeholder =
            key.starts_with('{') && key.ends_with('}') && key.matches('{').count() == 1;
        Ok(if placeholder {
            Self::Placeholder(cx.template_at(key, node)?)
        } else {
            Self::Variable(key.into())
        })
    }

    fn value<'a>(&'a self, view: &'a View<'_>) -> Cow<'a, str> {
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

/// Matches when some variable or placeholder matches its expression, tried in the order written, and keeps the
/// captures as `{l4.regexp.GROUP}` and, with a `name`, `{l4.regexp.NAME.GROUP}`. `{}` never matches.
pub struct MatchVarsRegexp {
    wanted: Vec<(Subject, NamedExpression)>,
}

/// A regular expression with an optional name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExpressionConfig {
    /// Captures are then also found as `{l4.regexp.NAME.GROUP}`. Letters, digits and underscores. Default: none.
    #[serde(default)]
    name: Option<At<String>>,
    /// The expression, such as `^(?P<tenant>[a-z0-9]+)-`. RE2 syntax, as in Go: `\d`, `\w`, `\s` and `\b` are about
    /// ASCII. It may match anywhere in the value unless anchored.
    pattern: At<String>,
}

/// Variables, or placeholders in braces, and the expressions that match, such as `{"{l4.tls.server_name}": {"pattern":
/// "^www"}}`.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct VarsRegexpConfig(#[schemars(with = "BTreeMap<String, ExpressionConfig>")] ModuleMap);

impl MatcherModule for MatchVarsRegexp {
    const NAME: &'static str = "vars_regexp";
    type Config = VarsRegexpConfig;

    fn provision(
        VarsRegexpConfig(config): VarsRegexpConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let pairs: Vec<(String, Node)> = config.iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let wanted = cx.all(pairs, |cx, (key, node)| {
            let subject = Subject::provision(&key, node, cx)?;
            let config: ExpressionConfig = cx.decode(node)?;
            let name = config.name.as_ref();
            let expression = NamedExpression::provision(name, &config.pattern, "l4.regexp", cx)?;
            Ok((subject, expression))
        })?;
        Ok(Self { wanted })
    }
}

impl Matcher for MatchVarsRegexp {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        let found = self
            .wanted
            .iter()
            .find_map(|(subject, expression)| expression.capture(&subject.value(view)));
        match found {
            Some(capture) => {
                view.capture(capture);
                Verdict::Match
            }
            None => Verdict::No,
        }
    }

    fn cost(&self) -> Cost {
        // It needs no bytes, and that is what decides whether a client is waited for.
        Cost::Meta
    }
}
