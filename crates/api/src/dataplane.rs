//! Looking at the dataplane of one node: its flows, its translations, what it would do with a packet.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which flows are meant, as query parameters. What is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// An address or a prefix that either end has, before or after translation.
    pub address: Option<String>,
    /// The same of the end that opened the flow.
    pub from: Option<String>,
    /// The same of the end that it was opened to.
    pub to: Option<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub proto: Option<String>,
    /// A port that either end has, before or after translation.
    pub port: Option<u16>,
    /// The port of the end that opened it.
    pub sport: Option<u16>,
    /// The port of the end that it was opened to.
    pub dport: Option<u16>,
    /// How far it has come.
    pub state: Option<String>,
    /// The source group that decides.
    pub group: Option<String>,
    /// The rule that decides; needs the group.
    pub rule: Option<String>,
    /// Whether its source is translated.
    pub translated: Option<bool>,
}

impl FlowFilter {
    /// The parameters that say something.
    pub fn pairs(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let texts = [
            ("address", &self.address),
            ("from", &self.from),
            ("to", &self.to),
            ("proto", &self.proto),
            ("state", &self.state),
            ("group", &self.group),
            ("rule", &self.rule),
        ];
        let texts = texts.map(|(name, text)| (name, text.as_deref().map(Cow::Borrowed)));
        let ports = [
            ("port", self.port),
            ("sport", self.sport),
            ("dport", self.dport),
        ];
        let ports = ports.map(|(name, port)| (name, port.map(|port| port.to_string().into())));
        let translated = self.translated.map(|yes| yes.to_string().into());
        let all = texts.into_iter().chain(ports);
        all.chain([("translated", translated)])
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// A path with these parameters.
pub(crate) fn with_query<'a>(
    path: &str,
    pairs: impl IntoIterator<Item = (&'a str, Cow<'a, str>)>,
) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    match query.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// A page of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowList {
    /// The node that has them.
    pub node_id: String,
    /// How many flows it has in all, whatever was asked for.
    pub active: u64,
    /// Those that were asked for, in no order; with `top`, the largest first.
    pub flows: Vec<FlowEntry>,
    /// Where the next page begins; absent after the last one. Flows come and go meanwhile: one that is there all the
    /// time is on exactly one page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowEntry {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub proto: String,
    /// Address of the end that opened it.
    pub src_ip: String,
    /// Its port, or the identifier of its ICMP query; 0 where there is none.
    pub src_port: u16,
    /// Address of the end that it was opened to.
    pub dst_ip: String,
    /// Its port.
    pub dst_port: u16,
    /// Type of the ICMP query that opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// What the other end sees as source address, if the source is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_ip: Option<String>,
    /// What the other end sees as source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_port: Option<u16>,
    /// How far it has come: `syn_sent`, `syn_received`, `established`, `closing`, `time_wait`, `reset`; if it is not TCP,
    /// `unanswered` or `answered`.
    pub state: String,
    /// The source group that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_group: Option<String>,
    /// The rule that decides; absent for a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Policy revision that judged it last.
    pub revision: u64,
    /// Whether the policy in force allows it. If not, it ends with its next packet.
    pub allowed: bool,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Milliseconds that it has left if no packet comes.
    pub expires_ms: u64,
    /// Bytes from the end that opened it.
    pub bytes_out: u64,
    /// Bytes towards the end that opened it.
    pub bytes_in: u64,
    /// Packets from the end that opened it.
    pub packets_out: u64,
    /// Packets towards the end that opened it.
    pub packets_in: u64,
    /// Bytes per second in both directions, where rates were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// The packet worker that has it.
    pub worker: u64,
}

/// What became of flows that were to end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KilledFlows {
    /// The node that had them.
    pub node_id: String,
    /// How many have ended.
    pub killed: u64,
}

/// Translations of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NatUse {
    /// The node that has them.
    pub node_id: String,
    /// Flows whose source is translated.
    pub bindings: u64,
    /// How many there may be.
    pub capacity: u64,
    /// By address.
    pub addresses: Vec<NatAddress>,
    /// Flows translated to addresses that are no longer configured, or beyond the first 64.
    pub elsewhere: u64,
}

/// How much of a translation address is in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NatAddress {
    /// The address.
    pub address: String,
    /// Flows translated to it. One port serves flows to different destinations.
    pub bindings: u64,
    /// Ports in use for TCP.
    pub tcp_ports: u64,
    /// Ports in use for UDP.
    pub udp_ports: u64,
    /// Identifiers in use for ICMP.
    pub icmp_ids: u64,
    /// Share of the ports of the protocol that uses most of them, 0 to 1.
    pub utilization: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_sent() {
        let filter = FlowFilter {
            from: Some("10.0.0.0/8".into()),
            dport: Some(443),
            translated: Some(true),
            ..FlowFilter::default()
        };
        let path = with_query("/p", filter.pairs());
        assert_eq!(path, "/p?from=10.0.0.0%2F8&dport=443&translated=true");
        assert_eq!(with_query("/p", FlowFilter::default().pairs()), "/p");
    }
}
