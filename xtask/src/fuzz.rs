//! `cargo xtask fuzz`: the fuzz targets live in a workspace of their own under `fuzz/`.

use anyhow::{Result, bail};

use crate::shell::{self, cargo, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Replay the seeds of every target, then change them at random, on the stable toolchain and without a fuzzer.
    #[arg(long)]
    smoke: bool,
    /// How long the random part goes on, for all targets together.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    seconds: u64,
    /// Fuzz this target with cargo-fuzz, on the nightly toolchain.
    #[arg(value_name = "TARGET")]
    target: Option<String>,
}

pub(crate) fn run_target(target: &str, seconds: u64) -> Result<()> {
    let mut command = std::process::Command::new("cargo");
    command
        .current_dir(root())
        // The variable of this process names the stable cargo.
        .env_remove("CARGO")
        .args([
            "+nightly",
            "fuzz",
            "run",
            "--features",
            "libfuzzer",
            target,
            "--",
        ])
        .arg(format!("-max_total_time={seconds}"));
    shell::run(&mut command)
}

pub(crate) fn smoke(seconds: u64) -> Result<()> {
    let seconds = seconds.to_string();
    shell::run(
        cargo()
            // Shared with the main workspace: what both need is built once.
            .env("CARGO_TARGET_DIR", shell::target_directory()?)
            .args([
                "run",
                "--quiet",
                "--release",
                "--manifest-path",
                "fuzz/Cargo.toml",
            ])
            .args(["--bin", "smoke", "--", &seconds]),
    )
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.target {
        _ if args.smoke => smoke(args.seconds),
        Some(target) => run_target(target, args.seconds),
        None => bail!("say --smoke, or which target to fuzz: see fuzz/fuzz_targets"),
    }
}
