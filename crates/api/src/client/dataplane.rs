//! Looking at a node's dataplane.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;

use super::{Client, Error};
use crate::audit::{FindingFilter, FindingList};
use crate::dataplane::{
    Explanation, FlowFilter, FlowList, KilledFlows, NatUse, PacketQuery, TraceLine, with_query,
};
use crate::dns::NameExplanation;
use crate::paths;

type Pair<'a> = (&'a str, Cow<'a, str>);

/// Which packets to follow, besides a filter.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// Those that are dropped.
    pub drops: bool,
    /// Those that are dropped for this reason.
    pub reason: Option<&'a str>,
    /// So many at most.
    pub count: u64,
    /// For so long at most.
    pub time: Duration,
    /// Bytes of each frame to show.
    pub snap: usize,
}

impl Client {
    /// A page of flows of `node`, or of the node that is asked.
    pub async fn flows(
        &self,
        node: Option<&str>,
        filter: &FlowFilter,
        limit: usize,
        from: Option<&str>,
    ) -> Result<FlowList, Error> {
        let mut pairs = asked(node, filter);
        pairs.push(("limit", limit.to_string().into()));
        pairs.extend(from.map(|cursor| ("cursor", cursor.into())));
        self.get(&with_query(paths::FLOWS, pairs)).await
    }

    /// The first flows by `bytes`, `packets` or `rate`, which is measured over `interval`.
    pub async fn flows_top(
        &self,
        node: Option<&str>,
        filter: &FlowFilter,
        by: &str,
        count: usize,
        interval: Duration,
    ) -> Result<FlowList, Error> {
        let mut pairs = asked(node, filter);
        pairs.push(("by", by.into()));
        pairs.push(("count", count.to_string().into()));
        pairs.push(("interval_ms", interval.as_millis().to_string().into()));
        self.get(&with_query(paths::FLOWS_TOP, pairs)).await
    }

    /// Ends flows. Without a filter, `all` must say that every one is meant.
    pub async fn flows_kill(
        &self,
        node: Option<&str>,
        filter: &FlowFilter,
        all: bool,
        reset: bool,
    ) -> Result<KilledFlows, Error> {
        let mut pairs = asked(node, filter);
        pairs.push(("reset", reset.to_string().into()));
        pairs.push(("all", all.to_string().into()));
        let path = with_query(paths::FLOWS_KILL, pairs);
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let answer = self
            .send(Method::POST, &path, headers, body, self.limit)
            .await?;
        self.expect(answer)
    }

    /// Translation addresses and their ports in use.
    pub async fn nat(&self, node: Option<&str>) -> Result<NatUse, Error> {
        let pairs = node.map(|node| ("node", node.into()));
        self.get(&with_query(paths::NAT, pairs)).await
    }

    /// What the policy has denied on `node`, or the node that is asked.
    pub async fn findings(
        &self,
        node: Option<&str>,
        filter: &FindingFilter,
    ) -> Result<FindingList, Error> {
        let mut pairs: Vec<Pair<'_>> = filter.pairs();
        pairs.extend(node.map(|node| ("node", node.into())));
        self.get(&with_query(paths::FINDINGS, pairs)).await
    }

    /// What `node`, or the node that is asked, would do with a packet that begins a flow.
    pub async fn explain(
        &self,
        node: Option<&str>,
        packet: &PacketQuery,
    ) -> Result<Explanation, Error> {
        let mut pairs: Vec<Pair<'_>> = packet.pairs();
        pairs.extend(node.map(|node| ("node", node.into())));
        self.get(&with_query(paths::EXPLAIN, pairs)).await
    }

    /// What `node`, or the node that is asked, would answer a client that asks for a name.
    pub async fn explain_name(
        &self,
        node: Option<&str>,
        name: &str,
        from: &str,
    ) -> Result<NameExplanation, Error> {
        let mut pairs: Vec<Pair<'_>> = vec![("name", name.into()), ("from", from.into())];
        pairs.extend(node.map(|node| ("node", node.into())));
        self.get(&with_query(paths::DNS_EXPLAIN, pairs)).await
    }

    /// Packets as they pass, or, with `drops`, those that are dropped, for so long at most; each is
    /// given to `sink` as it comes. False from `sink` ends it.
    pub async fn watch_packets(
        &self,
        node: Option<&str>,
        filter: &FlowFilter,
        watch: &Watch<'_>,
        mut sink: impl FnMut(TraceLine) -> bool,
    ) -> Result<(), Error> {
        let mut pairs = asked(node, filter);
        pairs.push(("count", watch.count.to_string().into()));
        pairs.push(("timeout", crate::duration::format(watch.time).into()));
        pairs.push(("snap", watch.snap.to_string().into()));
        pairs.extend(watch.reason.map(|reason| ("reason", reason.into())));
        let path = if watch.drops {
            paths::DROPS
        } else {
            paths::TRACE
        };
        let path = with_query(path, pairs);
        let limit = self.limit + watch.time;
        let mut line = Vec::new();
        let mut broken = None;
        let receiving = self.stream(Method::GET, &path, |bytes| {
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if !line.ends_with(b"\n") {
                    continue;
                }
                match serde_json::from_slice(&line) {
                    Ok(parsed) => {
                        line.clear();
                        if !sink(parsed) {
                            return false;
                        }
                    }
                    Err(error) => {
                        broken = Some(error.to_string());
                        return false;
                    }
                }
            }
            true
        });
        match tokio::time::timeout(limit, receiving).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(self.timed_out(limit)),
        }
        match broken {
            None => Ok(()),
            Some(reason) => Err(self.unreadable(&reason)),
        }
    }

    /// The body of an answer, piece by piece as it comes, until `sink` says false.
    async fn stream(
        &self,
        method: Method,
        path: &str,
        mut sink: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let (_, mut body) = self.open(method, path).await?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| self.unreachable(source.into()))?;
            if frame.data_ref().is_some_and(|data| !sink(data)) {
                break;
            }
        }
        Ok(())
    }
}

fn asked<'a>(node: Option<&'a str>, filter: &'a FlowFilter) -> Vec<Pair<'a>> {
    let mut pairs: Vec<Pair<'a>> = filter.pairs();
    pairs.extend(node.map(|node| ("node", node.into())));
    pairs
}
