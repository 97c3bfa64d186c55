//! Looking at a node's dataplane.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::{Client, Error};
use crate::dataplane::{FlowFilter, FlowList, KilledFlows, NatUse, with_query};
use crate::paths;

type Pair<'a> = (&'a str, Cow<'a, str>);

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
}

fn asked<'a>(node: Option<&'a str>, filter: &'a FlowFilter) -> Vec<Pair<'a>> {
    let mut pairs: Vec<Pair<'a>> = filter.pairs();
    pairs.extend(node.map(|node| ("node", node.into())));
    pairs
}
