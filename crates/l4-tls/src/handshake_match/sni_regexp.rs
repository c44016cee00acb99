//! `sni_regexp`: the server name by regular expression.

use schemars::JsonSchema;
use serde::Deserialize;

use l4_core::config::At;
use l4_core::conn::Capture;
use l4_core::regexp::{Expression, NamedExpression, expand_pattern};
use l4_core::{Cost, Provision, Rejected};

use super::{HandshakeMatch, HandshakeScope};
use crate::ClientHello;

/// A regular expression that the server name must match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SniRegexpConfig {
    /// A name for the expression, made of letters, digits and `_`: captures are then also found as
    /// `{tls.regexp.NAME.GROUP}`, where no other expression hides them. Default: none.
    #[serde(default)]
    name: Option<At<String>>,
    /// The expression, such as `^(?<tenant>[a-z0-9]+)\.example\.com$`. RE2 syntax; it may match anywhere in the name
    /// unless anchored. Upper and lower case are the same, because clients choose them freely; write `(?-i)` to tell
    /// them apart. Braces are placeholders, filled in when the configuration is loaded: write `\{2,5\}` for a
    /// repetition. A client that names no server is matched as the empty text. What groups capture is read as
    /// `{tls.regexp.1}` or `{tls.regexp.tenant}`, in the case that was sent. Default: empty, which matches everything.
    #[serde(default)]
    pattern: Option<At<String>>,
}

/// The server name matches a regular expression.
pub(crate) struct MatchSniRegexp(NamedExpression);

impl MatchSniRegexp {
    /// Makes the condition.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    pub(crate) fn provision(
        config: SniRegexpConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let pattern = match &config.pattern {
            Some(pattern) => expand_pattern(pattern, cx)?,
            None => String::new(),
        };
        let expression = Expression::ignoring_case(&pattern).map_err(|error| {
            let node = config.pattern.as_ref().map_or(cx.node(), At::node);
            error.reject(node, cx)
        });
        NamedExpression::with_expression(config.name.as_ref(), expression, "tls.regexp", cx)
            .map(Self)
    }
}

impl HandshakeMatch for MatchSniRegexp {
    fn matches(
        &self,
        hello: &ClientHello,
        _conn: &dyn HandshakeScope,
        captures: &mut Vec<Capture>,
    ) -> bool {
        let found = self.0.capture(hello.server_name().unwrap_or_default());
        let matched = found.is_some();
        captures.extend(found);
        matched
    }

    fn cost(&self) -> Cost {
        Cost::Regex
    }
}
