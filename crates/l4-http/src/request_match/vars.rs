//! `http.matchers.vars` and `http.matchers.vars_regexp`

use std::collections::BTreeMap;

use l4_core::config::{At, ModuleMap, Node};
use l4_core::regexp::NamedExpression;
use l4_core::{Cost, Provision, Rejected, Template};
use schemars::JsonSchema;
use serde::Deserialize;

use super::expression::ExpressionConfig;
use super::{Request, RequestMatch};

/// Placeholders, each the whole key, and the values that match, for example `{"{http.request.uri.path.0}": ["api",
/// "v2"]}`. One key that equals one of its values is enough; a key without a value equals `""`. Values may have
/// placeholders. Keys without braces are variables of the request, which are `client_ip` and `trusted_proxy` only;
/// variables of the connection are `{l4.vars.NAME}`. `{}` matches any request.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct VarsConfig(#[schemars(with = "BTreeMap<String, Option<Vec<String>>>")] ModuleMap);

/// Placeholders, each the whole key, and the expressions that match, for example `{"{http.request.header.X-Env}":
/// {"pattern": "^(dev|test)$"}}`, tried in the order written. One is enough. Keys are as in `vars`. `{}` never matches.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct VarsRegexpConfig(
    #[schemars(with = "BTreeMap<String, ExpressionConfig>")] ModuleMap,
);

struct MatchVars(Vec<(Template, Vec<Template>)>);

impl RequestMatch for MatchVars {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let equal = |(subject, values): &(Template, Vec<Template>)| {
            let value = request.expand(subject);
            values.iter().any(|wanted| request.expand(wanted) == value)
        };
        self.0.is_empty() || self.0.iter().any(equal)
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}

struct MatchVarsRegexp(Vec<(Template, NamedExpression)>);

impl RequestMatch for MatchVarsRegexp {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let found = self
            .0
            .iter()
            .find_map(|(subject, expression)| expression.capture(&request.expand(subject)));
        let matches = found.is_some();
        found.into_iter().for_each(|found| request.capture(found));
        matches
    }

    fn cost(&self) -> Cost {
        Cost::Regex
    }
}

pub(super) fn provision(
    config: VarsConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let wanted = cx.all(config.0, |cx, (key, node)| {
        let subject = subject(&key, node, cx)?;
        let values: Option<Vec<At<String>>> = cx.decode(node)?;
        let values = cx.all(&values.unwrap_or_default(), |cx, value| cx.template(value))?;
        Ok((subject, values))
    })?;
    Ok(Box::new(MatchVars(wanted)))
}

pub(super) fn provision_regexp(
    config: VarsRegexpConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let wanted = cx.all(config.0, |cx, (key, node)| {
        let subject = subject(&key, node, cx)?;
        Ok((subject, ExpressionConfig::at(node, cx)?))
    })?;
    Ok(Box::new(MatchVarsRegexp(wanted)))
}

/// What a key stands for: with exactly one `{`, at its beginning, and a `}` at its end it is a placeholder, else a
/// variable of the request.
fn subject(key: &str, node: Node, cx: &mut Provision<'_>) -> Result<Template, Rejected> {
    if key.starts_with('{') && key.ends_with('}') && key.matches('{').count() == 1 {
        return cx.template_at(key, node);
    }
    if matches!(key, "client_ip" | "trusted_proxy") {
        return cx.template_at(&format!("{{http.vars.{key}}}"), node);
    }
    cx.warn(
        node,
        format!(
            "requests have no variable {key:?}: it is always empty; for one of the connection write {{l4.vars.{key}}}"
        ),
    );
    Ok(Template::literal(""))
}
