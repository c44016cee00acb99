//! Tells the binary where it comes from: the commit, its date and the compiler.
//!
//! Nothing here can fail a build: without git, in a source archive or in a package, the facts are left out.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    // A dirty tree shows only in the sources, so they are watched beside the commit.
    for sources in [".", "../../crates"] {
        watch(sources);
    }
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    set("CONNCEPT_RUSTC", output(&rustc, &["--version"]));
    set("CONNCEPT_COMMIT", commit());
    set("CONNCEPT_TARGET", env::var("TARGET").ok());
}

/// `28b5941a+dirty, 2026-11-22`
fn commit() -> Option<String> {
    // An archive unpacked inside another project's checkout must not claim that project's commit.
    let root = Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).join("../..");
    if !root.join(".git").exists() {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file]) {
            watch(&path);
        }
    }
    let mut commit = git(&["rev-parse", "--short=8", "HEAD"])?;
    if git(&["status", "--porcelain", "--untracked-files=no"]).is_some() {
        commit.push_str("+dirty");
    }
    let date = git(&["log", "-1", "--format=%cs"])?;
    Some(format!("{commit}, {date}"))
}

/// Runs this script again when `path` has changed. Naming one that does not exist would run it in every build.
fn watch(path: &str) {
    if Path::new(path).exists() {
        println!("cargo:rerun-if-changed={path}");
    }
}

fn git(args: &[&str]) -> Option<String> {
    // Without this a mere look at the status would take the index lock from a git command that runs meanwhile.
    let args = [&["--no-optional-locks"], args].concat();
    output("git", &args)
}

/// What a command prints, if it succeeds and prints something.
fn output(command: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(command).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

fn set(name: &str, value: Option<String>) {
    println!("cargo:rustc-env={name}={}", value.unwrap_or_default());
}
