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

/// What would become of a packet, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The node that would do it; absent if only a policy was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// `forward`, `local` (to the host), `reply` (the node answers itself) or `drop`.
    pub verdict: String,
    /// Why it is dropped, as in metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_text: Option<String>,
    /// Whether it is answered with a TCP reset.
    pub resets: bool,
    /// Whether it is answered with an ICMP error.
    #[serde(default)]
    pub icmp_error: bool,
    /// Whether it passes only since audit mode records the deny.
    pub would_deny: bool,
    /// The source group that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_group: Option<String>,
    /// The rule that decides; absent for a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policy's revision; 0 if the policy was never asked.
    pub revision: u64,
    /// How the policy comes to its decision, a line for each step. Empty if it is not asked.
    pub walk: Vec<String>,
    /// The port that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The port that it leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_port: Option<String>,
    /// What the dataplane asks besides the policy.
    pub stages: Vec<Stage>,
}

/// One question of the dataplane, and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stage {
    /// What it is about.
    pub stage: String,
    /// What it found.
    pub text: String,
}

/// A packet to ask about, as query parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketQuery {
    /// Source address.
    pub from: String,
    /// Destination address.
    pub to: String,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub proto: String,
    /// Source port; an ephemeral one if none.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// ICMP type; an echo request if none.
    pub icmp_type: Option<u8>,
    /// ICMP code; 0 if none.
    pub icmp_code: Option<u8>,
    /// `inside` or `outside`; `inside` if none.
    pub port: Option<String>,
}

impl PacketQuery {
    /// The parameters.
    pub fn pairs(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let mut pairs: Vec<(_, Cow<'_, str>)> = vec![
            ("from", self.from.as_str().into()),
            ("to", self.to.as_str().into()),
            ("proto", self.proto.as_str().into()),
        ];
        let numbers = [
            ("sport", self.sport),
            ("dport", self.dport),
            ("icmp_type", self.icmp_type.map(u16::from)),
            ("icmp_code", self.icmp_code.map(u16::from)),
        ];
        let numbers = numbers
            .into_iter()
            .filter_map(|(name, number)| Some((name, number?)));
        pairs.extend(numbers.map(|(name, number)| (name, number.to_string().into())));
        pairs.extend(self.port.as_deref().map(|port| ("port", port.into())));
        pairs
    }
}

/// One line of a stream of packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum TraceLine {
    /// The last line. It is known by what a packet has not.
    End(TraceEnd),
    /// A packet.
    Packet(Box<TracedPacket>),
}

/// What happened to a packet, stage by stage. What is absent does not apply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TracedPacket {
    /// When, RFC 3339 in UTC, with microseconds.
    pub time: String,
    /// The packet worker.
    pub worker: u64,
    /// `data`, `inside`, `outside`, or `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The network that it is in, if it came in a tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<u32>,
    /// Bytes of the frame, or of the frame inside the tunnel. A super-packet is one frame of up to 64 KiB.
    pub length: u64,
    /// Fragments that it was put together from; absent if it came in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fragments: Option<u64>,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number; absent for a frame that is no IP packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Source as it came, `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
    /// Destination as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst: Option<String>,
    /// TTL or hop limit as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// TCP flags as letters: `S`, `SA`, `FA`, `R`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<String>,
    /// ICMP type and code, `8/0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// `client` or `server`: the packet belonged to a flow, or was an ICMP error about one, and came from that end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_from: Option<String>,
    /// How far that flow had come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_state: Option<String>,
    /// Whether that flow was judged again, since policy or settings had changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rejudged: bool,
    /// The source group that decides about its flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_group: Option<String>,
    /// The rule that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Revision of the policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// `forward`, `local`, `reply` or `drop`.
    pub verdict: String,
    /// Why it was dropped, as in metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_text: Option<String>,
    /// Source as it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_src: Option<String>,
    /// Destination as it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_dst: Option<String>,
    /// The port that it left by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_port: Option<String>,
    /// Ethernet address that it was sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// Whether it waits until the next hop's address is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// The packet worker that takes it in again, if it turned back to a client of that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_to: Option<u64>,
    /// Resets and ICMP errors that it was answered with.
    #[serde(default)]
    pub answers: u64,
    /// The first bytes of the frame as it came, hexadecimal, where they were asked for. Of a frame that was dropped when it
    /// was about to leave, as it would have left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
}

/// How a stream of packets ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceEnd {
    /// Packets that were shown.
    pub shown: u64,
    /// Packets that were meant, and passed unseen since the reader was too slow.
    pub lost: u64,
    /// Whether it ended since the answer of another member, which comes in one, holds no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_trace_are_told_apart() {
        let packet = TracedPacket {
            verdict: "drop".into(),
            ..TracedPacket::default()
        };
        for line in [
            TraceLine::Packet(Box::new(packet)),
            TraceLine::End(TraceEnd::default()),
        ] {
            let text = serde_json::to_string(&line).unwrap();
            // A newer node may say more.
            let text = text.replacen('{', r#"{"new":1,"#, 1);
            assert_eq!(serde_json::from_str::<TraceLine>(&text).unwrap(), line);
        }
    }

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
