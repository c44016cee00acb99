//! The application `pki`: certificate authorities of one's own.
//!
//! Their certificates and keys are in storage, and are read anew whenever something is to be signed, which is rare. So
//! several processes on one storage agree, and what one of them renews the others use.

pub(crate) mod known;
pub(crate) mod sign;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use l4_core::config::Node;
use l4_core::prelude::*;
use l4_core::schema::InlineOf;
use l4_core::{AppModule, Storage, Storages};
use rustls::pki_types::CertificateDer;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use self::known::{FRESH, Known};
use self::sign::{ROOT_LIFETIME, SignError, Signer, Validity};
use crate::app::read_file;
use crate::keys::{PrivateKey, chain_pem};
use crate::shared::Shared;
use crate::storage::{self, safe};
use crate::{PemError, pem};

/// The application `pki`: certificate authorities, which the issuer `internal` signs with.
///
/// ```json
/// {"certificate_authorities": {"local": {"name": "Example Corp", "intermediate_lifetime": "30d"}}}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PkiConfig {
    /// The authorities by id. Default: one with the id `local` and all defaults.
    #[serde(default)]
    #[schemars(with = "Option<BTreeMap<String, AuthorityConfig>>")]
    certificate_authorities: Option<ModuleMap>,
}

/// One authority: a root, and an intermediate that signs what it issues.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AuthorityConfig {
    /// What it is called. Default: `Conncept Local Authority`.
    #[serde(default)]
    name: Option<At<String>>,
    /// The subject of a root that is made. Default: `{pki.ca.name} - {time.now.year} ECC Root`.
    #[serde(default)]
    root_common_name: Option<At<String>>,
    /// The subject of an intermediate that is made. Default: `{pki.ca.name} - ECC Intermediate`.
    #[serde(default)]
    intermediate_common_name: Option<At<String>>,
    /// How long an intermediate that is made is valid. Must be shorter than what is left of the root. Default: `"7d"`.
    #[serde(default)]
    intermediate_lifetime: Option<At<GoDuration>>,
    /// Accepted without effect: no trust store is ever touched. Give `root.crt` to your clients. `true` causes a
    /// warning. Default: `false`.
    #[serde(default)]
    install_trust: Option<At<bool>>,
    /// A root of your own. Default: one is made when the authority is first used, and kept in storage for 3600 days.
    #[serde(default)]
    root: Option<At<PairConfig>>,
    /// An intermediate of your own, which is not renewed here. Default: one is made and renewed.
    #[serde(default)]
    intermediate: Option<At<PairConfig>>,
    /// How often it is checked whether the intermediate has to be renewed; at least `1s`. Default: `"10m"`.
    #[serde(default)]
    maintenance_interval: Option<At<GoDuration>>,
    /// The intermediate is renewed when this part of its lifetime is left. Default: `0.2`.
    #[serde(default)]
    renewal_window_ratio: Option<At<f64>>,
    /// Where its certificates and keys are kept, written as `storage` at the top of the file. Default: the storage of
    /// the configuration.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<Storages>>")]
    storage: Option<RawNode>,
}

/// A certificate of an authority in files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PairConfig {
    /// The file of the certificate in PEM, followed by its chain.
    certificate: At<String>,
    /// The file of its private key in PEM. A root needs none if an intermediate is given. Default:
    /// none.
    #[serde(default)]
    private_key: Option<At<String>>,
    /// Nothing else is known. Default: `"pem_file"`.
    #[serde(default)]
    #[schemars(extend("enum" = ["pem_file", ""]))]
    format: Option<At<String>>,
}

/// The certificate authorities of a configuration.
pub(crate) struct PkiApp {
    configured: BTreeMap<Box<str>, Arc<Authority>>,
    /// Made when somebody asks for it and it is not configured.
    local: OnceLock<Arc<Authority>>,
}

impl AppModule for PkiApp {
    const NAME: &'static str = "pki";
    type Config = PkiConfig;

    fn provision(config: PkiConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let mut folders: BTreeMap<String, String> = BTreeMap::new();
        let authorities = config.certificate_authorities.unwrap_or_default();
        let made = cx.all(authorities.iter(), |cx, (id, node)| {
            if id.is_empty() {
                return Err(cx.reject_help(
                    node,
                    "CA ID is required (use 'local' for the default CA)",
                    "write {\"local\": {…}}",
                ));
            }
            let folder = safe(id);
            if matches!(&*folder, "" | ".") {
                return Err(cx.reject_help(
                    node,
                    format!("the CA ID {id:?} gives no name for a folder"),
                    "use letters and digits",
                ));
            }
            if let Some(first) = folders.insert(folder, id.to_owned()) {
                return Err(cx.reject_help(
                    node,
                    format!("the CA ID {id:?} has the same folder as {first:?}"),
                    "give them names that differ in letters or digits",
                ));
            }
            let config = cx.decode(node)?;
            Ok((id.into(), Authority::provision(id, config, node, cx)?))
        })?;
        let app = Self {
            configured: made.into_iter().collect(),
            local: OnceLock::new(),
        };
        if app.configured.is_empty() {
            app.authority(LOCAL, cx)?;
        }
        Ok(app)
    }
}

impl PkiApp {
    /// The authority of this id. `local` is there even if only others are configured.
    pub(crate) fn authority(
        &self,
        id: &str,
        cx: &mut Provision<'_>,
    ) -> Result<Option<Arc<Authority>>, Rejected> {
        if let Some(authority) = self.configured.get(id) {
            return Ok(Some(authority.clone()));
        }
        if id != LOCAL {
            return Ok(None);
        }
        if let Some(local) = self.local.get() {
            return Ok(Some(local.clone()));
        }
        let local = Authority::provision(LOCAL, AuthorityConfig::default(), cx.node(), cx)?;
        Ok(Some(self.local.get_or_init(|| local).clone()))
    }
}

/// The id of the authority that needs no configuration.
pub(crate) const LOCAL: &str = "local";

const NAME: &str = "Conncept Local Authority";
const ROOT_COMMON_NAME: &str = "{pki.ca.name} - {time.now.year} ECC Root";
const INTERMEDIATE_COMMON_NAME: &str = "{pki.ca.name} - ECC Intermediate";
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(10 * 60);
const RENEWAL_WINDOW_RATIO: f64 = 0.2;
/// What is shorter would keep a processor busy.
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// A certificate authority.
#[derive(Debug)]
pub(crate) struct Authority {
    id: Box<str>,
    root_common_name: String,
    intermediate_common_name: String,
    intermediate_lifetime: Duration,
    renewal_window_ratio: f64,
    maintenance_interval: Duration,
    /// Given, rather than kept in storage.
    root: Option<Root>,
    intermediate: Option<Arc<Signer>>,
    storage: Arc<dyn Storage>,
    known: Arc<Known>,
    /// One at a time looks what there is and makes what is missing.
    making: Arc<tokio::sync::Mutex<()>>,
}

/// A certificate that was given.
#[derive(Debug)]
enum Root {
    Signer(Arc<Signer>),
    /// Its key is elsewhere.
    Certificate(CertificateDer<'static>),
}

/// Which of the certificates of an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Root,
    Intermediate,
}

/// Why an authority cannot sign.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// Its storage cannot be used.
    #[error(transparent)]
    Storage(#[from] io::Error),
    /// What is in storage is not usable.
    #[error("{what}: {source}")]
    Stored {
        /// Which file.
        what: String,
        /// Why.
        source: SignError,
    },
    /// The text of a certificate in storage cannot be read.
    #[error("{what}: {source}")]
    Pem {
        /// Which file.
        what: String,
        /// Why.
        source: PemError,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The key of the root is not here.
    #[error("the private key of the root is not given")]
    NoRootKey,
    /// A task of ours ended early.
    #[error("interrupted")]
    Interrupted,
}

impl Authority {
    fn provision(
        id: &str,
        config: AuthorityConfig,
        node: Node,
        cx: &mut Provision<'_>,
    ) -> Result<Arc<Self>, Rejected> {
        let name = match &config.name {
            Some(name) if !name.is_empty() => cx.expand_known(name),
            _ => Ok(NAME.to_owned()),
        };
        let storage = storage::of_part(config.storage, cx);
        let interval = interval(config.maintenance_interval, MAINTENANCE_INTERVAL, cx);
        let ratio = ratio(config.renewal_window_ratio, RENEWAL_WINDOW_RATIO, cx);
        let root = config
            .root
            .as_ref()
            .map(|pair| pair.load(Tier::Root, cx))
            .transpose();
        let intermediate = config
            .intermediate
            .as_ref()
            .map(|pair| pair.load(Tier::Intermediate, cx))
            .transpose();
        let name = name?;
        let root_common_name = common_name(&config.root_common_name, ROOT_COMMON_NAME, &name, cx);
        let intermediate_common_name = common_name(
            &config.intermediate_common_name,
            INTERMEDIATE_COMMON_NAME,
            &name,
            cx,
        );
        let (root, intermediate, storage) = (root?, intermediate?, storage?);
        if let (Some(given), Some((_, Root::Certificate(_))), None) =
            (&config.root, &root, &intermediate)
        {
            return Err(cx.reject_help(
                given.node(),
                "the root has no private_key, so it cannot sign an intermediate",
                "give its private_key, or an intermediate that it has signed",
            ));
        }
        let lifetime_node = config.intermediate_lifetime.as_ref().map_or(node, At::node);
        let lifetime = cx
            .time_limit(config.intermediate_lifetime, INTERMEDIATE_LIFETIME)?
            .unwrap_or(INTERMEDIATE_LIFETIME);
        let root_not_after = root.as_ref().map(|(validity, _)| validity.not_after);
        let mut authority = Self {
            id: id.into(),
            root_common_name: root_common_name?,
            intermediate_common_name: intermediate_common_name?,
            intermediate_lifetime: lifetime,
            renewal_window_ratio: ratio?,
            maintenance_interval: interval?,
            root: root.map(|(_, root)| root),
            intermediate: intermediate.and_then(|(_, given)| match given {
                Root::Signer(signer) => Some(signer),
                Root::Certificate(_) => None,
            }),
            storage,
            known: Arc::default(),
            making: Arc::default(),
        };
        authority.check_lifetime(root_not_after, lifetime_node, cx)?;
        let trust = config.install_trust;
        if let Some(install) = trust.as_ref().filter(|install| ***install) {
            cx.warn(
                install.node(),
                format!(
                    "install_trust has no effect: no trust store is ever touched; give {} to your clients",
                    authority.storage.describe(&authority.key(Tier::Root, "crt")),
                ),
            );
        }
        authority.intermediate_lifetime = lifetime;
        authority.known = authority.shared_known();
        authority.look();
        let authority = Arc::new(authority);
        let kept = authority.clone();
        cx.on_start(move |generation| generation.background(kept.keep()));
        Ok(authority)
    }

    /// Refuses intermediates that would outlive their root.
    fn check_lifetime(
        &self,
        given: Option<i64>,
        node: Node,
        cx: &mut Provision<'_>,
    ) -> Result<(), Rejected> {
        if self.intermediate.is_some() {
            return Ok(());
        }
        let now = now();
        let not_after = match given {
            Some(not_after) => not_after,
            None => match self.stored_chain(Tier::Root) {
                Ok(chain) => {
                    chain
                        .and_then(|chain| Validity::of_chain(&chain))
                        .unwrap_or(Validity::new(now, ROOT_LIFETIME))
                        .not_after
                }
                Err(error) => {
                    cx.warn(
                        node,
                        format!("the root of the CA {} cannot be used: {error}", self.id),
                    );
                    return Ok(());
                }
            },
        };
        let left = Duration::from_secs(u64::try_from(not_after - now).unwrap_or_default());
        if self.intermediate_lifetime < left {
            return Ok(());
        }
        Err(cx.reject_help(
            node,
            format!(
                "intermediate certificate lifetime must be less than actual root certificate lifetime ({})",
                GoDuration::from(left),
            ),
            "write a shorter intermediate_lifetime, such as \"7d\", or replace the root",
        ))
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Whether the root can sign, as far as is known before its key is looked for in storage.
    pub(crate) fn root_can_sign(&self) -> bool {
        !matches!(self.root, Some(Root::Certificate(_)))
    }

    /// Whether there is a root, or will be: none is made where an intermediate is given.
    pub(crate) fn has_root(&self) -> bool {
        let known = self.known.certificates();
        self.root.is_some() || self.intermediate.is_none() || known.of(Tier::Root).next().is_some()
    }

    /// What is known of it to those who verify what it has signed.
    pub(crate) fn known(&self) -> &Known {
        &self.known
    }

    /// Configurations that have the same authority know the same of it.
    fn shared_known(&self) -> Arc<Known> {
        static TABLE: LazyLock<Shared<Known>> = LazyLock::new(Shared::default);
        let given = [Tier::Root, Tier::Intermediate].map(|tier| {
            let given = self.given(tier).unwrap_or_default();
            given
                .iter()
                .map(|der| BASE64.encode(der))
                .collect::<String>()
        });
        let folder = self.storage.describe("");
        TABLE.of(
            format!("{folder}\n{}\n{}", self.id, given.join("\n")),
            Known::default,
        )
    }

    /// A certificate that is not in storage, with its chain.
    fn given(&self, tier: Tier) -> Option<Vec<CertificateDer<'static>>> {
        let signer = match (tier, &self.root) {
            (Tier::Root, Some(Root::Certificate(certificate))) => {
                return Some(vec![certificate.clone()]);
            }
            (Tier::Root, Some(Root::Signer(signer))) => Some(signer),
            (Tier::Root, None) => None,
            (Tier::Intermediate, _) => self.intermediate.as_ref(),
        };
        signer.map(|signer| signer.chain.clone())
    }

    /// Takes note of the certificates as they are now, unless they cannot be read. May block.
    fn look(&self) {
        // Who wants to sign with them is told aloud.
        if let Err(error) = self.try_look() {
            debug!(target: "pki", ca = &*self.id, %error, "the certificates of the authority cannot be read");
        }
    }

    fn try_look(&self) -> Result<(), AuthorityError> {
        let now_there = |tier| match self.given(tier) {
            Some(chain) => Ok(Some(chain)),
            None => self.stored_chain(tier),
        };
        let (root, chain) = (now_there(Tier::Root)?, now_there(Tier::Intermediate)?);
        let root = root.and_then(|chain| chain.into_iter().next());
        self.known.see(root, chain.unwrap_or_default(), now());
        Ok(())
    }

    /// Takes note of what other processes have done, unless that was done a moment ago. For handshakes, which go on with
    /// what is known if storage is slow or cannot be read. Cancel safe.
    pub(crate) async fn refresh(self: &Arc<Self>) {
        let looking = async {
            let mut looked = self.known.looked.lock().await;
            if looked.is_some_and(|last| last.elapsed() < FRESH) {
                return;
            }
            // Before it is done: a storage that hangs must not be asked by every handshake.
            *looked = Some(Instant::now());
            let look = |this: &Self| {
                this.look();
                Ok(())
            };
            let _ = self.blocking(look).await;
        };
        let _ = tokio::time::timeout(FRESH, looking).await;
    }

    /// The certificate to sign with. Made if it is not there, and renewed if it is time. Cancel safe.
    pub(crate) async fn signer(
        self: &Arc<Self>,
        tier: Tier,
    ) -> Result<Arc<Signer>, AuthorityError> {
        match (tier, &self.root, &self.intermediate) {
            (Tier::Root, Some(Root::Signer(signer)), _) => return Ok(signer.clone()),
            (Tier::Root, Some(Root::Certificate(_)), _) => return Err(AuthorityError::NoRootKey),
            (Tier::Intermediate, _, Some(signer)) => return Ok(signer.clone()),
            _ => {}
        }
        let one = self.making.clone().lock_owned().await;
        let current = self
            .blocking(move |this| {
                let current = this.current(tier, now());
                this.look();
                current
            })
            .await?;
        if let Some(signer) = current {
            return Ok(signer);
        }
        let name = format!("pki_{}", self.id);
        let lease = self
            .storage
            .lock(&name)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("lock {name}: {error}")))?;
        // Whoever waits may go away meanwhile; the locks stay until nothing is written any more.
        self.blocking(move |this| {
            let made = this.current_or_made(tier, now());
            if made.is_ok() {
                // Before anything is signed with it.
                this.look();
            }
            drop((lease, one));
            made
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, AuthorityError> + Send + 'static,
    ) -> Result<T, AuthorityError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this));
        done.await.unwrap_or(Err(AuthorityError::Interrupted))
    }

    /// What is in storage, unless it has to be made or renewed.
    fn current(&self, tier: Tier, now: i64) -> Result<Option<Arc<Signer>>, AuthorityError> {
        let stored = self.stored(tier)?;
        let usable = |signer: &Signer| tier == Tier::Root || !self.is_due(signer.validity, now);
        Ok(stored.filter(usable).map(Arc::new))
    }

    fn current_or_made(&self, tier: Tier, now: i64) -> Result<Arc<Signer>, AuthorityError> {
        // Somebody else may have held the lock and done it.
        if let Some(signer) = self.current(tier, now)? {
            return Ok(signer);
        }
        let made = match tier {
            Tier::Root => sign::root(&self.root_common_name, now)?,
            Tier::Intermediate => match self.new_intermediate(now) {
                Ok(made) => made,
                Err(error) => return self.old_intermediate(now, error),
            },
        };
        self.store(tier, &made)?;
        info!(target: "pki", ca = &*self.id, certificate = tier.file(), "made a certificate of the authority");
        Ok(Arc::new(made))
    }

    fn new_intermediate(&self, now: i64) -> Result<Signer, AuthorityError> {
        let root = match &self.root {
            Some(Root::Signer(signer)) => signer.clone(),
            Some(Root::Certificate(_)) => return Err(AuthorityError::NoRootKey),
            None => self.current_or_made(Tier::Root, now)?,
        };
        let name = &self.intermediate_common_name;
        Ok(sign::intermediate(
            name,
            &root,
            self.intermediate_lifetime,
            now,
        )?)
    }

    /// Goes on with an intermediate that should have been renewed.
    fn old_intermediate(
        &self,
        now: i64,
        why: AuthorityError,
    ) -> Result<Arc<Signer>, AuthorityError> {
        match self.stored(Tier::Intermediate)? {
            Some(old) if old.validity.left(now) > 0.0 => {
                warn!(target: "pki", ca = &*self.id, error = %why, "the intermediate could not be renewed");
                Ok(Arc::new(old))
            }
            _ => Err(why),
        }
    }

    fn is_due(&self, validity: Validity, now: i64) -> bool {
        validity.left(now) <= validity.life() * self.renewal_window_ratio
    }

    fn key(&self, tier: Tier, extension: &str) -> String {
        format!(
            "pki/authorities/{}/{}.{extension}",
            safe(&self.id),
            tier.file()
        )
    }

    /// The certificate in storage, with its chain.
    fn stored_chain(
        &self,
        tier: Tier,
    ) -> Result<Option<Vec<CertificateDer<'static>>>, AuthorityError> {
        let key = self.key(tier, "crt");
        let text = match self.storage.load(&key) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let chain = pem::certificates(&text).map_err(|source| AuthorityError::Pem {
            what: self.storage.describe(&key),
            source,
        })?;
        Ok(Some(chain))
    }

    fn stored(&self, tier: Tier) -> Result<Option<Signer>, AuthorityError> {
        let Some(chain) = self.stored_chain(tier)? else {
            return Ok(None);
        };
        let what = self.storage.describe(&self.key(tier, "crt"));
        let key_at = self.key(tier, "key");
        let key = PrivateKey::from_pem(&self.storage.load(&key_at)?).map_err(|error| {
            AuthorityError::Stored {
                what: self.storage.describe(&key_at),
                source: error.into(),
            }
        })?;
        match Signer::new(chain, key) {
            Ok(signer) => Ok(Some(signer)),
            // A process that ended between writing one file and the other leaves such a pair.
            Err(error) if tier == Tier::Intermediate => {
                warn!(target: "pki", file = what, %error, "the intermediate is made anew");
                Ok(None)
            }
            Err(source) => Err(AuthorityError::Stored { what, source }),
        }
    }

    fn store(&self, tier: Tier, signer: &Signer) -> Result<(), AuthorityError> {
        // The key first: without the certificate it counts as not there, so no half is ever taken for a whole.
        for (extension, text) in [
            ("key", signer.key.pem().to_owned()),
            ("crt", chain_pem(&signer.chain)),
        ] {
            let key = self.key(tier, extension);
            self.storage.store(&key, text.as_bytes())?;
        }
        Ok(())
    }

    /// Makes what is missing, and renews the intermediate in time.
    async fn keep(self: Arc<Self>) {
        let root = self.storage.describe(&self.key(Tier::Root, "crt"));
        if self.root.is_none() {
            info!(
                target: "pki", ca = &*self.id, path = root,
                "root certificate trust store installation disabled; unconfigured clients may show warnings"
            );
        }
        loop {
            if let Err(error) = self.signer(Tier::Intermediate).await {
                error!(target: "pki", ca = &*self.id, %error, "the authority cannot sign");
            }
            self.warn_of_expiry().await;
            tokio::time::sleep(self.maintenance_interval).await;
        }
    }

    async fn warn_of_expiry(self: &Arc<Self>) {
        let root = match &self.root {
            Some(Root::Signer(signer)) => Some(signer.validity),
            Some(Root::Certificate(_)) => None,
            // What is wrong with it was said.
            None => self
                .blocking(|this| {
                    let chain = this.stored_chain(Tier::Root)?;
                    Ok(chain.and_then(|chain| Validity::of_chain(&chain)))
                })
                .await
                .unwrap_or_default(),
        };
        let given = self.intermediate.as_ref().map(|signer| signer.validity);
        for (tier, validity) in [(Tier::Root, root), (Tier::Intermediate, given)] {
            if validity.is_some_and(|validity| self.is_due(validity, now())) {
                warn!(
                    target: "pki", ca = &*self.id, certificate = tier.file(),
                    "the certificate of the authority ends soon and has to be replaced by hand"
                );
            }
        }
    }
}

impl Tier {
    fn file(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        }
    }
}

impl PairConfig {
    /// How long the certificate is valid, and what it signs with; only a root may be without a key.
    fn load(&self, tier: Tier, cx: &mut Provision<'_>) -> Result<(Validity, Root), Rejected> {
        if let Some(format) = &self.format
            && !matches!(format.as_str(), "" | "pem_file")
        {
            return Err(cx.reject_help(
                format.node(),
                format!("unsupported format: {}", **format),
                "write \"pem_file\", or leave it out",
            ));
        }
        let node = self.certificate.node();
        let chain = read_file(&self.certificate, cx)?;
        let chain: Vec<CertificateDer<'static>> =
            pem::certificates(&chain).map_err(|error| cx.reject(node, error.to_string()))?;
        let Some(key) = &self.private_key else {
            if tier == Tier::Intermediate {
                return Err(cx.reject_help(
                    node,
                    "the intermediate has no private_key, so it cannot sign",
                    "give its private_key",
                ));
            }
            let validity = Validity::of_chain(&chain);
            return match (validity, chain.into_iter().next()) {
                (Some(validity), Some(first)) => Ok((validity, Root::Certificate(first))),
                _ => Err(cx.reject(node, "the certificate is malformed")),
            };
        };
        let key_node = key.node();
        let key = PrivateKey::from_pem(&read_file(key, cx)?)
            .map_err(|error| cx.reject(key_node, error.to_string()))?;
        let signer = Signer::new(chain, key).map_err(|error| cx.reject(node, error.to_string()))?;
        Ok((signer.validity, Root::Signer(Arc::new(signer))))
    }
}

fn common_name(
    text: &Option<At<String>>,
    default: &str,
    name: &str,
    cx: &mut Provision<'_>,
) -> Result<String, Rejected> {
    let text = match text {
        Some(text) if !text.is_empty() => text.clone(),
        _ => At::new(cx.node(), default.to_owned()),
    };
    let filled = text.replace("{pki.ca.name}", name);
    cx.expand_load(&At::new(text.node(), filled))
}

/// A setting for how often something is looked after; 0 is the default, as everywhere.
pub(crate) fn interval(
    value: Option<At<GoDuration>>,
    default: Duration,
    cx: &mut Provision<'_>,
) -> Result<Duration, Rejected> {
    let node = value.as_ref().map(At::node);
    let interval = cx.time_limit(value, default)?.unwrap_or(default);
    match node {
        Some(node) if interval < SHORTEST_INTERVAL => Err(cx.reject_help(
            node,
            format!("{} is too short", GoDuration::from(interval)),
            "write \"1s\" or more",
        )),
        _ => Ok(interval),
    }
}

/// A setting for the part of a lifetime; 0 is the default, as everywhere.
pub(crate) fn ratio(
    value: Option<At<f64>>,
    default: f64,
    cx: &mut Provision<'_>,
) -> Result<f64, Rejected> {
    match value {
        None => Ok(default),
        Some(value) if *value == 0.0 => Ok(default),
        Some(value) if (0.0..=1.0).contains(&*value) => Ok(*value),
        Some(value) => Err(cx.reject_help(
            value.node(),
            format!("{} is not a part of a lifetime", *value),
            format!("write a number between 0 and 1, such as {default:.2}"),
        )),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FileStorage;
    use crate::storage::stalled::{Event, Stalled};

    const NOW: i64 = 1_780_000_000;
    const DAY: i64 = 24 * 60 * 60;

    fn authority(folder: &std::path::Path) -> Authority {
        Authority {
            id: "local".into(),
            root_common_name: "Root".to_owned(),
            intermediate_common_name: "Intermediate".to_owned(),
            intermediate_lifetime: INTERMEDIATE_LIFETIME,
            renewal_window_ratio: RENEWAL_WINDOW_RATIO,
            maintenance_interval: MAINTENANCE_INTERVAL,
            root: None,
            intermediate: None,
            storage: Arc::new(FileStorage::new(folder)),
            known: Arc::default(),
            making: Arc::default(),
        }
    }

    #[test]
    fn the_intermediate_is_renewed_when_a_fifth_of_its_time_is_left_and_the_root_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = |tier, now| authority(dir.path()).current_or_made(tier, now).unwrap();
        let first = made(Tier::Intermediate, NOW);
        let root = made(Tier::Root, NOW);
        assert_eq!(first.validity.not_after, NOW + 7 * DAY);
        for (now, is_first) in [
            (NOW + 5 * DAY, true),
            (NOW + 28 * DAY / 5 - 60, true),
            (NOW + 28 * DAY / 5 + 60, false),
        ] {
            let chain = &made(Tier::Intermediate, now).chain;
            assert_eq!(*chain == first.chain, is_first, "{}", now - NOW);
        }
        // By another process, which has renewed it: what is in storage counts.
        let renewed = made(Tier::Intermediate, NOW + 6 * DAY);
        assert!(renewed.validity.not_after > NOW + 12 * DAY);
        assert_eq!(made(Tier::Root, NOW + 6 * DAY).chain, root.chain);
    }

    #[tokio::test]
    async fn the_authority_stays_locked_until_nothing_is_written_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, mut events) = Stalled::new(dir.path());
        let authority = Arc::new(Authority {
            storage: storage.clone(),
            ..authority(dir.path())
        });
        let asking = authority.clone();
        let asking = tokio::spawn(async move { asking.signer(Tier::Intermediate).await.map(drop) });
        assert_eq!(events.recv().await, Some(Event::Writing));
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        assert!(events.try_recv().is_err(), "unlocked while it writes");
        assert!(authority.making.try_lock().is_err());
        storage.go_on();
        while events.recv().await != Some(Event::Unlocked) {}
        let stored = authority.stored(Tier::Intermediate).unwrap();
        assert!(stored.is_some(), "everything was written by then");
    }

    #[test]
    fn an_intermediate_that_cannot_be_renewed_is_used_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let first = authority.current_or_made(Tier::Intermediate, NOW).unwrap();
        // Taken to a safe place.
        authority
            .storage
            .delete(&authority.key(Tier::Root, "key"))
            .unwrap();
        let still = authority
            .current_or_made(Tier::Intermediate, NOW + 6 * DAY)
            .unwrap();
        assert_eq!(still.chain, first.chain);
        let error = authority
            .current_or_made(Tier::Intermediate, NOW + 8 * DAY)
            .unwrap_err();
        assert!(error.to_string().contains("root.key"), "{error}");
        // A root is never replaced by itself: clients trust it.
        assert!(
            authority
                .storage
                .load(&authority.key(Tier::Root, "key"))
                .is_err()
        );
    }

    #[test]
    fn a_pair_that_was_half_written_is_made_anew_unless_it_is_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let first = authority.current_or_made(Tier::Intermediate, NOW).unwrap();
        let other = crate::keys::KeyType::P256.generate().unwrap();
        for tier in [Tier::Intermediate, Tier::Root] {
            let key = authority.key(tier, "key");
            authority
                .storage
                .store(&key, other.pem().as_bytes())
                .unwrap();
            if tier == Tier::Intermediate {
                let made = authority.current_or_made(tier, NOW).unwrap();
                assert_ne!(made.chain, first.chain);
            } else {
                let error = authority
                    .current_or_made(tier, NOW)
                    .unwrap_err()
                    .to_string();
                assert!(error.contains("root.crt"), "{error}");
                assert!(
                    error.contains("private key does not match public key"),
                    "{error}"
                );
            }
        }
    }
}
