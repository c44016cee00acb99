//! Which certificates are made here, by whom, and when they are renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use l4_core::config::{Node, Value};
use l4_core::prelude::*;
use l4_core::schema::InlineOf;
use l4_core::{Storage, Storages};
use rustls::crypto::CryptoProvider;
use schemars::JsonSchema;
use serde::Deserialize;

use super::internal::{InternalIssuer, InternalIssuerConfig};
use super::maintain::Managed;
use super::subject::ascii_name;
use super::{Issuer, Issuers, Subject};
use crate::app::refuse_absent;
use crate::certs::patterns;
use crate::keys::KeyType;
use crate::pki;
use crate::policy::provider;
use crate::storage;

/// How the certificates of `automate` are made.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AutomationConfig {
    /// Rules for names; the first that is for a name counts. Default: names that no public authority certifies get
    /// certificates from `internal`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<PolicyConfig>>")]
    policies: Option<Vec<RawNode>>,
    /// How often it is checked whether certificates have to be renewed; at least `1s`. Default: `"10m"`.
    #[serde(default)]
    renew_interval: Option<At<GoDuration>>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    on_demand: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    ocsp_interval: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    storage_clean_interval: Option<RawNode>,
}

/// A rule for some names. It makes no certificate by itself: names have to be in `automate`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AutomationPolicyConfig")]
struct PolicyConfig {
    /// The names it is for. `*` stands for one label, from the left: `*.example.internal`. Default: every name.
    #[serde(default)]
    subjects: Option<Vec<At<String>>>,
    /// Who makes the certificates; if one cannot, the next is asked. Default: `internal`, for names that no public
    /// authority certifies.
    #[serde(default)]
    #[schemars(with = "Option<Vec<InlineOf<Issuers>>>")]
    issuers: Option<Vec<RawNode>>,
    /// `ed25519`, `p256`, `p384`, `rsa2048` or `rsa4096`, for certificates made from now on. Default: `"p256"`.
    #[serde(default)]
    key_type: Option<At<String>>,
    /// A certificate is renewed when this part of its lifetime is left. Default: a third.
    #[serde(default)]
    renewal_window_ratio: Option<At<f64>>,
    /// Where certificates and keys are kept, written as `storage` at the top of the file. Default: the storage of the
    /// configuration.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<Storages>>")]
    storage: Option<RawNode>,
    /// Accepted without effect: nothing is stapled. Default: `false`.
    #[serde(default)]
    #[allow(dead_code)]
    disable_ocsp_stapling: Option<bool>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    ocsp_overrides: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    on_demand: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    get_certificate: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    reuse_private_keys: Option<RawNode>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    must_staple: Option<RawNode>,
}

/// What a policy says about the names it is for.
pub(crate) struct Rules {
    pub(super) issuers: Vec<Arc<dyn Issuer>>,
    pub(super) key_type: KeyType,
    pub(super) renewal_window_ratio: f64,
    pub(super) storage: Arc<dyn Storage>,
}

struct Policy {
    /// None: every name.
    subjects: Vec<Box<str>>,
    /// None: it depends on the name.
    rules: Rules,
}

const RENEW_INTERVAL: Duration = Duration::from_secs(10 * 60);
const RENEWAL_WINDOW_RATIO: f64 = 1.0 / 3.0;

/// How names are managed.
pub(crate) struct Automation {
    /// Each with the names it is for; none stands for every name.
    policies: Vec<(Vec<Box<str>>, Arc<Rules>)>,
    interval: Duration,
    provider: Arc<CryptoProvider>,
}

impl Automation {
    pub(crate) fn provision(
        config: Option<AutomationConfig>,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let config = config.unwrap_or_default();
        let absent = cx.all(
            [
                ("on_demand", config.on_demand),
                ("ocsp_interval", config.ocsp_interval),
                ("storage_clean_interval", config.storage_clean_interval),
            ],
            |cx, (name, raw)| refuse_absent(cx, name, raw),
        );
        let interval = pki::interval(config.renew_interval, RENEW_INTERVAL, cx);
        let nodes = config.policies.unwrap_or_default();
        let policies = cx.all(nodes.iter(), |cx, raw| {
            let config: PolicyConfig = cx.decode(raw.node())?;
            Policy::provision(config, cx)
        });
        absent?;
        let (policies, interval) = (policies?, interval?);
        let places: Vec<Node> = nodes.iter().map(RawNode::node).collect();
        refuse_what_never_counts(&policies, &places, cx)?;
        Ok(Self {
            policies: policies
                .into_iter()
                .map(|policy| (policy.subjects, Arc::new(policy.rules)))
                .collect(),
            interval,
            provider: Arc::new(provider()),
        })
    }

    /// The names in `automate`, with their places.
    pub(crate) fn read_names(
        names: Vec<At<String>>,
        cx: &mut Provision<'_>,
    ) -> Result<Vec<(Node, Subject)>, Rejected> {
        cx.all(names, |cx, name| Ok((name.node(), read_name(&name, cx)?)))
    }

    /// Names, each with its certificate if that is in storage.
    pub(crate) fn manage(
        &self,
        names: Vec<(Node, Subject)>,
        cx: &mut Provision<'_>,
    ) -> Result<Vec<Arc<Managed>>, Rejected> {
        let mut policies = Policies {
            all: &self.policies,
            internal: HashMap::new(),
        };
        let mut managed: Vec<Arc<Managed>> = Vec::new();
        let mut result = Ok(());
        for (node, subject) in names {
            if managed.iter().any(|known| *known.subject() == subject) {
                continue;
            }
            match policies.rules(&subject, node, cx) {
                Ok(rules) => {
                    managed.push(Arc::new(Managed::new(
                        subject,
                        rules,
                        self.interval,
                        self.provider.clone(),
                    )));
                }
                Err(rejected) => result = Err(rejected),
            }
        }
        result.map(|()| managed)
    }
}

fn read_name(name: &At<String>, cx: &mut Provision<'_>) -> Result<Subject, Rejected> {
    let expanded = cx.expand_load(name)?;
    Subject::parse(&expanded).ok_or_else(|| {
        cx.reject_help(
            name.node(),
            format!("subject name does not qualify for certificate: {expanded}"),
            "write a name such as \"db.internal\", \"*.example.internal\" or \"192.168.0.1\"",
        )
    })
}

struct Policies<'a> {
    all: &'a [(Vec<Box<str>>, Arc<Rules>)],
    /// For those without issuers, by their place in `all`; `None` is the policy that nobody wrote.
    internal: HashMap<Option<usize>, Arc<Rules>>,
}

impl Policies<'_> {
    /// What counts for a name.
    fn rules(
        &mut self,
        subject: &Subject,
        node: Node,
        cx: &mut Provision<'_>,
    ) -> Result<Arc<Rules>, Rejected> {
        let index = self.all.iter().position(|(subjects, _)| {
            subjects.is_empty()
                || subjects
                    .iter()
                    .any(|pattern| is_for(pattern, subject.as_str()))
        });
        let written = index
            .and_then(|index| self.all.get(index))
            .map(|(_, rules)| rules);
        if let Some(rules) = written.filter(|rules| !rules.issuers.is_empty()) {
            return Ok(rules.clone());
        }
        if subject.can_be_public() {
            return Err(cx.reject_help(
                node,
                format!(
                    "{} would get a certificate from a public authority, which is not in this build yet (acme)",
                    subject.as_str(),
                ),
                "load a certificate for it with load_files, or give it an automation policy with \
                 \"issuers\": [{\"module\": \"internal\"}]",
            ));
        }
        if let Some(known) = self.internal.get(&index) {
            return Ok(known.clone());
        }
        let issuer = InternalIssuer::provision(InternalIssuerConfig::default(), cx)?;
        let issuers: Vec<Arc<dyn Issuer>> = vec![Arc::new(issuer)];
        let rules = Arc::new(match written {
            Some(rules) => Rules {
                issuers,
                key_type: rules.key_type,
                renewal_window_ratio: rules.renewal_window_ratio,
                storage: rules.storage.clone(),
            },
            None => Rules {
                issuers,
                key_type: KeyType::default(),
                renewal_window_ratio: RENEWAL_WINDOW_RATIO,
                storage: storage::of_configuration(cx)?,
            },
        });
        self.internal.insert(index, rules.clone());
        Ok(rules)
    }
}

/// Whether a pattern is for a name: it is the name, or the name with its first labels replaced by `*`.
fn is_for(pattern: &str, name: &str) -> bool {
    pattern == name || patterns(name).any(|candidate| candidate == pattern)
}

/// Refuses a policy behind one that takes its names away.
fn refuse_what_never_counts(
    policies: &[Policy],
    places: &[Node],
    cx: &mut Provision<'_>,
) -> Result<(), Rejected> {
    let mut catch_all = None;
    let mut owners: HashMap<&str, usize> = HashMap::new();
    let mut result = Ok(());
    for (i, (policy, node)) in policies.iter().zip(places).enumerate() {
        if policy.subjects.is_empty() {
            if let Some(first) = catch_all {
                result = Err(cx.reject_help(
                    *node,
                    format!(
                        "automation policy {i} is the second policy that acts as default/catch-all, but will never be used"
                    ),
                    format!("give it subjects, or remove it or policy {first}"),
                ));
            }
            catch_all.get_or_insert(i);
        }
        for subject in &policy.subjects {
            match owners.get(&**subject) {
                Some(first) => {
                    result = Err(cx.reject_help(
                        *node,
                        format!(
                            "automation policy {i}: cannot apply more than one automation policy to host: {subject} \
                             (first match in policy {first})"
                        ),
                        "remove the name from one of them",
                    ));
                }
                None => {
                    owners.insert(subject, i);
                }
            }
        }
    }
    result
}

impl Policy {
    fn provision(config: PolicyConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let absent = cx.all(
            [
                ("on_demand", config.on_demand),
                ("get_certificate", config.get_certificate),
                ("reuse_private_keys", config.reuse_private_keys),
                ("must_staple", config.must_staple),
                ("ocsp_overrides", config.ocsp_overrides),
            ],
            |cx, (name, raw)| match raw.map(|raw| cx.document().value(raw.node())) {
                // What is switched off is not needed.
                Some(Value::Bool(false)) => Ok(()),
                _ => refuse_absent(cx, name, raw),
            },
        );
        let subjects = cx.all(config.subjects.unwrap_or_default(), |cx, subject| {
            let expanded = cx.expand_load(&subject)?;
            let expanded = match expanded.trim().parse::<std::net::IpAddr>() {
                Ok(ip) => Some(ip.to_string()),
                Err(_) => ascii_name(&expanded),
            };
            match expanded.filter(|name| !name.is_empty()) {
                Some(name) => Ok(name.into()),
                None => Err(cx.reject_help(
                    subject.node(),
                    format!("{:?} is not a name", *subject),
                    "write a name such as \"db.internal\" or \"*.example.internal\"",
                )),
            }
        });
        let issuers = cx.all(config.issuers.unwrap_or_default(), |cx, raw| {
            refuse_public_issuers(raw.node(), cx)?;
            cx.inline::<Issuers>(raw.node(), "module").map(Arc::from)
        });
        let key_type = key_type(config.key_type, cx);
        let ratio = pki::ratio(config.renewal_window_ratio, RENEWAL_WINDOW_RATIO, cx);
        let storage = storage::of_part(config.storage, cx);
        absent?;
        Ok(Self {
            subjects: subjects?,
            rules: Rules {
                issuers: issuers?,
                key_type: key_type?,
                renewal_window_ratio: ratio?,
                storage: storage?,
            },
        })
    }
}

/// Says of the issuers that everybody knows that they will come, rather than that they are unknown.
fn refuse_public_issuers(node: Node, cx: &mut Provision<'_>) -> Result<(), Rejected> {
    let document = cx.document();
    let Some(name_node) = document.member(node, "module") else {
        return Ok(());
    };
    match document.value(name_node) {
        Value::String(name @ ("acme" | "zerossl")) => Err(cx.reject_help(
            name_node,
            format!("the issuer {name} is not in this build yet"),
            "write \"internal\" for certificates of an authority of your own, or load certificates with load_files",
        )),
        _ => Ok(()),
    }
}

fn key_type(name: Option<At<String>>, cx: &mut Provision<'_>) -> Result<KeyType, Rejected> {
    let Some(name) = name else {
        return Ok(KeyType::default());
    };
    let expanded = cx.expand_load(&name)?;
    let known = KeyType::NAMES.iter().find(|(known, _)| *known == expanded);
    match known {
        Some((_, key_type)) => Ok(*key_type),
        None if name.is_empty() => Ok(KeyType::default()),
        None => Err(cx.reject_help(
            name.node(),
            format!("unrecognized key type: {expanded}"),
            format!("valid: {}", KeyType::NAMES.map(|(name, _)| name).join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_replaces_labels_from_the_left() {
        for (pattern, name) in [
            ("a.b.c", "a.b.c"),
            ("*.b.c", "a.b.c"),
            ("*.*.c", "a.b.c"),
            ("*.*.*", "a.b.c"),
            ("*.b.c", "*.b.c"),
        ] {
            assert!(is_for(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.b.c", "b.c"),
            ("*.c", "a.b.c"),
            ("a.*.c", "a.b.c"),
            ("*", "a.b"),
        ] {
            assert!(!is_for(pattern, name), "{pattern} {name}");
        }
    }
}
