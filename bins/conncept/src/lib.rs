//! Conncept as a program: the command line, the life of the process, and which modules a build has.
//!
//! The library exists so that a build with further modules is ten lines:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! # mod my_module { pub fn register(_: &mut l4_core::Registry) {} }
//! fn main() -> ExitCode {
//!     conncept::Cli::new().with(my_module::register).run()
//! }
//! ```
//!
//! What is here: commands (`cmd`), generations of the configuration and how they follow each other (`instance`), signals,
//! logs. What is not: anything about connections, which is in `l4-core`, `l4-net` and the crates of the modules.
//!
//! Start reading at `cmd/run.rs`, then `instance.rs`.

mod cli;
mod cmd;
mod default_config;
mod envfile;
mod instance;
mod logging;
mod modules;
mod runtime;
mod signals;
mod source;
mod version;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use l4_core::Registry;

pub use modules::builtin;

/// Here and not in `main`: builds with further modules have a `main` of their own.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The program, with the modules of this build.
pub struct Cli {
    registry: Registry,
    /// Ids of the modules that come with this crate.
    standard: BTreeSet<String>,
    custom: bool,
    licence: Option<&'static str>,
}

impl Cli {
    /// The program with the modules that its Cargo features bring.
    pub fn new() -> Self {
        let mut registry = Registry::new();
        builtin(&mut registry);
        let standard = registry.modules().map(|module| module.id).collect();
        Self {
            registry,
            standard,
            custom: false,
            licence: None,
        }
    }

    /// Adds the modules of another crate.
    #[must_use]
    pub fn with(mut self, register: impl FnOnce(&mut Registry)) -> Self {
        register(&mut self.registry);
        self.custom = true;
        self
    }

    /// Says what the binary may be passed on under, if a crate of others makes that another licence than ours.
    #[must_use]
    pub fn licence(mut self, licence: &'static str) -> Self {
        self.licence = Some(licence);
        self
    }

    /// Does what the arguments of the process say. To be returned from `main`.
    pub fn run(self) -> ExitCode {
        refuse_huge_pages();
        let conflicts = self.registry.conflicts();
        if !conflicts.is_empty() {
            return cmd::fail(&format!("this build is broken: {}", conflicts.join("; ")));
        }
        let build = Build {
            registry: Arc::new(self.registry),
            standard: self.standard,
            custom: self.custom,
            licence: self.licence.unwrap_or_else(modules::licence),
        };
        cli::run(std::env::args_os(), &build)
    }
}

/// mimalloc's memory is mapped in large pieces, which a kernel set to make huge pages of everything fills two megabytes at a
/// time, and does not take back when connections have gone (`PR_SET_THP_DISABLE` in prctl(2)).
fn refuse_huge_pages() {
    // A kernel that knows of none refuses, and nothing is lost.
    #[cfg(all(feature = "mimalloc", target_os = "linux"))]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

impl Default for Cli {
    fn default() -> Self {
        Self::new()
    }
}

/// What commands know of the build they are in.
struct Build {
    registry: Arc<Registry>,
    standard: BTreeSet<String>,
    custom: bool,
    licence: &'static str,
}
