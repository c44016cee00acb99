//! What stands behind `--with` and `--replace`: `NAME[+feature][@VERSION][=SOURCE]`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::semver::{Version, VersionReq};

/// The name for a build with nothing but the modules that every build has.
pub(crate) const NONE: &str = "none";

/// Everything that was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Features of `conncept`; `None` is what it has by default.
    pub(crate) families: Option<Vec<String>>,
    /// Crates of others.
    pub(crate) crates: Vec<Module>,
}

/// A crate with modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) features: Vec<String>,
    /// Whether its default features are on.
    pub(crate) defaults: bool,
    /// A requirement in cargo's sense.
    pub(crate) version: Option<String>,
    pub(crate) source: Source,
}

/// Where a crate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Registry,
    Path(PathBuf),
    Git {
        url: String,
        /// A commit, tag or branch; which of them is found out by asking the repository.
        reference: Option<String>,
    },
}

impl Wanted {
    /// Reads the values of `--with`. `families` are the features of `conncept`, `directory` is where paths start.
    pub(crate) fn parse(with: &[String], families: &[String], directory: &Path) -> Result<Self> {
        let mut wanted = Self::default();
        for text in with {
            let text = text.trim();
            let plain = !text.contains(['=', '@', '+']);
            let name = text.split(['=', '@', '+']).next().unwrap_or_default();
            if plain && name == NONE {
                wanted.families.get_or_insert_default();
            } else if families.iter().any(|family| family == name) {
                if !plain {
                    bail!(
                        "--with {text}: {name} is a module family of conncept and comes from this checkout; write \
                         --with {name}"
                    );
                }
                let chosen = wanted.families.get_or_insert_default();
                if chosen.iter().any(|family| family == name) {
                    bail!("--with {name} is given twice; remove one of them");
                }
                chosen.push(name.to_owned());
            } else {
                let module = Module::parse(text, directory)?;
                if plain {
                    refuse_likeness(name, families)?;
                }
                if wanted.crates.iter().any(|other| same(&other.name, name)) {
                    bail!("--with {name} is given twice; remove one of them");
                }
                wanted.crates.push(module);
            }
        }
        Ok(wanted)
    }
}

impl Module {
    pub(crate) fn parse(text: &str, directory: &Path) -> Result<Self> {
        let (left, source) = match text.split_once('=') {
            Some((left, source)) => (left, Some(source)),
            None => (text, None),
        };
        let (names, version) = match left.rsplit_once('@') {
            Some((names, version)) => (names, Some(version)),
            None => (left, None),
        };
        let mut names = names.split('+');
        let name = names.next().unwrap_or_default();
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || !name.chars().all(sound) {
            bail!(
                "{text:?} names no crate; write NAME[+FEATURE][@VERSION][=SOURCE], such as my-l4=../my-l4, l4-redis@0.2 \
                 or l4-x=https://host/l4-x.git@v1"
            );
        }
        let mut module = Self {
            name: name.to_owned(),
            features: Vec::new(),
            defaults: true,
            version: version.map(requirement).transpose()?,
            source: match source {
                Some(source) => Source::parse(name, source, directory)?,
                None => Source::Registry,
            },
        };
        for feature in names {
            match feature {
                "" => bail!("{text:?} has a + without a feature behind it; write {name}+FEATURE"),
                "!default" => module.defaults = false,
                feature => module.features.push(feature.to_owned()),
            }
        }
        Ok(module)
    }
}

impl Source {
    fn parse(name: &str, text: &str, directory: &Path) -> Result<Self> {
        let text = text.trim_end_matches('/');
        if text.is_empty() {
            bail!(
                "nothing stands behind the = of {name}; write a directory or the URL of a repository"
            );
        }
        let url = text.strip_prefix("git+").unwrap_or(text);
        if !url.contains("://") {
            return Ok(Self::Path(directory.join(text)));
        }
        // Only behind the last slash, as an @ may stand in front of the host.
        let end = url.rfind('/').unwrap_or(0);
        let (url, reference) = match url[end..].rfind('@') {
            Some(at) => (&url[..end + at], Some(&url[end + at + 1..])),
            None => (url, None),
        };
        if reference == Some("") {
            bail!("nothing stands behind the @ of {text}; write a commit, a tag or a branch");
        }
        Ok(Self::Git {
            url: url.to_owned(),
            reference: reference.map(str::to_owned),
        })
    }
}

/// A whole version means just that one, as it does for Go; anything else is a requirement in cargo's sense.
fn requirement(text: &str) -> Result<String> {
    if Version::parse(text).is_ok() {
        return Ok(format!("={text}"));
    }
    VersionReq::parse(text).with_context(|| {
        format!(
            "{text:?} is not a version; write 1.2.3 for just that one, or ^1.2 for any that fits"
        )
    })?;
    Ok(text.to_owned())
}

/// Refuses what is rather a misspelt family than the name of a crate: whatever a registry has under such a name would
/// run its build script here.
fn refuse_likeness(name: &str, families: &[String]) -> Result<()> {
    let plain = name.strip_prefix("l4-").unwrap_or(name);
    let near = families
        .iter()
        .map(|family| (distance(&folded(plain), &folded(family)), family))
        .min()
        // Of three letters two can be any.
        .filter(|(distance, family)| *distance <= if family.len() > 3 { 2 } else { 1 });
    match near {
        Some((_, near)) => bail!(
            "there is no module family {name:?}; did you mean {near}? There are: {}. For the crate {name} of crates.io \
             write --with {name}@VERSION",
            families.join(", ")
        ),
        None => Ok(()),
    }
}

/// Whether two names are the same crate to cargo's registries.
fn same(a: &str, b: &str) -> bool {
    folded(a) == folded(b)
}

fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// Edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: &[&str] = &["tls", "ssh", "proxy", "proxy_protocol"];

    fn wanted(with: &[&str]) -> Result<Wanted> {
        let owned =
            |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
        Wanted::parse(&owned(with), &owned(FAMILIES), Path::new("/here"))
    }

    fn module(text: &str) -> Module {
        Module::parse(text, Path::new("/here")).unwrap()
    }

    fn refusal(with: &[&str]) -> String {
        wanted(with).unwrap_err().to_string()
    }

    #[test]
    fn names_of_families_are_features_and_all_others_crates() {
        assert_eq!(wanted(&[]).unwrap(), Wanted::default());
        let both = wanted(&["tls", "my-l4", "proxy"]).unwrap();
        assert_eq!(both.families.unwrap(), ["tls", "proxy"]);
        assert_eq!(both.crates, [module("my-l4")]);
        assert_eq!(wanted(&["my-l4"]).unwrap().families, None);
        assert_eq!(wanted(&["none", "my-l4"]).unwrap().families, Some(vec![]));
    }

    #[test]
    fn a_crate_may_have_features_a_version_and_a_source() {
        let plain = module("my-l4");
        assert_eq!(plain.source, Source::Registry);
        assert!(plain.defaults && plain.features.is_empty() && plain.version.is_none());

        let all = module("my-l4+fast+!default@1.2.3=../my-l4/");
        assert_eq!(all.name, "my-l4");
        assert_eq!(all.features, ["fast"]);
        assert!(!all.defaults);
        assert_eq!(all.version.as_deref(), Some("=1.2.3"));
        assert_eq!(all.source, Source::Path("/here/../my-l4".into()));
        assert_eq!(module("a=/abs").source, Source::Path("/abs".into()));
    }

    #[test]
    fn a_whole_version_is_exact_and_a_shorter_one_is_a_requirement() {
        for (text, version) in [
            ("a@0.2", "0.2"),
            ("a@^1.2.3", "^1.2.3"),
            ("a@1.2.3-rc.1", "=1.2.3-rc.1"),
        ] {
            assert_eq!(module(text).version.as_deref(), Some(version));
        }
        let error = format!(
            "{:#}",
            Module::parse("a@newest", Path::new("/")).unwrap_err()
        );
        assert!(
            error.contains(r#""newest" is not a version; write 1.2.3"#),
            "{error}"
        );
    }

    #[test]
    fn what_follows_the_at_of_a_url_is_a_reference() {
        let git = |url: &str, reference: Option<&str>| Source::Git {
            url: url.to_owned(),
            reference: reference.map(str::to_owned),
        };
        for (text, source) in [
            ("a=https://host/a.git", git("https://host/a.git", None)),
            ("a=git+https://host/a@v1", git("https://host/a", Some("v1"))),
            ("a=ssh://git@host/a.git", git("ssh://git@host/a.git", None)),
            (
                "a@1.2.3=ssh://git@host/a@main",
                git("ssh://git@host/a", Some("main")),
            ),
        ] {
            assert_eq!(module(text).source, source, "{text}");
        }
    }

    #[test]
    fn a_misspelt_family_is_refused_instead_of_fetched() {
        for (name, meant) in [
            ("proxi", "proxy"),
            ("TLS", "tls"),
            ("tlss", "tls"),
            ("proxy-protocol", "proxy_protocol"),
            ("l4-ssh", "ssh"),
        ] {
            let error = refusal(&[name]);
            assert!(error.contains(&format!("did you mean {meant}?")), "{error}");
            assert!(
                error.contains(&format!("write --with {name}@VERSION")),
                "{error}"
            );
        }
        // Who names a source or a version means a crate.
        assert!(wanted(&["proxi@0.1"]).is_ok());
        assert!(wanted(&["proxi=../proxi"]).is_ok());
        assert!(wanted(&["quantum"]).is_ok());
        assert!(wanted(&["abc"]).is_ok());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_write() {
        for (with, said) in [
            (&["tls", "tls"][..], "--with tls is given twice"),
            (&["a_b=/x", "a-b=/y"], "--with a-b is given twice"),
            (&["tls=../tls"], "write --with tls"),
            (&["tls@1"], "write --with tls"),
            (&[""], "names no crate; write NAME"),
            (&["=../x"], "names no crate; write NAME"),
            (&["a b"], "names no crate; write NAME"),
            (&["a+=/x"], "write a+FEATURE"),
            (&["a="], "write a directory or the URL"),
            (&["a=https://host/a@"], "write a commit, a tag or a branch"),
        ] {
            let error = refusal(with);
            assert!(error.contains(said), "{with:?}: {error}");
        }
    }
}
