use fastrand::Rng;
use l4_core::Connection;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Select;
use super::least_conn::fewest;
use crate::upstream::Upstream;

/// `random_choose`: of a few available upstreams, drawn anew for each connection, the one with the fewest connections.
///
/// Two draws already even out the load almost as well as asking everybody, without sending every newcomer to the one
/// that happens to be the emptiest.
pub(crate) struct RandomChoose {
    choose: usize,
}

/// Draws a few upstreams for each connection and takes the one with the fewest connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RandomChooseConfig {
    /// How many to draw; at least 2. Default: 2.
    #[serde(default)]
    choose: Option<At<i64>>,
}

impl RandomChoose {
    pub(super) fn provision(
        config: RandomChooseConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let Some(choose) = config.choose else {
            return Ok(Self { choose: 2 });
        };
        match usize::try_from(*choose) {
            Ok(choose) if choose >= 2 => Ok(Self { choose }),
            _ => Err(cx.reject_help(
                choose.node(),
                "choose must be at least 2",
                "write 2 or more, or use the policy \"random\"",
            )),
        }
    }
}

impl Select for RandomChoose {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        let available = |upstream: &Upstream| upstream.available(conn);
        let count = upstreams.iter().filter(|u| available(u)).count();
        let available = (0..).zip(upstreams).filter(|(_, u)| available(u));
        // Drawing and breaking ties take turns in one walk, so each has a generator of its own.
        let mut rng = Rng::new();
        let drawn = draw(available, count, self.choose, &mut rng);
        fewest(
            drawn.map(|(i, upstream)| (i, upstream.connections(conn))),
            &mut Rng::new(),
        )
    }
}

/// Draws `choose` of the `count` candidates, or all if there are fewer; each set of them is equally likely.
fn draw<I: Iterator>(candidates: I, count: usize, choose: usize, rng: &mut Rng) -> Drawn<'_, I> {
    Drawn {
        candidates,
        left: count,
        needed: choose,
        rng,
    }
}

/// Selection sampling (Knuth, volume 2, 3.4.2, algorithm S): needs no memory for those drawn.
struct Drawn<'r, I> {
    candidates: I,
    left: usize,
    needed: usize,
    rng: &'r mut Rng,
}

impl<I: Iterator> Iterator for Drawn<'_, I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        while self.needed > 0 {
            let candidate = self.candidates.next()?;
            // One may have become available since they were counted: the last of them count as one.
            let left = self.left.max(1);
            self.left = left - 1;
            if self.rng.usize(..left) < self.needed {
                self.needed -= 1;
                return Some(candidate);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_equally_likely() {
        let mut rng = Rng::with_seed(3);
        let mut pairs = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let drawn: Vec<u8> = draw("abcd".bytes(), 4, 2, &mut rng).collect();
            *pairs.entry(drawn).or_insert(0u32) += 1;
        }
        assert_eq!(pairs.len(), 6);
        assert!(pairs.values().all(|n| (850..1150).contains(n)), "{pairs:?}");
    }

    #[test]
    fn fewer_than_asked_for_are_all_drawn() {
        let mut rng = Rng::with_seed(3);
        let drawn: Vec<u8> = draw("abc".bytes(), 3, 5, &mut rng).collect();
        assert_eq!(drawn, b"abc");
        assert_eq!(draw("".bytes(), 0, 2, &mut rng).next(), None);
    }

    #[test]
    fn a_count_that_is_no_longer_right_does_no_harm() {
        let mut rng = Rng::with_seed(3);
        for count in 0..8 {
            let drawn = draw("abcd".bytes(), count, 2, &mut rng).count();
            assert!(drawn <= 2 && (drawn == 2 || count > 4), "{count}: {drawn}");
        }
    }
}
