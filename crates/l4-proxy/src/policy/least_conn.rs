use fastrand::Rng;
use l4_core::Connection;

use super::Select;
use crate::upstream::Upstream;

/// `least_conn`: the available upstream with the fewest connections, any of them if several have as few.
pub(crate) struct LeastConn;

impl Select for LeastConn {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        let available = (0..).zip(upstreams).filter(|(_, u)| u.available(conn));
        fewest(
            available.map(|(i, u)| (i, u.connections(conn))),
            &mut Rng::new(),
        )
    }
}

/// The candidate with the smallest number; all that have it are equally likely.
pub(super) fn fewest(
    candidates: impl Iterator<Item = (usize, usize)>,
    rng: &mut Rng,
) -> Option<usize> {
    let mut best = None;
    let mut ties = 0;
    for (i, connections) in candidates {
        match best {
            Some((_, fewest)) if connections > fewest => {}
            Some((_, fewest)) if connections == fewest => {
                ties += 1;
                if rng.usize(..ties) == 0 {
                    best = Some((i, connections));
                }
            }
            _ => {
                best = Some((i, connections));
                ties = 1;
            }
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_win_and_ties_are_fair() {
        let mut rng = Rng::with_seed(7);
        assert_eq!(fewest([].into_iter(), &mut rng), None);
        let mut chosen = [0u32; 5];
        for _ in 0..6000 {
            let candidates = [(0, 4), (1, 2), (2, 3), (3, 2), (4, 2)];
            chosen[fewest(candidates.into_iter(), &mut rng).unwrap()] += 1;
        }
        assert_eq!((chosen[0], chosen[2]), (0, 0));
        assert!(
            [1, 3, 4].iter().all(|&i| (1800..2200).contains(&chosen[i])),
            "{chosen:?}"
        );
    }

    #[test]
    fn an_upstream_with_connections_is_chosen_when_the_others_have_more() {
        assert_eq!(
            fewest([(3, 9), (5, 8)].into_iter(), &mut Rng::with_seed(1)),
            Some(5)
        );
    }
}
