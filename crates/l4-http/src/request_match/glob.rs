//! Globs as Go's `path.Match` has them: `*` any text without a slash, `?` one character but a slash, `[a-z]` and
//! `[^a-z]` one of some characters, `\c` the character itself.

/// A glob for a whole path.
#[derive(Debug)]
pub(super) struct Glob(Vec<Token>);

#[derive(Debug)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Star,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// `None` if the pattern is broken: an open or empty class, a range without an end, a backslash at the end.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let mut chars = pattern.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::One,
                '\\' => Token::Char(chars.next()?),
                '[' => {
                    let negated = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
                        let low = bound(&mut chars)?;
                        let is_range = chars.next_if_eq(&'-').is_some();
                        let high = if is_range { bound(&mut chars)? } else { low };
                        ranges.push((low, high));
                    }
                    Token::Class { negated, ranges }
                }
                c => Token::Char(c),
            });
        }
        Some(Self(tokens))
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let mut tokens = &self.0[..];
        let mut rest = path;
        // The last star: the tokens behind it, and where the text it does not cover begins. Stars before it need no
        // second try, because what a star covers more, the next one covers less.
        let mut star: Option<(&[Token], &str)> = None;
        loop {
            let next = rest.chars().next();
            match (tokens.split_first(), next) {
                (None, None) => return true,
                (Some((Token::Star, after)), _) => {
                    star = Some((after, rest));
                    tokens = after;
                }
                (Some((token, after)), Some(c)) if token.is(c) => {
                    tokens = after;
                    rest = &rest[c.len_utf8()..];
                }
                _ => {
                    let Some((after, from)) = &mut star else {
                        return false;
                    };
                    let Some(c) = from.chars().next().filter(|&c| c != '/') else {
                        return false;
                    };
                    *from = &from[c.len_utf8()..];
                    tokens = after;
                    rest = from;
                }
            }
        }
    }
}

/// One end of a range in a class.
fn bound(chars: &mut impl Iterator<Item = char>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}

impl Token {
    fn is(&self, c: char) -> bool {
        match self {
            Self::Char(wanted) => *wanted == c,
            Self::One => c != '/',
            Self::Star => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&&c)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rows of the documentation of `path.Match` and its tests that go beyond `testdata/paths.txt`.
    #[test]
    fn globs_match_as_go_does() {
        for (pattern, path, expected) in [
            ("abc", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[^e-g]", "abf", false),
            (r"a\*b", "a*b", true),
            (r"a\*b", "ab", false),
            ("a?b", "a\u{263a}b", true),
            ("a[^a][^a][^a]b", "a\u{263a}b", false),
            ("[a-\u{3b6}]*", "\u{3b1}", true),
            ("*[a-\u{3b6}]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            (r"[\]a]", "]", true),
            (r"[\-x]", "-", true),
            (r"[x\-]", "z", false),
            ("*x", "xxx", true),
            ("[^x]", "/", true),
        ] {
            assert_eq!(
                Glob::new(pattern).unwrap().matches(path),
                expected,
                "{pattern} {path}"
            );
        }
        for broken in [
            "[", "[]a]", "[-]", "[x-]", "[-x]", r"\", "[a-b-c]", "[^", "[^bc", "a[", r"[a\",
        ] {
            assert!(Glob::new(broken).is_none(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn stars_cover_what_they_may(parts in prop::collection::vec("[ab]{0,3}", 1..5), fill in "[ab]{0,2}") {
            prop_assert!(Glob::new(&parts.join("*")).unwrap().matches(&parts.join(&fill)));
        }

        #[test]
        fn any_pattern_is_read_or_refused(pattern in r"[ab/*?\[\]\^\\-]{0,20}", path in "[ab/]{0,20}") {
            let _ = Glob::new(&pattern).map(|glob| glob.matches(&path));
        }
    }
}
