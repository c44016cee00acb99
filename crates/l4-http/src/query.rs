//! Queries, read as `application/x-www-form-urlencoded`: parameters with `&` between them.

use crate::uri;

/// A parameter as it was sent; its escapes are whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parameter<'q> {
    key: &'q [u8],
    value: &'q [u8],
}

/// A parameter with a broken escape, or with a `;`, which some servers take for a separator and others do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The parameters in the order sent. A malformed one does not hide those behind it.
pub(crate) fn parameters(query: &[u8]) -> impl Iterator<Item = Result<Parameter<'_>, Malformed>> {
    let parts = query.split(|&b| b == b'&').filter(|part| !part.is_empty());
    parts.map(|part| {
        if part.contains(&b';') || !uri::escapes_are_whole(part) {
            return Err(Malformed);
        }
        let (key, value) = match part.iter().position(|&b| b == b'=') {
            Some(at) => (&part[..at], &part[at + 1..]),
            None => (part, &[][..]),
        };
        Ok(Parameter { key, value })
    })
}

impl<'q> Parameter<'q> {
    /// Whether the key, decoded, is this text.
    pub(crate) fn is(&self, key: &str) -> bool {
        octets(self.key).eq(key.bytes())
    }

    /// Whether the value, decoded, is this text.
    pub(crate) fn has(&self, value: &str) -> bool {
        octets(self.value).eq(value.bytes())
    }

    /// The octets of the value, decoded.
    pub(crate) fn value(&self) -> impl Iterator<Item = u8> + use<'q> {
        octets(self.value)
    }
}

/// The octets that a text whose escapes are whole stands for.
fn octets(text: &[u8]) -> impl Iterator<Item = u8> + use<'_> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        rest = after;
        Some(match first {
            b'+' => b' ',
            b'%' => {
                let (&[high, low], after) = after.split_first_chunk()?;
                rest = after;
                uri::hex_digit(high)? << 4 | uri::hex_digit(low)?
            }
            other => other,
        })
    })
}

/// Writes octets so that they can stand in a query.
pub(crate) fn escape(octets: &[u8], out: &mut String) {
    for &byte in octets {
        match byte {
            b' ' => out.push('+'),
            _ if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => {
                out.push(char::from(byte));
            }
            _ => uri::push_escape(byte, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(query: &str) -> Vec<Option<(String, String)>> {
        let text = |part| String::from_utf8_lossy(&octets(part).collect::<Vec<_>>()).into_owned();
        parameters(query.as_bytes())
            .map(|parameter| parameter.ok().map(|p| (text(p.key), text(p.value))))
            .collect()
    }

    #[test]
    fn parameters_are_taken_apart_and_decoded() {
        for (query, expected) in [
            ("", &[][..]),
            ("&&", &[]),
            ("a", &[Some(("a", ""))]),
            ("=b", &[Some(("", "b"))]),
            ("a=b=c&d", &[Some(("a", "b=c")), Some(("d", ""))]),
            ("a+b=c%20%2B+", &[Some(("a b", "c + "))]),
            ("%c3%A4=%26", &[Some(("\u{e4}", "&"))]),
            ("a;b=1&c=2", &[None, Some(("c", "2"))]),
            ("a=%&b=%4&%zz&d", &[None, None, None, Some(("d", ""))]),
            ("a%=41", &[None]),
            ("a?b=c?d", &[Some(("a?b", "c?d"))]),
        ] {
            let seen = decoded(query);
            let seen = seen
                .iter()
                .map(|p| p.as_ref().map(|(key, value)| (&**key, &**value)))
                .collect::<Vec<_>>();
            assert_eq!(seen, expected, "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_read_back(key in "\\PC{0,8}", value in prop::collection::vec(any::<u8>(), 0..8)) {
            let mut query = String::new();
            escape(key.as_bytes(), &mut query);
            query.push('=');
            escape(&value, &mut query);
            let read = parameters(query.as_bytes()).collect::<Vec<_>>();
            let [Ok(parameter)] = read[..] else { panic!("{query}") };
            prop_assert!(parameter.is(&key));
            prop_assert_eq!(parameter.value().collect::<Vec<_>>(), value);
        }

        #[test]
        fn any_query_is_read(query in prop::collection::vec(prop::sample::select(b"a%4f&=;+?\xff".to_vec()), 0..24)) {
            for parameter in parameters(&query).flatten() {
                prop_assert!(octets(parameter.key).count() <= query.len());
                prop_assert!(parameter.value().count() <= query.len());
            }
        }
    }
}
