//! The crate that joins `conncept` with crates of others.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::wanted::{Module, Source};

/// The name of the crate and of its binary. Not `conncept`: cargo puts both into the same directory.
pub(crate) const NAME: &str = "conncept-custom";

/// All that the crate is made from.
pub(crate) struct Recipe {
    /// The manifest of this checkout, for its profiles.
    pub(crate) manifest: String,
    /// The lock file of this checkout, or the one that was asked for.
    pub(crate) lock: String,
    /// The crates of this checkout that others may depend on, with their versions and directories.
    pub(crate) workspace: Vec<super::resolve::Ours>,
    /// Features of `conncept`; `None` is what it has by default.
    pub(crate) families: Option<Vec<String>>,
    pub(crate) modules: Vec<Module>,
    pub(crate) replacements: Vec<Module>,
    pub(crate) patches: Vec<Patch>,
}

/// An entry of a section `[patch.…]` that a crate of others has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    /// What is patched, as in the heading: `crates-io`, or a URL in quotes.
    pub(crate) registry: String,
    pub(crate) name: String,
    /// What stands behind the `=`, with absolute paths.
    pub(crate) value: String,
}

/// What is registered: known only once cargo has resolved the dependencies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) package: String,
    pub(crate) version: String,
    /// The function, such as `my_l4::register`.
    pub(crate) function: String,
}

impl Recipe {
    /// The directory below `parent` for this recipe: the same one every time, so that what cargo has found out and built
    /// stays of use.
    pub(crate) fn directory(&self, parent: &Path) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (self.cargo_toml(), &self.lock).hash(&mut hasher);
        parent.join(format!("{:016x}", hasher.finish()))
    }

    /// Writes the manifest and the lock file, the latter only if there is none: cargo adds to it.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory.join("src"))
            .with_context(|| format!("cannot make {}", directory.display()))?;
        write_if_new(&directory.join("Cargo.toml"), &self.cargo_toml())?;
        let lock = directory.join("Cargo.lock");
        if !lock.exists() {
            write_if_new(&lock, &self.lock)?;
        }
        let main = directory.join("src/main.rs");
        if !main.exists() {
            write_if_new(&main, "fn main() {}\n")?;
        }
        Ok(())
    }

    fn cargo_toml(&self) -> String {
        let mut text = format!(
            "# Made by `cargo xtask build`.\n\n\
             [package]\nname = \"{NAME}\"\nversion = \"0.0.0\"\nedition = \"2024\"\nlicense = \"{}\"\npublish = false\n\n\
             # A workspace of its own, wherever it lies.\n[workspace]\n\n[dependencies]\n",
            super::licence::OURS,
        );
        for (name, version, _) in &self.workspace {
            // What a module asks for must be the crate of this checkout: two versions of one crate share no type. Optional
            // ones are not built, they keep cargo from warning of patches that nothing uses.
            let _ = match (name.as_str(), &self.families) {
                ("conncept", Some(families)) => writeln!(
                    text,
                    "conncept = {{ version = {version:?}, default-features = false, features = {families:?} }}"
                ),
                ("conncept", None) => {
                    writeln!(
                        text,
                        "conncept = {{ version = {version:?}, features = [\"default\"] }}"
                    )
                }
                ("l4-core", _) => writeln!(text, "l4-core = {version:?}"),
                _ => writeln!(
                    text,
                    "{name} = {{ version = {version:?}, optional = true }}"
                ),
            };
        }
        for module in &self.modules {
            let _ = writeln!(text, "{} = {}", module.name, dependency(module));
        }
        let _ = write!(text, "\n[patch.{CRATES_IO}]\n");
        for (name, _, directory) in &self.workspace {
            let _ = writeln!(
                text,
                "{name} = {{ path = {:?} }}",
                directory.display().to_string()
            );
        }
        for module in &self.replacements {
            let _ = writeln!(text, "{} = {}", module.name, dependency(module));
        }
        self.write_patches(&mut text);
        text.push('\n');
        text.push_str(&profiles(&self.manifest));
        text
    }
}

impl Recipe {
    /// What others have patched, behind what this checkout patches: that goes first, as does --replace.
    fn write_patches(&self, text: &mut String) {
        let taken = |name: &str| {
            self.workspace.iter().any(|(ours, ..)| ours == name)
                || self.replacements.iter().any(|module| module.name == name)
        };
        let mut patches: Vec<&Patch> = self
            .patches
            .iter()
            .filter(|patch| !taken(&patch.name))
            .collect();
        // In the section that is open, then each other one as a whole.
        patches.sort_by_key(|patch| (patch.registry != CRATES_IO, patch.registry.clone()));
        let mut section = CRATES_IO;
        for patch in patches {
            if patch.registry != section {
                section = &patch.registry;
                let _ = write!(text, "\n[patch.{section}]\n");
            }
            let _ = writeln!(text, "{} = {}", patch.name, patch.value);
        }
    }
}

const CRATES_IO: &str = "crates-io";

/// The sections of a manifest that only count at the root of a workspace.
fn profiles(manifest: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.starts_with("[profile.");
        }
        if inside && !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn dependency(module: &Module) -> String {
    let mut parts = Vec::new();
    match &module.source {
        Source::Registry => {}
        Source::Path(path) => parts.push(format!("path = {:?}", path.display().to_string())),
        Source::Git { url, reference } => {
            parts.push(format!("git = {url:?}"));
            // `kind = "name"`, as the repository was asked.
            parts.extend(reference.clone());
        }
    }
    match (&module.version, &module.source) {
        (Some(version), _) => parts.push(format!("version = {version:?}")),
        (None, Source::Registry) => parts.push("version = \"*\"".to_owned()),
        (None, _) => {}
    }
    if !module.defaults {
        parts.push("default-features = false".to_owned());
    }
    if !module.features.is_empty() {
        parts.push(format!("features = {:?}", module.features));
    }
    format!("{{ {} }}", parts.join(", "))
}

/// The program: each crate enters its modules under its own name.
pub(crate) fn main_rs(registrations: &[Registration], licence: Option<&str>) -> String {
    let mut text = String::from(
        "//! Made by `cargo xtask build`: conncept and the modules of further crates.\n\n\
         use std::process::ExitCode;\n\nfn main() -> ExitCode {\n    conncept::Cli::new()\n",
    );
    for Registration {
        package,
        version,
        function,
    } in registrations
    {
        let _ = write!(
            text,
            "        .with(|reg| {{\n            reg.origin(l4_core::Origin {{ package: {package:?}, version: {version:?} \
             }});\n            {function}(reg);\n        }})\n"
        );
    }
    if let Some(licence) = licence {
        let _ = writeln!(text, "        .licence({licence:?})");
    }
    text.push_str("        .run()\n}\n");
    text
}

/// Leaves a file alone that is as it should be: cargo builds anew what was written anew.
pub(crate) fn write_if_new(file: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Refuses to generate into a directory with files of somebody else.
pub(crate) fn refuse_foreign(directory: &Path) -> Result<()> {
    let Ok(mut entries) = std::fs::read_dir(directory) else {
        return Ok(());
    };
    let ours = std::fs::read_to_string(directory.join("Cargo.toml"))
        .is_ok_and(|text| text.starts_with("# Made by `cargo xtask build`."));
    if entries.next().is_some() && !ours {
        bail!(
            "{} is not empty; name a directory that is, or that does not exist yet",
            directory.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let module = |text| Module::parse(text, Path::new("/here")).unwrap();
        let mut git = module("l4-git+fast=https://host/l4-git@v1");
        git.source = Source::Git {
            url: "https://host/l4-git".to_owned(),
            reference: Some("tag = \"v1\"".to_owned()),
        };
        Recipe {
            manifest: "[workspace]\nx = 1\n\n[profile.dev]\ndebug = 1\n\n# Small.\n[profile.dist]\nlto = \"fat\"\n\n\
                       [workspace.lints]\ny = 2\n"
                .to_owned(),
            lock: "version = 4\n".to_owned(),
            workspace: ["conncept", "l4-core", "l4-tls"]
                .map(|name| (name.to_owned(), "0.1.0".to_owned(), Path::new("/checkout").join(name)))
                .into(),
            families: Some(vec!["tls".to_owned()]),
            modules: vec![module("my-l4@1.2.3=/my l4"), git, module("l4-redis+!default@0.2")],
            replacements: vec![module("rustls=/fork")],
            patches: Vec::new(),
        }
    }

    #[test]
    fn the_manifest_patches_every_crate_of_the_checkout_and_copies_its_profiles() {
        let text = recipe().cargo_toml();
        for line in [
            "conncept = { version = \"0.1.0\", default-features = false, features = [\"tls\"] }",
            "l4-core = \"0.1.0\"",
            "l4-tls = { version = \"0.1.0\", optional = true }",
            "my-l4 = { path = \"/my l4\", version = \"=1.2.3\" }",
            "l4-git = { git = \"https://host/l4-git\", tag = \"v1\", features = [\"fast\"] }",
            "l4-redis = { version = \"0.2\", default-features = false }",
            "l4-core = { path = \"/checkout/l4-core\" }",
            "rustls = { path = \"/fork\" }",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(
            text.ends_with("[profile.dev]\ndebug = 1\n\n[profile.dist]\nlto = \"fat\"\n\n"),
            "{text}"
        );
    }

    #[test]
    fn patches_of_others_stand_behind_ours_and_replace_none() {
        let patch = |registry: &str, name: &str| Patch {
            registry: registry.to_owned(),
            name: name.to_owned(),
            value: "{ path = \"/theirs\" }".to_owned(),
        };
        let text = Recipe {
            patches: vec![
                patch("\"https://host/r\"", "a"),
                patch(CRATES_IO, "b"),
                patch(CRATES_IO, "l4-core"),
                patch(CRATES_IO, "rustls"),
            ],
            ..recipe()
        }
        .cargo_toml();
        let (_, behind) = text.split_once("rustls = { path = \"/fork\" }\n").unwrap();
        assert!(
            behind.starts_with(
                "b = { path = \"/theirs\" }\n\n[patch.\"https://host/r\"]\na = { path = \"/theirs\" }\n\n[profile.dev]"
            ),
            "{text}"
        );
    }

    #[test]
    fn without_families_the_build_has_what_conncept_has_by_default() {
        let all = Recipe {
            families: None,
            ..recipe()
        };
        let line = "conncept = { version = \"0.1.0\", features = [\"default\"] }";
        assert!(all.cargo_toml().lines().any(|l| l == line));
    }

    #[test]
    fn the_program_registers_each_crate_under_its_own_name() {
        let registration = Registration {
            package: "my-l4".to_owned(),
            version: "1.2.3".to_owned(),
            function: "my_l4::register".to_owned(),
        };
        let text = main_rs(&[registration], Some("GPL-3.0-or-later"));
        assert!(
            text.contains("package: \"my-l4\", version: \"1.2.3\""),
            "{text}"
        );
        assert!(text.contains("my_l4::register(reg);"), "{text}");
        assert!(
            text.contains(".licence(\"GPL-3.0-or-later\")\n        .run()"),
            "{text}"
        );
        assert!(!main_rs(&[], None).contains("licence"));
    }

    #[test]
    fn a_recipe_has_a_directory_of_its_own_and_keeps_what_cargo_added() {
        let parent = tempfile::tempdir().unwrap();
        let first = recipe().directory(parent.path());
        assert_eq!(first, recipe().directory(parent.path()));
        let other = Recipe {
            lock: String::new(),
            ..recipe()
        };
        assert_ne!(first, other.directory(parent.path()));

        recipe().write(&first).unwrap();
        std::fs::write(first.join("Cargo.lock"), "more").unwrap();
        std::fs::write(first.join("src/main.rs"), "better").unwrap();
        recipe().write(&first).unwrap();
        let read = |name: &str| std::fs::read_to_string(first.join(name)).unwrap();
        assert_eq!(
            (read("Cargo.lock"), read("src/main.rs")),
            ("more".to_owned(), "better".to_owned())
        );
        assert!(refuse_foreign(&first).is_ok());
        assert!(refuse_foreign(&parent.path().join("none")).is_ok());
        let error = refuse_foreign(parent.path()).unwrap_err().to_string();
        assert!(error.contains("is not empty; name a directory"), "{error}");
    }
}
