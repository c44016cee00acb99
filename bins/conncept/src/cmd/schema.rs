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

#[cfg(all(test, feature = "schema", feature = "tls"))]
mod tests {
    use l4_core::Registry;
    use l4_tls::CertificateLoaders;
    use serde_json::{Map, Value, json};

    #[test]
    fn certificates_come_from_the_loaders_of_other_crates_as_well() {
        let mut registry = Registry::new();
        crate::modules::builtin(&mut registry);
        let certificates = |document: Value| document["$defs"]["LoadersConfig"].clone();
        let built_in = certificates(l4_core::schema::document(&registry));
        registry.add::<CertificateLoaders, Map<String, Value>>("mine", |_, _| Ok(Box::default()));
        let extended = certificates(l4_core::schema::document(&registry));

        let mut expected = built_in.clone();
        expected["properties"]["mine"] = json!({"$ref": "#/$defs/tls.certificates.mine"});
        assert_eq!(extended, expected);
        assert_eq!(built_in["additionalProperties"], json!(false));
        assert_eq!(built_in["properties"].get("mine"), None);
    }
}
