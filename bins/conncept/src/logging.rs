//! Logs on standard error: lines for people on a terminal, JSON for everything else.
//!
//! A log that is not read must not stop the connections that write to it: lines go through a bounded queue to a thread of
//! their own, and what does not fit is dropped and counted.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What failed.
    Error,
    /// Also what may be wrong.
    Warn,
    /// Also what happened: starts, reloads, a record for each connection.
    Info,
    /// Also why: routes taken, clients that misbehaved.
    Debug,
    /// Also every answer of every matcher.
    Trace,
}

/// What a log line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// `console` on a terminal, else `json`.
    Auto,
    /// Time, level, logger, message and fields.
    Console,
    /// One JSON object per line.
    Json,
}

/// Lines that may wait for the thread that writes them.
const QUEUE: usize = 4096;
/// How much is written at once.
const BATCH: usize = 64 * 1024;
/// How long the end of the process waits for a reader that does not read.
const PATIENCE: Duration = Duration::from_millis(500);

/// The log. What was logged before is written before [`flush`](Self::flush) returns.
#[derive(Clone)]
pub(crate) struct Log(SyncSender<Message>);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Makes everything that is logged from now on go to standard error.
///
/// # Errors
/// The thread that writes could not be started, or there is a log already.
pub(crate) fn start(level: LogLevel, format: LogFormat) -> io::Result<Log> {
    let shape = Shape::choose(format);
    let (queue, messages) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = LineWriter {
        queue: queue.clone(),
        dropped: dropped.clone(),
    };
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_all(&messages, &dropped, shape, &mut io::stderr()))?;
    let layer = tracing_subscriber::fmt::layer()
        .event_format(shape)
        .with_ansi(false)
        .with_writer(writer);
    let subscriber = tracing_subscriber::registry()
        .with(LevelFilter::from(level))
        .with(layer);
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(Log(queue))
}

/// Logs panics, which end one connection, like everything else.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let what = payload.downcast_ref::<&str>().copied();
        let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let what = what.unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => {
                tracing::error!(target: "conncept", panic = what, place, %backtrace, "bug: a task panicked");
            }
            _ => tracing::error!(target: "conncept", panic = what, place, "bug: a task panicked"),
        }
    }));
}

impl Log {
    /// Waits until everything logged so far is written, but not for a reader that does not read.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        // The queue may be full; the thread then is stuck, and so would we be.
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(PATIENCE);
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Writes what arrives until all senders are gone.
fn write_all(
    messages: &Receiver<Message>,
    dropped: &AtomicU64,
    shape: Shape,
    out: &mut impl io::Write,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = messages.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
            next = (batch.len() < BATCH)
                .then(|| messages.try_recv().ok())
                .flatten();
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            batch.extend_from_slice(shape.lost(lost).as_bytes());
        }
        // Nobody is left to tell when standard error is gone.
        let _ = out.write_all(&batch).and_then(|()| out.flush());
        batch.clear();
        for done in flushed {
            let _ = done.try_send(());
        }
    }
}

/// Hands each line over; the formatter writes a line at a time.
struct LineWriter {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl io::Write for &LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Line(line.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Console { colour: bool },
}

impl Shape {
    fn choose(format: LogFormat) -> Self {
        let terminal = io::stderr().is_terminal();
        match format {
            LogFormat::Json => Self::Json,
            LogFormat::Auto if !terminal => Self::Json,
            LogFormat::Auto | LogFormat::Console => Self::Console {
                colour: terminal && colour_wanted(),
            },
        }
    }

    fn lost(self, count: u64) -> String {
        let fields = Fields {
            message: "log lines were dropped because nobody read them fast enough".to_owned(),
            json: format!(
                "\"count\":{}{count}",
                if self == Self::Json { "" } else { " " }
            ),
            spaced: false,
        };
        let mut line = String::new();
        let _ = self.line(
            &mut line,
            Level::WARN,
            "conncept",
            Timestamp::now(),
            &fields,
        );
        line
    }

    fn line(
        self,
        out: &mut impl fmt::Write,
        level: Level,
        logger: &str,
        now: Timestamp,
        fields: &Fields,
    ) -> fmt::Result {
        let Fields { message, json, .. } = fields;
        match self {
            Self::Json => {
                let micros = now.as_microsecond();
                let (seconds, micros) =
                    (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
                let level = level.as_str().to_ascii_lowercase();
                write!(
                    out,
                    "{{\"level\":\"{level}\",\"ts\":{seconds}.{micros:06},\"logger\":"
                )?;
                write_json_string(out, logger)?;
                out.write_str(",\"msg\":")?;
                write_json_string(out, message)?;
                if !json.is_empty() {
                    write!(out, ",{json}")?;
                }
                out.write_str("}\n")
            }
            Self::Console { colour } => {
                let time = now.strftime("%Y/%m/%d %H:%M:%S.%3f");
                let (on, off) = if colour {
                    (paint(level), "\x1b[0m")
                } else {
                    ("", "")
                };
                write!(out, "{time}\t{on}{level}{off}\t{logger}\t")?;
                // Escape sequences must not reach a terminal; inside the fields JSON escapes them.
                message
                    .chars()
                    .try_for_each(|c| out.write_char(if c.is_control() { ' ' } else { c }))?;
                if !json.is_empty() {
                    write!(out, "\t{{{json}}}")?;
                }
                out.write_char('\n')
            }
        }
    }
}

fn colour_wanted() -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var("TERM").is_ok_and(|term| term == "xterm-mono" || term == "dumb");
    !no_colour && !dumb
}

fn paint(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[34m",
        _ => "\x1b[35m",
    }
}

impl<S, N> FormatEvent<S, N> for Shape
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields {
            message: String::new(),
            json: String::new(),
            spaced: *self != Self::Json,
        };
        event.record(&mut fields);
        let meta = event.metadata();
        self.line(
            &mut out,
            *meta.level(),
            meta.target(),
            Timestamp::now(),
            &fields,
        )
    }
}

/// The fields of an event: the message apart, the others as members of a JSON object.
struct Fields {
    message: String,
    json: String,
    spaced: bool,
}

impl Fields {
    fn key(&mut self, field: &Field) {
        let (comma, colon) = if self.spaced {
            (", ", ": ")
        } else {
            (",", ":")
        };
        if !self.json.is_empty() {
            self.json.push_str(comma);
        }
        // Writing to a string cannot fail, here and below.
        let _ = write_json_string(&mut self.json, field.name());
        self.json.push_str(colon);
    }

    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.key(field);
        let _ = write!(self.json, "{value}");
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.key(field);
            let _ = write_json_string(&mut self.json, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        match value.is_finite() {
            true => self.bare(field, value),
            // JSON has no such number.
            false => self.record_str(field, &value.to_string()),
        }
    }
}

fn write_json_string(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            // C1 controls need no escape in JSON, but some terminals obey them.
            c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Lets a real event through the formatter and returns the line.
    fn logged(shape: Shape, log: impl FnOnce()) -> String {
        let (queue, messages) = sync_channel(8);
        let writer = LineWriter {
            queue,
            dropped: Arc::default(),
        };
        let layer = tracing_subscriber::fmt::layer()
            .event_format(shape)
            .with_writer(writer);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, log);
        let Ok(Message::Line(line)) = messages.try_recv() else {
            panic!("nothing was logged");
        };
        String::from_utf8(line).unwrap()
    }

    fn event() {
        tracing::info!(
            target: "layer4", conn = 7_u64, remote = %"a\"b\u{1b}[2J", took = 1.5, ok = true, odd = f64::NAN, "done"
        );
    }

    #[test]
    fn json_lines_have_the_members_of_the_reference_in_its_order() {
        let line = logged(Shape::Json, event);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "info");
        assert!(value["ts"].as_f64().unwrap() > 1.7e9);
        assert_eq!(value["logger"], "layer4");
        assert_eq!(value["msg"], "done");
        assert_eq!(value["conn"], 7);
        assert_eq!(value["remote"], "a\"b\u{1b}[2J");
        assert_eq!(value["took"], 1.5);
        assert_eq!(value["ok"], true);
        assert_eq!(value["odd"], "NaN");
        assert!(line.starts_with("{\"level\":\"info\",\"ts\":"), "{line}");
        assert!(line.ends_with("}\n") && line.lines().count() == 1);
    }

    #[test]
    fn console_lines_are_columns_and_carry_no_escape_sequence() {
        let line = logged(Shape::Console { colour: false }, event);
        let columns: Vec<&str> = line.trim_end().split('\t').collect();
        assert_eq!(columns.len(), 5, "{line}");
        assert_eq!(columns[0].len(), "2026/11/22 21:44:01.123".len());
        assert_eq!(&columns[1..4], ["INFO", "layer4", "done"]);
        assert!(
            columns[4].starts_with("{\"conn\": 7, \"remote\": "),
            "{line}"
        );
        assert!(!line.contains('\x1b'));
    }

    #[test]
    fn a_full_queue_drops_lines_and_says_how_many() {
        let (queue, messages) = sync_channel(2);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = LineWriter {
            queue,
            dropped: dropped.clone(),
        };
        for _ in 0..5 {
            (&writer).write_all(b"{}\n").unwrap();
        }
        drop(writer);
        let mut out = Vec::new();
        write_all(&messages, &dropped, Shape::Json, &mut out);
        let text = String::from_utf8(out).unwrap();
        let last = text.lines().last().unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(last).unwrap()["count"],
            3
        );
    }

    #[test]
    fn flushing_returns_once_everything_is_written() {
        let (queue, messages) = sync_channel(8);
        let log = Log(queue.clone());
        let writer = std::thread::spawn(move || {
            let mut out = Vec::new();
            write_all(&messages, &AtomicU64::new(0), Shape::Json, &mut out);
            out
        });
        queue.send(Message::Line(b"x\n".to_vec())).unwrap();
        log.flush();
        drop((queue, log));
        assert_eq!(writer.join().unwrap(), b"x\n");
    }

    #[test]
    fn spaces_separate_fields_on_a_console_only() {
        let lost = Shape::Console { colour: false }.lost(2);
        assert!(lost.ends_with("\t{\"count\": 2}\n"), "{lost}");
        assert!(Shape::Json.lost(2).ends_with(",\"count\":2}\n"));
    }
}
