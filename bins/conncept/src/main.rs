//! The `conncept` command; everything is in the library, which custom builds use as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    conncept::Cli::new().run()
}
