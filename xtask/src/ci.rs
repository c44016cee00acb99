//! `cargo xtask ci`

use anyhow::Result;

use crate::shell::{self, cargo, step};
use crate::{deps, docs, features, fuzz, package};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that need other programs (curl, openssl, ssh, nc, haproxy, …).
    #[arg(long)]
    no_interop: bool,
}

fn run_step(name: &str, args: &[&str]) -> Result<()> {
    step(name, || shell::run(cargo().args(args)))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    run_step("format", &["fmt", "--all", "--check"])?;
    run_step(
        "lints",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    step("dependency directions", deps::run)?;
    step("features", features::run)?;
    step("documentation", || {
        let mut doc = cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings");
        shell::run(&mut doc)
    })?;
    step("reference pages and schema", docs::check)?;
    step("packages", package::run)?;
    step("fuzz corpus", || fuzz::smoke(10))?;
    step("hostile peers against a release build", hostile)?;
    step("the example of a module", || {
        let manifest = "examples/l4-hello/Cargo.toml";
        shell::run(cargo().args(["fmt", "--check", "--manifest-path", manifest]))
    })?;
    run_step(
        "custom builds",
        &[
            "test",
            "--package",
            "e2e",
            "--features",
            "custom-builds",
            "--test",
            "custom_builds",
            "--locked",
        ],
    )?;
    if !args.no_interop {
        run_step(
            "real clients and servers",
            &[
                "test",
                "--package",
                "e2e",
                "--features",
                "interop",
                "--locked",
            ],
        )?;
    }
    Ok(())
}

/// Overflow wraps and assertions for debugging are gone in what users run, so hostile input meets that, too. The
/// build takes about five minutes on two processors when nothing is there yet, the one that is distributed more.
/// The tests are those that `cargo test` has built, told which program to run.
fn hostile() -> Result<()> {
    shell::run(cargo().args(["build", "--release", "--locked", "--package", "conncept"]))?;
    let program = shell::target_directory()?.join("release/conncept");
    // With the features of the next step, so that nothing is built twice.
    let test = [
        "test",
        "--package",
        "e2e",
        "--features",
        "interop",
        "--locked",
        "--test",
        "hostile",
        "--test",
        "endings",
    ];
    shell::run(cargo().args(test).env("CONNCEPT_UNDER_TEST", program))
}
