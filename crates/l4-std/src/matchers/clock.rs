use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use l4_core::config::Node;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of `clock`. Global placeholders are filled in at load.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClockConfig {
    /// The first second of the window, as `HH:MM:SS`. Global placeholders are filled in at load. Default: `"00:00:00"`. Example: `"08:00:00"`.
    #[serde(default)]
    after: Option<At<String>>,
    /// The first second behind the window; `"00:00:00"` is the end of the day. If it is earlier than `after`, the
    /// window crosses midnight: from `"22:00:00"` to `"06:00:00"` are the eight hours of the night. Global placeholders are
    /// filled in at load. Default:
    /// `"00:00:00"`, the end of the day. Example: `"17:30:00"`.
    #[serde(default)]
    before: Option<At<String>>,
    /// Whose clock it is: an IANA time zone such as `"Europe/Vienna"`, which keeps to its summer time, an offset to the
    /// east of UTC such as `"-03:30"`, `"UTC"`, or `"Local"` for the time zone of the system. Global placeholders are filled
    /// in at load. Default: `"UTC"`.
    #[serde(default)]
    timezone: Option<At<String>>,
}

/// Matches connections by the time of day at which they were accepted. How long they wait or last does not matter.
pub struct MatchClock {
    window: Window,
    zone: TimeZone,
}

impl MatcherModule for MatchClock {
    const NAME: &'static str = "clock";
    type Config = ClockConfig;

    fn provision(config: ClockConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        // All are tried, so that the errors of all are reported.
        let after = time(config.after.as_ref(), cx);
        let before = time(config.before.as_ref(), cx);
        let zone = zone(config.timezone.as_ref(), cx);
        let (after, before, zone) = (after?, before?, zone?);
        let window = Window {
            after,
            before: if before == 0 { DAY } else { before },
        };
        if window.before < window.after {
            cx.note(
                cx.node(),
                "the window crosses midnight, because before is earlier than after",
            );
        } else if window.before == window.after {
            cx.warn(cx.node(), "never matches: the window ends where it begins");
        }
        Ok(Self { window, zone })
    }
}

impl Matcher for MatchClock {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        // A clock outside the years that are understood shows nothing useful anyway.
        let accepted = Timestamp::try_from(view.accepted_at()).unwrap_or_default();
        Verdict::from_bool(self.window.contains(second_of_day(accepted, &self.zone)))
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}

/// Part of a day, in seconds since midnight.
#[derive(Debug, Clone, Copy)]
struct Window {
    after: u32,
    before: u32,
}

impl Window {
    fn contains(self, second: u32) -> bool {
        if self.after <= self.before {
            (self.after..self.before).contains(&second)
        } else {
            second >= self.after || second < self.before
        }
    }
}

/// What a clock on the wall shows: a day on which the clocks change repeats or misses an hour, and has no other seconds.
fn second_of_day(time: Timestamp, zone: &TimeZone) -> u32 {
    let clock = zone.to_datetime(time);
    [clock.hour(), clock.minute(), clock.second()]
        .into_iter()
        .fold(0, |sum, part| sum * 60 + u32::from(part.unsigned_abs()))
}

/// The text of an optional setting, and where it stands.
fn text(
    setting: Option<&At<String>>,
    cx: &mut Provision<'_>,
) -> Result<Option<(String, Node)>, Rejected> {
    let Some(setting) = setting else {
        return Ok(None);
    };
    let text = cx.expand_load(setting)?;
    Ok((!text.is_empty()).then_some((text, setting.node())))
}

fn time(setting: Option<&At<String>>, cx: &mut Provision<'_>) -> Result<u32, Rejected> {
    let Some((text, node)) = text(setting, cx)? else {
        return Ok(0);
    };
    parse_time(&text).ok_or_else(|| {
        cx.reject_help(
            node,
            format!("invalid time {text:?}"),
            "write hours, minutes and seconds, such as \"08:00:00\"",
        )
    })
}

/// `HH:MM:SS` or `H:MM:SS`, and perhaps a fraction of a second, which is ignored.
fn parse_time(text: &str) -> Option<u32> {
    let whole = match text.split_once(['.', ',']) {
        Some((_, fraction)) if !is_digits(fraction) => return None,
        Some((whole, _)) => whole,
        None => text,
    };
    let (hour, rest) = whole.split_once(':')?;
    let (minute, second) = rest.split_once(':')?;
    let hour = part(hour, hour.len().min(2), 23)?;
    Some(hour * 3600 + part(minute, 2, 59)? * 60 + part(second, 2, 59)?)
}

/// A number of exactly so many digits.
fn part(text: &str, digits: usize, most: u32) -> Option<u32> {
    let right = text.len() == digits && is_digits(text);
    text.parse().ok().filter(|part| right && *part <= most)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn zone(setting: Option<&At<String>>, cx: &mut Provision<'_>) -> Result<TimeZone, Rejected> {
    let Some((name, node)) = text(setting, cx)? else {
        return Ok(TimeZone::UTC);
    };
    let found = match name.as_str() {
        "UTC" => Some(TimeZone::UTC),
        "Local" => Some(TimeZone::system()),
        name if name.starts_with(['+', '-']) => parse_offset(name).map(TimeZone::fixed),
        // Names are looked up as files, too, and none is outside the folder of the zones.
        name if name.starts_with(['/', '\\']) || name.contains("..") => None,
        name => TimeZone::get(name).ok(),
    };
    found.ok_or_else(|| {
        cx.reject_help(
            node,
            format!("unknown time zone {name:?}"),
            "write an IANA name such as \"Europe/Vienna\", an offset such as \"+02:00\", \"UTC\" or \"Local\"",
        )
    })
}

/// `±HH`, `±HH:MM` or `±HH:MM:SS`. Some write 24 hours, 60 minutes or 60 seconds, and existing configurations may.
fn parse_offset(text: &str) -> Option<Offset> {
    let mut parts = text.get(1..)?.split(':');
    let hours = part(parts.next()?, 2, 24)?;
    let minutes = parts.next().map_or(Some(0), |text| part(text, 2, 60))?;
    let seconds = parts.next().map_or(Some(0), |text| part(text, 2, 60))?;
    if parts.next().is_some() {
        return None;
    }
    let east = i32::try_from(hours * 3600 + minutes * 60 + seconds).ok()?;
    let offset = if text.starts_with('-') { -east } else { east };
    Offset::from_seconds(offset).ok()
}

/// Seconds.
const DAY: u32 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use l4_testkit::{check, matcher};
    use proptest::prelude::*;

    use super::*;
    use crate::register;

    fn clock(json: &str) -> MatchClock {
        matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
    }

    fn at(clock: &MatchClock, time: &str) -> bool {
        let time: Timestamp = time.parse().unwrap();
        clock.window.contains(second_of_day(time, &clock.zone))
    }

    #[test]
    fn the_window_holds_its_first_second_and_not_its_last() {
        let office = clock(r#"{"after": "08:00:00", "before": "17:30:00"}"#);
        for (time, inside) in [
            ("2026-03-01T07:59:59.999Z", false),
            ("2026-03-01T08:00:00Z", true),
            ("2026-03-01T17:29:59.999Z", true),
            ("2026-03-01T17:30:00Z", false),
            ("1969-12-31T12:00:00Z", true),
        ] {
            assert_eq!(at(&office, time), inside, "{time}");
        }
    }

    /// Row M-30 of docs/defects.md.
    #[test]
    fn a_window_that_ends_before_it_begins_crosses_midnight() {
        let night = clock(r#"{"after": "22:00:00", "before": "06:00:00"}"#);
        for (time, inside) in [
            ("2026-03-01T21:59:59Z", false),
            ("2026-03-01T22:00:00Z", true),
            ("2026-03-01T00:00:00Z", true),
            ("2026-03-01T05:59:59Z", true),
            ("2026-03-01T06:00:00Z", false),
            ("2026-03-01T12:00:00Z", false),
        ] {
            assert_eq!(at(&night, time), inside, "{time}");
        }
    }

    #[test]
    fn midnight_ends_the_day_and_nothing_given_is_always() {
        for json in [
            "{}",
            r#"{"after": "", "before": "", "timezone": ""}"#,
            r#"{"after": null, "before": null, "timezone": null}"#,
            r#"{"after": "00:00:00", "before": "0:00:00"}"#,
        ] {
            for time in ["2026-03-01T00:00:00Z", "2026-03-01T23:59:59Z"] {
                assert!(at(&clock(json), time), "{json} {time}");
            }
        }
        let evening = clock(r#"{"after": "20:00:00"}"#);
        assert!(at(&evening, "2026-03-01T23:59:59Z"));
        assert!(!at(&evening, "2026-03-01T00:00:00Z"));
        let never = clock(r#"{"after": "10:00:00", "before": "10:00:00"}"#);
        assert!(!at(&never, "2026-03-01T10:00:00Z"));
        assert!(!at(&never, "2026-03-01T09:00:00Z"));
    }

    #[test]
    fn the_clock_is_that_of_the_time_zone() {
        for (zone, time, inside) in [
            ("Europe/Vienna", "2026-01-15T07:00:00Z", true),
            ("Europe/Vienna", "2026-01-15T06:59:59Z", false),
            // Summer time.
            ("Europe/Vienna", "2026-07-15T06:00:00Z", true),
            ("Europe/Vienna", "2026-07-15T05:59:59Z", false),
            ("America/Los_Angeles", "2026-01-15T16:30:00Z", true),
            ("+02", "2026-01-15T06:00:00Z", true),
            ("+02", "2026-01-15T05:59:59Z", false),
            ("-03:30", "2026-01-15T11:30:00Z", true),
            ("-03:30", "2026-01-15T11:29:59Z", false),
            ("+00:00:01", "2026-01-15T07:59:59Z", true),
            ("+24:60:60", "2026-01-15T06:59:00Z", true),
            ("-00", "2026-01-15T08:00:00Z", true),
            ("UTC", "2026-01-15T08:00:00Z", true),
        ] {
            let json =
                format!(r#"{{"after": "08:00:00", "before": "09:00:00", "timezone": "{zone}"}}"#);
            assert_eq!(at(&clock(&json), time), inside, "{zone} {time}");
        }
        let local = clock(r#"{"timezone": "Local"}"#);
        assert_eq!(local.zone, TimeZone::system());
    }

    #[test]
    fn no_time_zone_depends_on_the_files_of_the_system() {
        let bundled = jiff::tz::TimeZoneDatabase::bundled();
        assert!(!bundled.is_definitively_empty());
        assert!(bundled.get("Europe/Vienna").is_ok());
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, seconds) in [
            ("00:00:00", Some(0)),
            ("8:00:00", Some(8 * 3600)),
            ("23:59:59", Some(DAY - 1)),
            ("23:59:59.999999999999", Some(DAY - 1)),
            ("01:02:03,5", Some(3723)),
            ("24:00:00", None),
            ("12:60:00", None),
            ("12:00:60", None),
            ("12:0:00", None),
            ("12:00:0", None),
            ("012:00:00", None),
            ("12:00", None),
            ("12:00:00.", None),
            ("12:00:00.x", None),
            ("12:00:00 ", None),
            (" 12:00:00", None),
            ("+1:00:00", None),
            ("12:+1:00", None),
            ("12:00:00:00", None),
            (".5", None),
        ] {
            assert_eq!(parse_time(text), seconds, "{text:?}");
        }
    }

    #[test]
    fn it_answers_for_the_time_of_acceptance_without_a_byte() {
        check(&clock("{}"), b"", Verdict::Match);
        check(&clock("{}"), b"GET", Verdict::Match);
        let never = clock(r#"{"after": "10:00:00", "before": "10:00:00"}"#);
        check(&never, b"", Verdict::No);
        assert_eq!(never.cost(), Cost::Meta);
        // The second in which it was accepted, and the one after it.
        let conn = &mut l4_testkit::received(b"");
        let accepted = Timestamp::try_from(conn.record().accepted_at()).unwrap();
        let second = second_of_day(accepted, &TimeZone::UTC);
        let text = |s: u32| format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
        let (from, to) = (text(second), text((second + 1) % DAY));
        let json =
            |after: &str, before: &str| format!(r#"{{"after": "{after}", "before": "{before}"}}"#);
        let now = clock(&json(&from, &to));
        assert_eq!(l4_testkit::conn_verdict(&now, conn), Verdict::Match);
        let other = clock(&json(&to, &text((second + 2) % DAY)));
        assert_eq!(l4_testkit::conn_verdict(&other, conn), Verdict::No);
    }

    #[test]
    fn placeholders_are_filled_in_when_loading() {
        let json = r#"{"after": "{l4.vars.x}10:00:00", "timezone": "{env.CONNCEPT_SURELY_UNSET}"}"#;
        assert!(at(&clock(json), "2026-03-01T10:00:00Z"));
        assert!(!at(&clock(json), "2026-03-01T09:59:59Z"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_its_place_and_oddities_are_told() {
        let errors = matcher::<MatchClock>(
            register,
            r#"{"after": "8", "before": "25:00:00", "timezone": "Mars/Olympus"}"#,
        )
        .err()
        .unwrap();
        let seen: Vec<_> = errors.iter().map(|e| (e.pointer(), e.message())).collect();
        assert_eq!(
            seen,
            [
                ("/after", "invalid time \"8\""),
                ("/before", "invalid time \"25:00:00\""),
                ("/timezone", "unknown time zone \"Mars/Olympus\""),
            ]
        );
        for zone in [
            "../UTC",
            "/etc/localtime",
            "+2",
            "+25",
            "+02:0",
            "+02:00:00:00",
            "+",
            "CEST?",
            "Z+",
        ] {
            let json = format!(r#"{{"timezone": "{zone}"}}"#);
            assert!(matcher::<MatchClock>(register, &json).is_err(), "{zone}");
        }

        let told = |json: &str| {
            let config = format!(
                r#"{{"apps": {{"layer4": {{"servers": {{"a": {{"listen": [":1"], "routes": [
                    {{"match": [{{"clock": {json}}}]}}]}}}}}}}}}}"#
            );
            let loaded = l4_testkit::load(register, &config);
            let about = |all: &[l4_core::config::ConfigError]| {
                all.iter()
                    .filter(|e| e.pointer().ends_with("/clock"))
                    .count()
            };
            (about(&loaded.warnings), about(&loaded.notes))
        };
        assert_eq!(
            told(r#"{"after": "08:00:00", "before": "17:00:00"}"#),
            (0, 0)
        );
        assert_eq!(
            told(r#"{"after": "22:00:00", "before": "06:00:00"}"#),
            (0, 1)
        );
        assert_eq!(
            told(r#"{"after": "10:00:00", "before": "10:00:00"}"#),
            (1, 0)
        );
    }

    proptest! {
        #[test]
        fn a_window_and_the_one_from_its_end_to_its_beginning_share_the_day(
            after in 1..DAY, before in 1..DAY, second in 0..DAY,
        ) {
            prop_assume!(after != before);
            let window = Window { after, before };
            let rest = Window { after: before, before: after };
            prop_assert_ne!(window.contains(second), rest.contains(second));
        }

        #[test]
        fn any_text_is_taken(text in "[0-9:.,+-]{0,12}|.{0,8}") {
            prop_assert!(parse_time(&text).is_none_or(|second| second < DAY));
            prop_assert!(parse_offset(&text).is_none_or(|offset| offset.seconds().abs() <= 90_060));
        }
    }
}
