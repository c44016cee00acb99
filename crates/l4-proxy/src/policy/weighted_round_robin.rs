use std::sync::{Mutex, PoisonError};

use l4_core::Connection;

use super::Select;
use crate::upstream::Upstream;

/// `weighted_round_robin`: each upstream in turn, as often as its `weight` says and evenly spread. The turns belong to the
/// handler and start anew after a reload.
#[derive(Default)]
pub(crate) struct WeightedRoundRobin {
    credits: Mutex<Vec<i64>>,
}

impl Select for WeightedRoundRobin {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        let weights = upstreams.iter().map(|upstream| {
            upstream
                .available(conn)
                .then(|| i64::from(upstream.weight()))
        });
        let mut credits = self.credits.lock().unwrap_or_else(PoisonError::into_inner);
        credits.resize(upstreams.len(), 0);
        next(&mut credits, weights)
    }
}

/// Each candidate earns its weight, and who has most pays for all. `None` is one that is not available: it keeps what it
/// has.
fn next(credits: &mut [i64], weights: impl Iterator<Item = Option<i64>>) -> Option<usize> {
    let mut total: i64 = 0;
    let mut richest: Option<(usize, i64)> = None;
    for (i, (credit, weight)) in credits.iter_mut().zip(weights).enumerate() {
        let Some(weight) = weight else { continue };
        *credit = credit.saturating_add(weight);
        total = total.saturating_add(weight);
        if richest.is_none_or(|(_, most)| *credit > most) {
            richest = Some((i, *credit));
        }
    }
    let (chosen, credit) = richest?;
    *credits.get_mut(chosen)? = credit.saturating_sub(total);
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turns(weights: &[i64], n: usize) -> Vec<usize> {
        let mut credits = vec![0; weights.len()];
        let turn = |_| next(&mut credits, weights.iter().map(|w| Some(*w))).unwrap();
        (0..n).map(turn).collect()
    }

    #[test]
    fn turns_come_in_the_order_of_the_reference() {
        assert_eq!(turns(&[1, 2, 3], 6), [2, 1, 0, 2, 1, 2]);
        assert_eq!(turns(&[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(turns(&[1, 1], 4), [0, 1, 0, 1]);
    }

    #[test]
    fn who_is_not_available_keeps_its_credit() {
        let mut credits = [0; 3];
        assert_eq!(
            next(&mut credits, [Some(1), Some(2), Some(3)].into_iter()),
            Some(2)
        );
        assert_eq!(credits, [1, 2, -3]);
        assert_eq!(
            next(&mut credits, [Some(1), None, Some(3)].into_iter()),
            Some(0)
        );
        assert_eq!(credits, [-2, 2, 0]);
        assert_eq!(next(&mut credits, [None; 3].into_iter()), None);
        assert_eq!(credits, [-2, 2, 0]);
    }

    proptest! {
        #[test]
        fn each_gets_exactly_its_share_of_a_round(
            weights in proptest::collection::vec(1i64..20, 1..8)
        ) {
            let round: i64 = weights.iter().sum();
            let turns = turns(&weights, usize::try_from(round).unwrap());
            for (i, weight) in weights.iter().enumerate() {
                let got = turns.iter().filter(|turn| **turn == i).count();
                prop_assert_eq!(i64::try_from(got).unwrap(), *weight);
            }
        }
    }
}
