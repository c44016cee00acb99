//! The documentation is true: its configurations load, its tables are complete, its links and the tests it names exist.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use e2e::{Finished, run, run_with};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One Markdown file.
struct Page {
    /// From the root of the repository.
    name: String,
    text: String,
}

/// A run of lines outside code, or a fenced block.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Line(&'a str),
    Block {
        language: &'a str,
        line: usize,
        text: String,
    },
}

impl Page {
    fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let name = name.to_owned();
        Self { name, text }
    }

    fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        let mut lines = self.text.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            let Some(language) = line.strip_prefix("```") else {
                pieces.push(Piece::Line(line));
                continue;
            };
            let body: Vec<&str> = lines
                .by_ref()
                .map(|(line, _)| line)
                .take_while(|line| *line != "```")
                .collect();
            pieces.push(Piece::Block {
                language,
                line: number,
                text: body.join("\n"),
            });
        }
        pieces
    }

    /// What stands outside code blocks.
    fn prose(&self) -> String {
        let pieces = self.pieces();
        let lines = pieces.iter().filter_map(|piece| match piece {
            Piece::Line(line) => Some(*line),
            Piece::Block { .. } => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The JSON blocks: where each stands, and its text.
    fn configurations(&self) -> Vec<(String, String)> {
        let pieces = self.pieces().into_iter();
        let blocks = pieces.filter_map(|piece| match piece {
            Piece::Block {
                language: "json",
                line,
                text,
            } => Some((format!("{}:{line}", self.name), text)),
            _ => None,
        });
        blocks.collect()
    }

    /// Headings in order, without their `#`.
    fn headings(&self) -> Vec<String> {
        let prose = self.prose();
        let headings = prose.lines().filter_map(|line| {
            let title = line.trim_start_matches('#');
            (title.len() < line.len()).then(|| title.trim().to_owned())
        });
        headings.collect()
    }

    /// What stands under a heading, up to the next one of any level.
    fn section(&self, heading: &str) -> Section {
        let mut section = None;
        for piece in self.pieces() {
            match (&mut section, piece) {
                (None, Piece::Line(line)) if is_heading(line, heading) => {
                    section = Some(Section::default());
                }
                (None, _) => {}
                (Some(_), Piece::Line(line)) if line.starts_with('#') => break,
                (Some(section), Piece::Line(line)) => section.lines.push(line.to_owned()),
                (Some(section), Piece::Block { text, .. }) => section.blocks.push(text),
            }
        }
        section.unwrap_or_else(|| panic!("{} has no section {heading:?}", self.name))
    }
}

#[derive(Default)]
struct Section {
    lines: Vec<String>,
    blocks: Vec<String>,
}

impl Section {
    /// The fields of its table: each one's name and type.
    fn fields(&self) -> Vec<(String, String)> {
        let rows = self
            .lines
            .iter()
            .skip_while(|line| !line.starts_with("| Field |"));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        rows.flat_map(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            let kind = cells[2].trim().to_owned();
            let names: Vec<String> = code_spans(cells[1]).collect();
            names.into_iter().map(move |name| (name, kind.clone()))
        })
        .collect()
    }

    /// The names in the first column of the tables whose first heading is `title`.
    fn column(&self, title: &str) -> BTreeSet<String> {
        let header = format!("| {title} |");
        let mut names = BTreeSet::new();
        let mut inside = false;
        for line in &self.lines {
            if line.starts_with(&header) {
                inside = true;
            } else if !line.starts_with('|') {
                inside = false;
            } else if inside && !line.starts_with("|-") {
                names.extend(code_spans(line.split('|').nth(1).unwrap()));
            }
        }
        names
    }
}

fn is_heading(line: &str, heading: &str) -> bool {
    line.starts_with('#') && line.trim_start_matches('#').trim() == heading
}

fn code_spans(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// All Markdown files at the root and in `docs`.
fn pages() -> Vec<Page> {
    pages_in(&[
        "",
        "docs",
        "docs/matchers",
        "docs/handlers",
        "docs/apps",
        "docs/performance",
    ])
}

/// The pages that describe the configuration.
fn reference() -> Vec<Page> {
    let mut pages = pages_in(&["docs/matchers", "docs/handlers", "docs/apps"]);
    pages.push(configuration());
    pages
}

fn pages_in(directories: &[&str]) -> Vec<Page> {
    let mut pages = Vec::new();
    for directory in directories {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                let name = Path::new(directory).join(name);
                pages.push(Page::read(name.to_str().unwrap()));
            }
        }
    }
    assert!(pages.len() >= 4, "{} pages", pages.len());
    pages
}

/// The modules that a page has headings for: `layer4.matchers.tls`.
fn modules(page: &Page) -> Vec<String> {
    let headings = page.headings();
    let ids = headings
        .iter()
        .filter_map(|heading| heading.strip_prefix('`')?.strip_suffix('`'));
    ids.map(str::to_owned).collect()
}

/// What stands under a heading: `handlers/proxy#Upstream`, or the id of a module wherever it stands.
fn section(place: &str) -> Section {
    if let Some((page, heading)) = place.split_once('#') {
        return Page::read(&format!("docs/{page}.md")).section(heading);
    }
    let pages = reference();
    let page = pages
        .iter()
        .find(|page| modules(page).iter().any(|id| id == place))
        .unwrap_or_else(|| panic!("no section about {place}"));
    page.section(&format!("`{place}`"))
}

/// Where the examples expect files.
const FILES: &str = "/etc/conncept";

/// Stands in the examples for a certificate: DER in base64.
const CERTIFICATE: &str = "MIIBszCCAVmgAwIBAgIU...";

/// An example with files that exist and a certificate that is one.
fn filled_in(example: &str) -> String {
    let pem = fs::read_to_string(files().join("clients.pem")).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    example
        .replace(FILES, files().to_str().unwrap())
        .replace(CERTIFICATE, &base64)
}

/// The files that the examples name.
fn files() -> &'static Path {
    static FILES: LazyLock<TempDir> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["example.com".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let both = format!("{certificate}{key}");
        for (name, text) in [
            ("example.pem", &certificate),
            ("example.key", &key),
            ("clients.pem", &certificate),
            ("clients.key", &key),
            ("certificates/all.pem", &both),
            ("clients/one.pem", &certificate),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    });
    FILES.path()
}

fn configuration() -> Page {
    Page::read("docs/configuration.md")
}

/// A whole configuration around a piece of one, which is recognised by its members. Handlers that end TLS find a
/// certificate.
fn whole(piece: Value) -> Value {
    let mut config = surrounded(piece);
    let apps = &mut config["apps"];
    if apps["layer4"].to_string().contains(r#""handler":"tls""#) && apps.get("tls").is_none() {
        let file = |name: &str| files().join(name).to_str().unwrap().to_owned();
        apps["tls"] = json!({"certificates": {"load_files": [
            {"certificate": file("example.pem"), "key": file("example.key")},
        ]}});
    }
    config
}

fn surrounded(piece: Value) -> Value {
    let has = |names: &[&str]| names.iter().any(|name| piece.get(name).is_some());
    if has(&["apps"]) {
        piece
    } else if has(&["servers", "grace_period"]) {
        json!({"apps": {"layer4": piece}})
    } else if has(&["handler"]) {
        surrounded(json!({"handle": [piece]}))
    } else if has(&["listen", "routes"]) {
        surrounded(json!({"servers": {"a": piece}}))
    } else if has(&["match", "handle"]) {
        surrounded(json!({"listen": ["127.0.0.1:1"], "routes": [piece]}))
    } else {
        surrounded(json!({"match": [piece], "handle": [{"handler": "echo"}]}))
    }
}

fn validate(config: &Value) -> Finished {
    let text = config.to_string();
    run_with(&["validate", "--config", "-"], |_| {}, text.as_bytes())
}

#[test]
fn every_configuration_in_the_documentation_is_valid_and_causes_no_warning() {
    let mut count = 0;
    for (place, text) in pages().iter().flat_map(Page::configurations) {
        let piece: Value = serde_json::from_str(&filled_in(&text))
            .unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(piece.is_object(), "{place}: not an object");
        let finished = validate(&whole(piece));
        assert_eq!(finished.code, Some(0), "{place}: {}", finished.stderr);
        assert!(
            !finished.stderr.contains("warning: "),
            "{place}: {}",
            finished.stderr
        );
        count += 1;
    }
    assert!(count > 30, "{count} configurations found");
}

#[test]
fn every_module_of_the_build_has_a_section_and_no_other_has_one() {
    let listed = run(&["list-modules"]).stdout;
    let listed: BTreeSet<&str> = listed.lines().take_while(|line| !line.is_empty()).collect();
    let documented: Vec<String> = reference().iter().flat_map(modules).collect();
    let names: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    assert_eq!(names, listed);
    assert_eq!(documented.len(), listed.len(), "a module has two sections");
}

#[test]
fn every_matcher_and_handler_has_a_page_that_the_index_leads_to() {
    let index = configuration().prose();
    let listed = run(&["list-modules"]).stdout;
    let mut count = 0;
    for id in listed.lines().take_while(|line| !line.is_empty()) {
        for (namespace, folder) in [
            ("layer4.matchers.", "matchers"),
            ("layer4.handlers.", "handlers"),
        ] {
            let Some(name) = id.strip_prefix(namespace) else {
                continue;
            };
            let page = Page::read(&format!("docs/{folder}/{name}.md"));
            assert_eq!(page.headings().first(), Some(&format!("`{id}`")));
            let link = format!("| [`{name}`]({folder}/{name}.md) |");
            assert!(index.contains(&link), "the index of {folder} lacks {name}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} pages");
}

#[test]
fn every_section_about_a_module_has_an_example_that_uses_it() {
    for page in reference() {
        for id in modules(&page) {
            let name = id.rsplit('.').next().unwrap();
            let used = format!("\"{name}\"");
            let section = page.section(&format!("`{id}`"));
            assert!(
                section.blocks.iter().any(|block| block.contains(&used)),
                "{id} has no example"
            );
        }
    }
}

/// The fields that the program says are valid at the place of a field that does not exist.
fn valid_fields(piece: Value) -> BTreeSet<String> {
    let finished = validate(&whole(piece));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let help = finished
        .stderr
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("= help: valid fields: "))
        .unwrap_or_else(|| panic!("no valid fields in {}", finished.stderr));
    help.split(", ").map(str::to_owned).collect()
}

/// The sections with a table of fields, and a configuration that has an object of that kind, with a field that is not
/// among them.
fn tables() -> Vec<(&'static str, Value)> {
    let upstream = json!({"dial": ["127.0.0.1:1"]});
    vec![
        (
            "configuration#Application",
            json!({"apps": {"layer4": {"none such": 1}}}),
        ),
        (
            "configuration#Server",
            json!({"listen": [], "none such": 1}),
        ),
        ("configuration#Route", json!({"match": [], "none such": 1})),
        (
            "layer4.handlers.proxy",
            json!({"handler": "proxy", "upstreams": [upstream], "none such": 1}),
        ),
        (
            "handlers/proxy#Upstream",
            json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "none such": 1}]}),
        ),
        (
            "layer4.proxy.transports.tls",
            json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"], "tls": {"none such": 1}}]}),
        ),
        (
            "tls.ca_pool.source.combined",
            json!({"handler": "tls", "connection_policies": [
                {"client_authentication": {"ca": {"provider": "combined", "none such": 1}}},
            ]}),
        ),
        (
            "tls.ca_pool.source.storage",
            json!({"handler": "tls", "connection_policies": [
                {"client_authentication": {"ca": {"provider": "storage", "none such": 1}}},
            ]}),
        ),
        (
            "tls.ca_pool.source.pki_root",
            json!({"handler": "tls", "connection_policies": [
                {"client_authentication": {"ca": {"provider": "pki_root", "none such": 1}}},
            ]}),
        ),
        (
            "tls.ca_pool.source.pki_intermediate",
            json!({"handler": "tls", "connection_policies": [
                {"client_authentication": {"ca": {"provider": "pki_intermediate", "none such": 1}}},
            ]}),
        ),
        (
            "tls.leaf_cert_loader.storage",
            json!({"handler": "tls", "connection_policies": [{"client_authentication": {"verifiers": [
                {"verifier": "leaf", "leaf_certs_loaders": [
                    {"loader": "storage", "certificates": [], "none such": 1},
                ]},
            ]}}]}),
        ),
        (
            "http.matchers.tls",
            json!({"http": [{"tls": {"none such": 1}}]}),
        ),
        (
            "handlers/proxy#Load balancing",
            json!({"handler": "proxy", "upstreams": [upstream], "load_balancing": {"none such": 1}}),
        ),
        (
            "handlers/proxy#Health checks",
            json!({"handler": "proxy", "upstreams": [upstream], "health_checks": {"none such": 1}}),
        ),
        (
            "handlers/proxy#Active checks",
            json!({"handler": "proxy", "upstreams": [upstream],
                "health_checks": {"active": {"none such": 1}}}),
        ),
        (
            "handlers/proxy#Passive checks",
            json!({"handler": "proxy", "upstreams": [upstream],
                "health_checks": {"passive": {"none such": 1}}}),
        ),
        (
            "layer4.proxy.selection_policies.random_choose",
            json!({"handler": "proxy", "upstreams": [upstream],
                "load_balancing": {"selection": {"policy": "random_choose", "none such": 1}}}),
        ),
        ("tls", json!({"apps": {"tls": {"none such": 1}}})),
        (
            "apps/tls#Loading certificates",
            json!({"apps": {"tls": {"certificates": {"none such": 1}}}}),
        ),
        (
            "apps/tls#Certificate files",
            json!({"apps": {"tls": {"certificates": {"load_files": [{"certificate": "a", "key": "b", "none such": 1}]}}}}),
        ),
        (
            "apps/tls#Certificate texts",
            json!({"apps": {"tls": {"certificates": {"load_pem": [{"none such": 1}]}}}}),
        ),
        (
            "apps/tls#Certificates in storage",
            json!({"apps": {"tls": {"certificates": {"load_storage": {"none such": 1}}}}}),
        ),
        (
            "apps/tls#Session tickets",
            json!({"apps": {"tls": {"session_tickets": {"none such": 1}}}}),
        ),
        (
            "apps/tls#Key source",
            json!({"apps": {"tls": {"session_tickets": {"key_source": {"none such": 1}}}}}),
        ),
        (
            "apps/tls#Automation",
            json!({"apps": {"tls": {"automation": {"none such": 1}}}}),
        ),
        (
            "apps/tls#Automation policy",
            json!({"apps": {"tls": {"automation": {"policies": [{"none such": 1}]}}}}),
        ),
        (
            "tls.issuance.internal",
            json!({"apps": {"tls": {"automation": {"policies": [
                {"issuers": [{"module": "internal", "none such": 1}]},
            ]}}}}),
        ),
        ("pki", json!({"apps": {"pki": {"none such": 1}}})),
        (
            "apps/pki#Certificate authority",
            json!({"apps": {"pki": {"certificate_authorities": {"local": {"none such": 1}}}}}),
        ),
        (
            "apps/pki#Certificate files",
            json!({"apps": {"pki": {"certificate_authorities": {"local": {"root": {"certificate": "a", "none such": 1}}}}}}),
        ),
        (
            "caddy.storage.file_system",
            json!({"apps": {}, "storage": {"module": "file_system", "none such": 1}}),
        ),
        (
            "layer4.handlers.tls",
            json!({"handler": "tls", "none such": 1}),
        ),
        (
            "handlers/tls#Connection policy",
            json!({"handler": "tls", "connection_policies": [{"none such": 1}]}),
        ),
        (
            "handlers/tls#Certificate selection",
            json!({"handler": "tls", "connection_policies": [{"certificate_selection": {"none such": 1}}]}),
        ),
        (
            "handlers/tls#Client authentication",
            json!({"handler": "tls", "connection_policies": [{"client_authentication": {"none such": 1}}]}),
        ),
        (
            "layer4.handlers.subroute",
            json!({"handler": "subroute", "none such": 1}),
        ),
        (
            "layer4.handlers.throttle",
            json!({"handler": "throttle", "none such": 1}),
        ),
        (
            "layer4.handlers.tee",
            json!({"handler": "tee", "none such": 1}),
        ),
        (
            "layer4.handlers.proxy_protocol",
            json!({"handler": "proxy_protocol", "none such": 1}),
        ),
        (
            "layer4.handlers.respond",
            json!({"handler": "respond", "none such": 1}),
        ),
        (
            "layer4.handlers.socks5",
            json!({"handler": "socks5", "none such": 1}),
        ),
        (
            "layer4.handlers.postgres_tls",
            json!({"handler": "postgres_tls", "none such": 1}),
        ),
        (
            "layer4.matchers.remote_ip",
            json!({"remote_ip": {"none such": 1}}),
        ),
        (
            "layer4.matchers.local_ip",
            json!({"local_ip": {"none such": 1}}),
        ),
        (
            "layer4.matchers.vars_regexp",
            json!({"vars_regexp": {"a": {"pattern": "", "none such": 1}}}),
        ),
        (
            "tls.handshake_match.sni_regexp",
            json!({"tls": {"sni_regexp": {"none such": 1}}}),
        ),
        (
            "tls.handshake_match.remote_ip",
            json!({"tls": {"remote_ip": {"none such": 1}}}),
        ),
        (
            "tls.handshake_match.local_ip",
            json!({"tls": {"local_ip": {"none such": 1}}}),
        ),
    ]
}

#[test]
fn tables_of_fields_are_complete() {
    for (heading, piece) in tables() {
        let documented = section(heading).column("Field");
        assert_eq!(documented, valid_fields(piece), "{heading}");
    }
}

/// A value that no field of this type takes.
fn wrong(kind: &str) -> Value {
    let says = |word: &str| kind.contains(word);
    match kind {
        _ if says("list") || says("object") || says("set of") => json!(17),
        _ if says("duration") => json!("soon"),
        _ if says("boolean") || says("integer") || says("number") => json!("many"),
        // One of several words.
        _ if says("`\"") => json!("no such word"),
        _ => json!({}),
    }
}

/// Puts `value` under `field` where the field is that does not exist.
fn exchange(piece: &mut Value, field: &str, value: &Value) -> bool {
    match piece {
        Value::Object(members) => match members.remove("none such") {
            Some(_) => {
                members.insert(field.to_owned(), value.clone());
                true
            }
            None => members
                .values_mut()
                .any(|member| exchange(member, field, value)),
        },
        Value::Array(items) => items.iter_mut().any(|item| exchange(item, field, value)),
        _ => false,
    }
}

#[test]
fn every_field_refuses_a_value_of_another_type_with_place_value_and_remedy() {
    let mut count = 0;
    for (heading, piece) in tables() {
        for (field, kind) in section(heading).fields() {
            let (mut piece, value) = (piece.clone(), wrong(&kind));
            assert!(exchange(&mut piece, &field, &value), "{heading}");
            let finished = validate(&whole(piece));
            let said = &finished.stderr;
            let place = format!("{heading}, {field} ({kind}) = {value}: {said}");
            assert_eq!(finished.code, Some(1), "{place}");
            let mut places = said
                .lines()
                .filter_map(|line| line.trim_start().strip_prefix("= at: "));
            assert!(
                places.any(|at| at.ends_with(&format!("/{field}"))),
                "{place}"
            );
            assert!(said.contains("--> stdin:1:"), "{place}");
            assert!(
                said.contains("= value: ") || said.contains(&value.to_string()),
                "{place}"
            );
            assert!(
                ["expected", "= help: ", "not in this build yet"]
                    .iter()
                    .any(|word| said.contains(word)),
                "{place}"
            );
            count += 1;
        }
    }
    assert!(count >= 100, "{count} fields");
}

#[test]
fn every_matcher_refuses_a_value_of_another_type_with_place_value_and_remedy() {
    let listed = run(&["list-modules"]).stdout;
    let mut count = 0;
    for id in listed.lines().take_while(|line| !line.is_empty()) {
        let (namespace, name) = id.rsplit_once('.').unwrap_or(("", id));
        let member = json!({name: 17});
        let piece = match namespace {
            "layer4.matchers" => member,
            "http.matchers" => json!({"http": [member]}),
            "tls.handshake_match" => json!({"tls": member}),
            _ => continue,
        };
        let finished = validate(&whole(piece));
        let said = &finished.stderr;
        assert_eq!(finished.code, Some(1), "{id}: {said}");
        assert!(said.contains(&format!("/{name}\n")), "{id}: {said}");
        assert!(
            said.contains("expected") && said.contains("the number 17"),
            "{id}: {said}"
        );
        count += 1;
    }
    assert!(count > 25, "{count} matchers");
}

#[test]
fn modules_that_are_said_to_have_no_fields_have_none() {
    for (heading, piece) in [
        ("layer4.matchers.ssh", json!({"ssh": {"none such": 1}})),
        (
            "layer4.handlers.echo",
            json!({"handler": "echo", "none such": 1}),
        ),
        (
            "layer4.handlers.close",
            json!({"handler": "close", "none such": 1}),
        ),
        (
            "tls.ca_pool.source.system",
            json!({"handler": "tls", "connection_policies": [
                {"client_authentication": {"ca": {"provider": "system", "none such": 1}}},
            ]}),
        ),
    ] {
        let text = section(heading).lines.join(" ");
        assert!(text.contains("No fields."), "{heading}");
        let finished = validate(&whole(piece));
        assert!(
            finished.stderr.contains("no fields are known here"),
            "{heading}: {}",
            finished.stderr
        );
    }
}

#[test]
fn commands_and_flags_are_those_of_the_program() {
    let section = configuration().section("Commands");
    // What `--help` lists under a title: the first word that begins like one of these.
    let words = |help: &str, begin: &str| -> BTreeSet<String> {
        let lines = help.lines().map(str::trim_start);
        lines
            .flat_map(|line| line.split([' ', ',']).take(3))
            .filter(|word| word.starts_with(begin))
            .map(str::to_owned)
            .collect()
    };
    let mut flags = BTreeSet::new();
    for command in ["run", "validate", "environ"] {
        flags.extend(words(&run(&["help", command]).stdout, "--"));
    }
    flags.remove("--help");
    let documented = section.column("Flag");
    let documented: BTreeSet<String> = documented
        .iter()
        .filter(|flag| flag.starts_with("--"))
        .map(|flag| flag.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(documented, flags);

    let help = run(&["help"]).stdout;
    let (_, listed) = help.split_once("Commands:\n").unwrap();
    let listed: BTreeSet<String> = listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(|name| format!("conncept {name}"))
        .collect();
    assert_eq!(section.column("Command"), listed);
}

#[test]
fn the_access_record_and_its_reasons_are_listed_whole() {
    let page = configuration();
    let source = fs::read_to_string(root().join("crates/l4-core/src/conn/record.rs")).unwrap();
    let (_, list) = source.split_once("\nreasons! {").unwrap();
    let (list, _) = list.split_once("\n}").unwrap();
    let reasons: BTreeSet<String> = list
        .lines()
        .filter_map(|line| line.trim().split_once(" = \""))
        .map(|(_, text)| text.trim_end_matches("\",").to_owned())
        .collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    assert_eq!(page.section("End reasons").column("Reason"), reasons);

    let config = e2e::config(json!({"a": e2e::responder("127.0.0.1:0", "x")}));
    let conncept = e2e::Conncept::serving(&config);
    e2e::ask(conncept.listening()[0], b"");
    let record = conncept.log_where("a record", |line| line["logger"] == "conncept::access");
    let mut fields: BTreeSet<String> = record.as_object().unwrap().keys().cloned().collect();
    for common in ["level", "ts", "logger", "msg"] {
        assert!(fields.remove(common), "{common}");
    }
    assert_eq!(page.section("Logs").column("Field"), fields);
}

/// Path and name of every test that a page names, as `path.rs::name`.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let spans = code_spans(text);
    let tests = spans.filter_map(|span| {
        let (path, name) = span.split_once("::")?;
        path.ends_with(".rs")
            .then(|| (path.to_owned(), name.to_owned()))
    });
    tests.collect()
}

/// Whether the source has a test of that name: a function behind a test attribute, or a line of the macro `example!`.
fn has_test(source: &str, name: &str) -> bool {
    let mut attributes = false;
    source.lines().map(str::trim).any(|line| {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            attributes = true;
        }
        let function = line.strip_prefix("async ").unwrap_or(line);
        match function.strip_prefix("fn ") {
            Some(function) => {
                let after = function.strip_prefix(name).unwrap_or_default();
                std::mem::take(&mut attributes) && after.starts_with('(')
            }
            None => line
                .strip_prefix("example!(")
                .is_some_and(|rest| rest.strip_suffix(':') == Some(name)),
        }
    })
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut count = 0;
    for page in pages() {
        for (path, name) in named_tests(&page.prose()) {
            let source = sources.entry(path.clone()).or_insert_with(|| {
                fs::read_to_string(root().join(&path))
                    .unwrap_or_else(|error| panic!("{} names {path}: {error}", page.name))
            });
            assert!(
                has_test(source, &name),
                "{} names {path}::{name}, which does not exist",
                page.name
            );
            count += 1;
        }
    }
    assert!(count > 60, "{count} tests are named");
}

#[test]
fn every_difference_is_shown_by_a_test() {
    let page = Page::read("docs/differences.md");
    let prose = page.prose();
    let entries: Vec<&str> = prose.split("\n* **").skip(1).collect();
    assert!(entries.len() > 50, "{} differences", entries.len());
    for entry in entries {
        // Up to the next heading.
        let entry = entry.split("\n#").next().unwrap();
        assert!(!named_tests(entry).is_empty(), "no test shows: {entry}");
    }
}

/// The anchor that a heading gets: lower case, spaces as hyphens, punctuation left out.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The targets of `[text](target)`.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() {
    let mut count = 0;
    let mut broken = Vec::new();
    for page in pages() {
        let prose = page.prose();
        for link in links(&prose).filter(|link| !link.contains("://")) {
            count += 1;
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let here = Path::new(&page.name);
            let target = match file {
                "" => here.to_owned(),
                file => here.parent().unwrap().join(file),
            };
            if !root().join(&target).exists() {
                broken.push(format!("{} to {link}", page.name));
            } else if !fragment.is_empty() {
                let headings = Page::read(target.to_str().unwrap()).headings();
                if !headings.iter().any(|heading| anchor(heading) == fragment) {
                    broken.push(format!("{} to the heading of {link}", page.name));
                }
            }
        }
    }
    assert!(count > 40, "{count} links found");
    assert!(broken.is_empty(), "links from {}", broken.join(", "));
}
