//! Lock files, by the protocol of certmagic: Caddy instances take part in it.
//!
//! Whoever makes the file holds the lock, and writes the time into it every few seconds. A file whose time is old
//! belongs to a process that died. Clocks of machines that share a folder must agree to within a few seconds.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use l4_core::Lease;
use serde::{Deserialize, Serialize};

use super::make_folder;

/// A lock file of ours, deleted when dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: OwnFile,
    heartbeat: tokio::task::JoinHandle<()>,
}

impl Lease for FileLock {}

impl FileLock {
    /// Waits until the file is ours. Cancel safe.
    pub(super) async fn acquire(path: PathBuf) -> io::Result<Self> {
        let mut empty = 0;
        loop {
            let attempt = {
                let path = path.clone();
                // A file made by an attempt that nobody waits for any more is deleted again.
                tokio::task::spawn_blocking(move || attempt(&path, empty, Timestamp::now()))
            };
            match attempt.await.map_err(io::Error::other)?? {
                Attempt::Taken(file) => {
                    let heartbeat = tokio::spawn(heartbeat(file.path.clone(), file.created));
                    return Ok(Self {
                        _file: file,
                        heartbeat,
                    });
                }
                Attempt::Again => {}
                Attempt::Held => tokio::time::sleep(POLL).await,
                Attempt::Empty => {
                    empty += 1;
                    tokio::time::sleep(EMPTY_POLL).await;
                }
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// Deletes the lock files that this process holds, for an end at which nothing is dropped.
pub fn release_locks() {
    for (path, created) in std::mem::take(&mut *own()) {
        remove(&path, created);
    }
}

/// The lock files of this process, with the time at which it made them.
fn own() -> MutexGuard<'static, BTreeMap<PathBuf, Timestamp>> {
    static OWN: LazyLock<Mutex<BTreeMap<PathBuf, Timestamp>>> = LazyLock::new(Mutex::default);
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    created: Timestamp,
}

impl OwnFile {
    fn new(path: PathBuf, created: Timestamp) -> Self {
        own().insert(path.clone(), created);
        Self { path, created }
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if own().remove(&self.path).is_some() {
            remove(&self.path, self.created);
        }
    }
}

/// Deletes a file of ours, unless somebody took it for stale and made another: that one is theirs.
fn remove(path: &Path, created: Timestamp) {
    if own_times(path, created).is_ok() {
        let _ = fs::remove_file(path);
    }
}

/// What is in a file of ours.
///
/// # Errors
/// It is gone, or another is there. Both are of the kind [`ErrorKind::NotFound`].
fn own_times(path: &Path, created: Timestamp) -> io::Result<Times> {
    let times: Times = serde_json::from_slice(&fs::read(path)?).unwrap_or_default();
    match times.created == Some(created) {
        true => Ok(times),
        false => Err(io::Error::new(
            ErrorKind::NotFound,
            "another lock is in its place",
        )),
    }
}

enum Attempt {
    /// The lock is ours.
    Taken(OwnFile),
    /// Somebody else has it.
    Held,
    /// Somebody else has just made the file, or died between making and writing it.
    Empty,
    /// Something changed meanwhile.
    Again,
}

fn attempt(path: &Path, empty: u32, now: Timestamp) -> io::Result<Attempt> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let mut create = OpenOptions::new();
    create.write(true).create_new(true).mode(0o644);
    match create.open(path) {
        Ok(mut file) => {
            let own = OwnFile::new(path.to_owned(), now);
            let times = Times {
                created: Some(now),
                updated: Some(now),
            };
            // What is not written is not known as ours.
            write(&mut file, &times).inspect_err(|_| drop(fs::remove_file(path)))?;
            return Ok(Attempt::Taken(own));
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Attempt::Again),
        Err(error) => return Err(error),
    };
    match State::of(&content, now)? {
        State::Fresh => return Ok(Attempt::Held),
        State::Empty if empty < EMPTY_POLLS => return Ok(Attempt::Empty),
        State::Empty | State::Stale => {}
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(Attempt::Again),
    }
}

/// Shows others that the holder lives, until the file is gone.
async fn heartbeat(path: PathBuf, created: Timestamp) {
    loop {
        tokio::time::sleep(UPDATE).await;
        let path = path.clone();
        let updated = tokio::task::spawn_blocking(move || update(&path, created, Timestamp::now()));
        match updated.await {
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(target: "tls", %error, "a lock was taken away, as if its holder were dead");
                return;
            }
            Ok(Err(error)) => {
                tracing::warn!(target: "tls", %error, "a lock file could not be updated")
            }
            _ => {}
        }
    }
}

fn update(path: &Path, created: Timestamp, now: Timestamp) -> io::Result<()> {
    let times = own_times(path, created)?;
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    write(
        &mut file,
        &Times {
            updated: Some(now),
            ..times
        },
    )
}

fn write(file: &mut fs::File, times: &Times) -> io::Result<()> {
    let mut text = serde_json::to_vec(times)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_all()
}

/// The content of a lock file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Times {
    #[serde(default)]
    created: Option<Timestamp>,
    #[serde(default)]
    updated: Option<Timestamp>,
}

#[derive(Debug, PartialEq)]
enum State {
    Empty,
    Fresh,
    Stale,
}

impl State {
    fn of(content: &[u8], now: Timestamp) -> io::Result<Self> {
        if content.is_empty() {
            return Ok(Self::Empty);
        }
        let times: Times = serde_json::from_slice(content)
            .map_err(|error| io::Error::other(format!("decoding lockfile contents: {error}")))?;
        // Go writes the year 1 for a time that was never set.
        let updated = times
            .updated
            .filter(|updated| *updated > Timestamp::UNIX_EPOCH);
        Ok(match updated.or(times.created) {
            Some(last) if now.duration_since(last) <= STALE => Self::Fresh,
            _ => Self::Stale,
        })
    }
}

/// How often the time in the file is renewed.
const UPDATE: Duration = Duration::from_secs(5);
/// From which age on a file belongs to nobody.
const STALE: SignedDuration = SignedDuration::from_secs(10);
/// How often to look whether the holder is done.
const POLL: Duration = Duration::from_secs(1);
const EMPTY_POLL: Duration = Duration::from_millis(250);
const EMPTY_POLLS: u32 = 8;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_file_is_stale_ten_seconds_after_its_last_update() {
        // As Go writes it on a machine of another time zone.
        let text = br#"{"created":"2026-07-01T11:00:00.5+02:00","updated":"2026-07-01T11:30:00.123456789+02:00"}
"#;
        for (now, expected) in [
            ("2026-07-01T09:30:05Z", State::Fresh),
            ("2026-07-01T09:30:10.1Z", State::Fresh),
            ("2026-07-01T09:30:10.2Z", State::Stale),
            // A clock that is behind.
            ("2026-07-01T09:29:58Z", State::Fresh),
        ] {
            assert_eq!(State::of(text, at(now)).unwrap(), expected, "{now}");
        }
        let unset = br#"{"created":"2026-07-01T09:00:00Z","updated":"0001-01-01T00:00:00Z"}"#;
        assert_eq!(
            State::of(unset, at("2026-07-01T09:00:08Z")).unwrap(),
            State::Fresh
        );
        assert_eq!(
            State::of(unset, at("2026-07-01T09:00:11Z")).unwrap(),
            State::Stale
        );
        assert_eq!(
            State::of(b"{}", at("2026-07-01T09:00:11Z")).unwrap(),
            State::Stale
        );
        assert_eq!(
            State::of(b"", at("2026-07-01T09:00:11Z")).unwrap(),
            State::Empty
        );
        let error = State::of(b"what", at("2026-07-01T09:00:11Z")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("decoding lockfile contents: "),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_lock_is_a_file_of_the_agreed_form_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/a.lock");
        let lock = FileLock::acquire(path.clone()).await.unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("}\n"), "{text}");
        let times: Times = serde_json::from_str(&text).unwrap();
        assert_eq!(times.created, times.updated);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );

        let later = times.created.unwrap() + SignedDuration::from_secs(5);
        update(&path, times.created.unwrap(), later).unwrap();
        let times_then: Times = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            times_then,
            Times {
                created: times.created,
                updated: Some(later)
            }
        );
        drop(lock);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_left_by_a_dead_process_is_taken_over_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        fs::write(
            &path,
            r#"{"created":"2020-01-01T00:00:00Z","updated":"2020-01-01T00:00:05Z"}"#,
        )
        .unwrap();
        let taken = tokio::time::timeout(POLL, FileLock::acquire(path.clone())).await;
        let _lock = taken.unwrap().unwrap();
        let times: Times = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(times.created.unwrap() > at("2020-01-02T00:00:00Z"));
    }

    #[tokio::test]
    async fn a_lock_that_somebody_took_from_us_is_left_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let lock = FileLock::acquire(path.clone()).await.unwrap();
        // We slept for too long.
        let theirs = Times {
            created: Some(lock._file.created + SignedDuration::from_secs(60)),
            updated: None,
        };
        let theirs = serde_json::to_vec(&theirs).unwrap();
        fs::write(&path, &theirs).unwrap();
        let updated = update(&path, lock._file.created, Timestamp::now());
        assert_eq!(updated.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fs::read(&path).unwrap(), theirs);
        drop(lock);
        assert_eq!(fs::read(&path).unwrap(), theirs);
    }

    #[tokio::test]
    async fn a_fresh_file_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let first = FileLock::acquire(path.clone()).await.unwrap();
        let mut second = tokio::spawn(FileLock::acquire(path.clone()));
        assert!(tokio::time::timeout(POLL / 2, &mut second).await.is_err());
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert!(path.exists());
        drop(second);
    }

    #[test]
    fn an_empty_file_is_stale_only_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        fs::write(&path, "").unwrap();
        let now = Timestamp::now();
        for empty in 0..EMPTY_POLLS {
            assert!(matches!(
                attempt(&path, empty, now).unwrap(),
                Attempt::Empty
            ));
        }
        assert!(matches!(
            attempt(&path, EMPTY_POLLS, now).unwrap(),
            Attempt::Again
        ));
        assert!(matches!(attempt(&path, 0, now).unwrap(), Attempt::Taken(_)));
    }
}
