//! The datagram sockets of an address, and the tasks that receive from them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use l4_core::engine::Server;
use l4_core::{Connection, Record};
use socket2::Socket;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::error;

use super::{Ended, preparing};
use crate::limits::{ConnectionLimit, ListeningPermit};
use crate::listener::{Bound, Carries, ListenError};
use crate::udp::{DatagramListener, Group, Limits, Opening, Phase};

/// What a datagram socket takes: one that is received from, and a [spare](Spare) one.
const DESCRIPTORS: u32 = 2;

/// So many datagrams cannot come between two system calls.
const DISCARDED: usize = 1024;

/// One of the datagram sockets of an address.
pub(super) struct Member {
    pub(super) listener: DatagramListener,
    pub(super) spare: Spare,
    /// Where its sessions are to run; `None`: where the load does.
    pub(super) runtime: Option<Handle>,
}

/// A second descriptor for a datagram socket, from which its listener can be made again.
pub(super) struct Spare {
    socket: Socket,
    carries: Carries,
    limits: Limits,
    group: Arc<Group>,
    /// Whether it is another than the first of its group.
    further: bool,
    /// What its descriptors take from connections, for another than the first.
    _permit: Option<ListeningPermit>,
}

impl Member {
    /// The sockets of an address of which `bound` is the first: with one more for each of `permits`, each on another one of
    /// `runtimes`.
    pub(super) fn all(
        bound: Bound,
        runtimes: &[Handle],
        permits: Vec<ListeningPermit>,
        connections: &ConnectionLimit,
    ) -> Result<Vec<Self>, ListenError> {
        let (count, carries) = (1 + permits.len(), bound.carries);
        let beside: Vec<_> = (1..count)
            .map(|_| bound.beside())
            .collect::<Result<_, _>>()?;
        let sockets: Vec<_> = std::iter::once(bound.socket).chain(beside).collect();
        if count > 1 {
            sockets.iter().for_each(discard);
        }
        let limits = datagram_limits(connections).shared_by(count);
        let group = Arc::<Group>::default();
        let permits = std::iter::once(None).chain(permits.into_iter().map(Some));
        let members = sockets
            .into_iter()
            .zip(permits)
            .enumerate()
            .map(|(i, (socket, permit))| {
                let spare = Spare {
                    socket,
                    carries,
                    limits: limits.clone(),
                    group: group.clone(),
                    further: i > 0,
                    _permit: permit,
                };
                Ok(Self {
                    listener: spare.listener().map_err(preparing)?,
                    spare,
                    runtime: (count > 1).then(|| runtimes.get(i).cloned()).flatten(),
                })
            });
        members.collect()
    }
}

impl Spare {
    /// Room for the descriptors of `further` sockets beside the first, or for none.
    pub(super) fn room(
        further: usize,
        connections: &ConnectionLimit,
    ) -> Option<Vec<ListeningPermit>> {
        (0..further)
            .map(|_| connections.listening(DESCRIPTORS))
            .collect()
    }

    fn listener(&self) -> io::Result<DatagramListener> {
        let socket = OwnedFd::from(self.socket.try_clone()?);
        let listener = match self.carries {
            Carries::Unixgrams => DatagramListener::unix(socket.into()),
            _ => DatagramListener::udp(socket.into()),
        };
        Ok(listener?
            .with_limits(self.limits.clone())
            .among(self.group.clone(), self.further))
    }
}

/// A session takes a descriptor when it is proxied, so a flood of forged senders could take those that connections need:
/// the sessions of all sockets are counted together with the connections.
fn datagram_limits(connections: &ConnectionLimit) -> Limits {
    Limits {
        process: Some(connections.clone()),
        ..Limits::default()
    }
}

/// Drops what came while the sockets of an address were being opened. The kernel chose among fewer of them then: what
/// these peers send next may come to another one, and open a second session there. Before, it came to nobody, unless a
/// socket that takes the address in was there; then what comes between a few system calls is lost.
fn discard(socket: &Socket) {
    for _ in 0..DISCARDED {
        if socket.recv(&mut []).is_err() {
            return;
        }
    }
}

/// Runs a datagram listener, and runs it again if it is needed again just when it has come to its end.
pub(super) async fn serve_datagrams(
    ended: Arc<Ended>,
    datagrams: DatagramListener,
    spare: Spare,
    phase: watch::Receiver<Phase>,
) {
    let mut next = Ok(datagrams);
    loop {
        let slot = ended.listener.slot.clone();
        let ran = match next {
            Ok(datagrams) => {
                let serve = move |opening: Opening<'_>| serve_session(&slot, opening);
                datagrams.run(phase.clone(), serve).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ran {
            let address = &ended.listener.actual;
            error!(%address, %error, "datagrams cannot be received; next try in a second");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if ended.is_due(&spare.group, &phase) {
            break;
        }
        next = spare.listener();
    }
    // The socket is closed before it is said to be closed.
    drop(spare);
    drop(ended);
}

fn serve_session(slot: &ArcSwapOption<Server>, opening: Opening<'_>) {
    // None while the listener is on its way out, or back but not committed.
    let Some(server) = slot.load_full() else {
        return;
    };
    let session = opening.accept(server.idle_timeout());
    let record = Arc::new(Record::new(session.remote));
    let conn = Connection::new(session.io, record, Some(session.local));
    tokio::spawn(server.serve(conn));
}
