//! `http.matchers.method`

use l4_core::{Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};

/// The methods that match, for example `["GET", "HEAD"]`. Case does not matter here; requests are compared in upper
/// case only, because methods are case-sensitive. An empty list matches nothing.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct MethodConfig(Vec<String>);

struct MatchMethod(Vec<String>);

impl RequestMatch for MatchMethod {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        self.0
            .iter()
            .any(|method| method == request.head().method())
    }
}

pub(super) fn provision(
    config: MethodConfig,
    _: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    Ok(Box::new(MatchMethod(
        config
            .0
            .iter()
            .map(|method| method.to_uppercase())
            .collect(),
    )))
}
