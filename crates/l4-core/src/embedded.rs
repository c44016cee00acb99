//! A route list without listeners: what a program loads that accepts connections itself.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::app::make_apps;
use crate::config::{At, ConfigError, Document, GoDuration, ModuleMap, Raw, Value};
use crate::provision::{Provision, Rejected, Report, Start};
use crate::server::Server;
use crate::{Generation, Program, Registry};

/// A route list, provisioned: nothing of it runs yet, and dropping it leaves no trace.
pub struct Embedded {
    /// What takes the connections.
    pub server: Arc<Server>,
    /// What loads but will hardly do what was meant.
    pub warnings: Vec<ConfigError>,
    starts: Vec<Start>,
}

/// What is written for it: a list of routes, or this object. Its users read of it in docs/embedding.md.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddedConfig {
    /// Routes, asked in this order. What none of them takes goes to the program.
    #[serde(default)]
    routes: Option<Vec<Raw>>,
    /// How long to wait for the bytes that decide a route. Default `"3s"`. The program gets the connection then, unless a
    /// route takes whatever comes.
    #[serde(default)]
    matching_timeout: Option<GoDuration>,
    /// The applications that handlers of the routes need, such as `{"tls": {"certificates": …}}`.
    #[serde(default)]
    apps: Option<ModuleMap>,
    /// Where certificates and their keys are kept, as at the top of a configuration file.
    #[serde(default)]
    storage: Option<Raw>,
    /// `"layer4"`, as Caddy has it where listener wrappers are listed. No effect.
    #[serde(default)]
    wrapper: Option<At<String>>,
    /// Refused: the program has the listener.
    #[serde(default)]
    listen: Option<Raw>,
    /// As at the top of a configuration file, so that a part of one can be taken as it is. No effect.
    #[serde(rename = "$schema", default)]
    _schema: Option<String>,
}

impl Embedded {
    /// Provisions the route list of `document`. Opens no socket and starts no task.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(document: &Document, registry: &Registry) -> Result<Self, Vec<ConfigError>> {
        if !registry.conflicts().is_empty() {
            let conflicts = registry.conflicts().iter();
            return Err(conflicts
                .map(|conflict| ConfigError::without_place(document.name(), conflict))
                .collect());
        }
        let mut cx = Provision::new(document, registry);
        let program = provision(&mut cx);
        let starts = cx.take_starts();
        let Report {
            errors, warnings, ..
        } = cx.finish();
        let program = program.ok().filter(|_| errors.is_empty()).ok_or(errors)?;
        // There are no datagram sessions that could be idle.
        let server = Server::new("embedded", program, Duration::MAX, Generation::new());
        Ok(Self {
            server: Arc::new(server),
            warnings,
            starts,
        })
    }

    /// Begins what runs beside connections, such as health checks. To be called within the runtime; a second call does
    /// nothing. It ends when the server's generation is retired.
    pub fn start(&mut self) {
        for start in self.starts.drain(..) {
            start(self.server.generation());
        }
    }
}

fn provision(cx: &mut Provision<'_>) -> Result<Program, Rejected> {
    let root = cx.document().root();
    if matches!(cx.document().value(root), Value::Array) {
        let routes: Vec<Raw> = cx.decode_sound(root)?;
        return Program::provision(&routes, None, cx);
    }
    let config: EmbeddedConfig = cx.decode_sound(root)?;
    let mut rejected = None;
    if let Some(listen) = config.listen {
        rejected = Some(cx.reject_help(
            listen.node(),
            "the program that these routes are embedded in listens",
            "leave it out, and give the program its listener",
        ));
    }
    if let Some(wrapper) = config.wrapper.filter(|wrapper| **wrapper != "layer4") {
        rejected = Some(cx.reject_help(
            wrapper.node(),
            format!("{:?} is not a wrapper of connections with routes", *wrapper),
            "write \"layer4\", or leave it out",
        ));
    }
    if let Some(node) = make_apps(config.storage, config.apps.unwrap_or_default(), cx) {
        rejected = Some(cx.reject_help(
            node,
            "embedded routes have no servers",
            "write the routes of one server as \"routes\", beside \"apps\"",
        ));
    }
    let program = Program::provision(
        &config.routes.unwrap_or_default(),
        config.matching_timeout,
        cx,
    );
    rejected.map_or(program, Err)
}
