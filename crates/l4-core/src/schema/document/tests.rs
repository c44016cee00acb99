use schemars::JsonSchema;
use serde::Deserialize;

use super::*;
use crate::config::{At, GoDuration, Raw};
use crate::registry::{Handlers, Kind, Matchers};
use crate::schema::{InlineOf, MapOf, or_modules};

enum Toys {}

impl Kind for Toys {
    const NAMESPACE: &'static str = "test.toys";
    type Object = ();
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Wheel {
    /// How many there are.
    ///
    /// ```json
    /// {"count": 4}
    /// ```
    ///
    /// Default: 4. Example:
    /// `3`.
    #[serde(default)]
    count: Option<At<u16>>,
    #[serde(default)]
    wait: GoDuration,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Car {
    name: At<String>,
    #[serde(default)]
    wheels: Vec<Wheel>,
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<Toys>>")]
    inside: Option<Raw>,
    #[serde(default)]
    #[schemars(with = "Vec<MapOf<Matchers>>")]
    when: Vec<Raw>,
    #[serde(default)]
    #[schemars(with = "Vec<InlineOf<Handlers>>")]
    then: Vec<Raw>,
}

const PAGE: &str = "# Toys\n\nAll of them.\n\n## `test.toys.car`\n\nA [car](#x) with\n`wheels`.\n\nMore.\n\n### Parts\n\n\
                    ```json\n# `test.toys.ball`\n```\n\n## `test.toys.ball`\n\nIt rolls.\n";

fn toys() -> Registry {
    let mut registry = Registry::new();
    registry
        .add_inline::<Toys, Car>("car", "toy", |_, _| Ok(Box::new(())))
        .add_inline::<Toys, Wheel>("ball", "toy", |_, _| Ok(Box::new(())))
        .page(PAGE);
    registry
}

fn definitions() -> Value {
    document(&toys())["$defs"].clone()
}

#[test]
fn a_namespace_has_the_modules_of_the_registry_and_no_others() {
    let defs = definitions();
    let toys = &defs["test.toys"];
    assert_eq!(toys["properties"]["toy"]["enum"], json!(["ball", "car"]));
    assert_eq!(
        toys["allOf"][1]["then"],
        json!({"$ref": "#/$defs/test.toys.car"})
    );
    assert_eq!(
        defs["apps"]["properties"],
        json!({"layer4": {"$ref": "#/$defs/layer4"}})
    );
}

#[test]
fn a_namespace_without_modules_takes_none() {
    let defs = definitions();
    let none = &defs["layer4.matchers"];
    assert_eq!(none["additionalProperties"], json!(false));
    assert_eq!(none.get("properties"), None);
    assert_eq!(defs["layer4.handlers"]["not"], json!({}));
}

#[test]
fn an_inline_module_has_the_member_that_names_it_in_front() {
    let car = &definitions()["test.toys.car"];
    let names: Vec<&String> = car["properties"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["toy", "name", "wheels", "inside", "when", "then"]);
    assert_eq!(car["properties"]["toy"], json!({"const": "car"}));
    assert_eq!(car["required"], json!(["toy", "name"]));
    assert_eq!(car["additionalProperties"], json!(false));
}

#[test]
fn null_stands_for_what_may_be_absent_and_for_objects_that_need_nothing() {
    let car = &definitions()["test.toys.car"]["properties"];
    assert_eq!(car["name"]["type"], "string");
    assert_eq!(car["wheels"]["type"], json!(["array", "null"]));
    let absent = json!({"type": "null"});
    assert_eq!(car["wheels"]["items"]["anyOf"][1], absent);
    assert_eq!(
        car["inside"]["anyOf"],
        json!([{"$ref": "#/$defs/test.toys"}, absent])
    );
    assert_eq!(car["when"]["items"]["anyOf"][1], absent);
    assert_eq!(
        car["then"]["items"],
        json!({"$ref": "#/$defs/layer4.handlers"})
    );
}

#[test]
fn texts_are_those_of_the_types_and_of_the_pages() {
    let defs = definitions();
    let count = &defs["Wheel"]["properties"]["count"];
    assert_eq!(
        count["description"],
        "How many there are.\n\nDefault: 4. Example: `3`."
    );
    assert_eq!(count["maximum"], 65535);
    assert_eq!(count.get("format"), None);
    assert_eq!(defs["test.toys.car"]["description"], "A car with `wheels`.");
    assert_eq!(defs["test.toys.ball"]["description"], "It rolls.");
}

#[test]
fn a_section_ends_at_the_next_heading_that_is_not_below_it() {
    let toys = toys();
    let car = manual::section(&toys, "test.toys.car").unwrap();
    assert!(
        car.starts_with("## `test.toys.car`\n") && car.contains("### Parts"),
        "{car}"
    );
    assert!(car.ends_with("```\n\n"), "{car}");
    assert_eq!(manual::section(&toys, "test.toys"), None);
}

#[test]
fn any_object_may_have_an_id() {
    let defs = definitions();
    for name in ["test.toys.car", "Wheel", "layer4.matchers", "layer4"] {
        let id = &defs[name]["patternProperties"]["^@id$"];
        assert_eq!(id["type"], json!(["string", "number"]), "{name}");
    }
}

enum Sources {}

impl Kind for Sources {
    const NAMESPACE: &'static str = "test.sources";
    type Object = ();
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = or_modules::<Sources>)]
#[allow(dead_code)]
struct Fuel {
    #[serde(default)]
    tank: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Engine {
    #[serde(default)]
    fuel: Option<Fuel>,
}

#[test]
fn a_struct_that_says_so_has_the_modules_of_a_namespace_as_further_members() {
    let mut registry = Registry::new();
    registry.add_inline::<Toys, Engine>("engine", "toy", |_, _| Ok(Box::new(())));
    let without = document(&registry);
    registry.add::<Sources, Wheel>("treadmill", |_, _| Ok(Box::new(())));
    let with = document(&registry);

    let tank = json!({"type": ["boolean", "null"]});
    let fuel = |document: &Value| document["$defs"]["Fuel"].clone();
    assert_eq!(fuel(&without)["properties"], json!({"tank": tank}));
    assert_eq!(
        fuel(&with)["properties"],
        // A module cannot be null.
        json!({"tank": tank, "treadmill": {"$ref": "#/$defs/test.sources.treadmill"}})
    );
    for document in [without, with] {
        assert_eq!(fuel(&document)["additionalProperties"], json!(false));
        assert!(!document.to_string().contains(OR_MODULES));
    }
}
