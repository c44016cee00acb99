//! From a place in a document to a Rust type, through serde, with every error in words of JSON.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::value::{BorrowedStrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::document::{Document, Node, Value};
use super::error::{ConfigError, shortened};
use super::fault::{Fault, Place, Problem, in_range, plain_type};
use super::node;
use super::suggest::closest;

/// Decodes the value at `node` into `T`.
///
/// `inline_key` is a member to leave out because it named the module and is no field of its
/// configuration (`handler`).
///
/// Rules beyond serde's own: a `null` member of a struct counts as absent, and a `null` in place
/// of a whole struct as `{}`; maps keep their nulls. A struct is never read from a list. Integers
/// take no fraction and no exponent, and nothing is rounded. A unit struct reads `{}`. `@id`
/// members do not exist here. Fields of a `#[serde(flatten)]`ed struct lose their places.
///
/// # Errors
///
/// Pushes all errors found onto `errors` and returns `None` if there was one. Serde stops at the
/// first error, so the faulty member or item is taken out and the rest decoded again, up to 20
/// times; complaints that only follow from the removal are dropped.
pub fn decode<T: DeserializeOwned>(
    document: &Document,
    node: Node,
    inline_key: Option<&str>,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    let before = errors.len();
    decode_sound(document, node, inline_key, errors).filter(|_| errors.len() == before)
}

/// As [`decode`], but returns what is left once the faulty parts are taken out, if anything can be made of it.
///
/// For the levels of a configuration that only hold others (a server, a route), so that a fault of one part does not
/// hide those of its siblings. Not where an absent part would be complained about: that complaint would be false.
pub fn decode_sound<T: DeserializeOwned>(
    document: &Document,
    node: Node,
    inline_key: Option<&str>,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    decode_rounds(document, node, inline_key, Vec::new(), errors)
}

/// As [`decode`], but as if the nodes in `beside` were not there.
pub(crate) fn decode_beside<T: DeserializeOwned>(
    document: &Document,
    node: Node,
    beside: Vec<Node>,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    let before = errors.len();
    decode_rounds(document, node, None, beside, errors).filter(|_| errors.len() == before)
}

fn decode_rounds<T: DeserializeOwned>(
    document: &Document,
    node: Node,
    inline_key: Option<&str>,
    mut skipped: Vec<Node>,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    for _ in 0..MAX_ROUNDS {
        let scope = Scope {
            document,
            root: node,
            inline_key,
            skipped: &skipped,
        };
        let fault = match T::deserialize(Reader {
            scope: &scope,
            node,
        }) {
            Ok(value) => return Some(value),
            Err(fault) => fault.at_value(document, node),
        };
        let faulty = fault.node().unwrap_or(node);
        if !follows_from_removal(document, &fault, &skipped) {
            errors.push(fault.into_error(document, faulty));
        }
        if faulty == node || skipped.contains(&faulty) {
            return None;
        }
        skipped.push(faulty);
    }
    None
}

/// Whether a fault of a list or object may only be there because a part of it was taken out.
///
/// A missing field is still worth telling, unless the part taken out was that field or a misspelt
/// form of it.
fn follows_from_removal(document: &Document, fault: &Fault, skipped: &[Node]) -> bool {
    let Some(Place::Value(place)) = fault.place() else {
        return false;
    };
    let inside = |node: Node| {
        std::iter::successors(document.parent(node), |&n| document.parent(n)).any(|n| n == place)
    };
    match *fault.problem() {
        Problem::MissingField(field) => skipped
            .iter()
            .filter(|&&node| document.parent(node) == Some(place))
            .filter_map(|&node| document.key(node))
            .any(|key| closest(key, [field]).is_some()),
        _ => skipped.iter().any(|&node| inside(node)),
    }
}

/// What all readers of one decoding run share.
struct Scope<'de> {
    document: &'de Document,
    root: Node,
    inline_key: Option<&'de str>,
    skipped: &'de [Node],
}

impl<'de> Scope<'de> {
    fn members(&self, object: Node) -> Vec<(&'de str, Node)> {
        let inline = self.inline_key.filter(|_| object == self.root);
        self.document
            .members(object)
            .filter(|&(key, node)| inline != Some(key) && !self.skipped.contains(&node))
            .collect()
    }

    fn items(&self, list: Node) -> Vec<Node> {
        self.document
            .items(list)
            .filter(|node| !self.skipped.contains(node))
            .collect()
    }
}

/// Deserializer of one value.
struct Reader<'a, 'de> {
    scope: &'a Scope<'de>,
    node: Node,
}

impl<'a, 'de> Reader<'a, 'de> {
    fn value(&self) -> Value<'de> {
        self.scope.document.value(self.node)
    }

    fn mismatch(&self, expected: &dyn Expected) -> Fault {
        Fault::new(Problem::Type {
            expected: plain_type(&expected.to_string()),
            found: None,
        })
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        expected: &dyn Expected,
        range: (impl Display, impl Display),
    ) -> Result<T, Fault> {
        match self.value() {
            Value::Number(literal) if is_integer(literal) => integer(literal, range),
            _ => Err(self.mismatch(expected)),
        }
    }

    fn float<T: FromStr>(&self, expected: &dyn Expected) -> Result<T, Fault> {
        match self.value() {
            Value::Number(literal) => literal.parse().map_err(|_| self.mismatch(expected)),
            _ => Err(self.mismatch(expected)),
        }
    }

    fn list<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let items = self.scope.items(self.node);
        let count = items.len();
        let mut access = Items {
            scope: self.scope,
            rest: items.into_iter(),
        };
        let value = visitor.visit_seq(&mut access)?;
        match access.rest.len() {
            0 => Ok(value),
            unread => Err(Fault::length(
                count,
                format!("a list of {} items", count - unread),
            )),
        }
    }

    fn object<V: Visitor<'de>>(
        self,
        visitor: V,
        nullable: &'static [&'static str],
    ) -> Result<V::Value, Fault> {
        let members = self.scope.members(self.node).into_iter();
        visitor.visit_map(Members {
            scope: self.scope,
            rest: members,
            nullable,
            value: None,
        })
    }
}

/// Methods that read one kind of value and refuse every other.
macro_rules! read_integers {
    ($($method:ident $visit:ident $type:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number: $type = self.integer(&visitor, ($type::MIN, $type::MAX))?;
            visitor.$visit(number)
        }
    )*};
}

macro_rules! read_strings {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.value() {
                Value::String(text) => visitor.visit_borrowed_str(text),
                _ => Err(self.mismatch(&visitor)),
            }
        }
    )*};
}

impl<'a, 'de> Deserializer<'de> for Reader<'a, 'de> {
    type Error = Fault;

    read_integers! {
        deserialize_i8 visit_i8 i8
        deserialize_i16 visit_i16 i16
        deserialize_i32 visit_i32 i32
        deserialize_i64 visit_i64 i64
        deserialize_u8 visit_u8 u8
        deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32
        deserialize_u64 visit_u64 u64
    }

    read_strings! {
        deserialize_char
        deserialize_str
        deserialize_string
        deserialize_bytes
        deserialize_byte_buf
        deserialize_identifier
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(literal) if !is_integer(literal) => {
                let number = self.float(&visitor)?;
                visitor.visit_f64(number)
            }
            Value::Number(literal) => match literal.parse() {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(integer(literal, (i64::MIN, u64::MAX))?),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array => self.list(visitor),
            Value::Object => self.object(visitor, &[]),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let number = self.float(&visitor)?;
        visitor.visit_f32(number)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let number = self.float(&visitor)?;
        visitor.visit_f64(number)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Null => visitor.visit_unit(),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Null | Value::Object => {}
            _ => return Err(self.mismatch(&"an object")),
        }
        match self
            .scope
            .members(self.node)
            .into_iter()
            .find(|&(_, node)| !self.is_null(node))
        {
            None => visitor.visit_unit(),
            Some((key, node)) => Err(<Fault as de::Error>::unknown_field(key, &[]).at_key(node)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match (name, self.value()) {
            (node::RAW, _) => visitor.visit_u32(self.node.raw()),
            (node::AT, _) => visitor.visit_seq(Located {
                reader: self,
                node_read: false,
            }),
            (node::MODULE_MAP, Value::Object | Value::Null) => {
                let members = self.scope.members(self.node).into_iter();
                visitor.visit_map(Places {
                    rest: members,
                    value: None,
                })
            }
            (node::MODULE_MAP, _) => Err(self.mismatch(&"an object")),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Array => self.list(visitor),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        // Without one item every later one would be read as its neighbour. The complaint is
        // dropped, because it is about a list that a part was taken out of.
        if self
            .scope
            .document
            .items(self.node)
            .any(|item| self.scope.skipped.contains(&item))
        {
            return Err(<Fault as de::Error>::custom(
                "an item was taken out of a fixed list",
            ));
        }
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Object => self.object(visitor, &[]),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value() {
            Value::Object | Value::Null => self.object(visitor, fields),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let variant = match self.value() {
            Value::String(text) => return visitor.visit_enum(BorrowedStrDeserializer::new(text)),
            Value::Object => self.scope.members(self.node),
            _ => return Err(self.mismatch(&visitor)),
        };
        match *variant {
            [(key, node)] => visitor.visit_enum(Variant {
                scope: self.scope,
                key,
                node,
            }),
            _ => Err(Fault::length(
                variant.len(),
                "an object with one member".to_owned(),
            )),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

impl Reader<'_, '_> {
    fn is_null(&self, node: Node) -> bool {
        self.scope.document.value(node) == Value::Null
    }
}

/// The items of a list.
struct Items<'a, 'de> {
    scope: &'a Scope<'de>,
    rest: std::vec::IntoIter<Node>,
}

impl<'de> SeqAccess<'de> for &mut Items<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.rest.next() else {
            return Ok(None);
        };
        let value = seed.deserialize(Reader {
            scope: self.scope,
            node,
        });
        value
            .map(Some)
            .map_err(|fault| fault.at_value(self.scope.document, node))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The members of an object.
struct Members<'a, 'de> {
    scope: &'a Scope<'de>,
    rest: std::vec::IntoIter<(&'de str, Node)>,
    /// Keys whose `null` counts as absent. Other nulls are passed on: as values of a map, or so
    /// that an unknown key is refused whatever it holds.
    nullable: &'static [&'static str],
    value: Option<Node>,
}

impl<'de> MapAccess<'de> for Members<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let document = self.scope.document;
        let nullable = self.nullable;
        let absent = |&(key, node): &(&str, Node)| {
            document.value(node) == Value::Null && nullable.contains(&key)
        };
        let Some((key, node)) = self.rest.by_ref().find(|member| !absent(member)) else {
            return Ok(None);
        };
        self.value = Some(node);
        seed.deserialize(Key(key))
            .map(Some)
            .map_err(|fault| fault.at_key(node))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let node = self.value.take().ok_or_else(out_of_turn)?;
        let value = seed.deserialize(Reader {
            scope: self.scope,
            node,
        });
        value.map_err(|fault| fault.at_value(self.scope.document, node))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The members of an object as keys and node numbers, for [`node::ModuleMap`].
struct Places<'de> {
    rest: std::vec::IntoIter<(&'de str, Node)>,
    value: Option<Node>,
}

impl<'de> MapAccess<'de> for Places<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some((key, node)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(node);
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let node = self.value.take().ok_or_else(out_of_turn)?;
        seed.deserialize(U32Deserializer::new(node.raw()))
    }
}

/// The node number, then the value, for [`node::At`].
struct Located<'a, 'de> {
    reader: Reader<'a, 'de>,
    node_read: bool,
}

impl<'de> SeqAccess<'de> for Located<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Reader { scope, node } = self.reader;
        if std::mem::replace(&mut self.node_read, true) {
            return seed.deserialize(Reader { scope, node }).map(Some);
        }
        let number: U32Deserializer<Fault> = node.raw().into_deserializer();
        seed.deserialize(number).map(Some)
    }
}

/// An enum written as an object of one member, the variant's name.
struct Variant<'a, 'de> {
    scope: &'a Scope<'de>,
    key: &'de str,
    node: Node,
}

impl<'a, 'de> Variant<'a, 'de> {
    fn read<T>(self, read: impl FnOnce(Reader<'a, 'de>) -> Result<T, Fault>) -> Result<T, Fault> {
        let reader = Reader {
            scope: self.scope,
            node: self.node,
        };
        read(reader).map_err(|fault| fault.at_value(self.scope.document, self.node))
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Fault> {
        let name = seed
            .deserialize(Key(self.key))
            .map_err(|fault| fault.at_key(self.node))?;
        Ok((name, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        self.read(de::Deserialize::deserialize)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        self.read(|reader| seed.deserialize(reader))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Fault> {
        self.read(|reader| reader.deserialize_tuple(length, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.read(|reader| reader.deserialize_struct("", fields, visitor))
    }
}

/// Deserializer of a key: a string, or the number a map with numeric keys wants.
struct Key<'de>(&'de str);

macro_rules! read_integer_keys {
    ($($method:ident $visit:ident $type:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            if !is_integer(self.0) {
                return Err(de::Error::invalid_type(Unexpected::Str(self.0), &visitor));
            }
            visitor.$visit(integer::<$type>(self.0, ($type::MIN, $type::MAX))?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Fault;

    read_integer_keys! {
        deserialize_i8 visit_i8 i8
        deserialize_i16 visit_i16 i16
        deserialize_i32 visit_i32 i32
        deserialize_i64 visit_i64 i64
        deserialize_u8 visit_u8 u8
        deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32
        deserialize_u64 visit_u64 u64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_enum(BorrowedStrDeserializer::new(self.0))
    }

    forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct identifier ignored_any
    }
}

/// A number literal or key without fraction and exponent, whatever its size.
fn is_integer(literal: &str) -> bool {
    let digits = literal.strip_prefix('-').unwrap_or(literal);
    !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())
}

fn integer<T: TryFrom<i128>>(
    literal: &str,
    range: (impl Display, impl Display),
) -> Result<T, Fault> {
    let number: Option<i128> = literal.parse().ok();
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            let literal = shortened(literal);
            Fault::new(Problem::Other(format!(
                "{literal} is out of range, expected {}",
                in_range(range)
            )))
        })
}

fn out_of_turn() -> Fault {
    <Fault as de::Error>::custom("a value was asked for before its key")
}

/// How often a value is decoded to find all of its errors.
const MAX_ROUNDS: usize = 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::document::tests::json;
    use super::super::duration::GoDuration;
    use super::super::node::{At, ModuleMap, Raw};
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Upstream {
        dial: Vec<String>,
        #[serde(default)]
        weight: u8,
        max_connections: Option<u32>,
        #[serde(default)]
        timeout: GoDuration,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Proxy {
        upstreams: Vec<Upstream>,
        #[serde(default)]
        policy: Policy,
        #[serde(default)]
        allow: Vec<IpAddr>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Policy {
        #[default]
        Random,
        IpHash,
        Weighted(Vec<u16>),
        Keyed {
            key: String,
        },
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    struct Empty;

    fn document(text: &str) -> Document {
        Document::parse("l4.json", text.as_bytes()).unwrap()
    }

    fn read<T: DeserializeOwned>(text: &str) -> Result<T, Vec<String>> {
        let doc = document(text);
        let mut errors = Vec::new();
        let value = decode(&doc, doc.root(), None, &mut errors);
        assert_eq!(value.is_none(), !errors.is_empty(), "{errors:?}");
        value.ok_or_else(|| {
            errors.sort_by_key(ConfigError::position);
            errors.iter().map(ToString::to_string).collect()
        })
    }

    fn refused<T: DeserializeOwned>(text: &str) -> Vec<String> {
        read::<T>(text).err().unwrap_or_default()
    }

    fn help<T: DeserializeOwned>(text: &str) -> String {
        let doc = document(text);
        let mut errors = Vec::new();
        decode::<T>(&doc, doc.root(), None, &mut errors);
        errors[0].help_text().unwrap_or_default().to_owned()
    }

    #[test]
    fn fields_take_their_values_and_null_is_absent() {
        let text = r#"{"@id": "u", "dial": ["a:1"], "weight": null, "max_connections": null,
            "timeout": "1m"}"#;
        let upstream: Upstream = read(text).unwrap();
        assert_eq!(upstream.dial, ["a:1"]);
        assert_eq!((upstream.weight, upstream.max_connections), (0, None));
        assert_eq!(upstream.timeout.to_string(), "1m0s");
        assert_eq!(
            refused::<Upstream>(r#"{"dial": null}"#),
            ["l4.json:1:1: /: missing field \"dial\""]
        );
    }

    #[test]
    fn unknown_fields_are_refused_whatever_they_hold() {
        assert_eq!(
            refused::<Upstream>(r#"{"dial": [], "weigth": null}"#),
            ["l4.json:1:14: /weigth: unknown field \"weigth\" (did you mean \"weight\"?)"]
        );
        assert_eq!(
            refused::<Upstream>(r#"{"dial": [], "Weight": 1}"#),
            ["l4.json:1:14: /Weight: unknown field \"Weight\" \
              (field names are case-sensitive, write \"weight\")"]
        );
        assert_eq!(
            help::<Upstream>(r#"{"dial": [], "foo": 1}"#),
            "valid fields: dial, weight, max_connections, timeout"
        );
    }

    #[test]
    fn wrong_types_are_told_in_words_of_json() {
        let rows = [
            (
                r#"{"dial": "a:1"}"#,
                "/dial: expected a list, found the string \"a:1\"",
            ),
            (
                r#"{"dial": [5]}"#,
                "/dial/0: expected a string, found the number 5",
            ),
            (
                r#"{"dial": [], "weight": "1"}"#,
                "expected an integer, found the string \"1\"",
            ),
            (
                r#"{"dial": [], "weight": 1.0}"#,
                "expected an integer, found the number 1.0",
            ),
            (
                r#"{"dial": [], "weight": 1e2}"#,
                "expected an integer, found the number 1e2",
            ),
            (
                r#"{"dial": [], "weight": 256}"#,
                "256 is out of range, expected an integer from 0 to 255",
            ),
            (
                r#"{"dial": [], "weight": -1}"#,
                "-1 is out of range, expected an integer from 0 to 255",
            ),
            (
                r#"{"dial": [], "weight": 99999999999999999999999999999999999999999999}"#,
                "is out of range, expected an integer from 0 to 255",
            ),
            (r#"{"dial": {}}"#, "/dial: expected a list, found an object"),
            (r#"{"dial": true}"#, "/dial: expected a list, found true"),
            ("[]", "/: expected an object, found a list"),
            ("\"x\"", "/: expected an object, found the string \"x\""),
            (
                r#"{"dial": [], "timeout": 1.5}"#,
                "/timeout: expected a duration such as \"30s\" or an integer of nanoseconds, \
                 found the number 1.5",
            ),
            (
                r#"{"dial": [], "timeout": "5"}"#,
                "/timeout: missing unit in duration \"5\"",
            ),
        ];
        for (text, expected) in rows {
            let seen = refused::<Upstream>(text).join("\n");
            assert!(seen.contains(expected), "{text}: {seen}");
            assert!(!seen.contains("u8") && !seen.contains("sequence"), "{seen}");
        }
        let plain = |text| refused::<(bool, f64, char)>(text).join("\n");
        assert!(plain("[1, 1, \"a\"]").contains("/0: expected true or false, found the number 1"));
        assert!(plain("[true, \"1\", \"a\"]").contains("/1: expected a number, found"));
        assert!(plain("[true, 1]").contains("/: expected a list of 3 items, found 2"));
        assert!(plain("[true, 1, \"a\", 4]").contains("/: expected a list of 3 items, found 4"));
        assert!(plain("{}").contains("/: expected a list of 3 items, found an object"));
    }

    #[test]
    fn integers_are_exact_up_to_their_ends() {
        assert_eq!(read::<u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(read::<i64>("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(read::<i64>("9007199254740993"), Ok(9_007_199_254_740_993));
        assert_eq!(read::<u8>("-0"), Ok(0));
        assert_eq!(read::<f64>("1e2"), Ok(100.0));
        assert!(refused::<u64>("18446744073709551616")[0].contains("out of range"));
        assert_eq!(
            read::<serde_json::Value>("[1, -1, 1.5]")
                .unwrap()
                .to_string(),
            "[1,-1,1.5]"
        );
    }

    #[test]
    fn all_errors_of_a_value_are_found() {
        let text = r#"{
  "upstreams": [
    {"dial": ["a:1"], "wait": 1, "weight": 300},
    {"dial": "a:1"},
    {"weight": 1},
    {"dial": ["a:1"]}
  ],
  "policy": "ip_hsh",
  "allow": ["10.0.0.1", "10.0.0"]
}"#;
        assert_eq!(
            refused::<Proxy>(text),
            [
                "l4.json:3:23: /upstreams/0/wait: unknown field \"wait\"",
                "l4.json:3:44: /upstreams/0/weight: 300 is out of range, \
                 expected an integer from 0 to 255",
                "l4.json:4:14: /upstreams/1/dial: expected a list, found the string \"a:1\"",
                "l4.json:5:5: /upstreams/2: missing field \"dial\"",
                "l4.json:8:13: /policy: unknown value \"ip_hsh\" (did you mean \"ip_hash\"?)",
                "l4.json:9:25: /allow/1: invalid IP address syntax",
            ]
        );
    }

    #[test]
    fn complaints_that_only_follow_from_others_are_dropped() {
        assert_eq!(refused::<Upstream>(r#"{"dail": ["a:1"]}"#).len(), 1);
        assert_eq!(refused::<Upstream>(r#"{"dial": 5}"#).len(), 1);
        assert_eq!(refused::<Proxy>(r#"{"upstreams": {"dial": 5}}"#).len(), 1);
        // Not a consequence: nothing like the missing field was there.
        assert_eq!(refused::<Upstream>(r#"{"weight": "x"}"#).len(), 2);
        // A fixed list with a hole would shift.
        assert_eq!(refused::<(u8, String, u8)>(r#"["x", "a", 1]"#).len(), 1);
    }

    #[test]
    fn the_number_of_errors_is_bounded() {
        let text = format!("[{}]", vec!["\"x\""; 1000].join(","));
        assert_eq!(refused::<Vec<u8>>(&text).len(), MAX_ROUNDS);
    }

    #[test]
    fn enums_are_names_or_objects_of_one_member() {
        assert_eq!(read("\"ip_hash\""), Ok(Policy::IpHash));
        assert_eq!(
            read("{\"weighted\": [1, 2]}"),
            Ok(Policy::Weighted(vec![1, 2]))
        );
        assert_eq!(
            read("{\"keyed\": {\"key\": \"a\"}}"),
            Ok(Policy::Keyed { key: "a".into() })
        );
        let rows = [
            ("5", "expected a string, found the number 5"),
            ("{}", "expected an object with one member, found 0"),
            ("\"weighted\"", "expected"),
            (
                "{\"weighted\": [true]}",
                "/weighted/0: expected an integer, found true",
            ),
            (
                "{\"weightd\": []}",
                "/weightd: unknown value \"weightd\" (did you mean",
            ),
            (
                "{\"ip_hash\": 1}",
                "/ip_hash: expected null, found the number 1",
            ),
        ];
        for (text, expected) in rows {
            let seen = refused::<Policy>(text).join("\n");
            assert!(seen.contains(expected), "{text}: {seen}");
        }
        assert_eq!(
            help::<Policy>("\"x\""),
            "valid values: random, ip_hash, weighted, keyed"
        );
    }

    #[test]
    fn unit_structs_read_an_empty_object() {
        assert_eq!(read("{}"), Ok(Empty));
        assert_eq!(read("{\"x\": null}"), Ok(Empty));
        assert_eq!(
            refused::<Empty>("{\"x\": 1}"),
            ["l4.json:1:2: /x: unknown field \"x\""]
        );
        assert_eq!(help::<Empty>("{\"x\": 1}"), "no fields are known here");
        assert!(refused::<Empty>("[]")[0].contains("expected an object, found a list"));
    }

    #[test]
    fn maps_keep_nulls_and_check_their_keys() {
        type Map = BTreeMap<u16, Option<bool>>;
        assert_eq!(
            read(r#"{"1": true, "2": null}"#),
            Ok(Map::from([(1, Some(true)), (2, None)]))
        );
        let seen = refused::<Map>(r#"{"65536": true, "x": null}"#);
        assert!(
            seen[0].contains("1:2: /65536: 65536 is out of range"),
            "{seen:?}"
        );
        assert!(seen[1].contains("1:17: /x: expected an integer, found the string \"x\""));
        assert_eq!(
            read(r#"{"::1": 1}"#),
            Ok(BTreeMap::from([(
                IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
                1
            )]))
        );
    }

    #[test]
    fn inline_key_is_left_out_at_the_top_only() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Handler {
            inner: Option<Box<Self>>,
        }
        let decode_inline = |text| {
            let doc = document(text);
            let mut errors = Vec::new();
            let value = decode::<Handler>(&doc, doc.root(), Some("handler"), &mut errors);
            (value.is_some_and(|handler| handler.inner.is_some()), errors)
        };
        assert!(decode_inline(r#"{"handler": "echo", "inner": {}}"#).0);
        let (_, errors) = decode_inline(r#"{"handler": "echo", "inner": {"handler": "x"}}"#);
        assert_eq!(errors[0].pointer(), "/inner/handler");
    }

    #[test]
    fn places_are_captured_along_with_values() {
        #[derive(Debug, Deserialize)]
        struct Route {
            #[serde(rename = "match", default)]
            matchers: Vec<ModuleMap>,
            handle: Vec<Raw>,
            name: At<String>,
            weight: Option<At<u8>>,
        }
        let text = r#"{"match": [{"tls": {"sni": 5}, "ssh": null}, null],
            "handle": [{"handler": "echo"}, 7], "name": "a", "weight": null}"#;
        let doc = document(text);
        let mut errors = Vec::new();
        let route: Route = decode(&doc, doc.root(), None, &mut errors).unwrap();
        let pointers = |map: &ModuleMap| {
            map.iter()
                .map(|(_, node)| doc.pointer(node))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            pointers(&route.matchers[0]),
            ["/match/0/tls", "/match/0/ssh"]
        );
        assert!(route.matchers[1].is_empty());
        assert_eq!(
            route
                .handle
                .iter()
                .map(|raw| doc.pointer(raw.node()))
                .collect::<Vec<_>>(),
            ["/handle/0", "/handle/1"]
        );
        assert_eq!(
            (&**route.name, doc.pointer(route.name.node())),
            ("a", "/name".to_owned())
        );
        assert!(route.weight.is_none());

        let seen = refused::<Route>(r#"{"match": [[]], "handle": [], "name": 5, "weight": 300}"#);
        assert!(
            seen[0].contains("/match/0: expected an object, found a list"),
            "{seen:?}"
        );
        assert!(
            seen[1].contains("/name: expected a string, found the number 5"),
            "{seen:?}"
        );
        assert!(seen[2].contains("/weight: 300 is out of range"), "{seen:?}");
    }

    #[test]
    fn null_counts_as_an_empty_struct() {
        #[derive(Debug, Default, Deserialize, PartialEq)]
        #[serde(default, deny_unknown_fields)]
        struct Config {
            admin: Option<u8>,
        }
        assert_eq!(read("null"), Ok(Config::default()));
        assert_eq!(read("[null]"), Ok(vec![Config::default()]));
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let seen = refused::<u8>(&format!("\"{}\"", "x".repeat(1000)));
        assert!(seen[0].chars().count() < 120, "{seen:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_document_decodes_or_is_refused(parts in [json(), json(), json()]) {
            let [upstreams, policy, allow] = &parts;
            let text = format!(
                "{{\"upstreams\":{upstreams},\"policy\":{policy},\"allow\":{allow}}}"
            );
            let _ = read::<Proxy>(&text);
            let _ = read::<serde_json::Value>(&text);
            let _ = read::<Vec<(At<u8>, ModuleMap)>>(upstreams);
        }
    }
}
