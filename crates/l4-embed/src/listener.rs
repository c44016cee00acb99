//! What routes can be put in front of.

use std::io;
use std::time::Duration;

use l4_core::{Addr, Io, Layer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, UnixListener};

/// Where connections come from: a `TcpListener`, a `UnixListener`, or anything else that yields streams.
///
/// ```
/// use std::io;
/// use l4_embed::{Accepted, Addr, Listener};
/// use tokio::io::DuplexStream;
/// use tokio::sync::mpsc;
///
/// /// Connections that somebody else in the process makes.
/// struct Made(mpsc::Receiver<DuplexStream>);
///
/// impl Listener for Made {
///     async fn accept(&mut self) -> io::Result<Accepted> {
///         match self.0.recv().await {
///             Some(stream) => Ok(Accepted::stream(stream, Addr::UNNAMED)),
///             // Nothing more comes; what was accepted goes on.
///             None => std::future::pending().await,
///         }
///     }
///
///     fn local_addr(&self) -> io::Result<Addr> {
///         Ok(Addr::UNNAMED)
///     }
/// }
/// ```
pub trait Listener: Send + 'static {
    /// The next connection. Must be cancel safe: it is dropped when the wrapper is.
    ///
    /// # Errors
    /// Why there is none. An error does not end anything: it is logged, and after a pause the listener is asked again.
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted>> + Send;

    /// Where it listens.
    ///
    /// # Errors
    /// It cannot be found out.
    fn local_addr(&self) -> io::Result<Addr>;
}

/// A connection, fresh from a [`Listener`].
pub struct Accepted {
    pub(crate) io: Io,
    pub(crate) remote: Addr,
    pub(crate) local: Option<Addr>,
}

impl Accepted {
    /// A connection over a socket, which handlers can move bytes between in the kernel.
    pub fn new(io: Io, remote: Addr) -> Self {
        Self {
            io,
            remote,
            local: None,
        }
    }

    /// A connection over any stream of bytes.
    pub fn stream(stream: impl Layer + 'static, remote: Addr) -> Self {
        Self::new(Io::Layer(Box::new(stream)), remote)
    }

    /// Says what address the peer connected to. A socket is asked for it when somebody wants to know; a stream is not.
    #[must_use]
    pub fn local(mut self, local: Addr) -> Self {
        self.local = Some(local);
        self
    }
}

/// `TCP_NODELAY` is set on what it accepts: answers of interactive protocols, which are relayed in small pieces, would
/// wait for each other otherwise. So is keep-alive, with a probe after 15 seconds of silence and every 15 from then on: a
/// client that is gone without a word would hold its handler for ever.
impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<Accepted> {
        let (socket, remote) = Self::accept(self).await?;
        // They fail if the peer is gone already, which the first read says, too.
        let _ = socket.set_nodelay(true);
        let _ = SockRef::from(&socket).set_tcp_keepalive(&KEEP_ALIVE);
        Ok(Accepted::new(Io::Tcp(socket), Addr::Tcp(remote)))
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Self::local_addr(self).map(Addr::Tcp)
    }
}

impl Listener for UnixListener {
    async fn accept(&mut self) -> io::Result<Accepted> {
        let (socket, remote) = Self::accept(self).await?;
        Ok(Accepted::new(Io::Unix(socket), unix_addr(&remote)))
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Self::local_addr(self).map(|address| unix_addr(&address))
    }
}

fn unix_addr(address: &tokio::net::unix::SocketAddr) -> Addr {
    Addr::Unix {
        path: address.as_pathname().map(Into::into),
        datagram: false,
    }
}

const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(15));

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_client_that_is_gone_without_a_word_is_noticed() {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = TcpListener::local_addr(&listener).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let accepted = Listener::accept(&mut listener).await.unwrap();
        let Io::Tcp(socket) = &accepted.io else {
            panic!("it is a TCP socket");
        };
        let socket = SockRef::from(socket);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        let probing = [socket.tcp_keepalive_time(), socket.tcp_keepalive_interval()];
        assert_eq!(probing.map(Result::unwrap), [Duration::from_secs(15); 2]);
    }
}
