//! Matcher sets: sets are OR-ed, the members of a set AND-ed.

use crate::config::ModuleMap;
use crate::matcher::{Cost, Keys, Matcher, Verdict, View};
use crate::provision::{Provision, Rejected};
use crate::registry::Matchers;

/// Matcher sets of a route or of `not`.
///
/// Verdicts combine symmetrically: in an AND, `No` beats `More` beats `Match`; in an OR, `Match` beats `More` beats
/// `No`. So the order of members and sets never shows in the result, and the cheap ones can be asked first.
pub struct Sets {
    sets: Vec<Set>,
}

struct Set {
    /// Sorted by cost.
    members: Vec<Member>,
}

struct Member {
    matcher: Box<dyn Matcher>,
    spans_datagrams: bool,
}

impl Sets {
    /// Builds the sets; an absent or `null` set is an empty one.
    ///
    /// # Errors
    /// A module refused its configuration; the errors of all were reported.
    pub fn provision(
        configs: &[Option<ModuleMap>],
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let sets = cx.all(configs, |cx, config| {
            let mut members: Vec<Member> = match config {
                None => Vec::new(),
                Some(map) => cx
                    .module_map::<Matchers>(map)?
                    .into_iter()
                    .map(|(_, matcher)| Member::new(matcher))
                    .collect(),
            };
            members.sort_by_key(|member| member.matcher.cost());
            Ok(Set { members })
        })?;
        Ok(Self { sets })
    }

    /// Sets of matchers that exist already.
    pub fn from_matchers(sets: Vec<Vec<Box<dyn Matcher>>>) -> Self {
        let sets = sets
            .into_iter()
            .map(|set| {
                let mut members: Vec<Member> = set.into_iter().map(Member::new).collect();
                members.sort_by_key(|member| member.matcher.cost());
                Set { members }
            })
            .collect();
        Self { sets }
    }

    /// Whether any set matches: `Match` if one does, else `More` (the least any set asks for), else `No`. Without sets
    /// it is `No`; a route without sets is a catch-all, which the program knows.
    pub fn any(&self, view: &mut View<'_>) -> Verdict {
        let mut more: Option<usize> = None;
        for set in &self.sets {
            match set.matches(view) {
                Verdict::Match => return Verdict::Match,
                Verdict::More(n) => more = Some(more.map_or(n, |m| m.min(n))),
                Verdict::No => {}
            }
        }
        more.map_or(Verdict::No, Verdict::More)
    }

    /// The most expensive member, for whoever nests sets in a matcher.
    pub fn cost(&self) -> Cost {
        self.sets
            .iter()
            .flat_map(|set| &set.members)
            .map(|member| member.matcher.cost())
            .max()
            .unwrap_or(Cost::Meta)
    }

    /// Whether some set is empty, or there is none: such a list always matches.
    pub(super) fn always(&self) -> bool {
        self.sets.is_empty() || self.sets.iter().any(|set| set.members.is_empty())
    }

    /// Whether no connection meets them without its bytes being looked at.
    pub(super) fn ask_for_bytes(&self) -> bool {
        let asks = |set: &Set| set.members.iter().any(|m| m.matcher.cost() > Cost::Meta);
        !self.sets.is_empty() && self.sets.iter().all(asks)
    }

    /// Whether some member may need more than the first datagram of a session.
    pub(super) fn spans_datagrams(&self) -> bool {
        let mut members = self.sets.iter().flat_map(|set| &set.members);
        members.any(|member| member.spans_datagrams)
    }

    /// The equality keys all sets share a dimension in: none may match without meeting one of them.
    pub(super) fn keys(&self) -> Option<Keys> {
        let mut sets = self.sets.iter();
        let mut all = sets.next()?.keys()?;
        for set in sets {
            let keys = set.keys()?;
            if keys.dimension.name() != all.dimension.name() {
                return None;
            }
            all.keys.extend(keys.keys);
        }
        Some(all)
    }
}

impl Set {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        let captured = view.captures().len();
        let mut more: Option<usize> = None;
        for member in &self.members {
            match member.matches(view) {
                Verdict::Match => {}
                // Captures of a set stay only if all of it matches.
                Verdict::No => {
                    view.captures().truncate(captured);
                    return Verdict::No;
                }
                // Asked again at the smallest wish: another member may be able to say no by then.
                Verdict::More(n) => more = Some(more.map_or(n, |m| m.min(n))),
            }
        }
        more.map_or(Verdict::Match, |n| {
            view.captures().truncate(captured);
            Verdict::More(n)
        })
    }

    fn keys(&self) -> Option<Keys> {
        self.members.iter().find_map(|member| member.matcher.keys())
    }
}

impl Member {
    fn new(matcher: Box<dyn Matcher>) -> Self {
        Self {
            spans_datagrams: matcher.spans_datagrams(),
            matcher,
        }
    }

    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match self.matcher.matches(view) {
            // A datagram arrives whole: what it does not hold will not follow.
            Verdict::More(_) if view.is_datagram() && !view.is_dry() && !self.spans_datagrams => {
                Verdict::No
            }
            verdict => verdict,
        }
    }
}
