//! Durations as Go writes them, with days.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Visitor};

/// A span of time with a sign, exact to the nanosecond, up to about 292 years either way.
///
/// In a configuration an integer of nanoseconds, or a string of numbers with units such as
/// `"1m30s"` or `"1.5d"`. Units are `ns`, `us` (or `µs`), `ms`, `s`, `m`, `h` and `d`; a day is
/// 24 hours. `"0"` needs no unit.
///
/// ```
/// use std::time::Duration;
/// use l4_core::config::GoDuration;
///
/// let time: GoDuration = "1m30s".parse().unwrap();
/// assert_eq!(time.positive(), Some(Duration::from_secs(90)));
/// // What is "no limit" or "the default" in a configuration.
/// let none: GoDuration = "0".parse().unwrap();
/// assert_eq!(none.positive(), None);
/// ```
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GoDuration {
    nanos: i64,
}

impl GoDuration {
    /// No time at all.
    pub const ZERO: Self = Self { nanos: 0 };

    /// A duration of this many nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos }
    }

    /// The number of nanoseconds.
    pub const fn as_nanos(self) -> i64 {
        self.nanos
    }

    /// The duration when it is longer than zero. Most settings take zero or less as "none".
    pub fn positive(self) -> Option<Duration> {
        let nanos = u64::try_from(self.nanos).ok().filter(|&nanos| nanos > 0)?;
        Some(Duration::from_nanos(nanos))
    }
}

/// Durations above 292 years become that.
impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self {
            nanos: i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX),
        }
    }
}

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationError {
    /// Nothing to read.
    #[error("invalid duration: the text is empty, write a number with a unit such as \"30s\"")]
    Empty,
    /// A unit without a number before it, or a sign or point alone.
    #[error("invalid duration {text:?}: expected a number with a unit such as \"30s\"")]
    MissingNumber {
        /// The whole text.
        text: String,
    },
    /// A number at the end.
    #[error("missing unit in duration {text:?}, write for example \"{text}s\"")]
    MissingUnit {
        /// The whole text.
        text: String,
    },
    /// A unit that does not exist.
    #[error("unknown unit {unit:?} in duration {text:?}, units are ns, us, ms, s, m, h, d")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// More than 63 bits of nanoseconds.
    #[error("duration {text:?} overflows, the longest is 106751d (2562047h)")]
    Overflow {
        /// The whole text.
        text: String,
    },
    /// Longer than any duration needs to be.
    #[error("invalid duration: the text is longer than 1024 characters")]
    TooLong,
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        if text.len() > MAX_BYTES {
            return Err(DurationError::TooLong);
        }
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if text.is_empty() {
            return Err(DurationError::Empty);
        }
        if unsigned == "0" {
            return Ok(Self::ZERO);
        }
        let magnitude = sum_of_parts(text, unsigned)?;
        let signed = if negative { -magnitude } else { magnitude };
        let nanos = i64::try_from(signed);
        nanos
            .map(Self::from_nanos)
            .map_err(|_| DurationError::Overflow { text: text.into() })
    }
}

/// As Go prints it: `0s`, `1.5ms`, `1m30s`, `36h0m0s`.
impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos.unsigned_abs();
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => return write!(f, "{nanos}ns"),
            1_000..1_000_000 => return write!(f, "{}\u{b5}s", Decimal(nanos, 1_000)),
            1_000_000..1_000_000_000 => return write!(f, "{}ms", Decimal(nanos, 1_000_000)),
            _ => {}
        }
        let minutes = nanos / (60 * SECOND);
        let seconds = Decimal(nanos % (60 * SECOND), SECOND);
        match (minutes / 60, minutes % 60) {
            (0, 0) => write!(f, "{seconds}s"),
            (0, minutes) => write!(f, "{minutes}m{seconds}s"),
            (hours, minutes) => write!(f, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DurationVisitor;

        impl Visitor<'_> for DurationVisitor {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"30s\" or an integer of nanoseconds")
            }

            fn visit_i64<E>(self, nanos: i64) -> Result<GoDuration, E> {
                Ok(GoDuration::from_nanos(nanos))
            }

            fn visit_u64<E: serde::de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                let overflow = |_| {
                    E::custom(DurationError::Overflow {
                        text: format!("{nanos}ns"),
                    })
                };
                i64::try_from(nanos)
                    .map(GoDuration::from_nanos)
                    .map_err(overflow)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(DurationVisitor)
    }
}

/// Adds up `1h30m`. `text` is what messages quote. The sum of at most 1024 bytes cannot overflow
/// 128 bits: a part is either at most `u64::MAX` days or refused.
fn sum_of_parts(text: &str, unsigned: &str) -> Result<i128, DurationError> {
    let overflow = || DurationError::Overflow { text: text.into() };
    let mut rest = unsigned;
    let mut sum: i128 = 0;
    loop {
        let (whole, after_whole) = split_digits(rest);
        let (fraction, after_number) = match after_whole.strip_prefix('.') {
            Some(after_point) => split_digits(after_point),
            None => ("", after_whole),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::MissingNumber { text: text.into() });
        }
        let end = after_number.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, after_unit) = after_number.split_at(end.unwrap_or(after_number.len()));
        let unit_nanos = unit_nanos(unit).ok_or_else(|| match unit {
            "" => DurationError::MissingUnit { text: text.into() },
            unit => DurationError::UnknownUnit {
                unit: unit.into(),
                text: text.into(),
            },
        })?;
        // Leading zeros may make a small number long.
        let whole = match whole.trim_start_matches('0') {
            "" => 0,
            digits => digits.parse::<u64>().map_err(|_| overflow())?,
        };
        sum += i128::from(whole) * unit_nanos + fraction_nanos(fraction, unit_nanos);
        if after_unit.is_empty() {
            return Ok(sum);
        }
        rest = after_unit;
    }
}

/// `0.fraction` of a unit, rounded down. Digits after the eighteenth are below any nanosecond.
fn fraction_nanos(fraction: &str, unit_nanos: i128) -> i128 {
    let (digits, scale) = fraction
        .bytes()
        .take(18)
        .fold((0, 1), |(digits, scale), c| {
            (digits * 10 + i128::from(c - b'0'), scale * 10)
        });
    digits * unit_nanos / scale
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

fn unit_nanos(unit: &str) -> Option<i128> {
    let nanos = match unit {
        "ns" => 1,
        // Micro sign and Greek letter mu look alike; keyboards have either.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3_600 * SECOND,
        "d" => 86_400 * SECOND,
        _ => return None,
    };
    Some(i128::from(nanos))
}

/// A number of units with as many decimals as needed.
struct Decimal(u64, u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(nanos, unit) = *self;
        write!(f, "{}", nanos / unit)?;
        let mut fraction = nanos % unit;
        if fraction > 0 {
            f.write_str(".")?;
        }
        let mut place = unit / 10;
        while fraction > 0 {
            write!(f, "{}", fraction / place)?;
            fraction %= place;
            place /= 10;
        }
        Ok(())
    }
}

const SECOND: u64 = 1_000_000_000;
const MAX_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000_000;

    fn nanos(text: &str) -> i64 {
        let duration: GoDuration = text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"));
        duration.as_nanos()
    }

    #[test]
    fn texts_mean_what_the_reference_makes_of_them() {
        let rows = [
            ("1.5h", 3 * HOUR / 2),
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("1d12h", 36 * HOUR),
            ("1.5d", 36 * HOUR),
            ("1h1d", 25 * HOUR),
            ("-1s", -1_000_000_000),
            ("+1s", 1_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("1m30s500ms7ns", 90_500_000_007),
            ("000000000000000000000000000001s", 1_000_000_000),
            ("0.9999999999999999999999999ns", 0),
            ("1.9ns", 1),
            ("106751d", 106_751 * 24 * HOUR),
            ("2562047h", 2_562_047 * HOUR),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            // Exact where a double would not be.
            ("9223372036.854775807s", i64::MAX),
        ];
        for (text, expected) in rows {
            assert_eq!(nanos(text), expected, "{text:?}");
        }
    }

    #[test]
    fn wrong_texts_are_refused_and_say_what_is_wrong() {
        let long = format!("{}s", "1".repeat(1024));
        let rows = [
            ("", "invalid duration"),
            (
                "5",
                "missing unit in duration \"5\", write for example \"5s\"",
            ),
            ("1h5", "missing unit in duration"),
            ("1w", "unknown unit \"w\""),
            ("1D", "unknown unit \"D\""),
            ("1e3s", "unknown unit \"e\""),
            ("1 d", "unknown unit \" d\""),
            ("1h-1m", "unknown unit \"h-\""),
            ("d", "invalid duration \"d\""),
            (".s", "invalid duration"),
            ("-", "invalid duration"),
            ("+-1s", "invalid duration"),
            (" 1s", "invalid duration"),
            ("1s ", "unknown unit"),
            ("106752d", "overflow"),
            ("-106752d", "overflow"),
            ("9223372036854775808ns", "overflow"),
            ("99999999999999999999d", "overflow"),
            (&long, "longer than 1024"),
        ];
        for (text, words) in rows {
            let error = text.parse::<GoDuration>().expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn text_form_is_the_one_of_go() {
        let rows = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (300_000_000, "300ms"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (90_000_000_000, "1m30s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (36 * HOUR, "36h0m0s"),
            (-1_500_000_000, "-1.5s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ];
        for (nanos, text) in rows {
            assert_eq!(GoDuration::from_nanos(nanos).to_string(), text);
        }
    }

    #[test]
    fn json_takes_integers_of_nanoseconds_and_strings() {
        let read = |text| serde_json::from_str::<GoDuration>(text).map(GoDuration::as_nanos);
        assert_eq!(read("5000000000").unwrap(), 5_000_000_000);
        assert_eq!(read("-5").unwrap(), -5);
        assert_eq!(read("\"1.5h\"").unwrap(), 3 * HOUR / 2);
        assert!(read("1.5").is_err());
        assert!(
            read("9223372036854775808")
                .unwrap_err()
                .to_string()
                .contains("overflow")
        );
        assert!(read("null").is_err());
    }

    #[test]
    fn zero_and_less_are_no_positive_duration() {
        assert_eq!(GoDuration::ZERO.positive(), None);
        assert_eq!(GoDuration::from_nanos(-1).positive(), None);
        assert_eq!(
            GoDuration::from_nanos(1).positive(),
            Some(Duration::from_nanos(1))
        );
        assert_eq!(GoDuration::from(Duration::from_secs(2)).to_string(), "2s");
        assert_eq!(GoDuration::from(Duration::MAX).as_nanos(), i64::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn text_form_reads_back(nanos in any::<i64>()) {
            let duration = GoDuration::from_nanos(nanos);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[-+.0-9nsuµmhd ]{0,32}|\\PC{0,32}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
