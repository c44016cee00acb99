//! An upstream: its addresses, and how many connections it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use l4_core::prelude::*;

use crate::config::{DialMode, UpstreamConfig};
use crate::dial::Dial;

/// The unit of selection: one or more peers that are connected to together or in turn.
pub struct Upstream {
    pub(crate) peers: Vec<Dial>,
    pub(crate) mode: DialMode,
    /// The addresses as written, joined by commas: the name in logs and metrics.
    label: Arc<str>,
    limit: Option<usize>,
    active: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn provision(node: RawNode, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let config: UpstreamConfig = cx.decode(node.node())?;
        if config.dial.is_empty() {
            let at = cx
                .document()
                .member(node.node(), "dial")
                .unwrap_or(node.node());
            return Err(cx.reject_help(
                at,
                "an upstream without an address would swallow every byte",
                "name at least one address in \"dial\", such as [\"127.0.0.1:8080\"]",
            ));
        }
        let label: Vec<&str> = config.dial.iter().map(|text| text.as_str()).collect();
        let label = label.join(",").into();
        let peers = cx.all(&config.dial, |cx, text| Dial::provision(text, cx));
        let limit = match &config.max_connections {
            None => None,
            Some(limit) => match usize::try_from(**limit) {
                Ok(0) => None,
                Ok(limit) => Some(limit),
                Err(_) => {
                    return Err(cx.reject_help(
                        limit.node(),
                        format!("{} connections are never available", **limit),
                        "write how many connections are allowed, or 0 for no limit",
                    ));
                }
            },
        };
        if config.dial.len() > 1 && config.dial_mode == DialMode::All {
            let at = cx
                .document()
                .member(node.node(), "dial")
                .unwrap_or(node.node());
            cx.note(
                at,
                "every address of this list is connected to and gets all bytes; write \"dial_mode\": \"first\" to try \
                 them in order, or one upstream for each to choose among them",
            );
        }
        let (mode, active) = (config.dial_mode, Arc::default());
        Ok(Self {
            peers: peers?,
            mode,
            label,
            limit,
            active,
        })
    }

    /// Whether it may get another connection.
    pub fn available(&self) -> bool {
        self.limit.is_none_or(|limit| self.active() < limit)
    }

    /// How many connections it has, those being made included.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// The addresses as written in the configuration, joined by commas.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Takes a place for a connection before it is made, so that many arriving at once do not exceed the limit.
    pub(crate) fn reserve(&self) -> Option<Reserved> {
        let limit = self.limit.unwrap_or(usize::MAX);
        self.active
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < limit).then_some(n + 1)
            })
            .ok()
            .map(|_| Reserved(self.active.clone()))
    }
}

/// A place among an upstream's connections, given back exactly once: when dropped.
pub(crate) struct Reserved(Arc<AtomicUsize>);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
