//! Conncept with the modules of this crate, for trying them out: `cargo run --example conncept -- run --config l4.json`.

use std::process::ExitCode;

fn main() -> ExitCode {
    conncept::Cli::new().with(l4_hello::register).run()
}
