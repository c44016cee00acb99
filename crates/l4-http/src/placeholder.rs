//! Placeholders that read the request.

use std::sync::Arc;

use l4_core::Registry;
use l4_core::placeholder::{Placeholder, Scope};

use crate::{HttpHead, uri};

pub(crate) fn register(registry: &mut Registry) {
    registry.placeholders("l4.http.", l4_http);
}

fn l4_http(name: &str) -> Option<Arc<dyn Placeholder>> {
    (name == "host").then(|| Arc::new(host) as _)
}

/// The host as sent, with its port.
fn host(scope: &Scope<'_>, out: &mut String) {
    if let Some(head) = scope.known_fact::<HttpHead>() {
        out.push_str(&uri::to_text(head.host()));
    }
}
