//! Files of environment variables: `KEY=VALUE` lines.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

/// Marks a process that was started anew with the variables of its files. It holds the process id, which stays when
/// a process replaces itself, so that a child does not take it for its own.
pub(crate) const MARK: &str = "CONNCEPT_ENVFILES_APPLIED";

/// Puts the variables of `files` into the environment. Variables that exist stay as they are, also those of an earlier
/// file.
///
/// The environment of a running process cannot be changed safely, so the process replaces itself with one that has
/// the variables: same program, arguments, process id and open files. It comes here again and finds nothing to do.
///
/// # Errors
/// What is wrong with the files, or with starting anew.
pub(crate) fn apply(files: &[PathBuf]) -> Result<(), String> {
    let applied = env::var(MARK).is_ok_and(|pid| pid == process::id().to_string());
    if files.is_empty() || applied {
        return Ok(());
    }
    let mut missing = BTreeMap::new();
    for file in files {
        for (key, value) in read(file)? {
            if env::var_os(&key).is_none() {
                missing.entry(key).or_insert(value);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let error = start_anew(&missing);
    Err(format!(
        "starting anew with the variables of the env files: {error}"
    ))
}

/// Returns only if it failed.
fn start_anew(variables: &BTreeMap<String, String>) -> io::Error {
    let program = match env::current_exe() {
        // The file may have been replaced by a newer one since the start; this is the one that runs.
        Ok(path) if path.exists() => path,
        _ => PathBuf::from("/proc/self/exe"),
    };
    let mut args = env::args_os();
    let name = args.next().unwrap_or_else(|| OsString::from("conncept"));
    Command::new(program)
        .arg0(name)
        .args(args)
        .envs(variables)
        .env(MARK, process::id().to_string())
        .exec()
}

fn read(file: &Path) -> Result<Vec<(String, String)>, String> {
    let name = file.display();
    let bytes = fs::read(file).map_err(|error| format!("env file {name}: {error}"))?;
    let text =
        String::from_utf8(bytes).map_err(|_| format!("env file {name} is not UTF-8 text"))?;
    parse(&text).map_err(|error| format!("env file {name}: {error}"))
}

/// The variables of a file in order of appearance.
///
/// Blank lines and lines that start with `#` are skipped, `export ` in front of a key is dropped, a `#` in a plain value
/// starts a comment. A value in quotes runs to the quote that ends a line, which may be a later one; `\"` is a quote
/// that does not. Nothing is expanded.
fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| {
            format!("can't parse line {number}; line should be in KEY=VALUE format")
        })?;
        let key = key.strip_prefix("export ").unwrap_or(key);
        if key.is_empty() {
            return Err(format!("missing or empty key on line {number}"));
        }
        if key.contains(char::is_whitespace) {
            return Err(format!(
                "invalid key on line {number}: contains whitespace: {key}"
            ));
        }
        if value.starts_with(char::is_whitespace) {
            return Err(format!(
                "invalid value on line {number}: whitespace before value: '{value}'"
            ));
        }
        if line.contains('\0') {
            return Err(format!("line {number} contains a NUL character"));
        }
        let value = match value
            .chars()
            .next()
            .filter(|first| matches!(first, '"' | '\''))
        {
            None => plain(value).to_owned(),
            Some(quote) => quoted(&value[1..], quote, lines.by_ref().map(|(line, _)| line))
                .ok_or_else(|| format!("the quote on line {number} is never closed"))?,
        };
        variables.push((key.to_owned(), value));
    }
    Ok(variables)
}

fn plain(value: &str) -> &str {
    value
        .split_once('#')
        .map_or(value, |(value, _)| value.trim_end())
}

/// The text up to the closing quote, over as many lines as it takes.
fn quoted<'a>(
    first: &'a str,
    quote: char,
    mut more: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let mut value = String::new();
    let mut line = first;
    loop {
        let end = line
            .match_indices(quote)
            .find(|&(at, _)| !line[..at].ends_with('\\') && ends_line(&line[at + 1..]));
        let part = end.map_or(line, |(at, _)| &line[..at]);
        value.push_str(&part.replace(&format!("\\{quote}"), &quote.to_string()));
        if end.is_some() {
            return Some(value);
        }
        line = more.next()?;
        value.push('\n');
    }
}

/// Whether nothing but a comment follows.
fn ends_line(rest: &str) -> bool {
    let rest = rest.trim_start();
    rest.is_empty() || rest.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap()
    }

    fn value(text: &str) -> String {
        let variables = parsed(text);
        assert_eq!(variables.len(), 1, "{variables:?}");
        assert_eq!(variables[0].0, "A");
        variables[0].1.clone()
    }

    #[test]
    fn plain_values_end_at_a_comment() {
        assert_eq!(value("A=b"), "b");
        assert_eq!(value("  A=b c  "), "b c");
        assert_eq!(value("export A=b"), "b");
        assert_eq!(value("A=b # c"), "b");
        assert_eq!(value("A=b#c"), "b");
        assert_eq!(value("A="), "");
        assert_eq!(value("A=b=c"), "b=c");
        assert_eq!(value("A=${HOME}"), "${HOME}");
    }

    #[test]
    fn quoted_values_keep_what_is_between_the_quotes() {
        assert_eq!(value("A=\"b\""), "b");
        assert_eq!(value("A='b \" c'"), "b \" c");
        assert_eq!(value("A=\"b # c\" # d"), "b # c");
        assert_eq!(value("A=\"b\nc\r\nd\""), "b\nc\nd");
        assert_eq!(value(r#"A="say \"x\"""#), "say \"x\"");
        assert_eq!(value("A=\"\""), "");
    }

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let variables = parsed("\n# x\n   \n A=1\nB=2\n");
        let expected = [("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(variables, expected);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, expected) in [
            (
                "A=1\nB",
                "can't parse line 2; line should be in KEY=VALUE format",
            ),
            ("=1", "missing or empty key on line 1"),
            (
                "\n\nA B=1",
                "invalid key on line 3: contains whitespace: A B",
            ),
            (
                "A= 1",
                "invalid value on line 1: whitespace before value: ' 1'",
            ),
            ("A=1\nB=\"x\n\n", "the quote on line 2 is never closed"),
            ("A=\0", "line 1 contains a NUL character"),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text:?}");
        }
    }
}
