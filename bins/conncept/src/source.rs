//! Where the text of the configuration comes from.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use l4_core::config::ConfigError;

/// The most that is read of a configuration: an endless stream must not fill the memory.
const LIMIT: u64 = 256 * 1024 * 1024;

/// Where the text of the configuration comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file that can be read again.
    File(PathBuf),
    /// Something that can be read once: standard input or a pipe.
    Stream(Option<PathBuf>),
    /// The configuration that comes with the program.
    Embedded,
}

/// The text of a configuration and the name it goes by in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    /// What the flags `--config` and `--adapter` ask for; nothing if they ask for no file.
    ///
    /// # Errors
    /// A sentence about an adapter that does not exist.
    pub(crate) fn from_flags(
        config: Option<PathBuf>,
        adapter: Option<&str>,
    ) -> Result<Option<Self>, String> {
        let Some(path) = config else {
            return match adapter {
                None => Ok(None),
                Some(_) => Err("cannot adapt config without config file (use --config)".to_owned()),
            };
        };
        let adapter = adapter.or_else(|| is_caddyfile(&path).then_some("caddyfile"));
        match adapter {
            None | Some("" | "json") => {}
            Some(name) => {
                return Err(format!(
                    "unrecognized config adapter: {name}; this build reads JSON, which an adapter of the reference can \
                     write: caddy adapt --config {}",
                    path.display()
                ));
            }
        }
        let once = match std::fs::metadata(&path) {
            _ if path == Path::new("-") => return Ok(Some(Self::Stream(None))),
            // What cannot be looked at is reported when it is read.
            Ok(metadata) => !metadata.is_file() && !metadata.is_dir(),
            Err(_) => false,
        };
        Ok(Some(match once {
            true => Self::Stream(Some(path)),
            false => Self::File(path),
        }))
    }

    /// Reads it. Blocks; a stream until its end.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn read(&self, embedded: impl FnOnce() -> String) -> Result<Text, ConfigError> {
        let name = self.name();
        let bytes = match self {
            Self::Embedded => Ok(embedded().into_bytes()),
            Self::Stream(None) => read(io::stdin().lock()),
            Self::File(path) | Self::Stream(Some(path)) => File::open(path).and_then(read),
        };
        match bytes {
            Ok(bytes) if bytes.len() as u64 > LIMIT => Err(ConfigError::without_place(
                name,
                format!("the configuration is longer than {} MiB", LIMIT >> 20),
            )),
            Ok(bytes) => Ok(Text { name, bytes }),
            Err(error) => Err(unreadable(name, &error)),
        }
    }

    /// What messages call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File(path) | Self::Stream(Some(path)) => path.display().to_string(),
            Self::Stream(None) => "stdin".to_owned(),
            Self::Embedded => "embedded default".to_owned(),
        }
    }

    /// Whether reading it again makes sense.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

fn read(from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(name: String, error: &io::Error) -> ConfigError {
    let (message, help) = match error.kind() {
        io::ErrorKind::NotFound => (
            "the file does not exist",
            "give the path of a JSON file with --config, or - for standard input",
        ),
        io::ErrorKind::IsADirectory => (
            "this is a directory",
            "give the path of the JSON file in it",
        ),
        io::ErrorKind::PermissionDenied => (
            "the file may not be read: permission denied",
            "make it readable for the user that conncept runs as",
        ),
        _ => {
            return ConfigError::without_place(name, format!("the file cannot be read: {error}"));
        }
    };
    ConfigError::without_place(name, message).help(help)
}

/// The file names that the reference takes for a Caddyfile.
fn is_caddyfile(path: &Path) -> bool {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    (name.starts_with("caddyfile") || name.ends_with(".caddyfile")) && !name.ends_with(".json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(config: Option<&str>, adapter: Option<&str>) -> Result<Option<Source>, String> {
        Source::from_flags(config.map(PathBuf::from), adapter)
    }

    #[test]
    fn flags_choose_the_source() {
        assert!(matches!(flags(None, None), Ok(None)));
        assert!(matches!(
            flags(Some("-"), None),
            Ok(Some(Source::Stream(None)))
        ));
        assert!(matches!(
            flags(Some("-"), Some("json")),
            Ok(Some(Source::Stream(None)))
        ));
        assert!(matches!(
            flags(Some("x.json"), None),
            Ok(Some(Source::File(_)))
        ));
        assert!(matches!(
            flags(Some("/dev/null"), None),
            Ok(Some(Source::Stream(Some(_))))
        ));
    }

    #[test]
    fn adapters_that_do_not_exist_are_named() {
        assert_eq!(
            flags(None, Some("json")).unwrap_err(),
            "cannot adapt config without config file (use --config)"
        );
        let said = |config, adapter| flags(Some(config), adapter).unwrap_err();
        assert!(said("x", Some("yaml")).starts_with("unrecognized config adapter: yaml"));
        for name in ["Caddyfile", "dir/caddyfile.d", "site.CADDYFILE"] {
            assert!(said(name, None).starts_with("unrecognized config adapter: caddyfile"));
        }
        assert!(flags(Some("caddyfile.json"), None).is_ok());
        assert!(flags(Some("Caddyfile"), Some("json")).is_ok());
    }

    #[test]
    fn unreadable_files_are_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no.json");
        let directory = dir.path().to_owned();
        for (path, expected) in [(missing, "does not exist"), (directory, "is a directory")] {
            let error = Source::File(path.clone()).read(String::new).unwrap_err();
            let text = error.render();
            assert!(text.contains(expected), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
        }
    }
}
