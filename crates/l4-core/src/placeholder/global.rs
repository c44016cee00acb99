//! Placeholders that need no connection: `env.*`, `file.*`, `system.*`, `time.*`.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::time::SystemTime;

use jiff::{Timestamp, Zoned};
use tracing::error;

/// `file.*` reads at most this much.
const FILE_LIMIT: u64 = 1024 * 1024;

const NAMES: &[&str] = &[
    "system.hostname",
    "system.slash",
    "system.wd",
    "system.os",
    "system.arch",
    "time.now",
    "time.now.http",
    "time.now.common_log",
    "time.now.year",
    "time.now.unix",
    "time.now.unix_ms",
];

/// Whether [`value`] would answer, without reading anything.
pub(super) fn is_known(name: &str) -> bool {
    name.starts_with("env.") || name.starts_with("file.") || NAMES.contains(&name)
}

/// The value now; `None` if there is no such name. An unset variable and an unreadable file are empty.
pub(super) fn value(name: &str) -> Option<Cow<'static, str>> {
    if let Some(variable) = name.strip_prefix("env.") {
        let value = std::env::var_os(variable).unwrap_or_default();
        return Some(Cow::Owned(value.to_string_lossy().into_owned()));
    }
    if let Some(path) = name.strip_prefix("file.") {
        return Some(Cow::Owned(file(path)));
    }
    Some(match name {
        "system.hostname" => Cow::Owned(hostname()),
        "system.slash" => Cow::Borrowed("/"),
        "system.wd" => Cow::Owned(
            std::env::current_dir()
                .map(|d| d.to_string_lossy().into_owned())
                .unwrap_or_default(),
        ),
        "system.os" => Cow::Borrowed(go_os(std::env::consts::OS)),
        "system.arch" => Cow::Borrowed(go_arch(std::env::consts::ARCH)),
        "time.now" => Cow::Owned(zoned(&Zoned::now())),
        "time.now.http" => Cow::Owned(
            Timestamp::now()
                .strftime("%a, %d %b %Y %H:%M:%S GMT")
                .to_string(),
        ),
        "time.now.common_log" => {
            Cow::Owned(Zoned::now().strftime("%d/%b/%Y:%H:%M:%S %z").to_string())
        }
        "time.now.year" => Cow::Owned(Zoned::now().strftime("%Y").to_string()),
        "time.now.unix" => Cow::Owned(Timestamp::now().as_second().to_string()),
        "time.now.unix_ms" => Cow::Owned(Timestamp::now().as_millisecond().to_string()),
        _ => return None,
    })
}

/// `2006-01-02 15:04:05.999999999 +0000 UTC`
pub(super) fn utc(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .map(|time| time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string())
        .unwrap_or_default()
}

fn zoned(time: &Zoned) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.f %z %Z").to_string()
}

fn file(path: &str) -> String {
    let mut content = Vec::new();
    if let Err(error) = File::open(path).and_then(|f| f.take(FILE_LIMIT).read_to_end(&mut content))
    {
        let working_dir = std::env::current_dir().unwrap_or_default();
        error!(target: "layer4", file = path, ?working_dir, %error, "placeholder: failed to read file");
        return String::new();
    }
    let mut text = &content[..];
    for end in [b"\n", b"\r"] {
        text = text.strip_suffix(end).unwrap_or(text);
    }
    String::from_utf8_lossy(text).into_owned()
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim_end().to_owned())
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_default()
}

/// Go's name of an operating system, which existing configurations compare with.
fn go_os(os: &'static str) -> &'static str {
    match os {
        "macos" => "darwin",
        other => other,
    }
}

/// Go's name of a processor architecture.
fn go_arch(arch: &'static str) -> &'static str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_loses_one_line_end() {
        let dir = std::env::temp_dir().join(format!("l4-core-placeholder-{}", std::process::id()));
        std::fs::write(&dir, "secret\n\r\n").unwrap();
        let name = format!("file.{}", dir.display());
        assert_eq!(value(&name).unwrap(), "secret\n");
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(value(&name).unwrap(), "", "unreadable is known and empty");
    }

    #[test]
    fn times_have_the_documented_shapes() {
        assert_eq!(utc(SystemTime::UNIX_EPOCH), "1970-01-01 00:00:00 +0000 UTC");
        let http = value("time.now.http").unwrap();
        assert_eq!((http.len(), &http[http.len() - 4..]), (29, " GMT"));
        assert_eq!(value("time.now.year").unwrap().len(), 4);
        assert!(value("time.now.unix_ms").unwrap().parse::<u64>().unwrap() > 1_700_000_000_000);
    }

    #[test]
    fn known_names_are_exactly_those_with_a_value() {
        for name in NAMES {
            assert!(is_known(name) && value(name).is_some(), "{name}");
        }
        assert!(value("time.then").is_none() && !is_known("time.then"));
        assert_eq!(value("env.CONNCEPT_SURELY_UNSET").unwrap(), "");
    }
}
