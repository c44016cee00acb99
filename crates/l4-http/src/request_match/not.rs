//! `http.matchers.not`

use l4_core::config::ModuleMap;
use l4_core::schema::MapOf;
use l4_core::{Cost, Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch, RequestMatchers, RequestSets};

/// A list of sets of request matchers none of which may hold, for example `[{"path": ["/admin/*"]}, {"method":
/// ["POST"]}]`. `[]` matches any request, `[{}]` none.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct NotConfig(
    #[schemars(with = "Vec<Option<MapOf<RequestMatchers>>>")] Vec<Option<ModuleMap>>,
);

struct MatchNot(RequestSets);

impl RequestMatch for MatchNot {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        !request.without_captures(|request| self.0.any(request))
    }

    fn cost(&self) -> Cost {
        self.0.cost()
    }
}

pub(super) fn provision(
    config: NotConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    Ok(Box::new(MatchNot(RequestSets::provision(&config.0, cx)?)))
}
