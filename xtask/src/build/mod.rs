//! `cargo xtask build`: a binary with just the modules that are wanted, our own and those of other crates.
//!
//! `wanted` reads what was asked for, `from` reads it off a configuration. Families of our own are features of `conncept`
//! and nothing more; for crates of others `generated` writes a crate that joins them, and `resolve` has cargo find them.
//! `compile` builds, `licence` says what the result may be passed on under.

mod compile;
mod from;
mod generated;
pub(crate) mod licence;
mod resolve;
mod setcap;
mod wanted;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Metadata;

use self::compile::Output;
pub(crate) use self::generated::Patch;
use self::generated::{Recipe, Registration};
use self::resolve::Asked;
use self::setcap::Setcap;
use self::wanted::{Module, Wanted};
use crate::features;
use crate::shell::{cargo, root};

/// The set of families that is for machines with little room.
const TINY: &str = "tiny";

#[derive(clap::Args, Default)]
#[command(
    after_help = "NAME is a module family (cargo xtask build --list), `none` for nothing but the modules that \
    every build has, or a crate: NAME[+FEATURE][@VERSION][=SOURCE]. +!default leaves its default features out, 1.2.3 \
    means just that version, SOURCE is a directory or the URL of a git repository, with @REF for a commit, tag or \
    branch. Without a family: all of them."
)]
pub(crate) struct Args {
    /// What to build in, such as `tls,ssh` or `my-l4=../my-l4`; may be given several times.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    with: Vec<String>,
    /// Build in exactly the module families that this configuration uses, beside those of --with.
    #[arg(long, value_name = "CONFIG.json")]
    from: Option<PathBuf>,
    /// Take a dependency from another place: `rustls=../rustls`. Nothing is plugged in.
    #[arg(long, value_name = "NAME=SOURCE", value_delimiter = ',')]
    replace: Vec<String>,
    /// Where to put the binary. Default: `conncept` in the current directory.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The cargo profile: `dist` and, smaller, `small` are slow to build, `release` is not. Default: `dist`, or `small`
    /// with `tiny`.
    #[arg(long)]
    profile: Option<String>,
    /// Build for another target. Default: CARGO_BUILD_TARGET, or this machine.
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Fail rather than choose versions that the lock file does not have.
    #[arg(long)]
    locked: bool,
    /// Do not use the network.
    #[arg(long)]
    offline: bool,
    /// Begin with this lock file instead of the one of this checkout.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Say where the generated crate is. It stays there until `cargo clean`.
    #[arg(long)]
    keep: bool,
    /// Write the generated crate into this directory and build nothing.
    #[arg(long, value_name = "DIR")]
    generate_only: Option<PathBuf>,
    /// Let the binary listen on ports below 1024 without being run by root. Asks sudo, unless run by root.
    #[arg(long, conflicts_with = "generate_only")]
    setcap: bool,
    /// List the module families, and the names for several of them, and end.
    #[arg(long)]
    list: bool,
    /// Passed on to `cargo build`.
    #[arg(last = true)]
    cargo: Vec<String>,
    /// What a crate that is built in has patched.
    #[arg(skip)]
    patches: Vec<Patch>,
}

impl Args {
    fn target(&self) -> Option<String> {
        let variable = || std::env::var("CARGO_BUILD_TARGET").ok();
        self.target.clone().or_else(variable)
    }

    fn profile(&self, wanted: &Wanted) -> &str {
        let tiny = || wanted.families.iter().flatten().any(|name| name == TINY);
        match &self.profile {
            Some(profile) => profile,
            None if tiny() => "small",
            None => "dist",
        }
    }

    fn asked<'a>(&self, target: Option<&'a str>) -> Asked<'a> {
        Asked {
            target,
            locked: self.locked,
            offline: self.offline,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let workspace = features::metadata()?;
    let families = features::names(&workspace)?;
    if args.list {
        print!("{}", list(&features::table(&workspace)?));
        return Ok(());
    }
    let target = args.target();
    let output = Output::prepare(args.output.as_deref(), target.as_deref())?;
    if let Some(target) = &target {
        compile::check_target(target)?;
    }
    let setcap = match args.setcap {
        true => Some(Setcap::find(target.as_deref())?),
        false => None,
    };
    let here = std::env::current_dir()?;
    let mut wanted = Wanted::parse(&args.with, &families, &here)?;
    if let Some(file) = &args.from {
        let chosen = wanted.families.get_or_insert_default();
        add(chosen, from::named(file, &families)?);
    }
    loop {
        let built = build(args, &workspace, &wanted, &output)?;
        let Some((binary, summary)) = built else {
            return Ok(());
        };
        if let (Some(file), Some(said)) = (&args.from, &binary.validated) {
            let chosen = wanted.families.get_or_insert_default();
            let missing = from::missing(file, said)?;
            if add(chosen, missing.clone()) {
                eprintln!("{} uses {} as well", file.display(), missing.join(", "));
                continue;
            }
            if !said.success {
                eprintln!(
                    "warning: every module is there, but {} does not load on this machine:\n{}",
                    file.display(),
                    said.stderr.trim()
                );
            }
        }
        if let Some(setcap) = &setcap {
            output.set_capability(setcap)?;
        }
        output.finish(&binary)?;
        eprintln!(
            "\n{}: {:.1} MiB{}, {:.1} s\nmodule families: {}{}\nlicence: {}",
            output.path().display(),
            binary.size as f64 / (1024.0 * 1024.0),
            match binary.modules {
                Some(count) => format!(", {count} modules"),
                None => String::new(),
            },
            started.elapsed().as_secs_f64(),
            match wanted.families.as_deref() {
                None => "all".to_owned(),
                Some([]) => "none but those of every build".to_owned(),
                Some(families) => families.join(", "),
            },
            summary.crates,
            summary.licence,
        );
        if let Some(version) = &binary.version {
            eprintln!("version: {version}");
        }
        return Ok(());
    }
}

/// What `cargo xtask run` builds.
pub(crate) struct ForRunning {
    /// As after `--with`.
    pub(crate) with: Vec<String>,
    pub(crate) profile: String,
    pub(crate) offline: bool,
    pub(crate) patches: Vec<Patch>,
}

/// Builds a program to run at once, and says where cargo has put it.
pub(crate) fn program(wanted: ForRunning) -> Result<PathBuf> {
    let workspace = features::metadata()?;
    let args = Args {
        with: wanted.with,
        profile: Some(wanted.profile),
        offline: wanted.offline,
        patches: wanted.patches,
        ..Args::default()
    };
    let families = features::names(&workspace)?;
    let wanted = Wanted::parse(&args.with, &families, &std::env::current_dir()?)?;
    let Some(built) = compiled(&args, &workspace, &wanted)? else {
        bail!("nothing was built");
    };
    compile::Binary::asked(&built.binary, None)?.check(&built.registrations)?;
    Ok(built.binary)
}

/// A family a line, then what the names of several stand for.
fn list(features: &features::Table) -> String {
    let is_set = |parts: &[String]| parts.iter().all(|part| features.contains_key(part));
    let (sets, families): (Vec<_>, Vec<_>) = features
        .iter()
        .filter(|(name, _)| *name != "default")
        .partition(|(_, parts)| is_set(parts));
    let mut text: String = families
        .iter()
        .map(|(name, _)| format!("{name}\n"))
        .collect();
    for (name, parts) in sets {
        // `full` is the default, which is a name for cargo only.
        let parts = match parts.as_slice() {
            [one] if one == "default" => &features[one],
            parts => parts,
        };
        text.push_str(&format!("{name}: {}\n", parts.join(", ")));
    }
    text
}

/// The module family of that name, if there is one.
pub(crate) fn family_called(name: &str) -> Result<Option<String>> {
    let families = features::names(&features::metadata()?)?;
    Ok(families.into_iter().find(|family| family == name))
}

/// Adds what is not there yet; whether anything was.
fn add(chosen: &mut Vec<String>, further: Vec<String>) -> bool {
    let before = chosen.len();
    for family in further {
        if !chosen.contains(&family) {
            chosen.push(family);
        }
    }
    chosen.len() > before
}

/// What is said about a build at its end.
struct Summary {
    crates: String,
    licence: String,
}

/// Builds once, into a file beside the output. `None` if nothing was to be built.
fn build(
    args: &Args,
    workspace: &Metadata,
    wanted: &Wanted,
    output: &Output,
) -> Result<Option<(compile::Binary, Summary)>> {
    let Some(built) = compiled(args, workspace, wanted)? else {
        return Ok(None);
    };
    let target = args.target();
    let binary = output.take(&built.binary, target.as_deref(), args.from.as_deref())?;
    binary.check(&built.registrations)?;

    let (licence, because) = linked_licence(&built.selection, &args.asked(target.as_deref()))?;
    let crates: Vec<String> = built
        .registrations
        .iter()
        .map(|registration| format!("{} {}", registration.package, registration.version))
        .collect();
    Ok(Some((
        binary,
        Summary {
            crates: match crates.is_empty() {
                true => String::new(),
                false => format!("\ncrates: {}", crates.join(", ")),
            },
            licence: match because.is_empty() {
                true => licence,
                false => format!("{licence} (because of {})", because.join(", ")),
            },
        },
    )))
}

/// What cargo has built.
struct Compiled {
    /// Where cargo has put it.
    binary: PathBuf,
    /// How cargo was told what to build.
    selection: Vec<String>,
    registrations: Vec<Registration>,
}

/// Has cargo build what is wanted. `None` if nothing was to be built.
fn compiled(args: &Args, workspace: &Metadata, wanted: &Wanted) -> Result<Option<Compiled>> {
    let target = args.target();
    let asked = args.asked(target.as_deref());
    let generated = !wanted.crates.is_empty()
        || !args.replace.is_empty()
        || args.lock.is_some()
        || args.generate_only.is_some();
    let (selection, name, registrations) = if generated {
        let (directory, registrations) = generate(args, workspace, wanted, &asked)?;
        if args.generate_only.is_some() {
            eprintln!(
                "{}: build it with cargo build --profile {}",
                directory.display(),
                args.profile(wanted)
            );
            return Ok(None);
        }
        if args.keep {
            eprintln!("generated crate: {}", directory.display());
        }
        let manifest = directory.join("Cargo.toml").display().to_string();
        (
            vec!["--manifest-path".to_owned(), manifest],
            generated::NAME,
            registrations,
        )
    } else {
        let mut selection = vec!["--package".to_owned(), "conncept".to_owned()];
        if let Some(families) = &wanted.families {
            selection.extend([
                "--no-default-features".to_owned(),
                "--features".to_owned(),
                families.join(","),
            ]);
        }
        (selection, "conncept", Vec::new())
    };
    let mut command = cargo();
    command
        .arg("build")
        .args(&selection)
        .args(["--bin", name, "--profile", args.profile(wanted)])
        .arg("--target-dir")
        .arg(&workspace.target_directory);
    asked.pass_on(&mut command);
    let binary = compile::run(command.args(&args.cargo), name, &registrations)?;
    Ok(Some(Compiled {
        binary,
        selection,
        registrations,
    }))
}

fn linked_licence(selection: &[String], asked: &Asked<'_>) -> Result<(String, Vec<String>)> {
    let mut tree = cargo();
    tree.arg("tree").args(selection);
    asked.pass_on(&mut tree);
    Ok(licence::effective(&licence::parts(&mut tree)?))
}

/// Writes the crate that joins ours and others; says where it is and what it registers.
fn generate(
    args: &Args,
    workspace: &Metadata,
    wanted: &Wanted,
    asked: &Asked<'_>,
) -> Result<(PathBuf, Vec<Registration>)> {
    let here = std::env::current_dir()?;
    let ours = resolve::ours(workspace);
    let mut modules = wanted.crates.clone();
    for module in &mut modules {
        if let Some((name, ..)) = ours.iter().find(|(name, ..)| *name == module.name) {
            bail!(
                "--with {name}: that crate is part of this checkout; its modules come with a module family \
                 (cargo xtask build --list)"
            );
        }
        resolve::locate(module, &ours, asked.offline)?;
    }
    let mut replacements = Vec::new();
    for text in &args.replace {
        let mut module = Module::parse(text, &here)?;
        if module.source == wanted::Source::Registry {
            bail!("--replace {text} does not say by what; write --replace {text}=SOURCE");
        }
        if ours.iter().any(|(name, ..)| *name == module.name) {
            bail!(
                "--replace {text}: {} is part of this checkout; change it here, or run cargo xtask build in the \
                 checkout that has the other one",
                module.name
            );
        }
        resolve::locate(&mut module, &ours, asked.offline)?;
        replacements.push(module);
    }
    let lock_file = match &args.lock {
        Some(file) => file.clone(),
        None => root().join("Cargo.lock"),
    };
    let recipe = Recipe {
        manifest: read(&root().join("Cargo.toml"))?,
        lock: read(&lock_file)?,
        workspace: ours,
        families: wanted.families.clone(),
        modules,
        replacements,
        patches: args.patches.clone(),
    };
    let directory = match &args.generate_only {
        Some(directory) => {
            let directory = std::path::absolute(directory)?;
            generated::refuse_foreign(&directory)?;
            directory
        }
        None => recipe.directory(&workspace.target_directory.as_std_path().join("xtask")),
    };
    recipe.write(&directory)?;
    eprintln!("resolving the crates that are asked for");
    let registrations = resolve::registrations(&directory, &recipe, asked)?;
    let manifest = directory.join("Cargo.toml").display().to_string();
    let (licence, because) = linked_licence(&["--manifest-path".to_owned(), manifest], asked)?;
    let licence = (!because.is_empty()).then_some(licence.as_str());
    generated::write_if_new(
        &directory.join("src/main.rs"),
        &generated::main_rs(&registrations, licence),
    )?;
    Ok((directory, registrations))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_not_built_is_given_no_capability() {
        let kind = |line: &[&str]| Line::try_parse_from(line).err().map(|error| error.kind());
        assert_eq!(
            kind(&["build", "--setcap", "--generate-only", "there"]),
            Some(ErrorKind::ArgumentConflict)
        );
        assert_eq!(kind(&["build", "--setcap"]), None);
        let line = Line::try_parse_from(["build", "--generate-only", "there"]).ok();
        assert_eq!(
            line.and_then(|line| line.args.generate_only),
            Some(PathBuf::from("there"))
        );
    }
}
