//! "Did you mean": the valid name nearest to a misspelt one.

/// The name among `among` that `word` was probably meant to be.
///
/// A name that differs only in letter case always wins. Otherwise the fewest edits win, where
/// swapping two neighbours is one edit, and the first of equals; a third of the longer word may
/// differ, at least one letter. Words longer than 64 characters get no suggestion, which bounds
/// the work.
///
/// ```text
/// closest("tpc", ["udp", "tcp"]) == Some("tcp")
/// closest("nope", ["udp", "tcp"]) == None
/// ```
pub fn closest<'a>(word: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = folded(word)?;
    among
        .into_iter()
        .filter_map(|name| {
            let candidate = folded(name)?;
            let edits = distance(&word, &candidate);
            let allowed = (word.len().max(candidate.len()) / 3).max(1);
            // A one-letter edit of a one-letter word is any other letter.
            let related = edits == 0 || (edits <= allowed && word.len().min(candidate.len()) > 1);
            related.then_some((edits, name))
        })
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, name)| name)
}

/// Lower case, or nothing when too long to compare.
fn folded(word: &str) -> Option<Vec<char>> {
    let letters: Vec<char> = word
        .chars()
        .take(MAX_CHARS + 1)
        .flat_map(char::to_lowercase)
        .collect();
    (letters.len() <= MAX_CHARS).then_some(letters)
}

/// Damerau-Levenshtein distance in its restricted form (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != y);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

const MAX_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["dial", "weight", "upstreams", "tls", "load_balancing"];

    #[test]
    fn misspelt_words_find_their_name() {
        assert_eq!(closest("weigth", NAMES), Some("weight"));
        assert_eq!(closest("upstream", NAMES), Some("upstreams"));
        assert_eq!(closest("loadBalancing", NAMES), Some("load_balancing"));
        assert_eq!(closest("tsl", NAMES), Some("tls"));
        assert_eq!(closest("tpc", ["udp", "tcp"]), Some("tcp"));
    }

    #[test]
    fn case_alone_beats_every_other_name() {
        assert_eq!(closest("DIAL", ["dia", "dial"]), Some("dial"));
        assert_eq!(closest("A", ["b", "a"]), Some("a"));
    }

    #[test]
    fn unrelated_words_get_no_suggestion() {
        assert_eq!(closest("quic", NAMES), None);
        assert_eq!(closest("", NAMES), None);
        assert_eq!(closest("x", ["y"]), None);
        assert_eq!(closest(&"weight".repeat(100), NAMES), None);
        assert_eq!(closest("nope", []), None);
    }

    #[test]
    fn distance_counts_a_swap_as_one_edit() {
        let edits = |a: &str, b: &str| distance(&folded(a).unwrap(), &folded(b).unwrap());
        assert_eq!(edits("ab", "ba"), 1);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}
