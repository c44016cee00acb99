//! Pipes, and moving bytes between sockets and them without a copy.
//!
//! A pipe belongs to a direction only while bytes are in it; the empty ones are shared by the whole process. There are
//! at most as many as a user may have at full size by default; when all are in use, others copy.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use l4_core::Transport;
use tokio::io::Interest;

use super::socket::Socket;

/// What a pipe should hold: the most an unprivileged user may ask for (`/proc/sys/fs/pipe-max-size`). Measured, moving
/// a gigabyte through pipes of 1 MiB takes half the processor time it takes through those of 64 KiB.
pub(super) const SIZE: usize = 1024 * 1024;

/// The size the kernel gives by itself. A pipe with less is not worth its calls: that is what a user is left with who
/// holds too many (`pipe-user-pages-soft` in pipe(7)).
const LEAST_SIZE: usize = 64 * 1024;

/// The most pipes: three quarters of what a user may have at [`SIZE`] by default. Their descriptors fit into what the
/// connection limit keeps back.
const MOST: usize = 48;

/// A pipe, empty when it is taken and when it is given back.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Counts it among the living.
    _seat: Seat,
}

/// The right to one pipe, until dropped.
#[derive(Debug)]
struct Seat;

/// Pipes there are, in use or not.
static LIVING: AtomicUsize = AtomicUsize::new(0);

impl Seat {
    fn take() -> Option<Self> {
        LIVING
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |living| {
                (living < most()).then_some(living + 1)
            })
            .is_ok()
            .then_some(Self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        LIVING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// An empty pipe; none when all are in use or the system gives none that is large enough.
    pub(super) fn take() -> Option<Self> {
        let free = spare().pop();
        free.or_else(|| Self::open(Seat::take()?).ok())
    }

    /// Gives an empty pipe back.
    pub(super) fn give_back(self) {
        spare().push(self);
    }

    #[allow(unsafe_code)]
    fn open(seat: Seat) -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: `ends` has room for the two descriptors that the kernel writes.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded: both are open, and nobody else knows of them.
        let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let pipe = Self {
            read,
            write,
            _seat: seat,
        };
        let fd = pipe.write.as_raw_fd();
        // SAFETY: takes and returns numbers only.
        let set = unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, SIZE as libc::c_int) };
        let size = if set == -1 {
            // SAFETY: the same.
            unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) }
        } else {
            set
        };
        match usize::try_from(size) {
            Ok(size) if size >= LEAST_SIZE => Ok(pipe),
            _ => Err(io::ErrorKind::QuotaExceeded.into()),
        }
    }
}

/// Pipes that are not in use.
fn spare() -> MutexGuard<'static, Vec<Pipe>> {
    // Held for a push or a pop, once for each chunk of up to a megabyte.
    static SPARE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many pipes there may be: fewer than usual where a user may not have that many at full size.
fn most() -> usize {
    static HERE: OnceLock<usize> = OnceLock::new();
    *HERE.get_or_init(|| {
        let pages = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft")
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok());
        most_within(pages)
    })
}

/// How many fit into so many pages of a user, where 0 is no limit. Not known is the default.
fn most_within(pages: Option<usize>) -> usize {
    match pages {
        None | Some(0) => MOST,
        Some(pages) => (pages / 4 * 3 / (SIZE / 4096)).clamp(1, MOST),
    }
}

/// Whether both are stream sockets, so that what one receives can be moved to the other in the kernel.
pub(super) fn joins(from: &Transport, to: &Transport) -> bool {
    Socket::of(from).is_some() && Socket::of(to).is_some()
}

/// Moves what a socket has received into an empty pipe, at most [`SIZE`] bytes and what its limit on reads allows; 0 is
/// the end of the stream. `None`: this has to be copied, because nothing else can be done here or no pipe is left.
pub(super) fn poll_fill(
    cx: &mut Context<'_>,
    from: &mut Transport,
) -> Option<Poll<io::Result<(Pipe, usize)>>> {
    if from.has_unread() {
        return None;
    }
    loop {
        match Socket::of(from)?.poll_read_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
            Poll::Pending => return Some(Poll::Pending),
        }
        let pipe = Pipe::take()?;
        let allowed = match from.poll_pass(cx, SIZE) {
            Poll::Ready(Ok(allowed)) => allowed,
            other => {
                pipe.give_back();
                return Some(other.map(|broken| broken.and(Err(io::ErrorKind::Other.into()))));
            }
        };
        let socket = Socket::of(from)?;
        // The pipe is empty, so it is the socket that has nothing when the kernel says that it would block.
        let filled = socket.try_io(Interest::READABLE, || {
            splice(socket.as_fd(), pipe.write.as_fd(), allowed)
        });
        from.passed_from(*filled.as_ref().unwrap_or(&0));
        match filled {
            Ok(n) => return Some(Poll::Ready(Ok((pipe, n)))),
            Err(error) => {
                pipe.give_back();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    // A kernel, or what stands in for one, that does not do this with such a socket.
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => return None,
                    _ => return Some(Poll::Ready(Err(error))),
                }
            }
        }
    }
}

/// Moves bytes from a pipe that holds `held` to a socket; how many.
pub(super) fn poll_drain(
    cx: &mut Context<'_>,
    pipe: &Pipe,
    held: usize,
    to: &Transport,
) -> Poll<io::Result<usize>> {
    let Some(socket) = Socket::of(to) else {
        return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
    };
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let mut sent = 0;
        let done = socket.try_io(Interest::WRITABLE, || {
            sent = splice(pipe.read.as_fd(), socket.as_fd(), held)?;
            if sent < held {
                // The socket is full. Saying so spares the call that would find out.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match done {
            Err(error) if sent == 0 => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Poll::Ready(Err(error)),
            },
            _ => {
                to.passed_to(sent);
                return Poll::Ready(Ok(sent));
            }
        }
    }
}

/// splice(2), at most `len` bytes. `SPLICE_F_MORE` is left out: the end of what there is would wait for an
/// acknowledgement or 200 ms.
#[allow(unsafe_code)]
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are borrowed and thus open; without offsets the kernel is given no memory of ours.
    let n = unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            len,
            libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_pipes_than_a_user_may_have_at_full_size() {
        assert_eq!(most_within(Some(16_384)), 48);
        assert_eq!(most_within(Some(4096)), 12);
        assert_eq!(most_within(Some(1)), 1);
        assert_eq!(most_within(Some(1 << 30)), 48);
        assert_eq!(most_within(Some(0)), 48);
        assert_eq!(most_within(None), 48);
    }
}
