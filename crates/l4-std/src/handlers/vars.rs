use l4_core::config::{Document, Node, Value};
use l4_core::prelude::*;

/// Sets variables, readable as `{l4.vars.NAME}` and by the matchers `vars` and `vars_regexp`.
///
/// Every key beside `handler` is a name, with placeholders; a string value may contain placeholders, any other value
/// is kept in its text form. Assignments happen in the order written, so a later one may use an earlier one.
pub struct SetVars {
    assignments: Vec<(Template, Template)>,
}

impl HandlerModule for SetVars {
    const NAME: &'static str = "vars";
    type Config = ModuleMap;

    fn provision(config: ModuleMap, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let pairs: Vec<(String, Node)> = config.iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let assignments = cx.all(pairs, |cx, (name, node)| {
            let name = cx.template_at(&name, node)?;
            let value = match cx.document().value(node) {
                Value::String(text) => cx.template_at(text, node)?,
                _ => Template::literal(&text_form(cx.document(), node)),
            };
            Ok((name, value))
        })?;
        Ok(Self { assignments })
    }
}

impl AsyncHandler for SetVars {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        for (name, value) in &self.assignments {
            let name = conn.expand(name).into_owned();
            let value = conn.expand(value).into_owned();
            conn.set_var(&name, &value);
        }
        Ok(Flow::Next(conn))
    }
}

/// A JSON value as placeholders show it: a string as is, a number in decimals, `null` empty, a list `[a b]`, an object
/// `map[k:v]` with its keys sorted.
fn text_form(document: &Document, node: Node) -> String {
    match document.value(node) {
        Value::Null => String::new(),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(text) => number_text(text),
        Value::String(text) => text.to_owned(),
        Value::Array => {
            let items: Vec<String> = document
                .items(node)
                .map(|item| nested_text_form(document, item))
                .collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object => {
            let mut members: Vec<(&str, Node)> = document.members(node).collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            let members: Vec<String> = members
                .into_iter()
                .map(|(key, value)| format!("{key}:{}", nested_text_form(document, value)))
                .collect();
            format!("map[{}]", members.join(" "))
        }
    }
}

fn nested_text_form(document: &Document, node: Node) -> String {
    match document.value(node) {
        Value::Null => "<nil>".to_owned(),
        _ => text_form(document, node),
    }
}

/// Integers keep every digit; anything else is the shortest decimal without an exponent.
fn number_text(text: &str) -> String {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return text.to_owned();
    }
    text.parse::<f64>()
        .map_or_else(|_| text.to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row M-34 of docs/defects.md.
    #[test]
    fn values_have_the_text_form_of_placeholders() {
        for (json, text) in [
            ("\"a b\"", "a b"),
            ("3", "3"),
            ("9007199254740993", "9007199254740993"),
            ("1e6", "1000000"),
            ("0.50", "0.5"),
            ("true", "true"),
            ("null", ""),
            (r#"["a",1,null]"#, "[a 1 <nil>]"),
            (r#"{"b":1,"a":["x"]}"#, "map[a:[x] b:1]"),
        ] {
            let document = Document::parse("test", json.as_bytes()).unwrap();
            assert_eq!(text_form(&document, document.root()), text, "{json}");
        }
    }
}
