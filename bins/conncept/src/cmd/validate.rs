//! `conncept validate`

use std::process::ExitCode;

use l4_core::config::{Document, Errors};
use l4_core::engine::App;

use crate::cli::ValidateArgs;
use crate::logging::{LogFormat, LogLevel};
use crate::{Build, cmd, logging};

/// Provisions the configuration and drops it: no socket is opened and no file written.
pub(crate) fn run(args: &ValidateArgs, build: &Build) -> ExitCode {
    let source = match cmd::prepare(&args.envfile, args.config.clone(), args.adapter.as_deref()) {
        Ok(Some(source)) => source,
        Ok(None) => return cmd::fail("no configuration to validate (use --config FILE)"),
        Err(code) => return code,
    };
    // Modules may log what they notice while they read their files.
    let log = match logging::start(LogLevel::Warn, LogFormat::Console) {
        Ok(log) => log,
        Err(error) => return cmd::fail(&format!("starting the log: {error}")),
    };
    let document = source
        .read(String::new)
        .map_err(Errors::from)
        .and_then(|text| Document::parse(&text.name, &text.bytes).map_err(Errors::from));
    let document = match document {
        Ok(document) => document,
        Err(errors) => return cmd::refuse(&errors),
    };
    let loaded = App::load(&document, &build.registry);
    log.flush();
    for (kind, remarks) in [("warning", loaded.warnings), ("note", loaded.notes)] {
        for remark in Errors::from(remarks).as_slice() {
            let text = remark.render();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            cmd::complain(&format!("{kind}: {text}\n"));
        }
    }
    match loaded.app {
        Ok(_) => cmd::print("Valid configuration\n"),
        Err(errors) => cmd::refuse(&errors.into()),
    }
}
