//! The configuration document as a whole: which applications it configures, and the layer-4 application itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{
    Address, At, ConfigError, Document, Family, GoDuration, ModuleMap, Network, Node, Raw, Value,
};
use crate::provision::{Provision, Rejected, Report, Start, StreamsOnly};
use crate::registry::{Apps, Registry};
use crate::route::RouteConfig;
use crate::schema::{InlineOf, MapOf};
use crate::server::DEFAULT_IDLE_TIMEOUT;
use crate::server::Server;
use crate::storage::Storages;
use crate::{Generation, Program};

/// The application that all others are there for. Not a module: it is what is loaded.
pub(crate) const LAYER4: &str = "layer4";

/// How long connections may go on after the process was told to stop, unless configured.
pub const DEFAULT_GRACE_PERIOD: Duration = Duration::from_secs(5);

/// The configuration, provisioned: nothing of it runs yet, and dropping it leaves no trace.
pub struct App {
    /// One entry per address and port, in the order written.
    pub listens: Vec<Listen>,
    /// How long connections may go on after the process was told to stop.
    pub grace_period: Duration,
    /// How long connections of this configuration may go on after it was replaced; `None` is without limit.
    pub drain_timeout: Option<Duration>,
    /// What all its connections belong to.
    pub generation: Arc<Generation>,
    starts: Vec<Start>,
}

/// One address that a server listens on.
pub struct Listen {
    /// A single address: ranges are expanded.
    pub address: Address,
    /// What takes its connections.
    pub server: Arc<Server>,
    /// The JSON pointer of the entry, for messages about binding it.
    pub pointer: String,
    /// The entry's place in the document.
    pub node: Node,
}

/// What loading a document gave.
pub struct Loaded {
    /// The application, unless there were errors.
    pub app: Result<App, Vec<ConfigError>>,
    /// What loads but will hardly do what was meant.
    pub warnings: Vec<ConfigError>,
    /// What does as it says but may surprise.
    pub notes: Vec<ConfigError>,
}

/// The top level of a document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RootConfig {
    /// The administration endpoint.
    #[serde(default)]
    #[schemars(with = "Option<ModuleMap>")]
    admin: Option<Raw>,
    /// Log outputs.
    #[serde(default)]
    #[schemars(with = "Option<ModuleMap>")]
    logging: Option<Raw>,
    /// Where certificates and their keys are kept, such as `{"module": "file_system", "root": "/var/lib/conncept"}`.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<Storages>>")]
    storage: Option<Raw>,
    /// The applications, by name.
    #[serde(default)]
    #[schemars(with = "Option<MapOf<Apps>>")]
    apps: Option<ModuleMap>,
    /// The JSON Schema that editors check the file against, such as `"conncept.schema.json"`. Without effect here.
    #[serde(rename = "$schema", default)]
    _schema: Option<String>,
}

/// The layer-4 application.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layer4Config {
    /// Servers by name. The name is a label for logs; the order has no meaning. Default: none.
    #[serde(default)]
    #[schemars(with = "Option<BTreeMap<String, ServerConfig>>")]
    servers: Option<ModuleMap>,
    /// How long connections may go on after the process was told to stop (SIGTERM, SIGINT). 0 closes them at once.
    /// Default: `"5s"`.
    #[serde(default)]
    grace_period: Option<At<GoDuration>>,
    /// How long connections of this configuration may go on after a reload has replaced it. 0 is no limit. Default:
    /// without limit.
    #[serde(default)]
    drain_timeout: Option<At<GoDuration>>,
}

/// One server: where it listens and how it routes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerConfig {
    /// Addresses, such as `":443"`, `"udp/127.0.0.1:53"`, `"unix//run/x.sock|0660"`. Global placeholders (`{env.PORT}`)
    /// are filled in once, at load. Default: none.
    #[serde(default)]
    listen: Option<Vec<At<String>>>,
    /// Routes, asked in this order. Without any, every connection is closed at once. Default: none.
    #[serde(default)]
    #[schemars(with = "Option<Vec<RouteConfig>>")]
    routes: Option<Vec<Raw>>,
    /// Datagrams only: how long a session may be silent in both directions. 0 or less is the default. Default: `"30s"`.
    #[serde(default)]
    idle_timeout: Option<GoDuration>,
    /// How long to wait for the bytes that decide a route. 0 or less is the default. Default: `"3s"`.
    #[serde(default)]
    matching_timeout: Option<GoDuration>,
}

impl App {
    /// Begins what runs beside connections, such as health checks. To be called within the runtime, once nothing can
    /// keep this configuration from being the current one any more; a second call does nothing.
    pub fn start(&mut self) {
        for start in self.starts.drain(..) {
            start(&self.generation);
        }
    }

    /// Provisions everything that `document` configures. Opens no socket and starts no task.
    pub fn load(document: &Document, registry: &Registry) -> Loaded {
        let mut cx = Provision::new(document, registry);
        let app = Self::provision(&mut cx);
        let Report {
            errors,
            warnings,
            notes,
        } = cx.finish();
        // `Rejected` and an error that did not stop the provisioning of its surroundings are the same to the caller.
        let app = app.ok().filter(|_| errors.is_empty()).ok_or(errors);
        Loaded {
            app,
            warnings,
            notes,
        }
    }

    fn provision(cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let document = cx.document();
        let mut layer4 = None;
        if !matches!(document.value(document.root()), Value::Null) {
            let root: RootConfig = cx.decode_sound(document.root())?;
            for (name, section) in [("admin", &root.admin), ("logging", &root.logging)] {
                if let Some(raw) = section {
                    not_yet(cx, name, raw.node());
                }
            }
            layer4 = make_apps(root.storage, root.apps.unwrap_or_default(), cx);
        }
        Self::provision_layer4(layer4, cx)
    }

    fn provision_layer4(node: Option<Node>, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let generation = Generation::new();
        let Some(node) = node else {
            return Ok(Self {
                listens: Vec::new(),
                grace_period: DEFAULT_GRACE_PERIOD,
                drain_timeout: None,
                generation,
                starts: cx.take_starts(),
            });
        };
        if matches!(cx.document().value(node), Value::Null) {
            return Err(cx.reject(node, "module value cannot be null: layer4"));
        }
        let config: Layer4Config = cx.decode_sound(node)?;
        let grace_period = cx.time_limit(config.grace_period, DEFAULT_GRACE_PERIOD);
        let drain_timeout = cx.time_limit(config.drain_timeout, Duration::ZERO);
        let servers: Vec<(String, Node)> = config
            .servers
            .iter()
            .flat_map(ModuleMap::iter)
            .map(|(n, v)| (n.to_owned(), v))
            .collect();
        let listens = cx.all(servers, |cx, (name, node)| {
            provision_server(&name, node, &generation, cx)
        });
        let listens: Vec<Listen> = listens?.into_iter().flatten().collect();
        refuse_shared_addresses(&listens, cx)?;
        Ok(Self {
            listens,
            grace_period: grace_period?.unwrap_or_default(),
            drain_timeout: drain_timeout?,
            generation,
            starts: cx.take_starts(),
        })
    }
}

/// Makes the storage and the applications that a document configures, and says where `layer4` is, which is not made.
pub(crate) fn make_apps(
    storage: Option<Raw>,
    apps: ModuleMap,
    cx: &mut Provision<'_>,
) -> Option<Node> {
    // What is wrong with any of them was reported; the rest is checked all the same.
    if let Some(raw) = storage {
        cx.configure_storage(raw.node());
        let _ = cx.storage();
    }
    cx.configure_apps(apps.iter());
    let mut layer4 = None;
    for (name, node) in apps.iter() {
        if name == LAYER4 {
            layer4 = Some(node);
        } else {
            let _ = cx.make_app(name, node);
        }
    }
    layer4
}

fn provision_server(
    name: &str,
    node: Node,
    generation: &Arc<Generation>,
    cx: &mut Provision<'_>,
) -> Result<Vec<Listen>, Rejected> {
    let config: ServerConfig = cx.decode_sound(node)?;
    let program = Program::provision(
        &config.routes.unwrap_or_default(),
        config.matching_timeout,
        cx,
    );
    let addresses = cx.all(config.listen.unwrap_or_default(), |cx, text| {
        listen_addresses(&text, cx).map(|addresses| (text.node(), addresses))
    });
    let streams_only = cx.take_streams_only();
    let fits = match &addresses {
        Ok(addresses) => refuse_datagrams_to(streams_only, addresses, cx),
        Err(_) => Ok(()),
    };
    let (program, addresses) = (program?, addresses?);
    fits?;
    if let Some(route) = program.catch_all_behind_bytes() {
        for (node, addresses) in &addresses {
            warn_server_first(*node, addresses, route, &program, cx);
        }
    }
    let idle_timeout = config
        .idle_timeout
        .and_then(|t| t.positive())
        .unwrap_or(DEFAULT_IDLE_TIMEOUT);
    let server = Arc::new(Server::new(name, program, idle_timeout, generation.clone()));
    let listens = addresses.into_iter().flat_map(|(node, addresses)| {
        let (server, pointer) = (&server, cx.document().pointer(node));
        addresses
            .into_iter()
            .map(|address| Listen {
                address,
                server: server.clone(),
                pointer: pointer.clone(),
                node,
            })
            .collect::<Vec<_>>()
    });
    Ok(listens.collect())
}

/// The single addresses that one `listen` entry stands for.
fn listen_addresses(text: &At<String>, cx: &mut Provision<'_>) -> Result<Vec<Address>, Rejected> {
    let expanded = cx.expand_load(text)?;
    let address: Address = expanded.parse().map_err(|error| {
        cx.reject_help(
            text.node(),
            format!("parsing listener address {expanded:?}: {error}"),
            "write [network/]host:port, such as \":443\", \"udp/127.0.0.1:53\" or \"unix//run/x.sock\"",
        )
    })?;
    if let Some(why) = address.unsupported() {
        return Err(cx.reject(text.node(), why));
    }
    if address.port_was_missing() {
        cx.warn(
            text.node(),
            format!("{expanded:?} has no port: a random one will be used"),
        );
    }
    Ok(address.expand().collect())
}

/// Reports the handlers for streams on a server that listens on datagrams: errors if it listens on nothing else.
fn refuse_datagrams_to(
    handlers: Vec<StreamsOnly>,
    addresses: &[(Node, Vec<Address>)],
    cx: &mut Provision<'_>,
) -> Result<(), Rejected> {
    let find = |wanted: fn(&Address) -> bool| {
        let mut all = addresses
            .iter()
            .flat_map(|(node, all)| all.iter().map(move |address| (*node, address)));
        all.find(|(_, address)| wanted(address))
    };
    let Some((listen, datagrams)) = find(Address::is_datagram) else {
        return Ok(());
    };
    let streams = find(Address::is_stream).is_some();
    let mut fits = Ok(());
    for handler in handlers {
        let (name, document) = (handler.name, cx.document());
        let node = document
            .member(handler.node, "handler")
            .unwrap_or(handler.node);
        if !streams {
            let error = document
                .error(
                    node,
                    format!("{name} needs a stream, and this server listens on datagrams only"),
                )
                .help(
                    "listen on an address for streams, such as \":443\", or leave the handler out",
                )
                .related(document, listen, "datagrams come from here");
            fits = Err(cx.report(error));
        } else if !handler.behind_bytes {
            cx.warn(
                node,
                format!(
                    "{name} needs a stream, and datagrams to {datagrams} come here, too: give that address a server of \
                     its own, or this route a condition that they do not meet"
                ),
            );
        }
    }
    fits
}

/// Ports on which the server speaks first, so that a client waits while we wait for it.
const SERVER_FIRST: [u16; 6] = [21, 25, 110, 143, 587, 3306];

fn warn_server_first(
    node: Node,
    addresses: &[Address],
    route: usize,
    program: &Program,
    cx: &mut Provision<'_>,
) {
    let port = addresses
        .iter()
        .filter(|address| address.is_stream())
        .filter_map(single_port)
        .find(|port| SERVER_FIRST.contains(port));
    if let Some(port) = port {
        cx.warn(
            node,
            format!(
                "on port {port} the server speaks first: a client that waits for it reaches route {route} only after \
                 matching_timeout ({:?})",
                program.matching_timeout(),
            ),
        );
    }
}

fn refuse_shared_addresses(listens: &[Listen], cx: &mut Provision<'_>) -> Result<(), Rejected> {
    let mut taken: BTreeMap<String, &Listen> = BTreeMap::new();
    let mut rejected = Ok(());
    for listen in listens {
        if single_port(&listen.address) == Some(0) {
            continue;
        }
        let key = listen_key(&listen.address);
        match taken.get(&key) {
            Some(first) => {
                let error = cx
                    .document()
                    .error(
                        listen.node,
                        format!("{} is listened on twice", listen.address),
                    )
                    .help(format!(
                        "the first is {}; remove one of them",
                        first.pointer
                    ))
                    .related(cx.document(), first.node, "first listened on here");
                rejected = Err(cx.report(error));
            }
            None => {
                taken.insert(key, listen);
            }
        }
    }
    rejected
}

fn single_port(address: &Address) -> Option<u16> {
    address.ports.map(|ports| ports.first)
}

/// Tells apart what are different sockets to the kernel: every way to write "all interfaces" is the same one.
fn listen_key(address: &Address) -> String {
    let mut address = address.without_mode();
    let everywhere = match address.network {
        Network::Tcp(Family::Any) | Network::Udp(Family::Any) => ["", "0.0.0.0", "::"].as_slice(),
        Network::Tcp(Family::V4) | Network::Udp(Family::V4) => &["", "0.0.0.0"],
        Network::Tcp(Family::V6) | Network::Udp(Family::V6) => &["", "::"],
        _ => &[],
    };
    if everywhere.contains(&&*address.host) {
        address.host = "".into();
    }
    address.to_string()
}

/// Sections that the reference knows and this version does not apply yet: their shape is checked, nothing more.
fn not_yet(cx: &mut Provision<'_>, name: &str, node: Node) {
    match cx.document().value(node) {
        Value::Null => {}
        Value::Object => {
            cx.warn(
                node,
                format!("{name} is not applied by this version; the rest of the file is"),
            );
        }
        _ => {
            let _ = cx.reject(node, format!("{name} must be an object"));
        }
    }
}
