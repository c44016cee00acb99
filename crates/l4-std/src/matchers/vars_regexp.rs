use std::collections::BTreeMap;

use l4_core::config::Node;
use l4_core::prelude::*;
use l4_core::regexp::NamedExpression;
use schemars::JsonSchema;
use serde::Deserialize;

use super::vars::Subject;

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
