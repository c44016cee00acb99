//! Signals, as events.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Stop in order; a second time, stop at once.
    Stop(&'static str),
    /// Stop at once.
    Quit,
    /// Read the configuration again.
    Reload,
    /// Nothing: known, and without effect.
    Ignored(&'static str),
}

/// The signals that the process reacts to. From its making on none of them ends the process by itself.
pub(crate) struct Signals(Vec<(Stream, Signal)>);

impl Signals {
    /// Takes the signals over.
    pub(crate) fn install() -> io::Result<Self> {
        [
            (SignalKind::interrupt(), Signal::Stop("SIGINT")),
            (SignalKind::terminate(), Signal::Stop("SIGTERM")),
            (SignalKind::quit(), Signal::Quit),
            (SignalKind::user_defined1(), Signal::Reload),
            (SignalKind::user_defined2(), Signal::Ignored("SIGUSR2")),
            (SignalKind::hangup(), Signal::Ignored("SIGHUP")),
        ]
        .into_iter()
        .map(|(kind, meaning)| Ok((signal(kind)?, meaning)))
        .collect::<io::Result<_>>()
        .map(Self)
    }

    /// The next signal. Several of one kind that arrive together are one.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (stream, meaning) in &mut self.0 {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*meaning);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
