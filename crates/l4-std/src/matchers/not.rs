use l4_core::prelude::*;
use l4_core::route::Sets;

/// Matches when none of its sets does. `[]` always matches, `[{}]` never.
pub struct MatchNot {
    /// `None` where there is no set at all.
    sets: Option<Sets>,
}

impl MatcherModule for MatchNot {
    const NAME: &'static str = "not";
    type Config = Vec<Option<ModuleMap>>;

    fn provision(config: Self::Config, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
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
