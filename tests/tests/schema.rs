//! The JSON Schema says what `conncept validate` says, and the manual what the types say.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use e2e::{Finished, run, run_with};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The schema of the program under test, compiled by a validator that knows nothing of it.
struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    fn new() -> Self {
        let schema: Value = serde_json::from_str(&run(&["schema"]).stdout).unwrap();
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        let place = schema["$id"].as_str().unwrap().to_owned();
        compiler.add_resource(&place, schema).unwrap();
        let mut schemas = Schemas::new();
        let index = compiler.compile(&place, &mut schemas).unwrap();
        Self { schemas, index }
    }

    /// What it has against a configuration.
    fn complaint(&self, config: &Value) -> Option<String> {
        let checked = self.schemas.validate(config, self.index);
        checked.err().map(|error| format!("{error:#}"))
    }
}

fn validate(config: &Value) -> Finished {
    let text = config.to_string();
    run_with(&["validate", "--config", "-"], |_| {}, text.as_bytes())
}

/// Files of the repository in these folders and below.
fn files(folders: &[&str], extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|there| there == extension) {
            found.push(path);
        }
    }
    found
}

/// A configuration around a piece of one, which is recognised by its members.
fn whole(piece: Value) -> Value {
    let has = |names: &[&str]| names.iter().any(|name| piece.get(name).is_some());
    if has(&["apps", "storage", "$schema"]) || piece == json!({}) {
        piece
    } else if has(&["servers", "grace_period"]) {
        json!({"apps": {"layer4": piece}})
    } else if has(&["handler"]) {
        whole(json!({"handle": [piece]}))
    } else if has(&["listen", "routes"]) {
        whole(json!({"servers": {"a": piece}}))
    } else if has(&["match", "handle"]) {
        whole(json!({"listen": ["127.0.0.1:1"], "routes": [piece]}))
    } else {
        whole(json!({"match": [piece], "handle": [{"handler": "echo"}]}))
    }
}

#[test]
fn every_configuration_in_the_repository_is_valid() {
    let schema = Schema::new();
    let mut count = 0;
    let mut check = |place: String, text: &str| {
        let config: Value = serde_json::from_str(text).unwrap();
        if let Some(complaint) = schema.complaint(&whole(config)) {
            panic!("{place}: {complaint}");
        }
        count += 1;
    };
    let configurations = files(&["examples", "bins/conncept/src"], "json");
    // The example of a module is not in this build.
    for path in configurations
        .iter()
        .filter(|path| !path.iter().any(|part| part == "l4-hello"))
    {
        check(
            path.display().to_string(),
            &fs::read_to_string(path).unwrap(),
        );
    }
    let pages = files(&["docs", "README.md"], "md");
    for path in pages {
        let text = fs::read_to_string(&path).unwrap();
        for block in text.split("\n```json\n").skip(1) {
            let (block, _) = block.split_once("\n```").unwrap();
            // Those that belong to an editor say so by a member of its own.
            if !block.contains("json.schemas") {
                check(path.display().to_string(), block);
            }
        }
    }
    assert!(count > 100, "{count} configurations");
}

#[test]
fn what_loading_takes_the_schema_takes() {
    let schema = Schema::new();
    for piece in [
        json!({}),
        json!({"apps": null, "storage": null, "admin": {"disabled": true}, "logging": null}),
        json!({"$schema": "conncept.schema.json", "apps": {}}),
        json!({"apps": {"@id": "all", "layer4": {"@id": 7, "servers": {"@id": "s", "a": null}}}}),
        json!({"servers": null, "grace_period": 5_000_000_000_u64}),
        json!({"grace_period": "1h2m3.5s"}),
        json!({"listen": null, "routes": [null, {}], "matching_timeout": "0"}),
        json!({"match": null, "handle": null}),
        json!({"match": [null, {}, {"ssh": {}}], "handle": []}),
        json!({"match": [{"http": [null, {"header": {"Upgrade": null}}]}]}),
        json!({"match": [{"not": [{"tls": {"sni": ["a.example"], "alpn": []}}, null]}]}),
        json!({"handler": "vars", "a": 1, "b": [{}]}),
        json!({"handler": "close"}),
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "tls": null, "dial_mode": null,
            "resolver_preference": ""}], "load_balancing": null, "health_checks": {"active": {}, "passive": null}}),
        json!({"handler": "throttle", "read_bytes_per_second": 1e6, "latency": "1ms"}),
        json!({"handler": "subroute", "routes": null}),
        json!({"apps": {"tls": {"automation": {"policies": [{"on_demand": null}]}}, "pki": {}}}),
    ] {
        let config = whole(piece);
        let finished = validate(&config);
        assert_eq!(finished.code, Some(0), "{config}: {}", finished.stderr);
        assert_eq!(schema.complaint(&config), None, "{config}");
    }
    assert_eq!(validate(&Value::Null).code, Some(0));
    assert_eq!(schema.complaint(&Value::Null), None);
}

#[test]
fn what_the_schema_refuses_loading_refuses_and_the_other_way_round() {
    let schema = Schema::new();
    let upstream = json!({"dial": ["127.0.0.1:1"]});
    for piece in [
        json!([]),
        json!("apps"),
        // Unknown fields, at several depths.
        json!({"app": {}, "apps": {}}),
        json!({"apps": {"layer4": {"server": {}}}}),
        json!({"apps": {"http": {}}}),
        json!({"listen": [], "route": []}),
        json!({"match": [], "handler": "echo", "handle": []}),
        json!({"handler": "echo", "nope": 1}),
        json!({"handler": "echo", "nope": null}),
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "weigth": 1}]}),
        json!({"handler": "proxy", "upstreams": [upstream], "health_checks": {"active": {"intervall": "1s"}}}),
        json!({"handler": "tls", "connection_policies": [{"client_authentication": {"modus": "require"}}]}),
        json!({"ssh": {"version": 2}}),
        json!({"apps": {"tls": {"certificates": {"load_files": [{"certificate": "a", "key": "b", "passphrase": "c"}]}}}}),
        // Names of modules.
        json!({"handler": "ecko"}),
        json!({"match": [{"shh": {}}]}),
        json!({"match": [{"http": [{"hosts": ["a"]}]}]}),
        json!({"match": [{"tls": {"snl": ["a"]}}]}),
        json!({"match": [{"not": [{"shh": {}}]}]}),
        json!({"handler": "subroute", "routes": [{"handle": [{"handler": "ecko"}]}]}),
        json!({"handler": "proxy", "upstreams": [upstream], "load_balancing": {"selection": {"policy": "fastest"}}}),
        json!({"handler": "tls", "connection_policies": [{"client_authentication": {"ca": {"provider": "fil"}}}]}),
        json!({"storage": {"module": "redis"}}),
        // What has to be there.
        json!({"handle": [{}]}),
        json!({"handle": [null]}),
        json!({"match": [{"vars_regexp": {"a": {"name": "b"}}}]}),
        json!({"apps": {"tls": {"certificates": {"load_files": [{"certificate": "a"}]}}}}),
        json!({"apps": {"tls": {"certificates": {"load_files": [{"certificate": "a", "key": null}]}}}}),
        json!({"handler": "proxy", "upstreams": [upstream], "load_balancing": {"selection": {}}}),
        // Modules cannot be null.
        json!({"apps": {"layer4": null}}),
        json!({"match": [{"ssh": null}]}),
        // Types.
        json!({"servers": []}),
        json!({"servers": {"a": []}}),
        json!({"listen": ":80"}),
        json!({"listen": [80]}),
        json!({"listen": [], "routes": {}}),
        json!({"match": {}, "handle": []}),
        json!({"match": [[]]}),
        json!({"match": [{"ssh": []}]}),
        json!({"match": [{"http": {}}]}),
        json!({"match": [{"tls": {"sni": "a.example"}}]}),
        json!({"match": [{"vars": {"a": "b"}}]}),
        json!({"handle": {"handler": "echo"}}),
        json!({"handler": 7}),
        json!({"handler": "proxy", "upstreams": upstream}),
        json!({"handler": "proxy", "upstreams": [{"dial": "127.0.0.1:1"}]}),
        json!({"handler": "proxy", "upstreams": [{"dial": [null]}]}),
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "weight": "3"}]}),
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "weight": 1.5}]}),
        json!({"handler": "proxy", "upstreams": [upstream], "health_checks": {"active": {"close_if_unhealthy": 1}}}),
        json!({"handler": "socks5", "credentials": ["a"]}),
        json!({"match": [{"socks4": {"ports": [65536]}}]}),
        json!({"match": [{"regexp": {"count": -1}}]}),
        json!({"$schema": 7}),
        json!({"apps": {"@id": []}}),
        // Durations.
        json!({"grace_period": "5"}),
        json!({"grace_period": "5 s"}),
        json!({"grace_period": "soon"}),
        json!({"grace_period": 1.5}),
        json!({"grace_period": true}),
        // Words.
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "dial_mode": "any"}]}),
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "resolver_preference": "ipv5"}]}),
        json!({"handler": "tls", "connection_policies": [{"protocol_min": "ssl3"}]}),
        json!({"handler": "tls", "connection_policies": [{"client_authentication": {"mode": "always"}}]}),
        json!({"match": [{"postgres": {"tls": "on"}}]}),
        // What this version does not do.
        json!({"apps": {"tls": {"cache": {}}}}),
    ] {
        let config = match piece.is_object() {
            true => whole(piece),
            false => piece,
        };
        let finished = validate(&config);
        assert_eq!(finished.code, Some(1), "{config} loads");
        assert!(
            schema.complaint(&config).is_some(),
            "{config} is valid, but: {}",
            finished.stderr
        );
    }
}

#[test]
fn the_schema_describes_every_module_of_the_build_and_no_other() {
    let schema: Value = serde_json::from_str(&run(&["schema"]).stdout).unwrap();
    let definitions = schema["$defs"].as_object().unwrap();
    let listed = run(&["list-modules"]).stdout;
    let listed: BTreeSet<&str> = listed.lines().take_while(|line| !line.is_empty()).collect();
    let undescribed: Vec<&&str> = listed
        .iter()
        .filter(|id| {
            definitions
                .get(**id)
                .is_none_or(|module| module.get("description").is_none())
        })
        .collect();
    assert!(undescribed.is_empty(), "{undescribed:?}");
    let handlers = &definitions["layer4.handlers"]["properties"]["handler"]["enum"];
    let handlers: BTreeSet<&str> = handlers
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let expected: BTreeSet<&str> = listed
        .iter()
        .filter_map(|id| id.strip_prefix("layer4.handlers."))
        .collect();
    assert_eq!(handlers, expected);
}

/// Whether every field below has a description, and an optional one a default.
fn undocumented(name: &str, schema: &Value, found: &mut Vec<String>) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (field, part) in schema["properties"].as_object().into_iter().flatten() {
        // The name of a module, and the modules of a map, which have descriptions of their own.
        if part.get("const").is_some() || part.get("$ref").is_some() || name == "apps" {
            continue;
        }
        let text = part["description"].as_str().unwrap_or_default();
        let absent = part["type"] == "null"
            || required.contains(&json!(field))
            || part.get("enum").is_some();
        if text.is_empty()
            || !(absent
                || text.contains("Default: ")
                || text.to_lowercase().contains("at least one"))
        {
            found.push(format!("{name}: {field}"));
        }
    }
}

#[test]
fn every_field_has_a_description_and_optional_ones_a_default() {
    let schema: Value = serde_json::from_str(&run(&["schema"]).stdout).unwrap();
    let mut found = Vec::new();
    for (name, part) in schema["$defs"].as_object().unwrap() {
        undocumented(name, part, &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_committed_schema_and_the_tables_of_fields_are_those_of_the_types() {
    let committed = fs::read_to_string(root().join("docs/conncept.schema.json")).unwrap();
    assert!(committed == run(&["schema"]).stdout, "run cargo xtask docs");
    let mut tables = 0;
    for path in files(&["docs"], "md") {
        let page = fs::read_to_string(&path).unwrap();
        tables += page.matches("<!-- fields: ").count();
        assert!(
            !page
                .replace("<!-- fields: ", "")
                .contains("| Field | Type | Default | Effect |")
                || page.contains("<!-- fields: "),
            "{} has a table that is written by hand",
            path.display()
        );
        let filled = run_with(&["docs", "--fill"], |_| {}, page.as_bytes());
        assert_eq!(
            filled.code,
            Some(0),
            "{}: {}",
            path.display(),
            filled.stderr
        );
        assert!(
            filled.stdout == page,
            "{}: run cargo xtask docs",
            path.display()
        );
    }
    assert!(tables > 50, "{tables} tables");
}

#[test]
fn the_manual_is_printed_without_escape_sequences_where_no_terminal_reads_it() {
    let page = run(&["docs", "throttle"]);
    assert_eq!(page.code, Some(0), "{}", page.stderr);
    assert!(
        page.stdout.starts_with("# `layer4.handlers.throttle`\n"),
        "{}",
        page.stdout
    );
    assert!(
        page.stdout.contains("`read_bytes_per_second`"),
        "{}",
        page.stdout
    );
    assert!(
        !page.stdout.contains(['\x1b', '|']) && !page.stdout.contains("<!--"),
        "{}",
        page.stdout
    );

    let several = run(&["docs", "tls"]);
    assert_eq!(several.code, Some(1));
    for name in ["apps.tls", "layer4.handlers.tls", "layer4.matchers.tls"] {
        assert!(
            several.stderr.contains(&format!("conncept docs {name}\n")),
            "{}",
            several.stderr
        );
    }
    assert!(
        run(&["docs", "trottle"])
            .stderr
            .contains("did you mean throttle?")
    );
    assert!(run(&["docs"]).stdout.contains("* `http.matchers.host`: "));
}
