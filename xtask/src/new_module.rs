//! `cargo xtask new-module`: a crate with a matcher and a handler that builds in as it stands.
//!
//! The template is `examples/l4-hello` itself, so it can neither rot nor differ from what CI builds and tests.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::build::family_called;
use crate::shell::root;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to put it; the last part is the name of the crate, such as `../l4-gopher`.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// The name of the crate that is the template, and of its modules.
const TEMPLATE: (&str, &str) = ("l4-hello", "hello");

macro_rules! template {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../examples/l4-hello/", $file)))),*]
    };
}

const FILES: &[(&str, &[u8])] = template![
    ".cargo/config.toml",
    ".gitignore",
    "Cargo.toml",
    "README.md",
    "examples/conncept.rs",
    "l4.json",
    "src/greeting.rs",
    "src/handler.rs",
    "src/lib.rs",
    "src/matcher.rs",
    "testdata/README.md",
    "testdata/alice.bin",
    "tests/route.rs",
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let directory = std::path::absolute(&args.directory)?;
    let name = directory
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    let module = check_name(&name)?;
    if std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some())
        || directory.is_file()
    {
        bail!(
            "{} exists already; name a directory that does not",
            directory.display()
        );
    }
    for (file, text) in rendered(&name, &module, &root().display().to_string()) {
        let path = directory.join(file);
        let parent = path.parent().unwrap_or(&directory);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .with_context(|| format!("cannot write {}; choose another place", path.display()))?;
    }
    // The versions that everything here was tested with.
    let _ = std::fs::copy(root().join("Cargo.lock"), directory.join("Cargo.lock"));
    println!(
        "{0}: a crate with the matcher and the handler {module}.\n\n\
         cd {0}\n\
         cargo test\n\
         cargo xtask run -- run --config l4.json\n\
         cargo xtask build --with {name}=. --output conncept\n\n\
         Begin in src/greeting.rs. docs/writing-modules.md explains the rest.",
        directory.display()
    );
    Ok(())
}

/// The name of the modules in the crate `name`: without what says that it is one for Conncept.
fn check_name(name: &str) -> Result<String> {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(sound) {
        bail!(
            "{name:?} is no name for a crate; end the path with lower-case letters, digits and hyphens: l4-gopher"
        );
    }
    let module = name
        .strip_prefix("l4-")
        .or_else(|| name.strip_suffix("-l4"))
        .unwrap_or(name);
    let module = module.replace('-', "_");
    if let Some(taken) = family_called(&module)? {
        bail!("conncept has modules called {taken} already; choose another name than {name}");
    }
    Ok(module)
}

/// The files of a crate `name` whose modules are called `module`, with the checkout of Conncept in `checkout`.
fn rendered<'a>(
    name: &'a str,
    module: &'a str,
    checkout: &'a str,
) -> impl Iterator<Item = (&'static str, Vec<u8>)> + 'a {
    FILES.iter().map(move |(file, text)| {
        let Ok(text) = std::str::from_utf8(text).map(str::to_owned) else {
            return (*file, text.to_vec());
        };
        // Modules are named in quotes or as code.
        let quoted = |text: String, quote: char| {
            text.replace(
                &format!("{quote}{}{quote}", TEMPLATE.1),
                &format!("{quote}{module}{quote}"),
            )
        };
        let text = text
            .replace(TEMPLATE.0, name)
            .replace(&TEMPLATE.0.replace('-', "_"), &name.replace('-', "_"))
            .replace("\"../..", &format!("\"{checkout}"));
        (*file, quoted(quoted(text, '"'), '`').into_bytes())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn files_below(directory: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.path().is_dir() && name != "target" {
                files_below(&entry.path(), &format!("{name}/"), found);
            } else if name != "target" && name != "Cargo.lock" {
                found.insert(name);
            }
        }
    }

    #[test]
    fn the_example_is_what_a_new_module_gets() {
        let example = root().join("examples/l4-hello");
        let mut found = BTreeSet::new();
        files_below(&example, "", &mut found);
        let listed: BTreeSet<String> = FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
        assert_eq!(listed, found);
        for (file, text) in rendered("l4-hello", "hello", "../..") {
            assert_eq!(text, std::fs::read(example.join(file)).unwrap(), "{file}");
        }
    }

    #[test]
    fn nothing_of_the_templates_name_is_left() {
        for (file, text) in rendered("my-gopher-l4", "my_gopher", "/checkout") {
            let text = String::from_utf8_lossy(&text);
            for left in ["l4-hello", "l4_hello", "\"hello\"", "`hello`", "\"../.."] {
                assert!(!text.contains(left), "{left} in {file}");
            }
        }
        let manifest = rendered("my-gopher-l4", "my_gopher", "/checkout")
            .find(|(file, _)| *file == "Cargo.toml")
            .map(|(_, text)| String::from_utf8(text).unwrap())
            .unwrap();
        assert!(manifest.contains("name = \"my-gopher-l4\""), "{manifest}");
        assert!(
            manifest.contains("path = \"/checkout/crates/l4-core\""),
            "{manifest}"
        );
        let alias = rendered("my-gopher-l4", "my_gopher", "/checkout")
            .find(|(file, _)| *file == ".cargo/config.toml")
            .map(|(_, text)| String::from_utf8(text).unwrap())
            .unwrap();
        assert!(
            alias.contains("\"--manifest-path\", \"/checkout/Cargo.toml\""),
            "{alias}"
        );
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        assert_eq!(check_name("l4-gopher").unwrap(), "gopher");
        assert_eq!(check_name("big-gopher-l4").unwrap(), "big_gopher");
        for name in ["", "Gopher", "a b", "1a", "é"] {
            let error = check_name(name).unwrap_err().to_string();
            assert!(
                error.contains("end the path with lower-case letters"),
                "{error}"
            );
        }
        let error = check_name("l4-tls").unwrap_err().to_string();
        assert!(error.contains("has modules called tls already"), "{error}");
    }

    #[test]
    fn every_namespace_is_on_the_page_about_modules() {
        let page = std::fs::read_to_string(root().join("docs/writing-modules.md")).unwrap();
        let mut sources = BTreeSet::new();
        files_below(&root().join("crates"), "", &mut sources);
        let mut count = 0;
        for source in sources.iter().filter(|name| name.ends_with(".rs")) {
            let text = std::fs::read_to_string(root().join("crates").join(source)).unwrap();
            // A comment may show one by example.
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                let Some((_, rest)) = line.split_once("const NAMESPACE: &'static str = \"") else {
                    continue;
                };
                let namespace = rest.split('"').next().unwrap();
                // Tests have namespaces of their own.
                if source.contains("/src/") && !source.contains("/tests") && !namespace.is_empty() {
                    assert!(
                        page.contains(&format!("| `{namespace}` |")),
                        "{namespace} of {source}"
                    );
                    count += 1;
                }
            }
        }
        assert!(count >= 9, "{count} namespaces found");
    }
}
