//! What to do when accepting fails.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tracing::{debug, error, info};

/// How long, after an error that is not a single connection's, before the next try; doubled each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// The most that it is doubled to.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// So many connections in a row may be lost one by one; then it is the listener's trouble.
const LOST_IN_A_ROW: u32 = 64;

/// Accepting does not work at the moment: descriptors or memory have run out, or something nobody has thought of.
#[derive(Default)]
pub(crate) struct Trouble {
    /// What was logged, and is the case still.
    cause: Option<(ErrorKind, Option<i32>)>,
    pause: Duration,
    lost: u32,
}

impl Trouble {
    /// Accepting failed: how long to wait before the next try. The operator is told once for each cause.
    pub(crate) fn pause(&mut self, error: &io::Error) -> Duration {
        if concerns_one_connection(error.kind()) && self.lost < LOST_IN_A_ROW {
            self.lost += 1;
            debug!(target: "layer4", %error, "a connection was gone before it was accepted");
            return Duration::ZERO;
        }
        let cause = Some((error.kind(), error.raw_os_error()));
        if self.cause != cause {
            error!(target: "layer4", %error, "connections cannot be accepted; they wait until that has passed");
        }
        self.cause = cause;
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.pause
    }

    /// Accepting worked.
    pub(crate) fn passed(&mut self) {
        if self.cause.take().is_some() {
            info!(target: "layer4", "connections are accepted again");
        }
        *self = Self::default();
    }
}

/// Whether only the one connection is lost that would have been accepted: accept(2) passes on errors of the network.
fn concerns_one_connection(error: ErrorKind) -> bool {
    matches!(
        error,
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::Interrupted
            | ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_costs_no_pause_unless_that_is_all_there_is() {
        let mut trouble = Trouble::default();
        let lost = io::Error::from(ErrorKind::ConnectionAborted);
        for _ in 0..LOST_IN_A_ROW {
            assert_eq!(trouble.pause(&lost), Duration::ZERO);
        }
        assert_eq!(trouble.pause(&lost), SHORTEST_PAUSE);
        trouble.passed();
        assert_eq!(trouble.pause(&lost), Duration::ZERO);
    }

    #[test]
    fn pauses_grow_to_a_second_and_start_anew_after_a_success() {
        let mut trouble = Trouble::default();
        // EMFILE has no kind of its own.
        let error = io::Error::from_raw_os_error(24);
        let pauses: Vec<_> = (0..9).map(|_| trouble.pause(&error).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        trouble.passed();
        assert_eq!(trouble.pause(&error), SHORTEST_PAUSE);
    }
}
