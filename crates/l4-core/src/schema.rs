//! The JSON Schema of configurations, from the types that read them.
//!
//! Every configuration type is a [`JsonSchema`] beside `Deserialize`; its derive reads serde's attributes and the doc
//! comments. What the derive cannot see, because a module is chosen at run time, a field says by
//! `#[schemars(with = "…")]` with a type of this module:
//!
//! ```
//! use l4_core::prelude::*;
//! use l4_core::registry::Handlers;
//! use l4_core::schema::InlineOf;
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Branch {
//!     /// The handlers of the branch.
//!     #[schemars(with = "Vec<InlineOf<Handlers>>")]
//!     handle: Vec<RawNode>,
//! }
//! ```
//!
//! With the Cargo feature `schema` the registry keeps how its modules are configured, and `document` makes one schema for
//! exactly the modules of a build. Without it nothing refers to any schema, and none is linked.

#[cfg(feature = "schema")]
mod document;
#[cfg(feature = "schema")]
pub mod manual;

use std::borrow::Cow;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny};

#[cfg(feature = "schema")]
pub use self::document::document;
use crate::config::{At, GoDuration, ModuleMap, Raw};
use crate::registry::{Kind, module_id};

/// Stands for a module map of the namespace `K`: `{"NAME": CONFIG, …}`.
pub struct MapOf<K>(PhantomData<K>);

/// Stands for a module of the namespace `K` that is written inline: `{"INLINE_KEY": "NAME", …}`.
pub struct InlineOf<K>(PhantomData<K>);

impl<K: Kind> JsonSchema for MapOf<K> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        definition(K::NAMESPACE).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        // Taken if this build has no module of that namespace.
        let none = json_schema!({"type": "object", "additionalProperties": false});
        reference(generator, definition(K::NAMESPACE).to_owned(), none)
    }
}

impl<K: Kind> JsonSchema for InlineOf<K> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        definition(K::NAMESPACE).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        reference(generator, definition(K::NAMESPACE).to_owned(), nothing())
    }
}

/// The schema of a field that configures the module `name` of `K`, such as `tls` of an upstream.
pub fn module<K: Kind>(generator: &mut SchemaGenerator, name: &str) -> Schema {
    reference(generator, module_id(K::NAMESPACE, name), nothing())
}

/// Lets the struct have the modules of `K` as further members, as [`Provision::decode_and_build`] reads it:
///
/// ```
/// # use l4_core::registry::Matchers;
/// use l4_core::schema::or_modules;
/// use schemars::JsonSchema;
/// use serde::Deserialize;
///
/// #[derive(Deserialize, JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// #[schemars(transform = or_modules::<Matchers>)]
/// struct Sources {
///     // …
/// }
/// ```
///
/// [`Provision::decode_and_build`]: crate::Provision::decode_and_build
pub fn or_modules<K: Kind>(schema: &mut Schema) {
    schema.insert(OR_MODULES.to_owned(), K::NAMESPACE.into());
}

/// Names a namespace until its modules are known.
const OR_MODULES: &str = "x-or-modules";

/// Any value, which is not looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Schemas that are written by hand, because the type reads more than its derive would say.
macro_rules! schemas {
    ($($type:ty, $name:literal, $inline:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                $inline
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

schemas! {
    Anything, "anything", true, {};
    Raw, "value", true, {};
    ModuleMap, "object", true, {"type": "object"};
    GoDuration, "duration", false, {
        "description": "A span of time: numbers with units, such as `\"1m30s\"` or `\"1.5d\"`, or an integer of \
            nanoseconds. Units are `ns`, `us`, `ms`, `s`, `m`, `h` and `d`; `\"0\"` needs none.",
        "type": ["string", "integer"],
        "pattern": "^[+-]?(0|(([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d))+)$",
    };
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// The name of a namespace among the definitions.
pub(crate) fn definition(namespace: &str) -> &str {
    match namespace {
        "" => "apps",
        _ => namespace,
    }
}

/// Refers to a definition that is made when all modules are known; `absent` stands there until then.
fn reference(generator: &mut SchemaGenerator, name: String, absent: Schema) -> Schema {
    let schema = json_schema!({"$ref": format!("#/$defs/{name}")});
    let definitions = generator.definitions_mut();
    definitions.entry(name).or_insert_with(|| absent.into());
    schema
}

/// Refuses every value.
fn nothing() -> Schema {
    json_schema!({"not": {}, "description": "This build has no module for this."})
}
