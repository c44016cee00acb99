//! Finding the crates that are to be built in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind};

use super::generated::{NAME, Recipe, Registration};
use super::wanted::{Module, Source};
use crate::shell::{self, cargo};

/// What every call of cargo is told.
pub(crate) struct Asked<'a> {
    pub(crate) target: Option<&'a str>,
    pub(crate) locked: bool,
    pub(crate) offline: bool,
}

impl Asked<'_> {
    /// For the commands that build for a target.
    pub(crate) fn pass_on(&self, command: &mut Command) {
        if let Some(target) = self.target {
            command.args(["--target", target]);
        }
        self.pass_on_modes(command);
    }

    fn pass_on_modes(&self, command: &mut Command) {
        command.args(self.locked.then_some("--locked"));
        command.args(self.offline.then_some("--offline"));
    }
}

/// A crate of this checkout that others can depend on: name, version, directory.
pub(crate) type Ours = (String, String, PathBuf);

/// All of them.
pub(crate) fn ours(workspace: &Metadata) -> Vec<Ours> {
    let packages = workspace.workspace_packages().into_iter();
    let published =
        packages.filter(|package| package.publish.as_ref().is_none_or(|to| !to.is_empty()));
    let mut ours: Vec<_> = published
        .map(|package| {
            let directory = package
                .manifest_path
                .parent()
                .map(|dir| dir.as_std_path().to_owned());
            (
                package.name.to_string(),
                package.version.to_string(),
                directory.unwrap_or_default(),
            )
        })
        .collect();
    ours.sort();
    ours
}

/// Checks the source of a crate as far as that is possible without cargo, whose words for it are less plain.
pub(crate) fn locate(module: &mut Module, ours: &[Ours], offline: bool) -> Result<()> {
    match &mut module.source {
        Source::Registry => Ok(()),
        Source::Path(path) => {
            let Ok(found) = path.canonicalize() else {
                bail!(
                    "the source of {}, {}, does not exist; correct the path",
                    module.name,
                    path.display()
                );
            };
            *path = found;
            check_path(module, ours)
        }
        Source::Git { url, reference } => {
            *reference = git_reference(url, reference.take(), offline)?;
            Ok(())
        }
    }
}

fn check_path(module: &Module, ours: &[Ours]) -> Result<()> {
    let Source::Path(path) = &module.source else {
        return Ok(());
    };
    let (name, shown) = (&module.name, path.display());
    let manifest = path.join("Cargo.toml");
    if !manifest.is_file() {
        bail!("the source of {name}, {shown}, has no Cargo.toml; name the directory of the crate");
    }
    let metadata = MetadataCommand::new()
        .manifest_path(&manifest)
        .no_deps()
        .exec()
        .with_context(|| {
            format!(
                "the manifest of {name}, {}, cannot be read",
                manifest.display()
            )
        })?;
    let here = |package: &&Package| {
        package
            .manifest_path
            .canonicalize_utf8()
            .is_ok_and(|file| file == manifest.as_path())
    };
    let Some(package) = metadata.packages.iter().find(here) else {
        let known = metadata
            .packages
            .iter()
            .find(|package| package.name == name.as_str());
        match known.and_then(|package| package.manifest_path.parent()) {
            Some(place) => {
                bail!("{shown} is a workspace; {name} is in {place}: write {name}={place}")
            }
            None => bail!(
                "{shown} is a workspace without a crate {name}; name the directory of the crate"
            ),
        }
    };
    if package.name != name.as_str() {
        bail!(
            "{shown} holds the crate {}; write {0}={shown}",
            package.name
        );
    }
    for dependency in &package.dependencies {
        let Some((theirs, path)) = dependency.path.as_ref().and_then(|path| {
            let theirs = ours.iter().find(|(name, ..)| *name == dependency.name)?;
            Some((theirs, path))
        }) else {
            continue;
        };
        let same = path.canonicalize_utf8().is_ok_and(|path| path == theirs.2);
        if dependency.kind != DependencyKind::Development && !same {
            bail!(
                "two versions of {0}: {name} wants the one in {path}, this build has the one in {1}. Let {name} depend on \
                 {0} = \"{2}\" without a path; it then gets that of this checkout",
                theirs.0,
                theirs.2.display(),
                theirs.1
            );
        }
    }
    for feature in &module.features {
        if !package.features.contains_key(feature) {
            let known: Vec<&str> = package.features.keys().map(String::as_str).collect();
            bail!(
                "{name} has no feature {feature:?}; {}",
                match known.is_empty() {
                    true => format!("it has none, write --with {name}={shown}"),
                    false => format!("it has: {}", known.join(", ")),
                }
            );
        }
    }
    Ok(())
}

/// What kind of reference it is, in the form of a manifest: `tag = "v1"`.
fn git_reference(url: &str, reference: Option<String>, offline: bool) -> Result<Option<String>> {
    let hexadecimal =
        |text: &str| (7..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let guess = |text: &str| match text
        .trim_start_matches('v')
        .starts_with(|c: char| c.is_ascii_digit())
    {
        true => format!("tag = {text:?}"),
        false => format!("branch = {text:?}"),
    };
    let commit = reference.as_deref().is_some_and(hexadecimal);
    let mut ask = Command::new("git");
    ask.args(["ls-remote", "--", url])
        .env("GIT_TERMINAL_PROMPT", "0");
    match (&reference, shell::ask(&mut ask)) {
        // Cargo can do without git and without the network, if it has the repository already.
        (Some(text), _) if offline && !commit => Ok(Some(guess(text))),
        (Some(text), Err(_)) if !commit => Ok(Some(guess(text))),
        (_, Ok(said)) if !said.success && !offline => bail!(
            "the repository {url} cannot be read; correct the URL, or see that git may read it:\n{}",
            said.stderr.trim()
        ),
        (Some(text), _) if commit => Ok(Some(format!("rev = {text:?}"))),
        (Some(text), Ok(said)) => {
            for (kind, path) in [("tag", "tags"), ("branch", "heads")] {
                let wanted = format!("refs/{path}/{text}");
                if said
                    .stdout
                    .lines()
                    .any(|line| line.split('\t').nth(1) == Some(&wanted))
                {
                    return Ok(Some(format!("{kind} = {text:?}")));
                }
            }
            bail!(
                "the repository {url} has no tag and no branch {text:?}; name a commit, a tag or a branch"
            )
        }
        _ => Ok(None),
    }
}

/// Has cargo resolve the generated crate, and says which functions register modules.
pub(crate) fn registrations(
    directory: &Path,
    recipe: &Recipe,
    asked: &Asked<'_>,
) -> Result<Vec<Registration>> {
    let metadata = metadata(directory, recipe, asked)?;
    refuse_two_versions(&metadata, recipe)?;
    for replacement in &recipe.replacements {
        let used = metadata.packages.iter().any(|package| {
            package.name == replacement.name.as_str()
                && match &replacement.source {
                    Source::Path(path) => package.manifest_path.starts_with(path),
                    _ => package
                        .source
                        .as_ref()
                        .is_some_and(|source| source.repr.starts_with("git+")),
                }
        });
        if !used {
            bail!(
                "--replace {0}: nothing in this build uses {0} in a version that this one fits; remove it, or see \
                 which versions are used with cargo tree --invert {0}",
                replacement.name
            );
        }
    }
    recipe
        .modules
        .iter()
        .map(|module| registration(module, &metadata))
        .collect()
}

fn registration(module: &Module, metadata: &Metadata) -> Result<Registration> {
    let root = metadata.root_package().map(|package| &package.id);
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    let dependencies = nodes
        .filter(|node| Some(&node.id) == root)
        .flat_map(|node| &node.deps);
    let library = |package: &&Package| {
        let kinds = package.targets.iter().flat_map(|target| &target.kind);
        kinds
            .into_iter()
            .any(|kind| matches!(kind, TargetKind::Lib | TargetKind::RLib))
    };
    for dependency in dependencies {
        let package = metadata
            .packages
            .iter()
            .find(|package| package.id == dependency.pkg);
        let Some(package) = package.filter(|package| package.name == module.name.as_str()) else {
            continue;
        };
        if !library(&package) {
            break;
        }
        let function = package.metadata["conncept"]["register"]
            .as_str()
            .unwrap_or("register");
        return Ok(Registration {
            package: package.name.to_string(),
            version: package.version.to_string(),
            function: format!("{}::{function}", dependency.name),
        });
    }
    bail!(
        "{} has no library to register modules from; move its modules to src/lib.rs",
        module.name
    )
}

fn metadata(directory: &Path, recipe: &Recipe, asked: &Asked<'_>) -> Result<Metadata> {
    let mut command = cargo();
    command
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(directory.join("Cargo.toml"));
    // Which dependencies there are depends on the target.
    if let Some(target) = asked.target {
        command.args(["--filter-platform", target]);
    }
    asked.pass_on_modes(&mut command);
    let said = shell::ask(&mut command)?;
    if said.success {
        return MetadataCommand::parse(said.stdout).context("cargo metadata cannot be read");
    }
    bail!(
        "{}\n\ncargo says:\n{}",
        explain(&said.stderr, recipe, asked),
        said.stderr.trim()
    )
}

/// What cargo's refusal to resolve means for who asked for the build.
fn explain(cargo: &str, recipe: &Recipe, asked: &Asked<'_>) -> String {
    let quoted = |start: &str| {
        let (_, rest) = cargo.split_once(start)?;
        rest.split_once('`').map(|(text, _)| text)
    };
    // The crate that wants it: `my-l4 v0.1.0 (/path)`.
    let wants = quoted("required by package `").unwrap_or("a crate");
    if let Some((_, packages)) = cargo.split_once("package collision in the lockfile: packages ") {
        let packages = packages.split(" are different").next().unwrap_or_default();
        return format!(
            "two versions of one crate: {packages}. Let every crate depend on it by version, without a path; it then gets \
             that of this checkout"
        );
    }
    if asked.locked && cargo.contains("--locked") {
        return "the lock file lacks versions that this build needs; run once without --locked, or give --lock the \
                Cargo.lock of a build that --keep showed"
            .to_owned();
    }
    for start in [
        "failed to select a version for the requirement `",
        "failed to select a version for `",
    ] {
        let Some(requirement) = quoted(start) else {
            continue;
        };
        let name = requirement.split([' ', '=']).next().unwrap_or_default();
        if let Some((_, version, _)) = recipe.workspace.iter().find(|(ours, ..)| ours == name) {
            return format!(
                "two versions of {name}: {wants} wants {requirement}, this checkout has {version}. Use a version of that \
                 crate that is made for {name} {version}, or build in a checkout of the version it wants"
            );
        }
        if cargo.contains("feature") && !cargo.contains("candidate versions found") {
            return format!(
                "{name} lacks a feature that {wants} asks for; correct what stands behind the +"
            );
        }
        return format!(
            "no version of {name} fits {requirement}, which {wants} wants; correct what stands behind the @"
        );
    }
    if let Some(name) = quoted("no matching package named `") {
        return format!(
            "there is no crate {name}; correct the name, or say where it is: --with {name}=DIRECTORY or \
             --with {name}=URL"
        );
    }
    if asked.offline {
        return "some of the crates are not on this machine; run once without --offline".to_owned();
    }
    "the crates that are asked for do not go together; correct what --with says".to_owned()
}

/// Two versions of one of our crates would compile and yet share no type.
fn refuse_two_versions(metadata: &Metadata, recipe: &Recipe) -> Result<()> {
    let packages: BTreeMap<&PackageId, &Package> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package))
        .collect();
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    let mut users: BTreeMap<&PackageId, Vec<String>> = BTreeMap::new();
    for node in nodes {
        let Some(user) = packages.get(&node.id) else {
            continue;
        };
        for dependency in &node.deps {
            let by = match user.name.as_str() {
                NAME => "this build".to_owned(),
                name => format!("{name} {}", user.version),
            };
            users.entry(&dependency.pkg).or_default().push(by);
        }
    }
    for (name, ..) in &recipe.workspace {
        let same: Vec<&Package> = users
            .keys()
            .filter_map(|id| packages.get(id).copied())
            .filter(|package| package.name == name.as_str())
            .collect();
        if same.len() < 2 {
            continue;
        }
        let places: Vec<String> = same
            .iter()
            .map(|package| {
                let place = match &package.source {
                    Some(source) => source.repr.clone(),
                    None => package
                        .manifest_path
                        .parent()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                };
                let by = users
                    .get(&package.id)
                    .map(|by| by.join(", "))
                    .unwrap_or_default();
                format!("  {} from {place}, for {by}", package.version)
            })
            .collect();
        bail!(
            "two versions of {name} would be linked, and their types differ:\n{}\nLet every crate depend on {name} = \
             \"VERSION\" without a path or URL; this build then gives it the {name} of this checkout",
            places.join("\n")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            manifest: String::new(),
            lock: String::new(),
            workspace: vec![("l4-core".to_owned(), "0.1.0".to_owned(), PathBuf::new())],
            families: None,
            modules: Vec::new(),
            replacements: Vec::new(),
            patches: Vec::new(),
        }
    }

    #[test]
    fn what_cargo_refuses_is_explained_with_a_remedy() {
        let asked = Asked {
            target: None,
            locked: true,
            offline: true,
        };
        for (cargo, said) in [
            (
                "error: failed to select a version for the requirement `l4-core = \"^0.3\"`\ncandidate versions found \
                 which didn't match: 0.1.0\nrequired by package `my-l4 v0.1.0 (/x)`",
                "two versions of l4-core: my-l4 v0.1.0 (/x) wants l4-core = \"^0.3\", this checkout has 0.1.0",
            ),
            (
                "error: failed to select a version for `serde`.\npackage depends on `serde` with feature `x` but `serde` \
                 does not have that feature.",
                "serde lacks a feature",
            ),
            (
                "error: failed to select a version for the requirement `serde = \"=9.9.9\"`\ncandidate versions found",
                "no version of serde fits",
            ),
            (
                "error: no matching package named `no-such` found",
                "--with no-such=DIRECTORY",
            ),
            (
                "error: cannot update the lock file because --locked was passed",
                "without --locked",
            ),
            ("error: whatever", "without --offline"),
        ] {
            let explained = explain(cargo, &recipe(), &asked);
            assert!(explained.contains(said), "{explained}");
        }
    }

    #[test]
    fn commits_are_told_from_tags_and_branches_by_asking_the_repository() {
        let dir = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(dir.path()).args([
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@example.com",
            ]);
            let said = shell::ask(command.args(args)).unwrap();
            assert!(said.success, "{}", said.stderr);
        };
        git(&["init", "--quiet", "--initial-branch", "main"]);
        git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
        git(&["tag", "v1"]);
        let url = format!("file://{}", dir.path().display());
        let kind = |reference: &str| git_reference(&url, Some(reference.to_owned()), false);
        assert_eq!(kind("v1").unwrap().unwrap(), "tag = \"v1\"");
        assert_eq!(kind("main").unwrap().unwrap(), "branch = \"main\"");
        assert_eq!(kind("28b5941a").unwrap().unwrap(), "rev = \"28b5941a\"");
        assert_eq!(git_reference(&url, None, false).unwrap(), None);
        let error = kind("none").unwrap_err().to_string();
        assert!(
            error.contains("no tag and no branch \"none\"; name a commit"),
            "{error}"
        );
        let error = git_reference("file:///no/such", None, false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("file:///no/such cannot be read; correct the URL"),
            "{error}"
        );
    }

    #[test]
    fn a_path_must_hold_the_crate_that_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: String| {
            let mut module = Module::parse(&text, dir.path()).unwrap();
            locate(&mut module, &[], true).unwrap_err().to_string()
        };
        assert!(refused("my-l4=none".to_owned()).ends_with("does not exist; correct the path"));
        std::fs::create_dir_all(dir.path().join("crate/src")).unwrap();
        assert!(
            refused("my-l4=crate".to_owned()).contains("has no Cargo.toml; name the directory")
        );
        let manifest = "[package]\nname = \"my-l4\"\nversion = \"0.1.0\"\n[features]\nfast = []\n[workspace]\n";
        std::fs::write(dir.path().join("crate/Cargo.toml"), manifest).unwrap();
        std::fs::write(dir.path().join("crate/src/lib.rs"), "").unwrap();
        assert!(refused("other=crate".to_owned()).contains("holds the crate my-l4; write my-l4="));
        assert!(
            refused("my-l4+slow=crate".to_owned()).contains("no feature \"slow\"; it has: fast")
        );
        let mut module = Module::parse("my-l4+fast=crate", dir.path()).unwrap();
        locate(&mut module, &[], true).unwrap();
        assert_eq!(
            module.source,
            Source::Path(dir.path().canonicalize().unwrap().join("crate"))
        );
    }
}
