//! The arguments of the command line.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::logging::{LogFormat, LogLevel};
use crate::{Build, cmd};

/// Routes TCP, UDP and Unix socket connections by their first bytes.
#[derive(Debug, Parser)]
#[command(name = "conncept", disable_version_flag = true)]
struct Arguments {
    /// Print the version and the licence of this build
    #[arg(short, long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until told to stop
    Run(RunArgs),
    /// Check a configuration without any effect
    Validate(ValidateArgs),
    /// List the modules of this build
    ListModules(ListModulesArgs),
    /// Print the manual page of a module
    Docs(DocsArgs),
    /// Print the JSON Schema of configurations for this build
    Schema(Extra),
    /// Print the version and the licence of this build
    Version(Extra),
    /// Print what the program knows of its surroundings
    Environ(EnvironArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Configuration file, - for standard input; without one a configuration to try things out
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Format of the configuration: only json
    #[arg(short, long, value_name = "NAME")]
    pub(crate) adapter: Option<String>,
    /// File of KEY=VALUE lines for the environment; may be repeated, existing variables win
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(crate) envfile: Vec<PathBuf>,
    /// Print the environment before anything else
    #[arg(short, long)]
    pub(crate) environ: bool,
    /// Load the configuration file again whenever it changes
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// File to write the process id to; removed on a graceful exit
    #[arg(long, value_name = "FILE")]
    pub(crate) pidfile: Option<PathBuf>,
    /// How much is logged
    #[arg(
        long,
        value_enum,
        value_name = "LEVEL",
        ignore_case = true,
        default_value = "info"
    )]
    pub(crate) log_level: LogLevel,
    /// What log lines look like
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        ignore_case = true,
        default_value = "auto"
    )]
    pub(crate) log_format: LogFormat,
    /// Number of worker threads; by default one for each processor that may be used
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Threads that keep their connections and UDP sessions, instead of workers that share all of them
    #[arg(long, value_name = "N", conflicts_with = "workers")]
    pub(crate) shards: Option<NonZeroUsize>,
    #[command(flatten)]
    extra: Extra,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Configuration file, - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Format of the configuration: only json
    #[arg(short, long, value_name = "NAME")]
    pub(crate) adapter: Option<String>,
    /// File of KEY=VALUE lines for the environment; may be repeated, existing variables win
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(crate) envfile: Vec<PathBuf>,
    #[command(flatten)]
    extra: Extra,
}

/// Arguments of `list-modules`.
#[derive(Debug, Args)]
pub(crate) struct ListModulesArgs {
    /// Print the version of the crate that each module comes from
    #[arg(long)]
    pub(crate) versions: bool,
    /// Print the name of the crate that each module comes from
    #[arg(long)]
    pub(crate) packages: bool,
    /// Leave out the modules that come with conncept
    #[arg(short, long)]
    pub(crate) skip_standard: bool,
    /// Print a JSON list
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    extra: Extra,
}

/// Arguments of `docs`.
#[derive(Debug, Args)]
pub(crate) struct DocsArgs {
    /// Name of a module, such as throttle or layer4.handlers.throttle; without one a list of all
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Fill in the tables of fields in a Markdown page from standard input, and print it
    #[arg(long, conflicts_with = "name")]
    pub(crate) fill: bool,
    #[command(flatten)]
    extra: Extra,
}

/// Arguments of `environ`.
#[derive(Debug, Args)]
pub(crate) struct EnvironArgs {
    /// File of KEY=VALUE lines for the environment; may be repeated, existing variables win
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(crate) envfile: Vec<PathBuf>,
    #[command(flatten)]
    extra: Extra,
}

/// Arguments without a flag. The reference ignores them, and scripts may rely on that; it is said aloud, because
/// `run FILE` would otherwise look as if it had taken the file.
#[derive(Debug, Args)]
struct Extra {
    #[arg(hide = true, value_name = "EXTRA")]
    extra: Vec<OsString>,
}

/// Does what `args` say.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>, build: &Build) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error),
    };
    let command = match arguments.command {
        _ if arguments.version => return cmd::version::run(build),
        None => return cmd::print(&Arguments::command().render_help().to_string()),
        Some(command) => command,
    };
    command.extra().warn();
    match command {
        Command::Run(args) => cmd::run::run(&args, build),
        Command::Validate(args) => cmd::validate::run(&args, build),
        Command::ListModules(args) => cmd::list_modules::run(&args, build),
        Command::Docs(args) => cmd::docs::run(&args, build),
        Command::Schema(_) => cmd::schema::run(build),
        Command::Version(_) => cmd::version::run(build),
        Command::Environ(args) => cmd::environ::run(&args),
    }
}

impl Command {
    fn extra(&self) -> &Extra {
        match self {
            Self::Run(args) => &args.extra,
            Self::Validate(args) => &args.extra,
            Self::ListModules(args) => &args.extra,
            Self::Docs(args) => &args.extra,
            Self::Schema(extra) | Self::Version(extra) => extra,
            Self::Environ(args) => &args.extra,
        }
    }
}

impl Extra {
    fn warn(&self) {
        for argument in &self.extra {
            let argument = argument.to_string_lossy();
            cmd::complain(&format!(
                "Warning: argument {argument:?} is ignored; a configuration is given with --config FILE"
            ));
        }
    }
}

/// Help goes to standard output and is a success; everything else is a mistake in the arguments.
fn explain(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if error.kind() == ErrorKind::DisplayHelp {
        return cmd::print(&text);
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // The first line in the words of the reference, which people and scripts search for.
    let first = match error.kind() {
        ErrorKind::InvalidSubcommand => said(ContextKind::InvalidSubcommand)
            .map(|name| format!("unknown command {name:?} for \"conncept\"")),
        ErrorKind::UnknownArgument => {
            said(ContextKind::InvalidArg).map(|name| format!("unknown flag: {name}"))
        }
        _ => None,
    };
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    match first {
        Some(first) => cmd::fail(format!("{first}\n{rest}").trim_end()),
        None => cmd::fail(text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(["conncept"].iter().chain(args))
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_takes_the_flags_of_the_reference() {
        let args = parse(&[
            "run",
            "-c",
            "a.json",
            "-a",
            "json",
            "--envfile",
            "x,y",
            "--envfile=z",
            "-e",
            "-w",
            "--pidfile",
            "p",
            "--log-level",
            "DEBUG",
            "--workers",
            "3",
            "stray",
        ]);
        let Some(Command::Run(run)) = args.unwrap().command else {
            panic!("not run");
        };
        assert_eq!(run.config, Some("a.json".into()));
        assert_eq!(run.adapter.as_deref(), Some("json"));
        assert_eq!(run.envfile, ["x", "y", "z"].map(PathBuf::from));
        assert!(run.environ && run.watch);
        assert_eq!(run.pidfile, Some("p".into()));
        assert_eq!(run.log_level, LogLevel::Debug);
        assert_eq!(run.workers, NonZeroUsize::new(3));
        assert_eq!(run.extra.extra, ["stray"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["run", "--workers", "0"][..],
            &["run", "--shards", "0"],
            &["run", "--shards", "2", "--workers", "2"],
            &["run", "--nope"],
            &["nope"],
            &["run", "-c"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
        assert!(parse(&["-v"]).unwrap().version && parse(&["--version"]).unwrap().version);
    }
}
