//! The application `tls`: the certificates that all `tls` handlers of a configuration share.

use std::path::{Path, PathBuf};

use l4_core::config::{ConfigError, Node};
use l4_core::prelude::*;
use l4_core::{AppModule, config};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use serde::Deserialize;

use crate::automate::policy::{self, AutomationConfig};
use crate::certs::{Certificate, CertificateError, Certificates};
use crate::policy::provider;

/// Holds the certificates that `tls` handlers serve: those of files, which are read once, when the configuration is
/// loaded, and those that are made and renewed here.
pub struct TlsApp {
    /// In the order of preference: `load_files`, `load_folders`, `load_pem`, `automate`.
    pub certificates: Certificates,
}

/// The application `tls`: certificates for the handler `tls`.
///
/// ```json
/// {"certificates": {"load_files": [{"certificate": "/etc/ssl/a.pem", "key": "/etc/ssl/a.key"}]}}
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsAppConfig {
    /// Where certificates come from. Default: there are none.
    #[serde(default)]
    certificates: Option<LoadersConfig>,
    /// How the certificates of `automate` are made and when they are renewed.
    #[serde(default)]
    automation: Option<AutomationConfig>,
    #[serde(default)]
    session_tickets: Option<RawNode>,
    #[serde(default)]
    cache: Option<RawNode>,
    /// Without effect: nothing is stapled.
    #[serde(default)]
    #[allow(dead_code)]
    disable_ocsp_stapling: Option<bool>,
    #[serde(default)]
    disable_storage_check: Option<RawNode>,
    #[serde(default)]
    disable_storage_clean: Option<RawNode>,
    #[serde(default)]
    encrypted_client_hello: Option<RawNode>,
    #[serde(default)]
    dns: Option<RawNode>,
    #[serde(default)]
    resolvers: Option<RawNode>,
}

/// The loaders of certificates. What two of them have for one name is preferred in this order.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadersConfig {
    /// Certificates and keys in files. `{env.*}` is filled in at load.
    #[serde(default)]
    load_files: Option<Vec<FileConfig>>,
    /// Folders that are searched, with all folders in them, for files ending in `.pem`. Each must hold one certificate
    /// chain and its key.
    #[serde(default)]
    load_folders: Option<Vec<At<String>>>,
    /// Certificates and keys written into the configuration, or taken from elsewhere by `{env.NAME}` or `{file./path}`.
    #[serde(default)]
    load_pem: Option<Vec<PemConfig>>,
    #[serde(default)]
    load_storage: Option<RawNode>,
    /// Names that get certificates which are made and renewed here, such as `"localhost"`, `"*.example.internal"` or
    /// `"192.168.0.1"`. One certificate for each.
    #[serde(default)]
    automate: Option<Vec<At<String>>>,
}

/// One certificate in two files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    /// The file of the certificate chain in PEM, leaf first, such as `"/etc/ssl/example.com.pem"`.
    certificate: At<String>,
    /// The file of the private key in PEM, not encrypted, such as `"/etc/ssl/example.com.key"`.
    key: At<String>,
    /// `"pem"`, which is also the default.
    #[serde(default)]
    format: Option<At<String>>,
    /// Labels that `certificate_selection` can ask for.
    #[serde(default)]
    tags: Option<Vec<At<String>>>,
}

/// One certificate as text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PemConfig {
    /// The certificate chain in PEM, leaf first.
    certificate: At<String>,
    /// The private key in PEM, not encrypted.
    key: At<String>,
    /// Labels that `certificate_selection` can ask for.
    #[serde(default)]
    tags: Option<Vec<At<String>>>,
}

impl AppModule for TlsApp {
    const NAME: &'static str = "tls";
    type Config = TlsAppConfig;

    fn provision(config: TlsAppConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let loaders = config.certificates.unwrap_or_default();
        let absent = [
            ("session_tickets", config.session_tickets),
            ("cache", config.cache),
            ("disable_storage_check", config.disable_storage_check),
            ("disable_storage_clean", config.disable_storage_clean),
            ("encrypted_client_hello", config.encrypted_client_hello),
            ("dns", config.dns),
            ("resolvers", config.resolvers),
            ("load_storage", loaders.load_storage),
        ];
        let absent = cx.all(absent, |cx, (name, raw)| refuse_absent(cx, name, raw));

        let provider = provider();
        let mut loaded = Vec::new();
        let files = cx.all(loaders.load_files.unwrap_or_default(), |cx, file| {
            file.load(&provider, cx)
        });
        let folders = cx.all(loaders.load_folders.unwrap_or_default(), |cx, folder| {
            load_folder(&folder, &provider, cx)
        });
        let texts = cx.all(loaders.load_pem.unwrap_or_default(), |cx, text| {
            text.load(&provider, cx)
        });
        let automate = loaders.automate.unwrap_or_default();
        let managed = policy::provision(config.automation, automate, cx);
        absent?;
        loaded.extend(files?);
        loaded.extend(folders?.into_iter().flatten());
        loaded.extend(texts?);

        let mut certificates = Certificates::default();
        for (node, certificate) in loaded {
            warn_of_expiry(node, &certificate, cx);
            certificates.add(certificate);
        }
        let managed = managed?;
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
        Ok(Self { certificates })
    }
}

impl TlsApp {
    /// Whether there is, or will be, a certificate for `name`, in lower case.
    pub(crate) fn provides(&self, name: &str) -> bool {
        self.certificates.know(name)
    }
}

type Loaded = (Node, Certificate);

impl FileConfig {
    fn load(self, provider: &CryptoProvider, cx: &mut Provision<'_>) -> Result<Loaded, Rejected> {
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
        let (chain, key) = (read_file(&self.certificate, cx), read_file(&self.key, cx));
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
