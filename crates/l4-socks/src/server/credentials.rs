use subtle::{Choice, ConstantTimeEq as _};

/// Who may use the server, with their passwords.
///
/// How long a look-up takes tells nothing about what is listed: every entry is compared whole, whatever was found
/// before, and a name or password takes as many steps as any other. The comparison is `subtle`'s, which the TLS stack
/// brings along anyway; the one of aws-lc-rs answers for two lengths at once when they differ, and would tie this crate
/// to a cryptography library.
pub struct Credentials(Vec<(Padded, Padded)>);

/// A text with its length in front, filled up with zeros.
type Padded = [u8; 1 + MAX];

/// The longest user name and password that a client can send, RFC 1929 section 2.
pub(super) const MAX: usize = 255;

impl Credentials {
    /// From users and their passwords. What no client can send, because it is too long, admits nobody.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let pairs = pairs.into_iter();
        let pair = |(user, password): (&str, &str)| {
            Some((padded(user.as_bytes())?, padded(password.as_bytes())?))
        };
        Self(pairs.filter_map(pair).collect())
    }

    /// Whether this is one of the users with the right password.
    pub fn admit(&self, user: &[u8], password: &[u8]) -> bool {
        let (Some(user), Some(password)) = (padded(user), padded(password)) else {
            return false;
        };
        let mut found = Choice::from(0);
        for (known, secret) in &self.0 {
            found |= known.ct_eq(&user) & secret.ct_eq(&password);
        }
        found.into()
    }
}

fn padded(text: &[u8]) -> Option<Padded> {
    let mut padded = [0; 1 + MAX];
    let (length, room) = padded.split_first_mut()?;
    *length = u8::try_from(text.len()).ok()?;
    room.get_mut(..text.len())?.copy_from_slice(text);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_must_belong_together_to_the_last_byte() {
        let long = "x".repeat(MAX);
        let credentials = Credentials::new([
            ("bob", "secret"),
            ("eve", "other"),
            ("", "none"),
            ("long", &long),
        ]);
        for (user, password, admitted) in [
            ("bob", "secret", true),
            ("eve", "other", true),
            ("", "none", true),
            ("long", &long, true),
            ("long", &long[1..], false),
            ("bob", "other", false),
            ("eve", "secret", false),
            ("bob", "secre", false),
            ("bob", "secret\0", false),
            ("bob\0", "secret", false),
            ("bo", "bsecret", false),
            ("Bob", "secret", false),
            ("bob", "", false),
            ("", "", false),
        ] {
            let answer = credentials.admit(user.as_bytes(), password.as_bytes());
            assert_eq!(answer, admitted, "{user:?} {password:?}");
        }
    }

    #[test]
    fn nobody_is_admitted_where_nobody_is_listed_or_can_be_named() {
        assert!(!Credentials::new([]).admit(b"", b""));
        let long = "x".repeat(MAX + 1);
        let credentials = Credentials::new([("bob", &*long), (&*long, "")]);
        assert!(!credentials.admit(b"bob", long.as_bytes()));
        assert!(!credentials.admit(long.as_bytes(), b""));
    }
}
