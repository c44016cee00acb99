//! The regular expressions of `path_regexp`, `header_regexp` and `vars_regexp`.

use l4_core::config::{At, Node, Value};
use l4_core::regexp::{Expression, NamedExpression};
use l4_core::{Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

/// A regular expression, for example `{"name": "api", "pattern": "^/v(?P<version>[0-9]+)/"}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RequestExpressionConfig")]
pub(crate) struct ExpressionConfig {
    /// A name, under which captures can be read too, as `{http.regexp.NAME.GROUP}`: letters, digits and underscores.
    /// Without one they are `{http.regexp.GROUP}` only, which the next expression that matches hides. Default: none.
    #[serde(default)]
    name: Option<At<String>>,
    /// The expression, in RE2 syntax. It may match anywhere in the text unless it is anchored, and tells upper from
    /// lower case unless it begins with `(?i)`. Placeholders are not filled in. Default: empty, which matches any text.
    #[serde(default)]
    pattern: Option<At<String>>,
}

impl ExpressionConfig {
    /// The expression at `node`.
    pub(super) fn at(node: Node, cx: &mut Provision<'_>) -> Result<NamedExpression, Rejected> {
        if matches!(cx.document().value(node), Value::Null) {
            return Err(cx.reject_help(
                node,
                "an expression cannot be null",
                "write {\"pattern\": \"...\"}",
            ));
        }
        let config: Self = cx.decode(node)?;
        config.provision(cx)
    }

    pub(super) fn provision(&self, cx: &mut Provision<'_>) -> Result<NamedExpression, Rejected> {
        let pattern = self.pattern.as_ref();
        let expression = Expression::new(pattern.map_or("", |pattern| pattern.as_str()))
            .map_err(|error| error.reject(pattern.map_or(cx.node(), At::node), cx));
        NamedExpression::with_expression(self.name.as_ref(), expression, "http.regexp", cx)
    }
}
