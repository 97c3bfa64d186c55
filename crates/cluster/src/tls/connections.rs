//! Open connections by peer, so that those of a removed member can be closed.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Denied;
use crate::id::{Digest, NodeId};

#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_id: BTreeMap<(NodeId, u64), (Digest, CancellationToken)>,
}

impl Connections {
    /// Registers a connection if `check` agrees. No change of the membership comes between the two.
    pub(super) fn admit(
        this: &Arc<Self>,
        (node_id, spki): (NodeId, Digest),
        within: &CancellationToken,
        check: impl FnOnce() -> Result<(), Denied>,
    ) -> Result<Admission, Denied> {
        let mut open = this.lock();
        check()?;
        let id = open.next;
        open.next += 1;
        let closed = within.child_token();
        open.by_id.insert((node_id, id), (spki, closed.clone()));
        Ok(Admission {
            node_id,
            id,
            closed,
            connections: Arc::clone(this),
        })
    }

    /// Runs `change`, then closes the connections that `keep` does not keep.
    pub(super) fn retain(&self, change: impl FnOnce(), keep: impl Fn(NodeId, Digest) -> bool) {
        let mut open = self.lock();
        change();
        open.by_id.retain(|(node_id, _), (spki, closed)| {
            let kept = keep(*node_id, *spki);
            if !kept {
                closed.cancel();
            }
            kept
        });
    }

    pub(super) fn count(&self, node_id: NodeId) -> usize {
        let open = self.lock();
        open.by_id.range((node_id, 0)..=(node_id, u64::MAX)).count()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing in here can panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer's place among the open connections; given up when dropped.
#[derive(Debug)]
pub struct Admission {
    node_id: NodeId,
    id: u64,
    closed: CancellationToken,
    connections: Arc<Connections>,
}

impl Admission {
    /// The peer, as its certificate names it.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.connections
            .lock()
            .by_id
            .remove(&(self.node_id, self.id));
    }
}

/// A connection with a member. It fails as soon as the member is removed.
#[derive(Debug)]
pub struct PeerStream<S> {
    stream: S,
    admission: Admission,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> PeerStream<S> {
    /// Ties `stream` to its peer's membership.
    pub fn new(stream: S, admission: Admission) -> Self {
        let closed = Box::pin(admission.closed.clone().cancelled_owned());
        PeerStream {
            stream,
            admission,
            closed,
        }
    }

    /// The peer.
    pub fn node_id(&self) -> NodeId {
        self.admission.node_id
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer is not a member any more, or this node stops",
            )),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeerStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_closed(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A reader is always waiting, and is woken: to look is enough here.
        if self.admission.closed.is_cancelled() {
            self.poll_closed(cx)?;
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.admission.closed.is_cancelled() {
            self.poll_closed(cx)?;
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
