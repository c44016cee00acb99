//! Which page somebody asks for, and what it says.

use std::fmt::Write as _;

use l4_core::Registry;
use l4_core::config::suggest::closest;
use l4_core::schema::manual;
use serde_json::Value;

use super::fields::Fields;

/// What stands around matchers and handlers.
const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");

/// Names that stand for it: it describes the application `layer4`, too.
const TOPICS: [&str; 2] = ["configuration", "layer4"];

/// The pages of a build.
pub(super) struct Manual<'a> {
    registry: &'a Registry,
    schema: Value,
}

impl<'a> Manual<'a> {
    pub(super) fn new(registry: &'a Registry) -> Self {
        let schema = l4_core::schema::document(registry);
        Self { registry, schema }
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.schema)
    }

    /// All there is to ask for, each with its first sentence.
    pub(super) fn contents(&self) -> String {
        let mut page = String::from(
            "# Manual\n\n`conncept docs NAME` prints the page of a module; the last part of its name is enough.\n\n\
             * `configuration`: What stands around matchers and handlers.\n",
        );
        for id in self.ids() {
            let about = self.about(&id).unwrap_or_default();
            let (sentence, _) = about.split_once(". ").unwrap_or((about, ""));
            let sentence = sentence.trim_end_matches('.');
            // Writing to a string cannot fail.
            let _ = match sentence {
                "" => writeln!(page, "* `{}`", label(&id)),
                sentence => writeln!(page, "* `{}`: {sentence}.", label(&id)),
            };
        }
        page
    }

    /// The page that `name` stands for: the id of a module, or the last part of one.
    ///
    /// # Errors
    /// None does, or several do.
    pub(super) fn page(&self, name: &str) -> Result<String, String> {
        if TOPICS.contains(&name) {
            return Ok(CONFIGURATION.to_owned());
        }
        let ids: Vec<String> = self.ids().collect();
        let found: Vec<&String> = match ids.iter().find(|id| label(id) == name) {
            Some(id) => vec![id],
            None => ids.iter().filter(|id| last_part(id) == name).collect(),
        };
        match *found {
            [id] => Ok(self.page_about(id)),
            [] => Err(self.unknown(name, &ids)),
            _ => {
                let mut message =
                    format!("several modules are called {name}; ask for one of them:\n");
                for id in found {
                    let _ = write!(message, "\n  conncept docs {}", label(id));
                }
                Err(message)
            }
        }
    }

    fn page_about(&self, id: &str) -> String {
        let page = match manual::section(self.registry, id) {
            Some(section) => section.to_owned(),
            // A crate without a manual: what its types say.
            None => {
                let about = self.about(id).unwrap_or_default();
                format!("# `{id}`\n\n{about}\n\n<!-- fields: {id} -->\n\n<!-- end of fields -->\n")
            }
        };
        // A page may describe modules that this build lacks; their tables stay as they are.
        self.fields().fill(&page).unwrap_or(page)
    }

    /// What the schema says about a module.
    fn about(&self, id: &str) -> Option<&str> {
        self.schema
            .get("$defs")?
            .get(id)?
            .get("description")?
            .as_str()
    }

    fn ids(&self) -> impl Iterator<Item = String> {
        self.registry.modules().map(|module| module.id)
    }

    fn unknown(&self, name: &str, ids: &[String]) -> String {
        let names = ids.iter().flat_map(|id| [last_part(id), id.as_str()]);
        let near = closest(name, names.chain(TOPICS));
        let hint = near.map(|near| format!("did you mean {near}? "));
        format!(
            "this build has no module {name}; {}conncept docs lists all pages",
            hint.unwrap_or_default()
        )
    }
}

/// What tells a module from others: its id, and of applications, which have no namespace, the place.
fn label(id: &str) -> String {
    match id.contains('.') {
        true => id.to_owned(),
        false => format!("apps.{id}"),
    }
}

fn last_part(id: &str) -> &str {
    id.rsplit_once('.').map_or(id, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::new();
        crate::builtin(&mut registry);
        registry
    }

    #[test]
    fn a_page_is_found_by_the_last_part_of_a_name_and_by_all_of_it() {
        let registry = registry();
        let manual = Manual::new(&registry);
        let short = manual.page("respond").unwrap();
        assert!(short.starts_with("# `layer4.handlers.respond`"), "{short}");
        assert_eq!(manual.page("layer4.handlers.respond").unwrap(), short);
        assert!(
            manual
                .page("layer4")
                .unwrap()
                .starts_with("# Configuration")
        );
    }

    #[test]
    fn every_module_has_a_page_and_is_in_the_list() {
        let registry = registry();
        let manual = Manual::new(&registry);
        let contents = manual.contents();
        for id in manual.ids() {
            let page = manual.page(&label(&id)).unwrap();
            assert!(page.contains(&format!("# `{id}`")), "{id}: {page}");
            assert!(contents.contains(&format!("* `{}`", label(&id))), "{id}");
        }
    }

    #[test]
    fn a_name_of_several_modules_is_answered_with_all_of_them() {
        let registry = registry();
        let said = Manual::new(&registry).page("vars").unwrap_err();
        for id in ["layer4.handlers.vars", "layer4.matchers.vars"] {
            assert!(said.contains(&format!("\n  conncept docs {id}")), "{said}");
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_a_known_one() {
        let registry = registry();
        let said = Manual::new(&registry).page("respnd").unwrap_err();
        assert!(said.contains("did you mean respond?"), "{said}");
    }

    #[test]
    fn a_module_without_a_page_is_described_by_its_type() {
        use l4_core::registry::Matchers;
        use l4_core::schema::Anything;

        let mut registry = Registry::new();
        registry.add::<Matchers, Anything>("bare", |_, cx| Err(cx.reject(cx.node(), "never")));
        let page = Manual::new(&registry).page("bare").unwrap();
        assert!(page.starts_with("# `layer4.matchers.bare`"), "{page}");
        assert!(page.contains("No fields."), "{page}");
    }
}
