//! The storage module `file_system`: a folder in the layout of certmagic, so that one written by Caddy can be pointed at.

mod lock;
#[cfg(test)]
pub(crate) mod stalled;

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use l4_core::prelude::*;
use l4_core::{BoxFuture, Lease, Storage, Storages};
use schemars::JsonSchema;
use serde::Deserialize;

pub use lock::release_locks;

/// Keeps certificates and keys as files: folders with mode 0700, files with 0600.
///
/// ```json
/// {"module": "file_system", "root": "/var/lib/conncept"}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileStorageConfig {
    /// The folder, which is made when something is stored. Default: the data directory, `$XDG_DATA_HOME/conncept` or
    /// `~/.local/share/conncept`.
    #[serde(default)]
    root: Option<String>,
}

/// The storage module `file_system`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileStorage {
    root: PathBuf,
}

impl FileStorage {
    /// Keeps everything below `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Keeps everything in the data directory.
    pub(crate) fn in_data_directory() -> Self {
        Self::new(data_directory(|name| std::env::var_os(name)))
    }

    fn path(&self, key: &str) -> PathBuf {
        let mut path = self.root.clone();
        // Keys are made by us, but a component that led out of the folder would be one by mistake.
        path.extend(
            key.split('/')
                .filter(|part| !matches!(*part, "" | "." | "..")),
        );
        path
    }
}

impl Storage for FileStorage {
    fn load(&self, key: &str) -> io::Result<Vec<u8>> {
        let path = self.path(key);
        fs::read(&path).map_err(|error| at(&path, error))
    }

    fn store(&self, key: &str, value: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        write(&path, value).map_err(|error| at(&path, error))
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        let path = self.path(key);
        let deleted = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        deleted.map_err(|error| at(&path, error))
    }

    fn lock<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Lease>>> {
        let file = self.path("locks").join(format!("{}.lock", safe(name)));
        Box::pin(async move {
            let lock = lock::FileLock::acquire(file).await?;
            Ok(Box::new(lock) as Box<dyn Lease>)
        })
    }

    fn describe(&self, key: &str) -> String {
        self.path(key).display().to_string()
    }
}

fn write(path: &Path, value: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    make_folder(folder)?;
    // Made with mode 0600, and removed when dropped before it got its name.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(value)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// An error with the file that it is about, which the system leaves out.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Where data is kept that outlives the process, by the XDG Base Directory Specification.
fn data_directory(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(data) = set("XDG_DATA_HOME") {
        return Path::new(&data).join("conncept");
    }
    match set("HOME") {
        Some(home) => Path::new(&home).join(".local/share/conncept"),
        None => PathBuf::from("conncept"),
    }
}

/// The form of a name that is one component of a key, as certmagic makes it.
pub(crate) fn safe(name: &str) -> String {
    let replaced = name
        .to_lowercase()
        .trim()
        .replace(' ', "_")
        .replace('+', "_plus_")
        .replace('*', "wildcard_")
        .replace(':', "-")
        .replace("..", "");
    replaced
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '@' | '.' | '-'))
        .collect()
}

/// The storage of the configuration; the data directory if it names none.
pub(crate) fn of_configuration(cx: &mut Provision<'_>) -> Result<Arc<dyn Storage>, Rejected> {
    Ok(match cx.storage()? {
        Some(storage) => storage,
        None => Arc::new(FileStorage::in_data_directory()),
    })
}

/// The storage that a part of the configuration names for itself; that of the configuration if it names none.
pub(crate) fn of_part(
    own: Option<RawNode>,
    cx: &mut Provision<'_>,
) -> Result<Arc<dyn Storage>, Rejected> {
    match own {
        Some(raw) => cx.inline::<Storages>(raw.node(), "module").map(Arc::from),
        None => of_configuration(cx),
    }
}

pub(crate) fn register(reg: &mut Registry) {
    reg.add_inline::<Storages, FileStorageConfig>("file_system", "module", |config, _| {
        Ok(Box::new(FileStorage::from(config)))
    });
}

impl From<FileStorageConfig> for FileStorage {
    fn from(config: FileStorageConfig) -> Self {
        match config.root.filter(|root| !root.is_empty()) {
            Some(root) => Self::new(root),
            None => Self::in_data_directory(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn names_become_components_as_certmagic_makes_them() {
        for (name, expected) in [
            ("Example.COM", "example.com"),
            ("*.example.internal", "wildcard_.example.internal"),
            ("fd00::1", "fd00--1"),
            ("localhost:14000-dir", "localhost-14000-dir"),
            ("a+b c@d.e", "a_plus_b_c@d.e"),
            ("../../etc/passwd", "etcpasswd"),
            ("bücher", "bcher"),
            (" issue_cert_*.a ", "issue_cert_wildcard_.a"),
        ] {
            assert_eq!(safe(name), expected);
        }
    }

    #[test]
    fn files_are_for_their_owner_only_and_nothing_else_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let storage = FileStorage::new(dir.path().join("data"));
        storage.store("certificates/local/a/a.key", b"one").unwrap();
        storage.store("certificates/local/a/a.key", b"two").unwrap();

        assert_eq!(storage.load("certificates/local/a/a.key").unwrap(), b"two");
        let folder = dir.path().join("data/certificates/local/a");
        let names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["a.key"]);
        assert_eq!(mode(&folder.join("a.key")), 0o600);
        for folder in ["data", "data/certificates", "data/certificates/local/a"] {
            assert_eq!(mode(&dir.path().join(folder)), 0o700, "{folder}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let storage = FileStorage::new(dir.path());
        assert_eq!(
            storage.load("a/b").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            storage.delete("a/b").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        storage.store("a/b", b"").unwrap();
        assert_ne!(
            storage.load("a").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        storage.delete("a").unwrap();
        assert_eq!(
            storage.load("a/b").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn no_key_leads_out_of_the_folder() {
        let storage = FileStorage::new("/data");
        for key in ["../x", "/x", "./x", "x", "a/../../x"] {
            let path = storage.path(key);
            assert!(
                path == Path::new("/data/x") || path == Path::new("/data/a/x"),
                "{path:?}"
            );
        }
    }

    #[test]
    fn an_empty_root_is_the_data_directory() {
        let storage = |root: Option<&str>| {
            FileStorage::from(FileStorageConfig {
                root: root.map(str::to_owned),
            })
        };
        assert_eq!(storage(Some("")), FileStorage::in_data_directory());
        assert_eq!(storage(None), FileStorage::in_data_directory());
        assert_eq!(storage(Some("/x")), FileStorage::new("/x"));
    }

    #[test]
    fn the_data_directory_is_that_of_the_user() {
        let with = |variables: &[(&str, &str)]| {
            data_directory(|wanted| {
                let found = variables.iter().find(|(name, _)| *name == wanted);
                found.map(|(_, value)| value.into())
            })
        };
        let both = [("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(&both), Path::new("/x/conncept"));
        let empty = [("XDG_DATA_HOME", ""), ("HOME", "/h")];
        assert_eq!(with(&empty), Path::new("/h/.local/share/conncept"));
        assert_eq!(with(&[]), Path::new("conncept"));
    }
}
