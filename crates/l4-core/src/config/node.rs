//! Types for configuration structs that want to keep places, not only values.
//!
//! They ask the deserializer for a newtype struct of a reserved name, and the one behind
//! [`decode`](super::decode) answers with node numbers. Every other deserializer hands over the
//! value itself, which these types refuse.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::document::Node;

/// A value that is decoded later: the configuration of a module that is named inside it.
///
/// ```text
/// #[derive(Deserialize)]
/// struct Route { handle: Vec<Raw> }
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Raw(Node);

impl Raw {
    /// Where the value stands.
    pub fn node(&self) -> Node {
        self.0
    }
}

/// A decoded value and the place it came from, for checks that go beyond its type.
///
/// A field with a default is an `Option<At<T>>`, because a value that is not in the text has no
/// place.
///
/// ```
/// use l4_core::prelude::*;
/// # use schemars::JsonSchema;
/// # use serde::Deserialize;
///
/// #[derive(Deserialize, JsonSchema)]
/// struct RetryConfig {
///     times: Option<At<u32>>,
/// }
///
/// fn times(config: &RetryConfig, cx: &mut Provision<'_>) -> Result<u32, Rejected> {
///     match config.times {
///         // It reads as the value it holds, and says where that stands.
///         Some(times) if *times > 100 => {
///             Err(cx.reject_help(times.node(), format!("{} is too often", *times), "write 100 or less"))
///         }
///         Some(times) => Ok(times.into_inner()),
///         None => Ok(3),
///     }
/// }
///
/// # use l4_core::config::Document;
/// # let registry = Registry::new();
/// let document = Document::parse("l4.json", br#"{"times": 1000}"#).unwrap();
/// let mut cx = Provision::new(&document, &registry);
/// let config = cx.decode(document.root()).unwrap();
/// assert!(times(&config, &mut cx).is_err());
/// assert!(cx.finish().errors[0].render().contains("l4.json:1:11"));
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    node: Node,
    value: T,
}

impl<T> At<T> {
    /// Joins a value with a place.
    pub fn new(node: Node, value: T) -> Self {
        Self { node, value }
    }

    /// Where the value stands.
    pub fn node(&self) -> Node {
        self.node
    }

    /// The value without its place.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// An object whose keys are module names and whose values are decoded later, in the order of the
/// text: `{"tls": {…}, "remote_ip": {…}}`.
///
/// `null` members are kept, because a module value cannot be null and the owner says so; a `null`
/// in place of the whole object is an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleMap(Vec<(Box<str>, Node)>);

impl ModuleMap {
    /// Names and places of the values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Node)> {
        self.0.iter().map(|(name, node)| (&**name, *node))
    }

    /// The place of the value under `name`.
    pub fn node(&self, name: &str) -> Option<Node> {
        self.iter()
            .find_map(|(key, node)| (key == name).then_some(node))
    }

    /// How many modules are named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no module is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for ModuleMap {
    type Item = (Box<str>, Node);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Names no Rust type can have.
pub(super) const RAW: &str = "<raw>";
pub(super) const AT: &str = "<at>";
pub(super) const MODULE_MAP: &str = "<module map>";

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;

        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NEEDS_DECODE)
            }

            fn visit_u32<E>(self, node: u32) -> Result<Raw, E> {
                Ok(Raw(Node::from_raw(node)))
            }
        }

        deserializer.deserialize_newtype_struct(RAW, RawVisitor)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for AtVisitor<T> {
            type Value = At<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NEEDS_DECODE)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
                let node = parts.next_element()?.map(Node::from_raw);
                let value = parts.next_element()?;
                match (node, value) {
                    (Some(node), Some(value)) => Ok(At { node, value }),
                    _ => Err(serde::de::Error::custom(NEEDS_DECODE)),
                }
            }
        }

        deserializer.deserialize_newtype_struct(AT, AtVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for ModuleMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ModuleMapVisitor;

        impl<'de> Visitor<'de> for ModuleMapVisitor {
            type Value = ModuleMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NEEDS_DECODE)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<ModuleMap, A::Error> {
                let mut modules = Vec::new();
                while let Some((name, node)) = members.next_entry::<Box<str>, u32>()? {
                    modules.push((name, Node::from_raw(node)));
                }
                Ok(ModuleMap(modules))
            }
        }

        deserializer.deserialize_newtype_struct(MODULE_MAP, ModuleMapVisitor)
    }
}

const NEEDS_DECODE: &str = "a value that l4_core::config::decode reads, which knows its place";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_deserializers_are_refused_with_a_reason() {
        let refusals = [
            serde_json::from_str::<Raw>("1").unwrap_err(),
            serde_json::from_str::<At<u8>>("[1, 2]").unwrap_err(),
            serde_json::from_str::<ModuleMap>("{\"tls\": 1}").unwrap_err(),
        ];
        for refusal in refusals {
            assert!(
                refusal.to_string().contains("l4_core::config::decode"),
                "{refusal}"
            );
        }
    }
}
