//! The registry: which modules this build has, by namespace and name.

use std::any::Any;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::config::Node;
use crate::config::suggest::closest;
use crate::placeholder::{Placeholders, Source};
use crate::provision::{Provision, Rejected};
use crate::{AsyncHandler, Handler, Matcher};

/// A namespace of modules that produce one kind of object. Crates may add namespaces of their own.
///
/// ```
/// use l4_core::prelude::*;
///
/// /// `greeter.tones`: how a greeting sounds.
/// enum Tones {}
///
/// impl Kind for Tones {
///     const NAMESPACE: &'static str = "greeter.tones";
///     type Object = dyn Tone;
/// }
///
/// trait Tone: Send + Sync {
///     fn greet(&self, name: &str) -> String;
/// }
///
/// struct Plain(String);
///
/// impl Tone for Plain {
///     fn greet(&self, name: &str) -> String {
///         format!("{} {name}", self.0)
///     }
/// }
///
/// /// Builds what is configured as `"tone": {"plain": "hello"}`, whichever crate has it.
/// fn tones(map: &ModuleMap, cx: &mut Provision<'_>) -> Result<Vec<Box<dyn Tone>>, Rejected> {
///     let named = cx.module_map::<Tones>(map)?;
///     Ok(named.into_iter().map(|(_, tone)| tone).collect())
/// }
///
/// let mut reg = Registry::new();
/// reg.add::<Tones, String>("plain", |word, _| Ok(Box::new(Plain(word))));
/// assert_eq!(reg.modules().next().unwrap().id, "greeter.tones.plain");
/// ```
pub trait Kind: 'static {
    /// As in module ids: `layer4.matchers`.
    const NAMESPACE: &'static str;
    /// What a module of this namespace provides, such as `dyn Matcher`.
    type Object: ?Sized + 'static;
}

/// `layer4.matchers`
pub enum Matchers {}

impl Kind for Matchers {
    const NAMESPACE: &'static str = "layer4.matchers";
    type Object = dyn Matcher;
}

/// `layer4.handlers`
pub enum Handlers {}

impl Kind for Handlers {
    const NAMESPACE: &'static str = "layer4.handlers";
    type Object = dyn Handler;
}

/// The applications beside `layer4`: the members of `apps`. Their ids have no namespace in front.
pub enum Apps {}

impl Kind for Apps {
    const NAMESPACE: &'static str = "";
    type Object = dyn Any + Send + Sync;
}

/// An application: what several modules of a configuration share, such as certificates.
///
/// There is at most one per configuration. Modules ask for it with [`Provision::app`]; if the document does not
/// configure it, it is made from the default of its configuration then.
pub trait AppModule: Any + Send + Sync + Sized {
    /// The name in JSON.
    const NAME: &'static str;
    /// The JSON value, decoded.
    type Config: DeserializeOwned + JsonSchema + Default;

    /// Makes the application. May read files; must not open sockets, start tasks or write anything.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    fn provision(config: Self::Config, cx: &mut Provision<'_>) -> Result<Self, Rejected>;
}

/// A matcher that can be configured.
pub trait MatcherModule: Matcher + Sized {
    /// The name in JSON.
    const NAME: &'static str;
    /// The JSON value, decoded.
    type Config: DeserializeOwned + JsonSchema;

    /// Makes the matcher. May read files; must not open sockets or start tasks.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    fn provision(config: Self::Config, cx: &mut Provision<'_>) -> Result<Self, Rejected>;
}

/// A handler that can be configured.
pub trait HandlerModule: AsyncHandler + Sized {
    /// The name in JSON.
    const NAME: &'static str;
    /// The JSON object without the key `handler`, decoded.
    type Config: DeserializeOwned + JsonSchema;
    /// Whether it can do nothing with datagrams. Then a server that listens on datagrams only is refused if the handler
    /// is anywhere in its routes, and one that listens on both is warned about if no route around the handler asks for
    /// bytes. A datagram session that gets there all the same is for the handler to refuse.
    const STREAMS_ONLY: bool = false;

    /// Makes the handler. May read files; must not open sockets or start tasks.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    fn provision(config: Self::Config, cx: &mut Provision<'_>) -> Result<Self, Rejected>;
}

/// Which crate a module comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The crate's name.
    pub package: &'static str,
    /// The crate's version.
    pub version: &'static str,
}

/// The [`Origin`] of the calling crate.
#[macro_export]
macro_rules! origin {
    () => {
        $crate::Origin {
            package: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
        }
    };
}

type Build<K> =
    dyn Fn(Node, &mut Provision<'_>) -> Result<Box<<K as Kind>::Object>, Rejected> + Send + Sync;

struct Builder<K: Kind>(Box<Build<K>>);

struct Entry {
    origin: Origin,
    builder: Box<dyn Any + Send + Sync>,
    #[cfg(feature = "schema")]
    shape: Shape,
}

/// How a module is written.
#[cfg(feature = "schema")]
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// The member that names it, unless it is a member of a module map.
    pub(crate) inline_key: Option<&'static str>,
    /// The schema of its configuration, without that member.
    pub(crate) config: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

/// One module of a build, for listings.
#[derive(Debug, Clone)]
pub struct ModuleInfo {
    /// Namespace and name: `layer4.handlers.proxy`.
    pub id: String,
    /// The crate it comes from.
    pub origin: Origin,
}

/// The modules of this build. A value, not a global: tests make their own.
///
/// A crate enters what it has in one function, which a build calls. Whatever the namespace, a module is a name, the type
/// of its configuration, and what makes it:
///
/// ```
/// use std::sync::Arc;
///
/// use l4_core::prelude::*;
///
/// /// Bytes of one length and more.
/// struct AtLeast(usize);
///
/// impl Matcher for AtLeast {
///     fn matches(&self, view: &mut View<'_>) -> Verdict {
///         match self.0.saturating_sub(view.bytes().len()) {
///             0 => Verdict::Match,
///             missing => Verdict::More(missing),
///         }
///     }
/// }
///
/// pub fn register(reg: &mut Registry) {
///     reg.origin(l4_core::origin!());
///     reg.add::<Matchers, usize>("at_least", |length, _| Ok(Box::new(AtLeast(length))));
///     reg.placeholders("greeter.", |name| match name {
///         "word" => Some(Arc::new(|_: &Scope<'_>, out: &mut String| out.push_str("hello"))),
///         _ => None,
///     });
/// }
///
/// let mut reg = Registry::new();
/// register(&mut reg);
/// assert_eq!(reg.modules().next().unwrap().id, "layer4.matchers.at_least");
/// assert!(reg.conflicts().is_empty());
/// register(&mut reg);
/// assert!(reg.conflicts()[0].contains("layer4.matchers.at_least is registered twice"));
/// ```
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<(&'static str, &'static str), Entry>,
    absent: BTreeMap<(&'static str, &'static str), Box<str>>,
    placeholders: Placeholders,
    origin: Option<Origin>,
    conflicts: Vec<String>,
    #[cfg(feature = "schema")]
    pages: Vec<&'static str>,
}

impl Registry {
    /// An empty registry; only the global placeholders (`env.*`, `file.*`, `system.*`, `time.*`) and those of every
    /// connection (`l4.conn.*`, `l4.vars.*`, captures) are known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says which crate the registrations that follow come from: `reg.origin(l4_core::origin!())`.
    pub fn origin(&mut self, origin: Origin) -> &mut Self {
        self.origin = Some(origin);
        self
    }

    /// Enters a matcher.
    pub fn matcher<M: MatcherModule>(&mut self) -> &mut Self {
        self.matcher_as::<M>(M::NAME)
    }

    /// Enters a matcher under another name than its own.
    pub fn matcher_as<M: MatcherModule>(&mut self, name: &'static str) -> &mut Self {
        self.add::<Matchers, M::Config>(name, |config, cx| Ok(Box::new(M::provision(config, cx)?)))
    }

    /// Enters a handler.
    pub fn handler<H: HandlerModule>(&mut self) -> &mut Self {
        self.entry::<Handlers, H::Config>(H::NAME, Some("handler"), |node, cx| {
            if H::STREAMS_ONLY {
                cx.streams_only(H::NAME, node);
            }
            let config = cx.decode_inline::<H::Config>(node, "handler")?;
            Ok(Box::new(H::provision(config, cx)?))
        })
    }

    /// Enters an application.
    pub fn app<A: AppModule>(&mut self) -> &mut Self {
        self.add::<Apps, A::Config>(A::NAME, |config, cx| {
            Ok(Box::new(A::provision(config, cx)?))
        })
    }

    /// Enters a module of any namespace that is written as a member of a module map (`{"NAME": CONFIG}`).
    pub fn add<K: Kind, C: DeserializeOwned + JsonSchema>(
        &mut self,
        name: &'static str,
        build: impl Fn(C, &mut Provision<'_>) -> Result<Box<K::Object>, Rejected>
        + Send
        + Sync
        + 'static,
    ) -> &mut Self {
        self.entry::<K, C>(name, None, move |node, cx| {
            let config = cx.decode::<C>(node)?;
            build(config, cx)
        })
    }

    /// Enters a module of any namespace that is written inline (`{"INLINE_KEY": "NAME", …}`).
    pub fn add_inline<K: Kind, C: DeserializeOwned + JsonSchema>(
        &mut self,
        name: &'static str,
        inline_key: &'static str,
        build: impl Fn(C, &mut Provision<'_>) -> Result<Box<K::Object>, Rejected>
        + Send
        + Sync
        + 'static,
    ) -> &mut Self {
        self.entry::<K, C>(name, Some(inline_key), move |node, cx| {
            let config = cx.decode_inline::<C>(node, inline_key)?;
            build(config, cx)
        })
    }

    // Without the feature `schema` nothing refers to the schemas of configurations, so that the linker drops them.
    #[cfg_attr(
        not(feature = "schema"),
        allow(unused_variables, clippy::extra_unused_type_parameters)
    )]
    fn entry<K: Kind, C: JsonSchema>(
        &mut self,
        name: &'static str,
        inline_key: Option<&'static str>,
        build: impl Fn(Node, &mut Provision<'_>) -> Result<Box<K::Object>, Rejected>
        + Send
        + Sync
        + 'static,
    ) -> &mut Self {
        let origin = self.origin.unwrap_or(Origin {
            package: "unknown",
            version: "0",
        });
        let builder = Box::new(Builder::<K>(Box::new(build)));
        match self.entries.get(&(K::NAMESPACE, name)) {
            Some(first) => self.conflicts.push(format!(
                "module {} is registered twice: by {} {} and by {} {}",
                module_id(K::NAMESPACE, name),
                first.origin.package,
                first.origin.version,
                origin.package,
                origin.version,
            )),
            None => {
                let entry = Entry {
                    origin,
                    builder,
                    #[cfg(feature = "schema")]
                    shape: Shape {
                        inline_key,
                        config: C::json_schema,
                    },
                };
                self.entries.insert((K::NAMESPACE, name), entry);
            }
        }
        self
    }

    /// Enters placeholders whose names begin with `prefix`; `source` gets what follows it.
    pub fn placeholders(&mut self, prefix: &'static str, source: Source) -> &mut Self {
        if !self.placeholders.add(prefix, source) {
            self.conflicts
                .push(format!("placeholders {prefix}* are registered twice"));
        }
        self
    }

    /// Enters a page of the manual, in Markdown: `reg.page(include_str!("../docs/hello.md"))`. What stands under a heading
    /// such as ``# `layer4.handlers.hello` `` is about that module. A module without one has a page that is made of its
    /// type. Ignored in builds without the feature `schema`.
    #[inline]
    #[cfg_attr(not(feature = "schema"), allow(unused_variables))]
    pub fn page(&mut self, markdown: &'static str) -> &mut Self {
        #[cfg(feature = "schema")]
        self.pages.push(markdown);
        self
    }

    /// The pages of the manual, in the order entered.
    #[cfg(feature = "schema")]
    pub fn pages(&self) -> impl Iterator<Item = &'static str> {
        self.pages.iter().copied()
    }

    /// Namespace and name of every module, and how it is written.
    #[cfg(feature = "schema")]
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&'static str, &'static str, Shape)> {
        let entries = self.entries.iter();
        entries.map(|((namespace, name), entry)| (*namespace, *name, entry.shape))
    }

    /// Says that a module exists but was left out of this build, and which `--with` brings it: the names for a
    /// build that has everything this one has, and that module. Ignored for modules that are present.
    pub fn absent(
        &mut self,
        namespace: &'static str,
        name: &'static str,
        with: impl Into<Box<str>>,
    ) -> &mut Self {
        self.absent.insert((namespace, name), with.into());
        self
    }

    /// Names that were registered twice, a sentence each. A build with conflicts must not start.
    pub fn conflicts(&self) -> &[String] {
        &self.conflicts
    }

    /// All modules, sorted by id.
    pub fn modules(&self) -> impl Iterator<Item = ModuleInfo> {
        self.entries
            .iter()
            .map(|((namespace, name), entry)| ModuleInfo {
                id: module_id(namespace, name),
                origin: entry.origin,
            })
    }

    /// All placeholders known to this build.
    pub fn placeholder_table(&self) -> &Placeholders {
        &self.placeholders
    }

    /// Builds the module `name` of `K` from the value at `node`.
    pub(crate) fn build<K: Kind>(
        &self,
        name: &str,
        node: Node,
        cx: &mut Provision<'_>,
    ) -> Option<Result<Box<K::Object>, Rejected>> {
        let (_, entry) = self
            .entries
            .iter()
            .find(|((ns, n), _)| *ns == K::NAMESPACE && *n == name)?;
        let builder = entry.builder.downcast_ref::<Builder<K>>()?;
        Some((builder.0)(node, cx))
    }

    pub(crate) fn has(&self, namespace: &str, name: &str) -> bool {
        let mut names = self.entries.keys();
        names.any(|(ns, n)| *ns == namespace && *n == name)
    }

    /// What to tell somebody who asked for a module that is not there.
    pub(crate) fn explain_missing(&self, namespace: &str, name: &str) -> String {
        if let Some((_, with)) = self
            .absent
            .iter()
            .find(|((ns, n), _)| *ns == namespace && *n == name)
        {
            return format!(
                "this build was made without it; add it with: cargo xtask build --with {with}"
            );
        }
        let layer4 = (namespace == Apps::NAMESPACE).then_some(crate::app::LAYER4);
        let names: Vec<&str> = layer4
            .into_iter()
            .chain(
                self.entries
                    .keys()
                    .filter(|(ns, _)| *ns == namespace)
                    .map(|(_, n)| *n),
            )
            .collect();
        let known = self
            .absent
            .keys()
            .filter(|(ns, _)| *ns == namespace)
            .map(|(_, n)| *n);
        match closest(name, names.iter().copied().chain(known)) {
            Some(near) => format!(
                "did you mean {near:?}? this build has: {}",
                names.join(", ")
            ),
            None => format!("this build has: {}", names.join(", ")),
        }
    }
}

/// Namespace and name; applications have no namespace.
pub(crate) fn module_id(namespace: &str, name: &str) -> String {
    match namespace {
        "" => name.to_owned(),
        _ => format!("{namespace}.{name}"),
    }
}
