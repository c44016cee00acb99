//! One schema for all modules of a build.

use std::collections::BTreeMap;

use schemars::JsonSchema as _;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{OR_MODULES, definition, manual};
use crate::app::{LAYER4, Layer4Config, RootConfig};
use crate::registry::{Apps, Kind as _, Registry, module_id};

/// The schema of a whole configuration, in draft 2020-12, for exactly the modules that `registry` has.
///
/// It takes what loading takes, as far as names, types and required members go: a `null` member of an object counts as
/// absent, and so does a `null` in place of an object that needs no member. What a module is configured with is a definition
/// under its id, such as `layer4.handlers.proxy`; a namespace is one under its name, `apps` holds the applications.
pub fn document(registry: &Registry) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut root = RootConfig::json_schema(&mut generator).to_value();
    let mut parts = vec![(
        LAYER4.to_owned(),
        Layer4Config::json_schema(&mut generator).to_value(),
    )];
    let mut namespaces: BTreeMap<&str, Vec<Member>> = BTreeMap::new();
    for (namespace, name, shape) in registry.shapes() {
        let id = module_id(namespace, name);
        let mut config = (shape.config)(&mut generator).to_value();
        if let Some(text) = manual::section(registry, &id).and_then(manual::summary) {
            set_first(&mut config, "description", json!(text));
        }
        if let Some(key) = shape.inline_key {
            name_inline(&mut config, key, name);
        }
        parts.push((id, config));
        let key = shape.inline_key;
        let members = namespaces.entry(namespace).or_default();
        members.push(Member { name, key });
    }
    namespaces.entry(Apps::NAMESPACE).or_default().push(Member {
        name: LAYER4,
        key: None,
    });

    let mut definitions = generator.take_definitions(true);
    definitions.extend(parts);
    for schema in std::iter::once(&mut root).chain(definitions.values_mut()) {
        tidy(schema);
    }
    for (namespace, members) in &namespaces {
        definitions.insert(definition(namespace).to_owned(), choice(namespace, members));
    }
    let nullable: Vec<String> = definitions
        .iter()
        .filter(|(_, schema)| needs_no_member(schema))
        .map(|(name, _)| format!("#/$defs/{name}"))
        .collect();
    allow_nulls(&mut root, &nullable);
    for (name, schema) in &mut definitions {
        // The members of a module map are modules, and those cannot be null.
        if !namespaces
            .keys()
            .any(|namespace| definition(namespace) == name)
        {
            allow_nulls(schema, &nullable);
        }
    }
    for schema in std::iter::once(&mut root).chain(definitions.values_mut()) {
        // Not before: modules cannot be null.
        add_modules(schema, &namespaces);
        allow_ids(schema);
    }
    whole(root, definitions)
}

/// A module of a namespace.
struct Member {
    name: &'static str,
    key: Option<&'static str>,
}

/// The modules of a namespace as members of an object.
fn properties(namespace: &str, members: &[Member]) -> Map<String, Value> {
    members
        .iter()
        .map(|member| (member.name.to_owned(), reference(namespace, member.name)))
        .collect()
}

fn reference(namespace: &str, name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{}", module_id(namespace, name))})
}

/// The schema of a namespace: the object that names one of its modules, or that has some of them as members.
fn choice(namespace: &str, members: &[Member]) -> Value {
    let Some(key) = members.iter().find_map(|member| member.key) else {
        let properties = properties(namespace, members);
        return json!({"type": "object", "properties": properties, "additionalProperties": false});
    };
    // Not `oneOf` the modules: then every one of them would complain about a mistake in one.
    let names: Vec<&str> = members.iter().map(|member| member.name).collect();
    let branches: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": reference(namespace, name),
            })
        })
        .collect();
    json!({
        "type": "object",
        "required": [key],
        "properties": {
            key: {"description": format!("The module of `{namespace}`."), "enum": names},
        },
        "allOf": branches,
    })
}

/// Lets a struct that is also a module map have the modules of this build. One of that name stands for a field.
fn add_modules(schema: &mut Value, namespaces: &BTreeMap<&str, Vec<Member>>) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    each_part(object, &mut |part, _| add_modules(part, namespaces));
    let Some(Value::String(namespace)) = object.shift_remove(OR_MODULES) else {
        return;
    };
    let Some(members) = namespaces.get(namespace.as_str()) else {
        return;
    };
    let fields = object.entry("properties").or_insert_with(|| json!({}));
    if let Some(fields) = fields.as_object_mut() {
        fields.extend(properties(&namespace, members));
    }
}

/// Adds the member that names the module.
fn name_inline(config: &mut Value, key: &str, name: &str) {
    let Some(object) = config.as_object_mut() else {
        *config =
            json!({"type": "object", "required": [key], "properties": {key: {"const": name}}});
        return;
    };
    object.insert("type".to_owned(), json!("object"));
    let properties = object.entry("properties").or_insert_with(|| json!({}));
    set_first(properties, key, json!({"const": name}));
    let required = object.entry("required").or_insert_with(|| json!([]));
    if let Some(required) = required.as_array_mut() {
        required.insert(0, json!(key));
    }
}

/// Sets a member and puts it in front of the others.
fn set_first(object: &mut Value, key: &str, value: Value) {
    let members = object
        .as_object_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    let first = std::iter::once((key.to_owned(), value));
    let others = members.into_iter().filter(|(name, _)| name != key);
    *object = Value::Object(first.chain(others).collect());
}

/// Makes texts of doc comments and leaves out what says nothing about JSON.
fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::String(text)) = object.get_mut("description") {
        let text = manual::paragraphs(text);
        set_first(schema, "description", json!(text));
    }
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    // `uint16` and its kin; the bounds are there in numbers.
    if !object.get("type").is_some_and(|kind| kind == "string") {
        object.shift_remove("format");
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.shift_remove("default");
    }
    each_part(object, &mut |part, _| tidy(part));
}

/// Lets any object have an `@id`. As a pattern, so that editors do not offer it everywhere.
fn allow_ids(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    each_part(object, &mut |part, _| allow_ids(part));
    if object.contains_key("additionalProperties") {
        let id = json!({"^@id$": {"type": ["string", "number"]}});
        object.insert("patternProperties".to_owned(), id);
    }
}

/// Lets `null` stand wherever loading takes it.
fn allow_nulls(schema: &mut Value, nullable: &[String]) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let required: Vec<String> = object
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    each_part(object, &mut |part, place| {
        let absent = match place {
            Place::Member(name) => !required.iter().any(|required| required == name),
            Place::Item => is_nullable(part, nullable),
            Place::Other => false,
        };
        allow_nulls(part, nullable);
        if absent {
            allow_null(part);
        }
    });
}

fn allow_null(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(values)) = object.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
    match object.get_mut("type") {
        Some(Value::Array(kinds)) if !kinds.contains(&json!("null")) => kinds.push(json!("null")),
        Some(kind @ Value::String(_)) if kind != "null" => *kind = json!([kind, "null"]),
        Some(_) => {}
        None => allow_null_beside(object),
    }
}

/// For schemas that refer to others: either these or `null`. What is said about the place stays in front.
fn allow_null_beside(object: &mut Map<String, Value>) {
    let absent = json!({"type": "null"});
    let has_null = |key: &str| {
        let choices = object.get(key).and_then(Value::as_array);
        choices.is_some_and(|choices| choices.contains(&absent))
    };
    if has_null("anyOf")
        || !["$ref", "anyOf", "oneOf", "allOf"]
            .iter()
            .any(|key| object.contains_key(*key))
    {
        return;
    }
    let (about, others): (Map<_, _>, Map<_, _>) = std::mem::take(object)
        .into_iter()
        .partition(|(key, _)| matches!(key.as_str(), "description" | "default"));
    *object = about;
    object.insert("anyOf".to_owned(), json!([others, absent]));
}

fn is_nullable(schema: &Value, nullable: &[String]) -> bool {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => nullable.iter().any(|name| name == reference),
        None => needs_no_member(schema),
    }
}

/// Whether a schema is that of a struct that `{}` makes, and so `null`.
fn needs_no_member(schema: &Value) -> bool {
    let has = |key: &str| schema.get(key).is_some();
    let none = |key: &str| {
        schema
            .get(key)
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
    };
    schema.get("type").is_some_and(|kind| kind == "object")
        && (has("properties") || schema.get("additionalProperties") == Some(&Value::Bool(false)))
        && none("required")
}

/// Where a schema stands in another one.
enum Place<'a> {
    /// The value of a member of that name.
    Member(&'a str),
    /// An item of a list, or a value of a map.
    Item,
    Other,
}

fn each_part(object: &mut Map<String, Value>, visit: &mut dyn FnMut(&mut Value, Place<'_>)) {
    for (key, value) in object {
        match (key.as_str(), value) {
            ("properties", Value::Object(members)) => {
                for (name, part) in members {
                    visit(part, Place::Member(name));
                }
            }
            ("items" | "additionalProperties", part) => visit(part, Place::Item),
            ("anyOf" | "oneOf" | "allOf", Value::Array(parts)) => {
                for part in parts {
                    visit(part, Place::Other);
                }
            }
            _ => {}
        }
    }
}

fn whole(mut root: Value, mut definitions: Map<String, Value>) -> Value {
    definitions.sort_keys();
    if let Some(root) = root.as_object_mut() {
        // A file that says `null` configures nothing.
        root.insert("type".to_owned(), json!(["object", "null"]));
        root.insert("$defs".to_owned(), Value::Object(definitions));
        root.shift_remove("title");
    }
    set_first(&mut root, "title", json!("Conncept configuration"));
    set_first(
        &mut root,
        "$schema",
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    root
}

#[cfg(test)]
mod tests;
