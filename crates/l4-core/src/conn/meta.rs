//! What is known about a connection beside its bytes.

use std::any::{Any, TypeId};
use std::sync::{Arc, OnceLock};

use super::{Addr, Record};
use crate::Generation;

/// What is known about a connection beside its bytes: addresses, variables, captures, and what layers left behind.
pub(crate) struct Meta {
    pub(super) record: Arc<Record>,
    /// The effective remote address: the socket's, until a PROXY header says otherwise.
    pub(super) remote: Addr,
    /// The effective local address, where a PROXY header named one.
    pub(super) local: Option<Addr>,
    /// The socket's own local address, once somebody asked: asking costs a system call.
    pub(super) own_local: OnceLock<Addr>,
    pub(super) vars: Vec<(Box<str>, Box<str>)>,
    pub(super) captures: Vec<Capture>,
    pub(super) extensions: Vec<(TypeId, Arc<dyn Any + Send + Sync>)>,
    /// The generation it runs under, once a server has it.
    pub(super) generation: Option<Arc<Generation>>,
}

/// What a regular expression captured, readable as `{PREFIX.GROUP}` and, if it has a name, `{PREFIX.NAME.GROUP}`.
#[derive(Debug, Clone)]
pub struct Capture {
    /// `l4.regexp`, `tls.regexp`, `http.regexp`.
    pub prefix: &'static str,
    /// The expression's own name.
    pub name: Option<Arc<str>>,
    /// Groups by number (0 is the whole match) and by name; a group that took no part is empty.
    pub groups: Vec<(Arc<str>, Box<str>)>,
}

impl Capture {
    /// The text for what follows `PREFIX.`.
    fn lookup(&self, key: &str) -> Option<&str> {
        let by_group = |group: &str| {
            self.groups
                .iter()
                .find(|(name, _)| &**name == group)
                .map(|(_, text)| &**text)
        };
        by_group(key).or_else(|| {
            let (name, group) = key.rsplit_once('.')?;
            (self.name.as_deref() == Some(name))
                .then(|| by_group(group))
                .flatten()
        })
    }
}

impl Meta {
    pub(super) fn new(record: Arc<Record>, local: Option<Addr>) -> Self {
        Self {
            remote: record.remote().clone(),
            record,
            own_local: local.map(OnceLock::from).unwrap_or_default(),
            local: None,
            vars: Vec::new(),
            captures: Vec::new(),
            extensions: Vec::new(),
            generation: None,
        }
    }

    /// A copy whose changes are not shared, with a record of its own.
    pub(super) fn fork(&self) -> Self {
        Self {
            record: Arc::new(self.record.fork()),
            remote: self.remote.clone(),
            local: self.local.clone(),
            own_local: self.own_local.clone(),
            vars: self.vars.clone(),
            captures: self.captures.clone(),
            extensions: self.extensions.clone(),
            generation: self.generation.clone(),
        }
    }

    pub(super) fn var(&self, name: &str) -> Option<&str> {
        self.vars
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| &**value)
    }

    pub(super) fn set_var(&mut self, name: &str, value: &str) {
        match self.vars.iter_mut().find(|(key, _)| &**key == name) {
            Some((_, old)) => *old = value.into(),
            None => self.vars.push((name.into(), value.into())),
        }
    }

    /// The newest capture that knows `prefix` and `key`.
    pub(super) fn capture(&self, prefix: &str, key: &str) -> Option<&str> {
        self.captures
            .iter()
            .rev()
            .filter(|c| c.prefix == prefix)
            .find_map(|c| c.lookup(key))
    }

    pub(super) fn extension<T: Any>(&self) -> Option<&T> {
        let key = TypeId::of::<T>();
        self.extensions
            .iter()
            .find(|(id, _)| *id == key)?
            .1
            .downcast_ref()
    }

    pub(super) fn set_extension<T: Any + Send + Sync>(&mut self, value: T) {
        self.drop_extension::<T>();
        self.extensions.push((TypeId::of::<T>(), Arc::new(value)));
    }

    pub(super) fn drop_extension<T: Any>(&mut self) {
        let key = TypeId::of::<T>();
        self.extensions.retain(|(id, _)| *id != key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_costs_beside_its_bytes_stays_small() {
        assert!(size_of::<Meta>() <= 512, "{} bytes", size_of::<Meta>());
    }

    #[test]
    fn captures_are_found_by_number_group_and_expression_name() {
        let capture = Capture {
            prefix: "l4.regexp",
            name: Some("re".into()),
            groups: vec![
                ("0".into(), "ab".into()),
                ("1".into(), "b".into()),
                ("host".into(), "b".into()),
            ],
        };
        assert_eq!(capture.lookup("0"), Some("ab"));
        assert_eq!(capture.lookup("host"), Some("b"));
        assert_eq!(capture.lookup("re.1"), Some("b"));
        assert_eq!(capture.lookup("other.1"), None);
        assert_eq!(capture.lookup("2"), None);
    }
}
