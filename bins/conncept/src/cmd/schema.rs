//! `conncept schema`

use std::process::ExitCode;

use crate::{Build, cmd};

/// Where the schema of a build with everything is published.
#[cfg(feature = "schema")]
const ID: &str =
    "https://raw.githubusercontent.com/conncept/conncept/main/docs/conncept.schema.json";

#[cfg(feature = "schema")]
pub(crate) fn run(build: &Build) -> ExitCode {
    let mut schema = l4_core::schema::document(&build.registry);
    // Others describe other files, and must not be taken for it.
    if crate::modules::has_all() && !build.custom {
        schema["$id"] = ID.into();
    }
    cmd::print(&format!("{schema:#}\n"))
}

#[cfg(not(feature = "schema"))]
pub(crate) fn run(_: &Build) -> ExitCode {
    cmd::fail(&format!(
        "this build was made without schemas; add them with: cargo xtask build --with {}",
        crate::modules::with_schema()
    ))
}
