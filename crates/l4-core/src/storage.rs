//! Storage: where what outlives the process is kept, such as certificates and their keys.
//!
//! A module names it by this trait and never knows what is behind it; the document chooses at its top
//! (`"storage": {"module": …}`). Keys are made of components with `/` between them.

use std::fmt::Debug;
use std::io;

use crate::BoxFuture;
use crate::registry::Kind;

/// `caddy.storage`
pub enum Storages {}

impl Kind for Storages {
    const NAMESPACE: &'static str = "caddy.storage";
    type Object = dyn Storage;
}

/// Keeps values by key.
///
/// Everything but [`lock`](Self::lock) may block, so within the runtime it belongs on a thread for that. What is not
/// there is an error of the kind [`NotFound`](io::ErrorKind::NotFound).
pub trait Storage: Debug + Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    fn load(&self, key: &str) -> io::Result<Vec<u8>>;

    /// Gives `key` a value, in place of one that it may have. Whoever loads it meanwhile gets the old value or the new one,
    /// whole.
    ///
    /// # Errors
    /// It cannot be written; the old value is untouched then.
    fn store(&self, key: &str, value: &[u8]) -> io::Result<()>;

    /// Takes `key` away, with everything below it.
    ///
    /// # Errors
    /// It is not there, or cannot be deleted.
    fn delete(&self, key: &str) -> io::Result<()>;

    /// Waits until nobody else holds the lock of this name, here or in another process, and takes it.
    ///
    /// Cancel safe: nothing is held if the future is dropped. A holder that died is not waited for long, which makes it
    /// possible, if hardly ever, that two hold the lock: check again afterwards what is still to be done.
    fn lock<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Lease>>>;

    /// Where the value of `key` is, in words for people: the path of a file, for example.
    fn describe(&self, key: &str) -> String;
}

/// A lock that is held until this is dropped.
pub trait Lease: Debug + Send + Sync {}
