//! `cargo xtask run`: Conncept with the crate of the current folder in it, built and run at once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::MetadataCommand;

use crate::build::{self, ForRunning, Patch};
use crate::shell::{self, cargo, root};

#[derive(clap::Args)]
#[command(
    after_help = "Called in the folder of a module crate, such as cargo xtask new-module makes: cargo xtask run -- run \
    --config l4.json. What the crate's workspace has under [patch] counts here, too."
)]
pub(crate) struct Args {
    /// Build in just these beside the crate, as with `cargo xtask build`. Default: all that a build has.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    with: Vec<String>,
    /// The cargo profile.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// Do not use the network.
    #[arg(long)]
    offline: bool,
    /// Passed on to the program.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Becomes the program, so that signals, exit code and terminal are its own; comes back only if that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let module = Module::here()?;
    let mut with = args.with.clone();
    with.push(format!("{}={}", module.name, module.directory.display()));
    // Cargo keeps what it has built where it keeps everything of this checkout, and nothing is written anywhere else.
    let program = build::program(ForRunning {
        with,
        profile: args.profile.clone(),
        offline: args.offline,
        patches: module.patches,
    })?;
    become_program(Command::new(&program).args(&args.arguments))
        .with_context(|| format!("cannot run {}", program.display()))
}

#[cfg(unix)]
fn become_program(command: &mut Command) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec())
}

#[cfg(not(unix))]
fn become_program(command: &mut Command) -> std::io::Result<()> {
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1))
}

/// A crate with modules.
struct Module {
    name: String,
    directory: PathBuf,
    patches: Vec<Patch>,
}

impl Module {
    /// The one whose folder this is, or a folder above.
    fn here() -> Result<Self> {
        let here = std::env::current_dir()?;
        let mut locate = cargo();
        locate
            .args(["locate-project", "--message-format", "plain"])
            .current_dir(&here);
        let said = shell::ask(&mut locate)?;
        if !said.success {
            bail!(
                "there is no crate in {}; go to the folder of a module crate, or make one with: cargo xtask new-module DIR",
                here.display()
            );
        }
        let manifest = Path::new(said.stdout.trim());
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .no_deps()
            .exec()
            .with_context(|| format!("{} cannot be read", manifest.display()))?;
        let workspace = metadata.workspace_root.as_std_path();
        if workspace == root() {
            bail!(
                "{} belongs to Conncept itself; run it as it is with: cargo run --package conncept -- ARGUMENTS",
                here.display()
            );
        }
        let package = metadata
            .packages
            .iter()
            .find(|package| package.manifest_path == *manifest);
        let (Some(package), Some(directory)) = (package, manifest.parent()) else {
            bail!(
                "{} is a workspace; go to the folder of the crate with the modules",
                manifest.display()
            );
        };
        // Cargo takes notice of [patch] there and nowhere else.
        let file = workspace.join("Cargo.toml");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let patches = patches(&text, workspace)
            .with_context(|| format!("the [patch] of {} cannot be carried over", file.display()))?;
        Ok(Self {
            name: package.name.to_string(),
            directory: directory.to_owned(),
            patches,
        })
    }
}

/// What stands under `[patch.…]` in a manifest, with paths from `directory`.
///
/// Entries are passed on as they are written. That takes no more than finding where each begins and ends, and what is
/// written in another way is refused: a library for TOML would be built before each first task.
fn patches(manifest: &str, directory: &Path) -> Result<Vec<Patch>> {
    let mut patches: Vec<Patch> = Vec::new();
    // The registry, and the crate if the heading names one.
    let mut section: Option<(String, Option<String>)> = None;
    for line in manifest.lines() {
        let line = without_comment(line);
        if line.is_empty() {
            continue;
        }
        if line.starts_with('[') {
            section = match line.strip_prefix("[patch.") {
                Some(rest) => Some(heading(rest).with_context(|| not_understood(line))?),
                None if line == "[patch]" => bail!(not_understood(line)),
                None => None,
            };
            continue;
        }
        let Some((registry, name)) = &section else {
            continue;
        };
        let (key, value) = line.split_once('=').with_context(|| not_understood(line))?;
        let (key, value) = (key.trim(), value.trim());
        if !is_whole(value) {
            bail!(not_understood(line));
        }
        let (name, member) = match (name, key.split_once('.')) {
            (Some(name), None) => (name.as_str(), Some(key)),
            (None, Some((name, member))) => (name, Some(member)),
            (None, None) => (key, None),
            (Some(_), Some(_)) => bail!(not_understood(line)),
        };
        let value = match member {
            Some(member) => with_paths_from(directory, &format!("{member} = {value}")),
            None => with_paths_from(directory, value),
        };
        let begun = patches
            .iter_mut()
            .find(|patch| patch.registry == *registry && patch.name == name);
        match (member, begun) {
            // One more member of a crate that has some.
            (Some(_), Some(patch)) => {
                let rest = patch.value.trim_end_matches(" }").to_owned();
                patch.value = format!("{rest}, {value} }}");
            }
            (_, _) => patches.push(Patch {
                registry: registry.clone(),
                name: name.trim_matches(['"', '\'']).to_owned(),
                value: match member {
                    Some(_) => format!("{{ {value} }}"),
                    None => value,
                },
            }),
        }
    }
    Ok(patches)
}

fn not_understood(line: &str) -> String {
    format!(
        "`{line}` is not understood; write each entry in one line under [patch.crates-io]: name = {{ path = \"…\" }}"
    )
}

/// The registry of a heading, and the crate if it names one; `text` is what follows `[patch.`.
fn heading(text: &str) -> Option<(String, Option<String>)> {
    let inside = text.strip_suffix(']')?;
    let end = match inside.chars().next()? {
        quote @ ('"' | '\'') => inside.get(1..)?.find(quote)? + 2,
        _ => inside.find('.').unwrap_or(inside.len()),
    };
    let (registry, rest) = inside.split_at_checked(end)?;
    let name = match rest.strip_prefix('.') {
        Some(name) => Some(name.trim_matches(['"', '\'']).to_owned()),
        None if rest.is_empty() => None,
        None => return None,
    };
    Some((registry.to_owned(), name))
}

/// The characters of a line that stand outside quotes, each with its place.
fn unquoted(line: &str) -> impl Iterator<Item = (usize, char)> {
    let mut quote = None;
    let mut escaped = false;
    line.char_indices().filter(move |&(_, c)| {
        match quote {
            // Only double quotes know escapes.
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(end) if c == end => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None => return true,
        }
        false
    })
}

fn without_comment(line: &str) -> &str {
    let comment = unquoted(line).find(|(_, c)| *c == '#');
    let end = comment.map_or(line.len(), |(at, _)| at);
    line.get(..end).unwrap_or_default().trim()
}

/// Whether a value ends in the line it begins in.
fn is_whole(value: &str) -> bool {
    let mut depth = 0_i32;
    for (_, c) in unquoted(value) {
        depth += match c {
            '{' | '[' => 1,
            '}' | ']' => -1,
            _ => 0,
        };
    }
    depth == 0 && !value.is_empty() && !value.starts_with("\"\"\"")
}

/// `value` with its `path = "…"` from `directory`, as an absolute path.
fn with_paths_from(directory: &Path, value: &str) -> String {
    let places: Vec<usize> = unquoted(value).map(|(at, _)| at).collect();
    let found = value.match_indices("path").find_map(|(at, _)| {
        let before = value.get(..at)?.chars().next_back();
        if !places.contains(&at) || before.is_some_and(|c| !matches!(c, ' ' | '{' | ',')) {
            return None;
        }
        let rest = value
            .get(at + "path".len()..)?
            .trim_start()
            .strip_prefix('=')?;
        let rest = rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let begin = value.len() - rest.len();
        let length = rest.get(1..)?.find(quote)?;
        Some((begin, begin + length + 2))
    });
    let Some((begin, end)) = found else {
        return value.to_owned();
    };
    let path = directory.join(&value[begin + 1..end - 1]);
    format!(
        "{}{:?}{}",
        &value[..begin],
        path.display().to_string(),
        &value[end..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(manifest: &str) -> Vec<(String, String, String)> {
        let patches = patches(manifest, Path::new("/at")).unwrap();
        let parts = |patch: Patch| (patch.registry, patch.name, patch.value);
        patches.into_iter().map(parts).collect()
    }

    fn entry(registry: &str, name: &str, value: &str) -> (String, String, String) {
        (registry.to_owned(), name.to_owned(), value.to_owned())
    }

    #[test]
    fn entries_keep_what_they_say_and_their_paths_become_absolute() {
        let manifest = r#"
            [package]
            name = "x" # not a [patch]
            [patch.crates-io]
            # The fork.
            a = { path = "../a", features = ["path"] } # a comment with "quotes"
            "b" = { git = "https://host/path=1#x", branch = 'main' }
            c.path = '/abs'
            c.package = "d"
            [dependencies]
            e = { path = "../e" }
            [patch."https://host/r"]
            f = { version = "1.0", path="f" }
            [patch.crates-io.g]
            path = "g"
            package = "h"
        "#;
        assert_eq!(
            read(manifest),
            [
                entry(
                    "crates-io",
                    "a",
                    r#"{ path = "/at/../a", features = ["path"] }"#
                ),
                entry(
                    "crates-io",
                    "b",
                    r#"{ git = "https://host/path=1#x", branch = 'main' }"#
                ),
                entry("crates-io", "c", r#"{ path = "/abs", package = "d" }"#),
                entry(
                    "\"https://host/r\"",
                    "f",
                    r#"{ version = "1.0", path="/at/f" }"#
                ),
                entry("crates-io", "g", r#"{ path = "/at/g", package = "h" }"#),
            ]
        );
        assert_eq!(read("[package]\nname = \"x\"\n"), []);
    }

    #[test]
    fn what_cannot_be_carried_over_is_refused_with_how_to_write_it() {
        for line in [
            "[patch]",
            "[patch.crates-io]\na = {",
            "[patch.crates-io]\na = { features = [",
            "[patch.crates-io]\na",
            "[patch.\"x]",
            "[patch.crates-io.a]\nb.c = 1",
        ] {
            let error = format!("{:#}", patches(line, Path::new("/at")).unwrap_err());
            assert!(
                error.contains("write each entry in one line"),
                "{line}: {error}"
            );
        }
    }
}
