//! Provisioning: from the configuration tree to matchers, handlers and programs, with every error reported in place.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::Generation;
use crate::config::suggest::closest;
use crate::config::{
    At, ConfigError, Document, GoDuration, IpRanges, ModuleMap, Node, Value, decode, decode_beside,
    decode_sound,
};
use crate::placeholder::{self, Template};
use crate::registry::{AppModule, Apps, Kind, Registry, module_id};
use crate::storage::{Storage, Storages};

/// A module or a part of it was refused, and the reason was reported.
///
/// It carries nothing: the report is with the [`Provision`] that gave it. Provisioning goes on with the siblings, so
/// that a file's errors are all reported at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Rejected(());

/// What provisioning had to say.
#[derive(Debug, Default)]
pub struct Report {
    /// Why the configuration is refused.
    pub errors: Vec<ConfigError>,
    /// What loads but will hardly do what was meant.
    pub warnings: Vec<ConfigError>,
    /// What does as it says but may surprise.
    pub notes: Vec<ConfigError>,
}

/// A handler of a chain that has no meaning for datagrams.
pub(crate) struct StreamsOnly {
    pub(crate) name: &'static str,
    pub(crate) node: Node,
    /// Whether some route around it asks for bytes, so that datagrams can be told from streams by what they hold.
    pub(crate) behind_bytes: bool,
}

/// What a module begins once its configuration is the current one.
pub(crate) type Start = Box<dyn FnOnce(&Generation) + Send + Sync>;

/// What modules provision with: the document, the registry, and where errors go.
///
/// A module reports all that is wrong and then gives up; an operator sees every complaint with its place.
///
/// ```
/// # use std::time::Duration;
/// use l4_core::prelude::*;
/// # use schemars::JsonSchema;
/// # use serde::Deserialize;
///
/// struct Knock {
///     secret: String,
///     patience: Option<Duration>,
/// }
///
/// #[derive(Deserialize, JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct KnockConfig {
///     secret: At<String>,
///     patience: Option<At<GoDuration>>,
/// }
///
/// impl MatcherModule for Knock {
///     const NAME: &'static str = "knock";
///     type Config = KnockConfig;
///
///     fn provision(config: KnockConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
///         let patience = cx.time_limit(config.patience, Duration::from_secs(3));
///         // `{env.SECRET}` and `{file.…}` are filled in here.
///         let secret = cx.expand_load(&config.secret)?;
///         if secret.is_empty() {
///             return Err(cx.reject_help(config.secret.node(), "the secret is empty", "write a word"));
///         }
///         Ok(Self { secret, patience: patience? })
///     }
/// }
/// # impl Matcher for Knock {
/// #     fn matches(&self, view: &mut View<'_>) -> Verdict {
/// #         Verdict::prefix(view.bytes(), self.secret.as_bytes())
/// #     }
/// # }
///
/// # fn register(_: &mut Registry) {}
/// let knock: Knock = l4_testkit::matcher(register, r#"{"secret": "abc", "patience": 0}"#).unwrap();
/// assert_eq!(knock.patience, None);
///
/// let refused = l4_testkit::matcher::<Knock>(register, r#"{"secret": "", "patience": "-1s"}"#);
/// let errors = refused.err().unwrap();
/// assert_eq!(errors.len(), 2);
/// assert!(errors[1].render().contains("help: write a word"));
/// ```
pub struct Provision<'a> {
    document: &'a Document,
    registry: &'a Registry,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
    notes: Vec<ConfigError>,
    node: Node,
    route: String,
    starts: Vec<Start>,
    streams_only: Vec<StreamsOnly>,
    /// Whether the routes around what is being provisioned ask for bytes.
    behind_bytes: bool,
    /// Where the document configures applications.
    configured: BTreeMap<Box<str>, Node>,
    /// Those made so far, and those refused.
    apps: BTreeMap<Box<str>, Result<Arc<dyn Any + Send + Sync>, Rejected>>,
    /// What the document says at its top about storage.
    storage: StorageState,
}

enum StorageState {
    Absent,
    Configured(Node),
    Made(Result<Arc<dyn Storage>, Rejected>),
}

impl<'a> Provision<'a> {
    /// For the modules of `document`.
    pub fn new(document: &'a Document, registry: &'a Registry) -> Self {
        Self {
            document,
            registry,
            errors: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            node: document.root(),
            route: String::new(),
            starts: Vec::new(),
            streams_only: Vec::new(),
            behind_bytes: false,
            configured: BTreeMap::new(),
            apps: BTreeMap::new(),
            storage: StorageState::Absent,
        }
    }

    /// The value that the module being provisioned was configured with.
    pub fn node(&self) -> Node {
        self.node
    }

    /// The document.
    pub fn document(&self) -> &'a Document {
        self.document
    }

    /// Reports an error at `node`.
    pub fn reject(&mut self, node: Node, message: impl Into<String>) -> Rejected {
        self.report(self.document.error(node, message))
    }

    /// Reports an error at `node` with what would be right.
    pub fn reject_help(
        &mut self,
        node: Node,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Rejected {
        self.report(self.document.error(node, message).help(help))
    }

    /// What to tell somebody who asked for `name` of `namespace`, which this build does not have: how to build one that
    /// does, or what there is instead. For what is no module and still left out of some builds.
    pub fn explain_missing(&self, namespace: &str, name: &str) -> String {
        self.registry.explain_missing(namespace, name)
    }

    /// Reports an error that was made elsewhere.
    pub fn report(&mut self, error: ConfigError) -> Rejected {
        self.errors.push(error);
        Rejected(())
    }

    /// Reports something that loads but will not do what was meant.
    pub fn warn(&mut self, node: Node, message: impl Into<String>) {
        self.warnings.push(self.document.error(node, message));
    }

    /// Reports something that may surprise though it does what it says.
    pub fn note(&mut self, node: Node, message: impl Into<String>) {
        self.notes.push(self.document.error(node, message));
    }

    /// A time limit: `default` if it is not given, `None` if it is given as 0.
    ///
    /// # Errors
    /// It is negative.
    pub fn time_limit(
        &mut self,
        value: Option<At<GoDuration>>,
        default: Duration,
    ) -> Result<Option<Duration>, Rejected> {
        match value {
            Some(value) if value.as_nanos() < 0 => Err(self.reject_help(
                value.node(),
                format!("{} is negative", *value),
                "write a duration such as \"5s\", or 0",
            )),
            Some(value) => Ok(value.positive()),
            None => Ok(Some(default).filter(|default| !default.is_zero())),
        }
    }

    /// Has `start` called once the configuration is the current one, and never if it is refused or only checked.
    ///
    /// Provisioning itself starts no task and opens no socket; what a module needs beside its connections it gives to
    /// [`Generation::background`] here. The call is within the runtime and must not block.
    pub fn on_start(&mut self, start: impl FnOnce(&Generation) + Send + Sync + 'static) {
        self.starts.push(Box::new(start));
    }

    pub(crate) fn take_starts(&mut self) -> Vec<Start> {
        std::mem::take(&mut self.starts)
    }

    /// Notes that the handler at `node` is for streams only: whoever knows the addresses tells whether it can be.
    pub(crate) fn streams_only(&mut self, name: &'static str, node: Node) {
        let behind_bytes = self.behind_bytes;
        self.streams_only.push(StreamsOnly {
            name,
            node,
            behind_bytes,
        });
    }

    pub(crate) fn take_streams_only(&mut self) -> Vec<StreamsOnly> {
        std::mem::take(&mut self.streams_only)
    }

    /// Provisions what is behind a route that asks for bytes, or does not.
    pub(crate) fn behind<T>(&mut self, bytes: bool, provision: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.behind_bytes;
        self.behind_bytes |= bytes;
        let provisioned = provision(self);
        self.behind_bytes = outer;
        provisioned
    }

    /// Whether an error was reported so far.
    pub fn failed(&self) -> bool {
        !self.errors.is_empty()
    }

    /// What was reported.
    pub fn finish(self) -> Report {
        Report {
            errors: self.errors,
            warnings: self.warnings,
            notes: self.notes,
        }
    }

    /// Enters route `i` of the current list; give what it returns to [`leave_route`](Self::leave_route).
    pub(crate) fn enter_route(&mut self, i: usize) -> usize {
        let outer = self.route.len();
        let dot = if outer == 0 { "" } else { "." };
        let _ = write!(self.route, "{dot}{i}");
        outer
    }

    pub(crate) fn leave_route(&mut self, outer: usize) {
        self.route.truncate(outer);
    }

    /// The position of the current route, such as `1` or `1.0` inside a subroute.
    pub(crate) fn route_name(&self) -> &str {
        &self.route
    }

    /// Decodes the value at `node`.
    ///
    /// # Errors
    /// Every error in the value was reported.
    pub fn decode<T: DeserializeOwned>(&mut self, node: Node) -> Result<T, Rejected> {
        decode(self.document, node, None, &mut self.errors).ok_or(Rejected(()))
    }

    /// Decodes the value at `node` and goes on with what is sound in it, so that a faulty part does not hide the faults of
    /// its siblings. The configuration is refused all the same.
    ///
    /// # Errors
    /// Every error in the value was reported, and nothing can be made of the rest.
    pub(crate) fn decode_sound<T: DeserializeOwned>(&mut self, node: Node) -> Result<T, Rejected> {
        decode_sound(self.document, node, None, &mut self.errors).ok_or(Rejected(()))
    }

    /// Decodes the object at `node` without the member that names the module.
    ///
    /// # Errors
    /// Every error in the value was reported.
    pub fn decode_inline<T: DeserializeOwned>(
        &mut self,
        node: Node,
        inline_key: &str,
    ) -> Result<T, Rejected> {
        decode(self.document, node, Some(inline_key), &mut self.errors).ok_or(Rejected(()))
    }

    /// Compiles a text whose placeholders are filled in per connection. A name that nothing knows is a warning.
    ///
    /// # Errors
    /// The text has too many open braces.
    pub fn template(&mut self, text: &At<String>) -> Result<Template, Rejected> {
        self.template_at(text, text.node())
    }

    /// [`template`](Self::template) for a text that does not stand in the document as such, reported at `node`.
    ///
    /// # Errors
    /// The text has too many open braces.
    pub fn template_at(&mut self, text: &str, node: Node) -> Result<Template, Rejected> {
        let template = Template::compile(text, self.registry.placeholder_table())
            .map_err(|error| self.reject(node, error.to_string()))?;
        for name in template.unknown() {
            self.warn(
                node,
                format!(
                    "unknown placeholder {{{name}}} is always empty; write \\{{ for a literal brace"
                ),
            );
        }
        Ok(template)
    }

    /// Fills in `env.*`, `file.*`, `system.*` and `time.*`; any other placeholder becomes empty.
    ///
    /// # Errors
    /// The text has too many open braces.
    pub fn expand_load(&mut self, text: &At<String>) -> Result<String, Rejected> {
        placeholder::expand_all(text).map_err(|error| self.reject(text.node(), error.to_string()))
    }

    /// Fills in `env.*`, `file.*`, `system.*` and `time.*`; any other placeholder stays as written.
    ///
    /// # Errors
    /// The text has too many open braces.
    pub fn expand_known(&mut self, text: &At<String>) -> Result<String, Rejected> {
        placeholder::expand_known(text).map_err(|error| self.reject(text.node(), error.to_string()))
    }

    /// Reads addresses and prefixes, after filling in their placeholders as [`expand_load`](Self::expand_load) does.
    ///
    /// # Errors
    /// Every faulty entry was reported where it stands.
    pub fn ip_ranges(&mut self, entries: &[At<String>]) -> Result<IpRanges, Rejected> {
        let texts = self.all(entries, |cx, entry| {
            let text = cx.expand_load(entry)?;
            // One by one, so that none hides the others.
            match IpRanges::parse([text.as_str()]) {
                Ok(_) => Ok(text),
                Err((_, why)) => Err(cx.reject_help(
                    entry.node(),
                    why,
                    "write an address or a prefix, such as \"192.0.2.1\" or \"10.0.0.0/8\"",
                )),
            }
        })?;
        IpRanges::parse(texts.iter().map(String::as_str))
            .map_err(|(_, why)| self.reject(self.node, why))
    }

    /// Builds the module `name` of a namespace from the value at `node`.
    ///
    /// # Errors
    /// The name is unknown, the value is `null`, or the module refused it.
    pub fn module<K: Kind>(&mut self, name: &str, node: Node) -> Result<Box<K::Object>, Rejected> {
        if matches!(self.document.value(node), Value::Null) {
            return Err(self.reject_help(
                node,
                format!(
                    "module value cannot be null: {}",
                    module_id(K::NAMESPACE, name)
                ),
                "write {} (or [] for http and not) for a module without options",
            ));
        }
        let outer = std::mem::replace(&mut self.node, node);
        let built = self.registry.build::<K>(name, node, self);
        self.node = outer;
        built.unwrap_or_else(|| {
            let message = format!("unknown module: {}", module_id(K::NAMESPACE, name));
            let error = self.document.key_error(node, message);
            Err(self.report(error.help(self.registry.explain_missing(K::NAMESPACE, name))))
        })
    }

    /// Whether this build has the module `name` of a namespace.
    pub fn has<K: Kind>(&self, name: &str) -> bool {
        self.registry.has(K::NAMESPACE, name)
    }

    /// Decodes the object at `node`, whose members are fields of `T` or else, by name, modules of a namespace, and builds
    /// those, in the order written.
    ///
    /// # Errors
    /// Every error in the value was reported, and whatever a module refused.
    #[allow(clippy::type_complexity)]
    pub fn decode_and_build<T: DeserializeOwned, K: Kind>(
        &mut self,
        node: Node,
    ) -> Result<(T, Vec<(Node, Box<K::Object>)>), Rejected> {
        let document = self.document;
        let modules: Vec<(&str, Node)> = document
            .members(node)
            .filter(|(name, _)| self.has::<K>(name))
            .collect();
        let beside = modules.iter().map(|(_, node)| *node).collect();
        let fields = decode_beside(document, node, beside, &mut self.errors).ok_or(Rejected(()));
        let built = self.all(modules, |cx, (name, node)| {
            Ok((node, cx.module::<K>(name, node)?))
        });
        Ok((fields?, built?))
    }

    /// Says which applications the document configures, before any is made.
    pub(crate) fn configure_apps<'n>(&mut self, apps: impl Iterator<Item = (&'n str, Node)>) {
        self.configured = apps.map(|(name, node)| (name.into(), node)).collect();
    }

    /// Says where the document configures storage, before anybody asks for it.
    pub(crate) fn configure_storage(&mut self, node: Node) {
        self.storage = StorageState::Configured(node);
    }

    /// The storage that the document configures at its top, which all share; `None` if it says nothing about it.
    ///
    /// # Errors
    /// It was refused, and the reason was reported.
    pub fn storage(&mut self) -> Result<Option<Arc<dyn Storage>>, Rejected> {
        let made = match &self.storage {
            StorageState::Absent => return Ok(None),
            StorageState::Made(made) => made.clone(),
            StorageState::Configured(node) => {
                let made = self.inline::<Storages>(*node, "module").map(Arc::from);
                self.storage = StorageState::Made(made.clone());
                made
            }
        };
        made.map(Some)
    }

    /// Makes the application `name` from the value at `node`, unless that was done.
    pub(crate) fn make_app(
        &mut self,
        name: &str,
        node: Node,
    ) -> Result<Arc<dyn Any + Send + Sync>, Rejected> {
        if let Some(made) = self.apps.get(name) {
            return made.clone();
        }
        let made = self.module::<Apps>(name, node).map(Arc::from);
        self.apps.insert(name.into(), made.clone());
        made
    }

    /// The application `A` of this configuration, which all who ask for it share. One that is not configured is made
    /// from its defaults.
    ///
    /// # Errors
    /// It was refused, and the reason was reported.
    pub fn app<A: AppModule>(&mut self) -> Result<Arc<A>, Rejected> {
        let made = match self.configured.get(A::NAME).copied() {
            Some(node) => self.make_app(A::NAME, node)?,
            None => match self.apps.get(A::NAME) {
                Some(made) => made.clone()?,
                None => {
                    let made: Result<Arc<dyn Any + Send + Sync>, _> =
                        A::provision(A::Config::default(), self).map(|app| Arc::new(app) as _);
                    self.apps.insert(A::NAME.into(), made.clone());
                    made?
                }
            },
        };
        let node = self.node;
        made.downcast().map_err(|_| {
            // Two crates that register one name are a conflict, and a build with conflicts does not start.
            self.reject(node, format!("the application {} is another one", A::NAME))
        })
    }

    /// Builds an inline module: the object at `node` names it under `key`.
    ///
    /// # Errors
    /// As [`module`](Self::module); also if the key is missing or not a name.
    pub fn inline<K: Kind>(&mut self, node: Node, key: &str) -> Result<Box<K::Object>, Rejected> {
        let name_node = self.document.member(node, key);
        let name = match name_node.map(|n| self.document.value(n)) {
            Some(Value::String(name)) if !name.is_empty() => name.to_owned(),
            _ => {
                let members = self.document.members(node).map(|(name, _)| name);
                let help = match closest(key, members).filter(|name| *name != key) {
                    Some(near) => format!("did you mean {key:?} instead of {near:?}?"),
                    None => self.registry.explain_missing(K::NAMESPACE, ""),
                };
                return Err(self.reject_help(
                    name_node.unwrap_or(node),
                    format!("module name not specified with key '{key}'"),
                    help,
                ));
            }
        };
        let outer = std::mem::replace(&mut self.node, node);
        let built = self.registry.build::<K>(&name, node, self);
        self.node = outer;
        built.unwrap_or_else(|| {
            Err(self.reject_help(
                name_node.unwrap_or(node),
                format!("unknown module: {}.{name}", K::NAMESPACE),
                self.registry.explain_missing(K::NAMESPACE, &name),
            ))
        })
    }

    /// Builds every module of a module map, in the order written.
    ///
    /// # Errors
    /// Any module refused; all were tried.
    #[allow(clippy::type_complexity)]
    pub fn module_map<K: Kind>(
        &mut self,
        map: &ModuleMap,
    ) -> Result<Vec<(Box<str>, Box<K::Object>)>, Rejected> {
        self.all(
            map.iter().map(|(name, node)| (name.to_owned(), node)),
            |cx, (name, node)| Ok((name.as_str().into(), cx.module::<K>(&name, node)?)),
        )
    }

    /// Builds something from every item, and reports the errors of all of them.
    ///
    /// # Errors
    /// Any of them was refused.
    pub fn all<I, T>(
        &mut self,
        items: impl IntoIterator<Item = I>,
        mut build: impl FnMut(&mut Self, I) -> Result<T, Rejected>,
    ) -> Result<Vec<T>, Rejected> {
        let mut built = Vec::new();
        let mut rejected = None;
        for item in items {
            match build(self, item) {
                Ok(value) => built.push(value),
                Err(why) => rejected = Some(why),
            }
        }
        rejected.map_or(Ok(built), Err)
    }
}
