//! `conncept run`

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use l4_core::Registry;
use l4_core::config::{ConfigError, Errors};
use l4_net::Shards;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cli::RunArgs;
use crate::instance::{Instance, Outcome, Trigger, place};
use crate::logging::Log;
use crate::signals::{Signal, Signals};
use crate::source::{Source, Text};
use crate::{Build, cmd, default_config, logging, runtime};

/// How often `--watch` looks at the file.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long `--watch` waits at most before it tries again to get a port that somebody else has. It begins with one
/// interval and doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a changed file must stay the same before it is loaded: whoever writes it may not be through.
const SETTLE_TIME: Duration = Duration::from_millis(250);

/// How often a file that keeps changing is looked at before it is loaded as it is.
const MOST_LOOKS: usize = 20;

pub(crate) fn run(args: &RunArgs, build: &Build) -> ExitCode {
    let source = match cmd::prepare(&args.envfile, args.config.clone(), args.adapter.as_deref()) {
        Ok(source) => source.unwrap_or(Source::Embedded),
        Err(code) => return code,
    };
    if args.environ {
        cmd::environ::print();
    }
    let log = match logging::start(args.log_level, args.log_format) {
        Ok(log) => log,
        Err(error) => return cmd::fail(&format!("starting the log: {error}")),
    };
    logging::log_panics();
    let workers = match args.shards {
        Some(_) => NonZeroUsize::MIN,
        None => runtime::workers(args.workers),
    };
    let started = runtime::build(workers).and_then(|runtime| {
        let threads = args
            .shards
            .map(|count| runtime::Threads::beside(runtime.handle(), count));
        Ok((runtime, threads.transpose()?.unwrap_or_default()))
    });
    let (runtime, threads) = match started {
        Ok(started) => started,
        Err(error) => return cmd::fail(&format!("starting the runtime: {error}")),
    };
    let process = Process {
        source,
        watch: args.watch,
        pidfile: args.pidfile.clone(),
        registry: build.registry.clone(),
        shards: Shards::new(threads.runtimes().iter().cloned()),
        log: log.clone(),
    };
    let result = runtime.block_on(process.live());
    drop(threads);
    release_locks();
    if let Err(errors) = result {
        // Log lines first, so that the reason is the last thing on the screen.
        log.flush();
        return cmd::refuse(&errors);
    }
    let code = match args.pidfile.as_deref().map_or(Ok(()), remove_pid) {
        Ok(()) => 0,
        Err(error) => {
            error!(target: "conncept", %error, "the pid file cannot be removed");
            cmd::UNCLEAN
        }
    };
    info!(target: "conncept", exit_code = code, "shutdown complete");
    // What still runs is a read of a file that does not answer.
    runtime.shutdown_background();
    log.flush();
    ExitCode::from(code)
}

/// A process that serves until it is told to stop.
struct Process {
    source: Source,
    watch: bool,
    pidfile: Option<PathBuf>,
    registry: Arc<Registry>,
    shards: Shards,
    log: Log,
}

/// A file that is to be loaded again, though it did not change.
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Process {
    /// From the first load to the end of the last connection.
    async fn live(self) -> Result<(), Errors> {
        let signals = Signals::install()
            .map_err(|error| ConfigError::without_place("signals", error.to_string()))?;
        let stop = CancellationToken::new();
        let (reload, reloads) = mpsc::channel(1);
        let listening = tokio::spawn(obey(signals, stop.clone(), reload, self.log.clone()));
        let mut instance = Instance::new(self.registry.clone(), self.shards.clone());
        // Serving never ends by itself unless the first load fails. Dropping it between two steps of a load undoes
        // the load.
        let served = stop
            .run_until_cancelled(self.serve(&mut instance, reloads))
            .await;
        if let Some(Err(errors)) = served {
            return Err(errors);
        }
        warn!(target: "conncept", "exiting; a second signal ends at once");
        instance.stop().await;
        listening.abort();
        Ok(())
    }

    async fn serve(
        &self,
        instance: &mut Instance,
        mut reloads: mpsc::Receiver<()>,
    ) -> Result<(), Errors> {
        let text = self.read().await?;
        info!(target: "conncept", file = text.name, "using config from {}", self.kind());
        // What was loaded last, good or bad: a bad file is complained about once, not every second.
        let mut seen = text.bytes.clone();
        instance.load(text, Trigger::Signal).await?;
        self.write_pid().await;
        info!(target: "conncept", "serving initial configuration");
        if matches!(self.source, Source::Embedded)
            && let Some(address) = instance.first_tcp_address()
        {
            // The other lines first, so that this one is what is left on the screen.
            self.log.flush();
            cmd::print(&default_config::invitation(address));
        }
        if self.watch && !self.source.is_file() {
            warn!(target: "conncept", "--watch has no effect: the configuration is not a file");
        }
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = self.watch && self.source.is_file();
        let mut unreadable = false;
        let mut retry: Option<Retry> = None;
        loop {
            let mut trigger = tokio::select! {
                Some(()) = reloads.recv() => Trigger::Signal,
                _ = ticks.tick(), if watching => Trigger::Changed,
            };
            if !self.source.is_file() {
                info!(target: "conncept", "last config unknown, ignored SIGUSR1");
                continue;
            }
            let text = match self.read().await {
                Ok(text) => text,
                Err(errors) => {
                    if trigger == Trigger::Signal || !unreadable {
                        report(&errors);
                    }
                    unreadable = true;
                    continue;
                }
            };
            // A file that was gone and came back as it was is no change.
            unreadable = false;
            if trigger == Trigger::Changed && text.bytes == seen {
                match &retry {
                    Some(retry) if Instant::now() >= retry.at => trigger = Trigger::Again,
                    _ => continue,
                }
            }
            let text = match trigger {
                Trigger::Signal | Trigger::Again => text,
                Trigger::Changed => match self.settled(text).await {
                    Ok(text) if text.bytes == seen => continue,
                    Ok(text) => text,
                    // Being replaced. The next look says whether it is gone.
                    Err(_) => continue,
                },
            };
            seen.clone_from(&text.bytes);
            let file = text.name.clone();
            if trigger != Trigger::Again {
                info!(target: "conncept", file, "loading the configuration");
            }
            let loaded = instance.load(text, trigger).await;
            let before = retry.take();
            match loaded {
                Ok(Outcome::Loaded) => {
                    // One that grows from load to load says that something is left behind.
                    let tasks = self.tasks();
                    info!(target: "conncept", file, tasks, "serving the new configuration")
                }
                Ok(Outcome::Unchanged) => info!(target: "conncept", file, "config is unchanged"),
                Err(refused) => {
                    // Said once. What else is wrong now is news.
                    if trigger != Trigger::Again || !refused.only_ports {
                        report(&refused.errors);
                    }
                    retry = (watching && refused.only_ports).then(|| {
                        let again = before.filter(|_| trigger == Trigger::Again);
                        let pause = again.map_or(WATCH_INTERVAL, |retry| retry.pause * 2);
                        let pause = pause.min(LONGEST_PAUSE);
                        Retry {
                            at: Instant::now() + pause,
                            pause,
                        }
                    });
                }
            }
        }
    }

    /// Looks at the file, which was `text` a moment ago, until it stays the same.
    async fn settled(&self, mut text: Text) -> Result<Text, Errors> {
        for _ in 0..MOST_LOOKS {
            sleep(SETTLE_TIME).await;
            let now = self.read().await?;
            if now == text {
                break;
            }
            text = now;
        }
        Ok(text)
    }

    async fn read(&self) -> Result<Text, Errors> {
        let (source, registry) = (self.source.clone(), self.registry.clone());
        let read = move || source.read(|| default_config::text(&registry));
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| {
                Err(ConfigError::without_place(
                    self.source.name(),
                    error.to_string(),
                ))
            })
            .map_err(Errors::from)
    }

    /// Says in the pid file who serves. Not before it does: the file may be that of a process that goes on serving.
    async fn write_pid(&self) {
        let Some(path) = self.pidfile.clone() else {
            return;
        };
        let file = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write_pid(&path)).await;
        if let Err(error) = written.unwrap_or_else(|bug| Err(io::Error::other(bug))) {
            error!(target: "conncept", file, %error, "the pid file cannot be written");
        }
    }

    /// How many tasks there are, on all threads.
    fn tasks(&self) -> usize {
        let tasks = |runtime: &Handle| runtime.metrics().num_alive_tasks();
        match self.shards.runtimes() {
            [] => tasks(&Handle::current()),
            runtimes => runtimes.iter().map(tasks).sum(),
        }
    }

    fn kind(&self) -> &'static str {
        match self.source {
            Source::File(_) => "file",
            Source::Stream(_) => "stdin",
            Source::Embedded => "the program itself",
        }
    }
}

/// Turns signals into what the process does about them. Runs beside everything else, so that a signal to end at
/// once is heard whatever is going on.
async fn obey(mut signals: Signals, stop: CancellationToken, reload: mpsc::Sender<()>, log: Log) {
    loop {
        match signals.next().await {
            Signal::Stop(signal) if !stop.is_cancelled() => {
                info!(target: "conncept", signal, "stopping");
                stop.cancel();
            }
            Signal::Stop(signal) => quit(signal, "force quit", &log),
            Signal::Quit => quit("SIGQUIT", "quitting at once", &log),
            // One that waits already will read the file as it is then.
            Signal::Reload => drop(reload.try_send(())),
            Signal::Ignored(signal) => info!(target: "conncept", signal, "not implemented"),
        }
    }
}

fn quit(signal: &str, what: &str, log: &Log) -> ! {
    warn!(target: "conncept", signal, exit_code = cmd::FORCED, "{what}");
    release_locks();
    log.flush();
    std::process::exit(cmd::FORCED.into())
}

/// Gives up what other instances on the same storage would wait for until it looks abandoned.
fn release_locks() {
    #[cfg(feature = "tls")]
    l4_tls::release_locks();
}

/// Says why the configuration stays as it is, an entry for each reason.
fn report(errors: &Errors) {
    for error in errors.as_slice() {
        error!(
            target: "conncept", place = place(error), problem = error.message(), help = error.help_text(),
            "configuration error"
        );
    }
    let count = errors.as_slice().len();
    error!(target: "conncept", errors = count, "the new configuration was refused; the old one goes on");
}

fn write_pid(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", std::process::id())
}

/// Removes the pid file if it is still this process that it names: another one may have taken over. That somebody did so
/// already is no error.
fn remove_pid(path: &Path) -> io::Result<()> {
    // Reading what is no file, such as a pipe, could take for ever.
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    let content = is_file.then(|| fs::read_to_string(path).ok()).flatten();
    if content.is_none_or(|pid| pid.trim() != std::process::id().to_string()) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
