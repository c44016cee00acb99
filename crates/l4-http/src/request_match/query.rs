//! `http.matchers.query`

use std::collections::BTreeMap;

use l4_core::config::{At, ModuleMap};
use l4_core::{Cost, Provision, Rejected, Template};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};
use crate::query::{Parameter, parameters};

/// Parameters of the query and the values that match, for example `{"debug": ["1", "true"], "token": ["*"]}`. Every
/// parameter must be there with one of its values, or with any if `*` is listed. Keys and values are compared after
/// decoding, with case, and may have placeholders. A parameter with an empty list never matches, and neither does any
/// once the query has a `;` or a broken escape. `{}` matches requests without parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct QueryConfig(
    #[schemars(with = "BTreeMap<String, Option<Vec<String>>>")] ModuleMap,
);

struct MatchQuery(Vec<(Template, Vec<Template>)>);

impl RequestMatch for MatchQuery {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let query = request.head().query().unwrap_or_default();
        if self.0.is_empty() {
            // The reference counts parameters that it could read, and so do we: the same requests match.
            return parameters(query).flatten().next().is_none();
        }
        if parameters(query).any(|parameter| parameter.is_err()) {
            return false;
        }
        self.0.iter().all(|(key, values)| {
            let key = request.expand(key);
            let given = || parameters(query).flatten().filter(|given| given.is(&key));
            values.iter().any(|value| {
                let value = request.expand(value);
                let equals = |given: Parameter<'_>| value == "*" || given.has(&value);
                given().any(equals)
            })
        })
    }

    fn cost(&self) -> Cost {
        Cost::Parse
    }
}

pub(super) fn provision(
    config: QueryConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let wanted = cx.all(config.0, |cx, (key, node)| {
        let key = cx.template_at(&key, node)?;
        let values: Option<Vec<At<String>>> = cx.decode(node)?;
        let values = cx.all(&values.unwrap_or_default(), |cx, value| cx.template(value))?;
        if values.is_empty() {
            cx.warn(
                node,
                "an empty list never matches; write [\"*\"] for any value",
            );
        }
        Ok((key, values))
    })?;
    Ok(Box::new(MatchQuery(wanted)))
}
