//! What successive configurations share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values by key, each one for as long as a configuration has it.
#[derive(Debug)]
pub(crate) struct Shared<T>(Mutex<HashMap<String, Weak<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shared<T> {
    /// The value of this key, which is made unless somebody has it.
    pub(crate) fn of(&self, key: String, make: impl FnOnce() -> T) -> Arc<T> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = table.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        table.retain(|_, value| value.strong_count() > 0);
        let value = Arc::new(make());
        table.insert(key, Arc::downgrade(&value));
        value
    }
}
