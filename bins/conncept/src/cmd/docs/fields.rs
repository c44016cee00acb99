//! Tables of fields, from the schema.
//!
//! A page says where one goes by two comments, between which everything is replaced:
//!
//! ```text
//! <!-- fields: layer4.handlers.proxy/upstreams -->
//! <!-- end of fields -->
//! ```
//!
//! The place is the id of a module, or `layer4`, and the names of fields from there to the object. Lists and maps are
//! passed through.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use l4_core::schema::manual::headings;
use serde_json::Value;

const BEGIN: &str = "<!-- fields: ";
const END: &str = "<!-- end of fields -->";

/// The fields of everything that a build can be configured with.
pub(super) struct Fields<'a> {
    schema: &'a Value,
}

/// The objects that a page has tables of: the names of their definitions, and where they stand.
type Anchors = BTreeMap<String, String>;

impl<'a> Fields<'a> {
    pub(super) fn new(schema: &'a Value) -> Self {
        Self { schema }
    }

    /// Fills in the tables of a Markdown page.
    ///
    /// # Errors
    /// A place that this build does not have, or a comment without the other.
    pub(super) fn fill(&self, page: &str) -> Result<String, String> {
        let anchors = self.anchors(page);
        let mut filled = String::new();
        let mut lines = page.lines().zip(1..);
        while let Some((line, _)) = lines.next() {
            filled.push_str(line);
            filled.push('\n');
            let Some(place) = marked(line) else {
                continue;
            };
            let (_, object) = self.find(place).ok_or_else(|| {
                format!("{place}: this build has nothing of that name; write the id of a module, then /FIELD")
            })?;
            // Not the end of a later table: what is between would be lost.
            let next = lines.find(|(line, _)| *line == END || line.starts_with(BEGIN));
            let before = match next {
                Some((END, _)) => String::new(),
                Some((_, number)) => format!(", before line {number}"),
                None => ", before the page ends".to_owned(),
            };
            if !before.is_empty() {
                return Err(format!(
                    "{place}: the table has no end{before}; write {END} behind it"
                ));
            }
            let _ = writeln!(filled, "\n{}\n\n{END}", self.table(object, &anchors));
        }
        Ok(filled)
    }

    fn anchors(&self, page: &str) -> Anchors {
        let headings: Vec<_> = headings(page).collect();
        let mut anchors = Anchors::new();
        let mut at = 0;
        for line in page.split_inclusive('\n') {
            at += line.len();
            let name = marked(line.trim_end()).and_then(|place| self.find(place)?.0);
            let heading = headings.iter().rfind(|(start, _, _)| *start < at);
            if let (Some(name), Some((_, _, title))) = (name, heading) {
                anchors.insert(name.to_owned(), anchor(title));
            }
        }
        anchors
    }

    /// The object at a place, and the definition that it is.
    fn find(&self, place: &str) -> Option<(Option<&'a str>, &'a Value)> {
        let mut steps = place.split('/');
        let id = steps.next()?;
        let (name, module) = self.schema.get("$defs")?.as_object()?.get_key_value(id)?;
        steps.try_fold(self.object(Some(name), module), |(_, object), step| {
            Some(self.object(None, object.get("properties")?.get(step)?))
        })
    }

    /// What is behind references, lists and maps.
    fn object(&self, name: Option<&'a str>, schema: &'a Value) -> (Option<&'a str>, &'a Value) {
        if let Some((name, schema)) = self.referenced(schema) {
            return self.object(Some(name), schema);
        }
        let choices = schema.get("anyOf").and_then(Value::as_array);
        let inner = choices
            .and_then(|choices| choices.iter().find(|choice| !is_null(choice)))
            .or_else(|| schema.get("items"))
            .or_else(|| {
                schema
                    .get("additionalProperties")
                    .filter(|part| part.is_object())
            });
        match inner {
            Some(inner) if schema.get("properties").is_none() => self.object(None, inner),
            _ => (name, schema),
        }
    }

    fn referenced(&self, schema: &Value) -> Option<(&'a str, &'a Value)> {
        let name = reference(schema)?;
        let definitions = self.schema.get("$defs")?.as_object()?;
        let (name, schema) = definitions.get_key_value(name)?;
        Some((name, schema))
    }

    fn table(&self, object: &Value, anchors: &Anchors) -> String {
        let properties = object.get("properties").and_then(Value::as_object);
        let fields = properties
            .into_iter()
            .flatten()
            // The name of the module itself.
            .filter(|(_, schema)| schema.get("const").is_none());
        let mut table = String::new();
        for (name, schema) in fields {
            let text = schema.get("description").and_then(Value::as_str);
            let (effect, default) = without_default(text.unwrap_or_default());
            let kind = self.kind(schema, anchors);
            let _ = write!(
                table,
                "\n| `{name}` | {} | {} | {} |",
                cell(&kind),
                cell(&default),
                cell(&effect)
            );
        }
        match table.as_str() {
            "" => "No fields.".to_owned(),
            rows => format!("| Field | Type | Default | Effect |\n|---|---|---|---|{rows}"),
        }
    }

    /// What a value has to be, in words.
    fn kind(&self, schema: &Value, anchors: &Anchors) -> String {
        if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
            let choices: Vec<String> = choices
                .iter()
                .filter(|choice| !is_null(choice))
                .map(|choice| self.kind(choice, anchors))
                .collect();
            return choices.join(" or ");
        }
        if let Some((name, schema)) = self.referenced(schema) {
            return match anchors.get(name) {
                Some(anchor) => format!("[object](#{anchor})"),
                None => self.kind_of_definition(name, schema, anchors),
            };
        }
        if let Some(words) = words(schema) {
            return words;
        }
        let kind = match schema.get("type") {
            Some(Value::Array(kinds)) => kinds.iter().find(|kind| *kind != "null"),
            kind => kind,
        };
        match kind.and_then(Value::as_str) {
            Some("array") => {
                let item = schema.get("items").map(|item| self.kind(item, anchors));
                format!("list of {}", plural(&item.unwrap_or_default()))
            }
            Some("object") => match schema.get("additionalProperties") {
                Some(values @ Value::Object(_)) => {
                    format!("object of {}", plural(&self.kind(values, anchors)))
                }
                _ => "object".to_owned(),
            },
            Some("null") => String::new(),
            Some(kind) => kind.to_owned(),
            None => "any value".to_owned(),
        }
    }

    fn kind_of_definition(&self, name: &str, schema: &Value, anchors: &Anchors) -> String {
        let has = |key: &str| schema.get(key).is_some();
        if name == "duration" {
            return name.to_owned();
        }
        // A namespace: one of its modules, or some of them.
        if let (true, Some(Value::Array(keys))) = (has("allOf"), schema.get("required")) {
            let key = keys.first().and_then(Value::as_str).unwrap_or_default();
            return format!("object with `{key}`");
        }
        let members = schema.get("properties").and_then(Value::as_object);
        let mut members = members.into_iter().flatten();
        if members.any(|(member, part)| reference(part) == Some(&format!("{name}.{member}"))) {
            return format!("object of `{name}`");
        }
        self.kind(schema, anchors)
    }
}

/// The place that a comment asks for.
fn marked(line: &str) -> Option<&str> {
    line.strip_prefix(BEGIN)?.strip_suffix(" -->")
}

fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "null")
}

/// `"a"`, `"b"` or `"c"`, if only some words are valid.
fn words(schema: &Value) -> Option<String> {
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    let words: Vec<&Value> = match (list("enum").or_else(|| list("examples")), list("oneOf")) {
        (Some(words), _) => words.iter().collect(),
        (None, Some(choices)) => choices
            .iter()
            .filter_map(|choice| choice.get("const"))
            .collect(),
        (None, None) => return None,
    };
    let mut words: Vec<String> = words
        .into_iter()
        .filter_map(Value::as_str)
        .filter(|word| !word.is_empty())
        .map(|word| format!("`\"{word}\"`"))
        .collect();
    let last = words.pop()?;
    Some(match words.as_slice() {
        [] => last,
        words => format!("{} or {last}", words.join(", ")),
    })
}

fn plural(kind: &str) -> String {
    let end = kind.find([' ', ']']).unwrap_or(kind.len());
    match kind.split_at(end) {
        // Words are the same however many there are.
        (first, _) if first.starts_with('`') || first == "any" => kind.to_owned(),
        (first, rest) => format!("{first}s{rest}"),
    }
}

/// A documentation without the sentence that begins with `Default: `, and what that says.
fn without_default(text: &str) -> (String, String) {
    let mut default = String::new();
    let mut effect = Vec::new();
    for sentence in sentences(text) {
        match sentence.strip_prefix("Default: ") {
            Some(said) => default = said.trim_end_matches('.').to_owned(),
            None => effect.push(sentence),
        }
    }
    (effect.join(" "), default)
}

/// Cuts a text behind every full stop that is not within code.
fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut code = false;
    let mut start = 0;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        code ^= c == '`';
        if c.is_whitespace() && before == '.' && !code {
            sentences.push(text[start..at].trim());
            start = at;
        }
        before = c;
    }
    sentences.push(text[start..].trim());
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

/// A text as it may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The anchor that a heading gets: lower case, spaces as hyphens, punctuation left out.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"$defs": {
            "layer4.handlers.proxy": {"type": "object", "required": ["handler"], "properties": {
                "handler": {"const": "proxy"},
                "upstreams": {"type": ["array", "null"], "items": {"anyOf": [
                    {"$ref": "#/$defs/Upstream"}, {"type": "null"},
                ]}, "description": "Where to connect to."},
                "names": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
                "old": {"type": "null", "description": "Not in this version."},
            }},
            "Upstream": {"type": "object", "properties": {
                "mode": {"enum": ["a|b", "", "c", null], "description": "How. Default: `\"a. b\"`. Example: `\"c\"`."},
                "wait": {"anyOf": [{"$ref": "#/$defs/duration"}, {"type": "null"}]},
            }},
            "duration": {"type": ["string", "integer"]},
        }})
    }

    #[test]
    fn tables_are_filled_in_and_objects_lead_to_their_tables() {
        let schema = schema();
        let page = "# `layer4.handlers.proxy`\n\n<!-- fields: layer4.handlers.proxy -->\nold\n<!-- end of fields -->\n\n\
                    ## An upstream\n\n<!-- fields: layer4.handlers.proxy/upstreams -->\n<!-- end of fields -->\nrest\n";
        let filled = Fields::new(&schema).fill(page).unwrap();
        for line in [
            "| `upstreams` | list of [objects](#an-upstream) |  | Where to connect to. |",
            "| `names` | object of lists of strings |  |  |",
            "| `old` |  |  | Not in this version. |",
            "| `mode` | `\"a\\|b\"` or `\"c\"` | `\"a. b\"` | How. Example: `\"c\"`. |",
            "| `wait` | duration |  |  |",
            "rest",
        ] {
            assert!(
                filled.lines().any(|there| there == line),
                "{line}\n{filled}"
            );
        }
        assert!(
            !filled.contains("\nold\n") && !filled.contains("`handler`"),
            "{filled}"
        );
        assert_eq!(Fields::new(&schema).fill(&filled).unwrap(), filled);
    }

    #[test]
    fn a_place_that_is_not_there_and_a_table_without_an_end_are_refused() {
        let schema = schema();
        let refused = |page: &str| Fields::new(&schema).fill(page).unwrap_err();
        assert!(
            refused("<!-- fields: layer4.handlers.prxy -->\n").contains("layer4.handlers.prxy: ")
        );
        assert!(refused("<!-- fields: layer4.handlers.proxy/nope -->\n").contains("/nope: "));
        assert!(refused("<!-- fields: layer4.handlers.proxy -->\n").contains("no end"));
    }

    #[test]
    fn a_table_without_an_end_does_not_take_that_of_the_next_one() {
        let schema = schema();
        let page = "<!-- fields: layer4.handlers.proxy -->\n\ntext\n\n\
                    <!-- fields: layer4.handlers.proxy/upstreams -->\n<!-- end of fields -->\n";
        let refused = Fields::new(&schema).fill(page).unwrap_err();
        assert!(
            refused.starts_with("layer4.handlers.proxy: the table has no end, before line 5;"),
            "{refused}"
        );
    }
}
