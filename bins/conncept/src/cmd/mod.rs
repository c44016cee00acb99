//! The commands, one per file, and how they speak.

pub(crate) mod docs;
pub(crate) mod environ;
pub(crate) mod list_modules;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod validate;
pub(crate) mod version;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use l4_core::config::Errors;

use crate::source::Source;

/// A failed start or command, and wrong arguments: service managers must not try again.
pub(crate) const FAILED: u8 = 1;
/// Ended at once, on demand.
pub(crate) const FORCED: u8 = 2;
/// Stopped, but something was left behind.
pub(crate) const UNCLEAN: u8 = 3;

/// Prints to standard output. A reader that has gone away, such as `head`, is no error.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("writing to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints a line to standard error.
pub(crate) fn complain(text: &str) {
    // If standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says why a command failed.
pub(crate) fn fail(message: &str) -> ExitCode {
    complain(&format!("Error: {message}"));
    ExitCode::from(FAILED)
}

/// Shows everything that is wrong with a configuration.
pub(crate) fn refuse(errors: &Errors) -> ExitCode {
    complain(&errors.to_string());
    ExitCode::from(FAILED)
}

/// What both `run` and `validate` do first: the environment, then the choice of a configuration.
fn prepare(
    envfiles: &[PathBuf],
    config: Option<PathBuf>,
    adapter: Option<&str>,
) -> Result<Option<Source>, ExitCode> {
    crate::envfile::apply(envfiles).map_err(|error| fail(&error))?;
    Source::from_flags(config, adapter).map_err(|error| fail(&error))
}
