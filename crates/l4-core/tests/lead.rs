//! Bytes that go out in front of everything else.

#![allow(clippy::unwrap_used)]

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use l4_core::{Addr, Io, Record, Transport};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// What each call was given and took. Every other call finds no room.
#[derive(Clone, Default)]
struct Calls {
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The most that a call takes; 0 is all.
    most: usize,
    full: bool,
}

impl Calls {
    fn of(most: usize) -> (Self, Transport) {
        let calls = Self {
            most,
            ..Self::default()
        };
        let transport = Transport::new(Io::Layer(Box::new(calls.clone())), None);
        (calls, transport)
    }

    fn seen(&self) -> Vec<Vec<u8>> {
        self.taken.lock().unwrap().clone()
    }
}

impl AsyncWrite for Calls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.most > 0 {
            self.full = !self.full;
            if self.full {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let mut given: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        if self.most > 0 {
            given.truncate(self.most);
        }
        let n = given.len();
        self.taken.lock().unwrap().push(given);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.taken.lock().unwrap().push(b"end".to_vec());
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Calls {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn what_leads_goes_out_in_one_call_with_what_is_sent_first() {
    let (calls, mut transport) = Calls::of(0);
    transport.lead_with(b"header ".to_vec());
    assert_eq!(transport.write(b"payload").await.unwrap(), 7);
    assert_eq!(transport.write(b" more").await.unwrap(), 5);
    assert_eq!(calls.seen(), [&b"header payload"[..], b" more"]);
}

#[tokio::test]
async fn what_leads_goes_out_alone_where_nothing_is_sent() {
    let (calls, mut transport) = Calls::of(0);
    transport.lead_with(b"header".to_vec());
    transport.flush().await.unwrap();
    transport.flush().await.unwrap();
    assert_eq!(calls.seen(), [b"header"]);
    let (calls, mut transport) = Calls::of(0);
    transport.lead_with(b"header".to_vec());
    transport.shutdown().await.unwrap();
    assert_eq!(calls.seen(), [&b"header"[..], b"end"]);
}

#[tokio::test]
async fn what_leads_comes_first_and_once_however_little_is_taken_at_a_time() {
    for most in [1, 3, 6, 7, 100] {
        let record = Arc::new(Record::new(Addr::UNNAMED));
        let calls = Calls {
            most,
            ..Calls::default()
        };
        let io = Io::Layer(Box::new(calls.clone()));
        let mut transport = Transport::new(io, Some(record.clone()));
        transport.lead_with(b"header ".to_vec());
        transport.write_all(b"payload").await.unwrap();
        transport.shutdown().await.unwrap();
        assert_eq!(calls.seen().concat(), b"header payloadend", "{most}");
        assert_eq!(record.bytes_written(), 7, "what leads is not counted");
    }
}

#[tokio::test]
async fn several_buffers_reach_what_is_below_in_one_call() {
    let (calls, mut transport) = Calls::of(0);
    assert!(transport.is_write_vectored());
    let buffers = [IoSlice::new(b"one "), IoSlice::new(b"two")];
    assert_eq!(transport.write_vectored(&buffers).await.unwrap(), 7);
    assert_eq!(calls.seen(), [b"one two"]);
}
