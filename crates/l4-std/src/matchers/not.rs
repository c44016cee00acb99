use l4_core::prelude::*;
use l4_core::registry::Matchers;
use l4_core::route::Sets;
use l4_core::schema::MapOf;
use schemars::JsonSchema;
use serde::Deserialize;

/// Matches when none of its sets does. `[]` always matches, `[{}]` never.
pub struct MatchNot {
    /// `None` where there is no set at all.
    sets: Option<Sets>,
}

/// Sets of matchers none of which may match, such as `[{"ssh": {}}, {"tls": {}}]`.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct NotConfig(#[schemars(with = "Vec<Option<MapOf<Matchers>>>")] Vec<Option<ModuleMap>>);

impl MatcherModule for MatchNot {
    const NAME: &'static str = "not";
    type Config = NotConfig;

    fn provision(NotConfig(config): NotConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let sets = if config.is_empty() {
            None
        } else {
            Some(Sets::provision(&config, cx)?)
        };
        Ok(Self { sets })
    }
}

impl Matcher for MatchNot {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match self
            .sets
            .as_ref()
            .map_or(Verdict::No, |sets| sets.any(view))
        {
            Verdict::Match => Verdict::No,
            Verdict::No => Verdict::Match,
            more => more,
        }
    }

    fn cost(&self) -> Cost {
        self.sets.as_ref().map_or(Cost::Meta, Sets::cost)
    }

    fn spans_datagrams(&self) -> bool {
        // Its members have been asked one by one, and each `More` of theirs is meant.
        true
    }
}
