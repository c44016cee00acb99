//! `http.matchers.header_regexp`

use std::collections::BTreeMap;

use l4_core::config::ModuleMap;
use l4_core::regexp::NamedExpression;
use l4_core::{Cost, Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

use super::expression::ExpressionConfig;
use super::{Request, RequestMatch};
use crate::uri;

/// Fields and the expressions that match, for example `{"User-Agent": {"pattern": "^curl/([0-9]+)"}}`. Every field must
/// have a line that its expression matches; names have no case. `Host` is the host of the request as sent. `{}` matches
/// any request.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct HeaderRegexpConfig(
    #[schemars(with = "BTreeMap<String, ExpressionConfig>")] ModuleMap,
);

struct MatchHeaderRegexp {
    /// Names in lower case, in the order of the configuration.
    fields: Vec<(Box<str>, NamedExpression)>,
}

impl RequestMatch for MatchHeaderRegexp {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let head = request.head();
        self.fields.iter().all(|(name, expression)| {
            let found = head
                .values(name)
                .find_map(|line| expression.capture(&uri::to_text(line)));
            let matches = found.is_some();
            found.into_iter().for_each(|found| request.capture(found));
            matches
        })
    }

    fn cost(&self) -> Cost {
        Cost::Regex
    }
}

pub(super) fn provision(
    config: HeaderRegexpConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let fields = cx.all(config.0, |cx, (name, node)| {
        Ok((
            name.to_ascii_lowercase().into(),
            ExpressionConfig::at(node, cx)?,
        ))
    })?;
    Ok(Box::new(MatchHeaderRegexp { fields }))
}
