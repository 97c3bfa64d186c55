//! A transport inside one process, for tests and the simulator: a switchboard that connects members and can cut them
//! off from one another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::{Kind, Peer, Service, ServiceError, Transport, TransportError};
use crate::id::NodeId;

/// Connects the members of one test.
#[derive(Clone, Default)]
pub struct Switchboard {
    wires: Arc<Mutex<Wires>>,
}

#[derive(Default)]
struct Wires {
    services: BTreeMap<NodeId, Arc<dyn Service>>,
    /// Directed: messages from the first to the second are lost.
    cuts: BTreeSet<(NodeId, NodeId)>,
}

impl Switchboard {
    /// A switchboard with nobody on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of one member.
    pub fn transport(&self, node_id: NodeId) -> Arc<dyn Transport> {
        Arc::new(Line {
            board: self.clone(),
            node_id,
        })
    }

    /// Starts to deliver to a member.
    pub fn connect(&self, node_id: NodeId, service: Arc<dyn Service>) {
        self.wires().services.insert(node_id, service);
    }

    /// Stops delivering to a member, as when its process ended.
    pub fn disconnect(&self, node_id: NodeId) {
        self.wires().services.remove(&node_id);
    }

    /// Cuts every wire between the two sides, both ways.
    pub fn cut(&self, left: &[NodeId], right: &[NodeId]) {
        let mut wires = self.wires();
        for (a, b) in left
            .iter()
            .flat_map(|a| right.iter().map(move |b| (*a, *b)))
        {
            wires.cuts.insert((a, b));
            wires.cuts.insert((b, a));
        }
    }

    /// Cuts one direction only.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.wires().cuts.insert((from, to));
    }

    /// Mends every cut.
    pub fn heal(&self) {
        self.wires().cuts.clear();
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.wires
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.wires().cuts.contains(&(from, to))
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Result<Arc<dyn Service>, TransportError> {
        let wires = self.wires();
        if wires.cuts.contains(&(from, to)) {
            return Err(TransportError::Unreachable("cut".into()));
        }
        wires
            .services
            .get(&to)
            .cloned()
            .ok_or_else(|| TransportError::Unreachable("nobody there".into()))
    }

    /// The answer, unless the way back was cut meanwhile.
    fn deliver(
        &self,
        from: NodeId,
        to: NodeId,
        answer: Result<Bytes, ServiceError>,
    ) -> Result<Bytes, TransportError> {
        if !self.passes(to, from) {
            return Err(TransportError::Lost("cut".into()));
        }
        answer.map_err(|error| TransportError::Refused(error.0))
    }
}

/// One member's end.
struct Line {
    board: Switchboard,
    node_id: NodeId,
}

impl Transport for Line {
    fn call(
        &self,
        peer: &Peer,
        kind: Kind,
        body: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (board, from, to) = (self.board.clone(), self.node_id, peer.node_id);
        Box::pin(async move {
            let service = board.reach(from, to)?;
            let answer = service.handle(from, kind, body).await;
            board.deliver(from, to, answer)
        })
    }

    fn open_append(
        &self,
        peer: &Peer,
        requests: BoxStream<'static, Bytes>,
        _deadline: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>>
    {
        let (board, from, to) = (self.board.clone(), self.node_id, peer.node_id);
        Box::pin(async move {
            let service = board.reach(from, to)?;
            let outward = board.clone();
            // A cut ends the stream: what was sent after it never arrives.
            let requests =
                requests.take_while(move |_| std::future::ready(outward.passes(from, to)));
            let answers = service
                .handle_append(from, Box::pin(requests))
                .map(move |answer| board.deliver(from, to, answer));
            Ok(answers.boxed())
        })
    }

    fn send_snapshot(
        &self,
        peer: &Peer,
        chunks: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (board, from, to) = (self.board.clone(), self.node_id, peer.node_id);
        Box::pin(async move {
            let service = board.reach(from, to)?;
            let outward = board.clone();
            let chunks = chunks.map(move |chunk| {
                if outward.passes(from, to) {
                    Ok(chunk)
                } else {
                    Err(TransportError::Lost("cut".into()))
                }
            });
            let answer = service.handle_snapshot(from, Box::pin(chunks)).await;
            board.deliver(from, to, answer)
        })
    }

    fn forget(&self, _node_id: NodeId) {}
}
