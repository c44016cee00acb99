//! Candidates by look-up: which routes of a list can match at all, given the name the connection carries.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::matcher::{Dimension, Keys, Verdict, View};

/// The routes of a list, split into those that have equality keys (by dimension) and the rest.
///
/// The index may propose too many routes, never too few; each proposed route is still asked.
pub(super) struct Index {
    /// Routes without keys, ascending.
    unkeyed: Vec<u32>,
    groups: Vec<Group>,
}

struct Group {
    dimension: &'static dyn Dimension,
    /// All routes of the group, ascending.
    routes: Vec<u32>,
    by_key: HashMap<Box<str>, SmallVec<[u32; 2]>, RandomState>,
    /// The most leading `*` labels in any key: so many look-ups beside the exact one.
    wildcards: usize,
}

/// With fewer keyed routes than this, asking each is as cheap as looking them up.
const WORTH_A_LOOKUP: usize = 4;

impl Index {
    pub(super) fn new(keys: Vec<Option<Keys>>) -> Self {
        let mut unkeyed = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for (route, keys) in (0..).zip(keys) {
            let Some(keys) = keys else {
                unkeyed.push(route);
                continue;
            };
            let name = keys.dimension.name();
            let at = groups
                .iter()
                .position(|g| g.dimension.name() == name)
                .unwrap_or_else(|| {
                    groups.push(Group::new(keys.dimension));
                    groups.len() - 1
                });
            groups[at].add(route, keys.keys);
        }
        let small = groups.extract_if(.., |group| group.routes.len() < WORTH_A_LOOKUP);
        unkeyed.extend(small.flat_map(|group| group.routes));
        unkeyed.sort_unstable();
        Self { unkeyed, groups }
    }

    /// The candidates from route `base` on, in ascending order.
    pub(super) fn candidates(&self, base: usize) -> Candidates<'_> {
        let base = u32::try_from(base).unwrap_or(u32::MAX);
        Candidates {
            unkeyed: &self.unkeyed[self.unkeyed.partition_point(|route| *route < base)..],
            groups: self
                .groups
                .iter()
                .map(|group| GroupState::new(group, base))
                .collect(),
        }
    }
}

impl Group {
    fn new(dimension: &'static dyn Dimension) -> Self {
        Self {
            dimension,
            routes: Vec::new(),
            by_key: HashMap::default(),
            wildcards: 0,
        }
    }

    fn add(&mut self, route: u32, keys: Vec<String>) {
        self.routes.push(route);
        for key in keys {
            let stars = key.split('.').take_while(|label| *label == "*").count();
            self.wildcards = self.wildcards.max(stars);
            let routes = self.by_key.entry(key.into()).or_default();
            if routes.last() != Some(&route) {
                routes.push(route);
            }
        }
    }

    /// The routes from `base` on with a key that stands for `name`, ascending.
    fn look_up(&self, name: &str, base: u32) -> SmallVec<[u32; 4]> {
        let mut found: SmallVec<[u32; 4]> = SmallVec::new();
        let mut add = |key: &str| {
            let routes = self.by_key.get(key).into_iter().flatten().copied();
            found.extend(routes.filter(|route| *route >= base));
        };
        add(name);
        // `a.b.c` also stands under `*.b.c`, `*.*.c` and `*.*.*`.
        let mut pattern = String::new();
        let mut rest = Some(name);
        for stars in 1..=self.wildcards {
            let Some(labels) = rest else { break };
            let (_, tail) = labels.split_once('.').unzip();
            pattern.clear();
            pattern.push('*');
            pattern.extend(std::iter::repeat_n(".*", stars - 1));
            if let Some(tail) = tail {
                pattern.push('.');
                pattern.push_str(tail);
            }
            add(&pattern);
            rest = tail;
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// A walk over the candidates of one list for one connection.
pub(super) struct Candidates<'a> {
    unkeyed: &'a [u32],
    groups: SmallVec<[GroupState<'a>; 2]>,
}

struct GroupState<'a> {
    group: &'a Group,
    base: u32,
    found: Found,
}

enum Found {
    /// Not asked yet; the first route that would be a candidate.
    Unasked(u32),
    /// No (further) candidates.
    Nothing,
    Routes(SmallVec<[u32; 4]>, usize),
}

/// What comes next in a walk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Candidate {
    /// Ask this route.
    Route(usize),
    /// It cannot be said which routes are candidates: this is the first that may be, and so many bytes are missing.
    Undecided(usize, usize),
    /// That were all.
    End,
}

impl<'a> GroupState<'a> {
    fn new(group: &'a Group, base: u32) -> Self {
        let at = group.routes.partition_point(|route| *route < base);
        let found = group
            .routes
            .get(at)
            .map_or(Found::Nothing, |first| Found::Unasked(*first));
        Self { group, base, found }
    }

    fn next(&self) -> Option<u32> {
        match &self.found {
            Found::Unasked(first) => Some(*first),
            Found::Nothing => None,
            Found::Routes(routes, at) => routes.get(*at).copied(),
        }
    }

    /// Asks the dimension, once the walk has come to its first route.
    fn ask(&mut self, view: &View<'_>) -> Verdict {
        let mut name = String::new();
        let verdict = match self.group.dimension.probe(view, &mut name) {
            // As with matchers: what a datagram does not hold will not follow.
            Verdict::More(_) if view.is_datagram() && !view.is_dry() => Verdict::No,
            verdict => verdict,
        };
        match verdict {
            Verdict::Match => self.found = Found::Routes(self.group.look_up(&name, self.base), 0),
            Verdict::No => self.found = Found::Nothing,
            Verdict::More(_) => {}
        }
        verdict
    }
}

impl Candidates<'_> {
    /// The next candidate. With `last` set no more bytes can come: undecided groups have no candidates then, and their
    /// first routes are added to `undecided`.
    pub(super) fn next(
        &mut self,
        view: &View<'_>,
        last: bool,
        undecided: &mut Vec<usize>,
    ) -> Candidate {
        loop {
            let unkeyed = self.unkeyed.first().copied();
            let keyed = self
                .groups
                .iter_mut()
                .filter_map(|state| state.next().map(|route| (route, state)))
                .min_by_key(|(route, _)| *route);
            let (route, state) = match (unkeyed, keyed) {
                (None, None) => return Candidate::End,
                (Some(route), keyed) if keyed.as_ref().is_none_or(|(k, _)| route < *k) => {
                    self.unkeyed = &self.unkeyed[1..];
                    return Candidate::Route(route as usize);
                }
                (_, Some(keyed)) => keyed,
                // The guard above takes every route that no group competes with.
                (Some(_), None) => return Candidate::End,
            };
            match &mut state.found {
                Found::Routes(_, at) => {
                    *at += 1;
                    return Candidate::Route(route as usize);
                }
                Found::Unasked(_) => {
                    if let Verdict::More(more) = state.ask(view) {
                        if !last {
                            return Candidate::Undecided(route as usize, more);
                        }
                        undecided.push(route as usize);
                        state.found = Found::Nothing;
                    }
                }
                Found::Nothing => {}
            }
        }
    }
}
