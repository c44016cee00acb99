//! What `docs/migrating.md` shows of other programs is what those programs accept. Needs `haproxy` and `nginx`.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::Finished;
use tempfile::TempDir;

/// The blocks of the page in this language, with files where they expect some.
fn blocks(language: &str, dir: &TempDir) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migrating.md");
    let page = fs::read_to_string(page).unwrap();
    let made = rcgen::generate_simple_self_signed(["mail.example".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::create_dir_all(dir.path().join("certificates")).unwrap();
    for (name, text) in [
        ("example.pem", certificate.clone()),
        ("example.key", key.clone()),
        ("certificates/all.pem", certificate + &key),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let fence = format!("```{language}\n");
    let blocks: Vec<String> = page
        .split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .map(|block| block.replace("/etc/conncept", dir.path().to_str().unwrap()))
        .collect();
    assert!(blocks.len() >= 7, "{} blocks for {language}", blocks.len());
    blocks
}

fn accepted(command: &mut Command, block: &str) {
    let finished = Finished::from(command.output().unwrap());
    assert_eq!(
        finished.code,
        Some(0),
        "{block}\n{}{}",
        finished.stdout,
        finished.stderr
    );
}

#[test]
fn haproxy_accepts_what_is_shown_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("haproxy.cfg");
    for block in blocks("haproxy", &dir) {
        // Whoever comes from HAProxy has such a section.
        let defaults =
            "defaults\n mode tcp\n timeout connect 10s\n timeout client 1h\n timeout server 1h\n";
        fs::write(&file, format!("{defaults}{block}")).unwrap();
        accepted(
            Command::new("haproxy").arg("-c").arg("-f").arg(&file),
            &block,
        );
    }
}

#[test]
fn nginx_accepts_what_is_shown_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nginx.conf");
    for block in blocks("nginx", &dir) {
        let modules = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";
        let pid = dir.path().join("pid");
        let text = format!(
            "{modules}\npid {};\nerror_log stderr;\nevents {{}}\nstream {{\n{block}}}\n",
            pid.display()
        );
        fs::write(&file, text).unwrap();
        accepted(
            Command::new("nginx")
                .arg("-t")
                .arg("-p")
                .arg(dir.path())
                .arg("-c")
                .arg(&file),
            &block,
        );
    }
}
