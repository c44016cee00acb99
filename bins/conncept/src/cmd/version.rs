//! `conncept version`

use std::process::ExitCode;

use crate::{Build, cmd, version};

pub(crate) fn run(build: &Build) -> ExitCode {
    cmd::print(&format!("{}\n", version::line(build)))
}
