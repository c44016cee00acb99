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
    /// Some route may need more than the first datagram of a session.
    spans_datagrams: bool,
}

/// With fewer keyed routes than this, asking each is as cheap as looking them up.
const WORTH_A_LOOKUP: usize = 4;

impl Index {
    /// The keys of every route, and whether one of its matchers may need more than the first datagram.
    pub(super) fn new(routes: impl IntoIterator<Item = (Option<Keys>, bool)>) -> Self {
        let mut unkeyed = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for (route, (keys, spans_datagrams)) in (0..).zip(routes) {
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
            groups[at].spans_datagrams |= spans_datagrams;
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
            spans_datagrams: false,
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
    found: Found<'a>,
}

enum Found<'a> {
    /// Not asked yet: all routes of the group from the walk's base on.
    Unasked(&'a [u32]),
    /// The name is not known yet, so each of these may be one. A member that needs no name, such as an address, can
    /// say no already, and a walk over all routes would go on then; so must this one.
    All(&'a [u32]),
    /// The name is known, and these routes have it among their keys.
    Routes(SmallVec<[u32; 4]>, usize),
}

impl<'a> GroupState<'a> {
    fn new(group: &'a Group, base: u32) -> Self {
        let at = group.routes.partition_point(|route| *route < base);
        Self {
            group,
            found: Found::Unasked(&group.routes[at..]),
        }
    }

    fn next(&self) -> Option<u32> {
        match &self.found {
            Found::Unasked(routes) | Found::All(routes) => routes.first().copied(),
            Found::Routes(routes, at) => routes.get(*at).copied(),
        }
    }

    /// Asks the dimension, once the walk has come to its first route.
    fn ask(&mut self, routes: &'a [u32], view: &View<'_>, last: bool) {
        let mut name = String::new();
        // As with matchers: what a datagram does not hold will not follow.
        let whole = view.is_datagram() && !view.is_dry() && !self.group.spans_datagrams;
        self.found = match self.group.dimension.probe(view, &mut name) {
            Verdict::Match => {
                let first = routes.first().copied().unwrap_or_default();
                Found::Routes(self.group.look_up(&name, first), 0)
            }
            Verdict::More(_) if !whole && !last => Found::All(routes),
            // No more bytes come, so no key can be met. One route stands for all in the list of the undecided.
            Verdict::More(_) if !whole => Found::All(routes.get(..1).unwrap_or_default()),
            Verdict::More(_) | Verdict::No => Found::All(&[]),
        };
    }
}

impl Candidates<'_> {
    /// The next candidate. With `last` set no more bytes can come.
    pub(super) fn next(&mut self, view: &View<'_>, last: bool) -> Option<usize> {
        loop {
            let unkeyed = self.unkeyed.first().copied();
            let keyed = self
                .groups
                .iter_mut()
                .filter_map(|state| state.next().map(|route| (route, state)))
                .min_by_key(|(route, _)| *route);
            let (route, state) = match (unkeyed, keyed) {
                (Some(route), keyed) if keyed.as_ref().is_none_or(|(k, _)| route < *k) => {
                    self.unkeyed = &self.unkeyed[1..];
                    return Some(route as usize);
                }
                (_, keyed) => keyed?,
            };
            match &mut state.found {
                Found::Unasked(routes) => {
                    let routes = *routes;
                    state.ask(routes, view, last);
                    continue;
                }
                Found::All(routes) => *routes = &routes[1..],
                Found::Routes(_, at) => *at += 1,
            }
            return Some(route as usize);
        }
    }
}
