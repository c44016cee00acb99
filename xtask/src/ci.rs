//! `cargo xtask ci`

use anyhow::Result;

use crate::shell::{self, cargo, step};
use crate::{deps, features, fuzz, package};

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
    step("packages", package::run)?;
    step("fuzz corpus", || fuzz::smoke(10))?;
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
