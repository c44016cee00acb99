//! The application `tls`: the certificates that all `tls` handlers of a configuration share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use l4_core::config::{ConfigError, Node};
use l4_core::prelude::*;
use l4_core::{AppModule, config, schema};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::automate::Subject;
use crate::automate::maintain::Managed;
use crate::automate::policy::{Automation, AutomationConfig};
use crate::certs::{Certificate, CertificateError, Certificates};
use crate::policy::provider;
use crate::sessions::{Resumption, TicketsConfig};
use crate::storage;

/// Holds the certificates that `tls` handlers serve: those of files, which are read once, when the configuration is
/// loaded, and those that are made and renewed here.
pub(crate) struct TlsApp {
    /// In the order of preference: `load_files`, `load_folders`, `load_pem`, `load_storage`, those of other crates, `automate`.
    certificates: Arc<Certificates>,
    /// Whether any of these is set.
    configured: bool,
    automation: Automation,
    /// What handlers serve when nothing is configured. Made when the first one asks: without a handler nobody needs an
    /// authority.
    localhost: OnceLock<Arc<Certificates>>,
    /// How the sessions of clients are resumed.
    pub(crate) resumption: Resumption,
}

/// The application `tls`: certificates for the handler `tls`.
///
/// ```json
/// {"certificates": {"load_files": [{"certificate": "/etc/ssl/a.pem", "key": "/etc/ssl/a.key"}]}}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsAppConfig {
    /// Where certificates come from. Default: there are none.
    #[serde(default)]
    #[schemars(with = "LoadersConfig")]
    certificates: Option<RawNode>,
    /// How the certificates of `automate` are made and when they are renewed. Default: a certificate from `internal`
    /// for every name that no public authority certifies.
    #[serde(default)]
    automation: Option<AutomationConfig>,
    /// How sessions are resumed by tickets. Default: keys are replaced every 12 hours.
    #[serde(default)]
    session_tickets: Option<TicketsConfig>,
    /// How many sessions each connection policy keeps for clients of TLS 1.2 that know no tickets, and for all clients
    /// where tickets are off, up to 1000000. A session takes about 300 bytes; the oldest give way. 0 keeps none. Default:
    /// 256, and 0 where tickets are off.
    #[serde(default)]
    session_cache_size: Option<At<u64>>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    cache: Option<RawNode>,
    /// Accepted without effect: nothing is stapled. Default: `false`.
    #[serde(default)]
    #[allow(dead_code)]
    disable_ocsp_stapling: Option<bool>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    disable_storage_check: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    disable_storage_clean: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    encrypted_client_hello: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    dns: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    resolvers: Option<RawNode>,
}

/// The namespace `tls.certificates`: further places that certificates come from, each a member of `certificates` under its
/// name.
pub enum CertificateLoaders {}

impl Kind for CertificateLoaders {
    const NAMESPACE: &'static str = "tls.certificates";
    type Object = Vec<Certificate>;
}

/// The loaders of certificates. What two of them have for one name is preferred in this order.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::or_modules::<CertificateLoaders>)]
struct LoadersConfig {
    /// Certificates and keys in files. `{env.*}` is filled in at load. Default: none.
    #[serde(default)]
    load_files: Option<Vec<FileConfig>>,
    /// Folders that are searched, with all folders in them, for files ending in `.pem`. Each must hold one certificate
    /// chain and its key. Default: none.
    #[serde(default)]
    load_folders: Option<Vec<At<String>>>,
    /// Certificates and keys written into the configuration, or taken from elsewhere by `{env.NAME}` or `{file./path}`.
    /// Default: none.
    #[serde(default)]
    load_pem: Option<Vec<PemConfig>>,
    /// Certificates and keys in the storage of the configuration, put there by somebody else. Default: none.
    #[serde(default)]
    load_storage: Option<StorageLoaderConfig>,
    /// Names that get certificates which are made and renewed here, such as `"localhost"`, `"*.example.internal"` or
    /// `"192.168.0.1"`. One certificate for each. Default: none.
    #[serde(default)]
    automate: Option<Vec<At<String>>>,
}

/// One certificate in two files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    /// The file of the certificate chain in PEM, leaf first, such as `"/etc/ssl/example.com.pem"`.
    certificate: At<String>,
    /// The file of the private key in PEM, not encrypted, such as `"/etc/ssl/example.com.key"`; may be the same
    /// file.
    key: At<String>,
    /// Nothing else is known. Default: `"pem"`.
    #[serde(default)]
    #[schemars(extend("enum" = ["pem", ""]))]
    format: Option<At<String>>,
    /// Labels that `certificate_selection` can ask for. Default: none.
    #[serde(default)]
    tags: Option<Vec<At<String>>>,
}

/// Certificates in storage.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StorageLoaderConfig {
    /// The certificates, each as in `load_files`, with keys of the storage in place of files, such as
    /// `{"certificate": "own/a.crt", "key": "own/a.key"}`. Default: none.
    #[serde(default)]
    pairs: Vec<FileConfig>,
}

/// One certificate as text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PemConfig {
    /// The certificate chain in PEM, leaf first.
    certificate: At<String>,
    /// The private key in PEM, not encrypted.
    key: At<String>,
    /// Labels that `certificate_selection` can ask for. Default: none.
    #[serde(default)]
    tags: Option<Vec<At<String>>>,
}

impl AppModule for TlsApp {
    const NAME: &'static str = "tls";
    type Config = TlsAppConfig;

    fn provision(config: TlsAppConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let (loaders, others) = match config.certificates {
            Some(raw) => cx.decode_and_build::<LoadersConfig, CertificateLoaders>(raw.node())?,
            None => (LoadersConfig::default(), Vec::new()),
        };
        let absent = [
            ("cache", config.cache),
            ("disable_storage_check", config.disable_storage_check),
            ("disable_storage_clean", config.disable_storage_clean),
            ("encrypted_client_hello", config.encrypted_client_hello),
            ("dns", config.dns),
            ("resolvers", config.resolvers),
        ];
        let absent = cx.all(absent, |cx, (name, raw)| refuse_absent(cx, name, raw));

        let resumption =
            Resumption::provision(config.session_tickets, config.session_cache_size, cx);
        let provider = provider();
        let mut loaded = Vec::new();
        let (files, folders) = (loaders.load_files, loaders.load_folders);
        let (files, folders) = (files.unwrap_or_default(), folders.unwrap_or_default());
        let texts = loaders.load_pem.unwrap_or_default();
        let pairs = loaders.load_storage.unwrap_or_default().pairs;
        let automate = loaders.automate.unwrap_or_default();
        let configured = !(files.is_empty()
            && folders.is_empty()
            && texts.is_empty()
            && pairs.is_empty()
            && automate.is_empty()
            && others.is_empty());
        let files = cx.all(files, |cx, file| file.load(read_file, &provider, cx));
        let folders = cx.all(folders, |cx, folder| load_folder(&folder, &provider, cx));
        let texts = cx.all(texts, |cx, text| text.load(&provider, cx));
        let stored = load_stored(pairs, &provider, cx);
        let automation = Automation::provision(config.automation, cx);
        let names = Automation::read_names(automate, cx);
        absent?;
        let resumption = resumption?;
        loaded.extend(files?);
        loaded.extend(folders?.into_iter().flatten());
        loaded.extend(texts?);
        loaded.extend(stored?);
        for (node, certificates) in others {
            loaded.extend(
                certificates
                    .into_iter()
                    .map(|certificate| (node, certificate)),
            );
        }
        let automation = automation?;
        let managed = automation.manage(names?, cx)?;

        let mut certificates = Certificates::default();
        for (node, certificate) in loaded {
            warn_of_expiry(node, &certificate, cx);
            certificates.add(certificate);
        }
        keep(managed, &mut certificates, cx);
        Ok(Self {
            certificates: Arc::new(certificates),
            configured,
            automation,
            localhost: OnceLock::new(),
            resumption,
        })
    }
}

/// Lets certificates be served, and be made and renewed once the configuration is the current one.
fn keep(managed: Vec<Arc<Managed>>, certificates: &mut Certificates, cx: &mut Provision<'_>) {
    for name in &managed {
        certificates.add_managed(name.subject().as_str(), name.slot().clone());
    }
    if !managed.is_empty() {
        cx.on_start(move |generation| {
            for name in managed {
                generation.background(name.keep());
            }
        });
    }
}

impl TlsApp {
    /// The certificates that are configured.
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// What the handler that is being provisioned serves: if nothing at all is configured, what `automate` would make for
    /// `localhost`, so that TLS can be tried without a certificate.
    pub(crate) fn for_handler(
        &self,
        cx: &mut Provision<'_>,
    ) -> Result<Arc<Certificates>, Rejected> {
        let node = cx.node();
        if self.configured {
            if self.certificates.is_empty() {
                cx.warn(
                    node,
                    "no certificate is loaded or made, so every handshake will fail: set apps.tls.certificates",
                );
            }
            return Ok(self.certificates.clone());
        }
        cx.warn(
            node,
            "no certificate is configured: only localhost has one, from the internal authority; \
             set apps.tls.certificates",
        );
        if let Some(localhost) = self.localhost.get() {
            return Ok(localhost.clone());
        }
        let name = (node, Subject::localhost());
        let managed = self.automation.manage(vec![name], cx)?;
        let mut certificates = Certificates::default();
        keep(managed, &mut certificates, cx);
        Ok(self
            .localhost
            .get_or_init(|| Arc::new(certificates))
            .clone())
    }

    /// Whether there is, or will be, a certificate for `name`, in lower case.
    pub(crate) fn provides(&self, name: &str) -> bool {
        self.certificates.know(name)
    }
}

type Loaded = (Node, Certificate);

impl FileConfig {
    fn load(
        self,
        read: impl Fn(&At<String>, &mut Provision<'_>) -> Result<Vec<u8>, Rejected>,
        provider: &CryptoProvider,
        cx: &mut Provision<'_>,
    ) -> Result<Loaded, Rejected> {
        if let Some(format) = &self.format
            && !matches!(format.as_str(), "" | "pem")
        {
            return Err(cx.reject_help(
                format.node(),
                format!("unrecognized certificate/key encoding format: {}", **format),
                "write \"pem\", or leave it out",
            ));
        }
        let node = self.certificate.node();
        let (chain, key) = (read(&self.certificate, cx), read(&self.key, cx));
        let tags = expand_tags(self.tags, cx);
        let made = Certificate::from_pem(&chain?, &key?, tags?, provider);
        let places = (node, self.key.node());
        Ok((node, made.map_err(|error| refuse(cx, places, &error))?))
    }
}

impl PemConfig {
    fn load(self, provider: &CryptoProvider, cx: &mut Provision<'_>) -> Result<Loaded, Rejected> {
        let node = self.certificate.node();
        let (chain, key) = (
            cx.expand_known(&self.certificate),
            cx.expand_known(&self.key),
        );
        let tags = expand_tags(self.tags, cx);
        let made = Certificate::from_pem(chain?.as_bytes(), key?.as_bytes(), tags?, provider);
        let places = (node, self.key.node());
        Ok((node, made.map_err(|error| refuse(cx, places, &error))?))
    }
}

fn load_stored(
    pairs: Vec<FileConfig>,
    provider: &CryptoProvider,
    cx: &mut Provision<'_>,
) -> Result<Vec<Loaded>, Rejected> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let storage = storage::of_configuration(cx)?;
    let read = |key: &At<String>, cx: &mut Provision<'_>| {
        let expanded = cx.expand_known(key)?;
        storage
            .load(&expanded)
            .map_err(|error| cx.reject(key.node(), format!("loading {expanded}: {error}")))
    };
    cx.all(pairs, |cx, pair| pair.load(read, provider, cx))
}

/// Reports what is wrong at the certificate or at the key, whichever it is.
fn refuse(
    cx: &mut Provision<'_>,
    (certificate, key): (Node, Node),
    error: &CertificateError,
) -> Rejected {
    let node = match error {
        CertificateError::Key(_)
        | CertificateError::UnusableKey(_)
        | CertificateError::KeyMismatch => key,
        _ => certificate,
    };
    cx.reject(node, format!("loading certificates: {error}"))
}

fn expand_tags(
    tags: Option<Vec<At<String>>>,
    cx: &mut Provision<'_>,
) -> Result<Vec<Box<str>>, Rejected> {
    cx.all(tags.unwrap_or_default(), |cx, tag| {
        Ok(cx.expand_known(&tag)?.into())
    })
}

/// The content of the file that `path` names, or an error at its place.
pub(crate) fn read_file(path: &At<String>, cx: &mut Provision<'_>) -> Result<Vec<u8>, Rejected> {
    let expanded = cx.expand_known(path)?;
    std::fs::read(&expanded)
        .map_err(|error| cx.reject(path.node(), format!("reading {expanded}: {error}")))
}

fn load_folder(
    folder: &At<String>,
    provider: &CryptoProvider,
    cx: &mut Provision<'_>,
) -> Result<Vec<Loaded>, Rejected> {
    let node = folder.node();
    let root = cx.expand_known(folder)?;
    let files = pem_files(Path::new(&root)).map_err(|error| {
        cx.reject(
            node,
            format!("walking certificates directory {root}: {error}"),
        )
    })?;
    cx.all(files, |cx, file| {
        let made = std::fs::read(&file)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                Certificate::from_pem(&text, &text, Vec::new(), provider)
                    .map_err(|error| error.to_string())
            });
        made.map(|certificate| (node, certificate))
            .map_err(|error| {
                cx.reject(
                    node,
                    format!(
                        "walking certificates directory {root}: {}: {error}",
                        file.display()
                    ),
                )
            })
    })
}

/// The files under `root` whose names end in `.pem`, sorted. A symbolic link must stay inside.
pub(crate) fn pem_files(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let real_root = root.canonicalize()?;
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
                continue;
            }
            let is_pem = path
                .extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case("pem"));
            if !is_pem || path.is_dir() {
                continue;
            }
            if !path.canonicalize()?.starts_with(&real_root) {
                return Err(std::io::Error::other(format!(
                    "{} leads out of the folder",
                    path.display()
                )));
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn warn_of_expiry(node: Node, certificate: &Certificate, cx: &mut Provision<'_>) {
    let name = certificate.names().next().unwrap_or_default();
    match certificate.seconds_left(UnixTime::now()) {
        left if left < 0 => cx.warn(node, format!("the certificate for {name} has expired")),
        left if left < 24 * 60 * 60 => cx.warn(
            node,
            format!("the certificate for {name} expires within 1 day"),
        ),
        _ => {}
    }
}

/// Refuses a setting of the reference that exists but cannot be kept here.
pub(crate) fn refuse_absent(
    cx: &mut Provision<'_>,
    name: &str,
    raw: Option<RawNode>,
) -> Result<(), Rejected> {
    let Some(raw) = raw else { return Ok(()) };
    if matches!(cx.document().value(raw.node()), config::Value::Null) {
        return Ok(());
    }
    let error: ConfigError = cx
        .document()
        .key_error(raw.node(), format!("{name} is not in this build yet"));
    Err(cx.report(error))
}
