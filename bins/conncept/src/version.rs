//! What this build is.

use crate::Build;

/// `v0.1.0 (28b5941a, 2026-11-22) MIT OR Apache-2.0`
pub(crate) fn line(build: &Build) -> String {
    let custom = if build.custom { " (custom)" } else { "" };
    format!("{}{custom} {}", short(), build.licence)
}

/// `v0.1.0 (28b5941a, 2026-11-22)`, without the commit in a build that was not made in a checkout.
pub(crate) fn short() -> String {
    match env!("CONNCEPT_COMMIT") {
        "" => concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        commit => format!("v{} ({commit})", env!("CARGO_PKG_VERSION")),
    }
}

/// The compiler, such as `rustc 1.95.0 (…)`.
pub(crate) fn rustc() -> &'static str {
    env!("CONNCEPT_RUSTC")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_line_starts_with_the_version_and_ends_with_the_licence() {
        let line = line(&Build {
            registry: Arc::default(),
            standard: BTreeSet::new(),
            custom: true,
            licence: "GPL-3.0-or-later",
        });
        assert!(
            line.starts_with(concat!("v", env!("CARGO_PKG_VERSION"))),
            "{line}"
        );
        assert!(line.ends_with(" (custom) GPL-3.0-or-later"), "{line}");
    }
}
