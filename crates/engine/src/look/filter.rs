//! Which flows are meant.

use std::sync::Arc;

use ipnet::IpNet;
use policy::Compiled;

use crate::address::Prefix;
use crate::flow::{Flow, Key};
use crate::grant::Table;
use crate::tcp::{End, State};
use crate::wire::proto;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// TCP: only the client's SYN has been seen.
    SynSent,
    /// TCP: the server has answered.
    SynReceived,
    /// TCP: data may flow.
    Established,
    /// TCP: one or both ends have said that they send no more.
    Closing,
    /// TCP: both have, and both know.
    TimeWait,
    /// TCP: one end has reset it.
    Reset,
    /// Any other protocol: nothing has come back yet.
    Unanswered,
    /// Any other protocol: packets go both ways.
    Answered,
}

impl FlowState {
    /// All states, in the order of their discriminants.
    pub const ALL: [FlowState; 8] = [
        FlowState::SynSent,
        FlowState::SynReceived,
        FlowState::Established,
        FlowState::Closing,
        FlowState::TimeWait,
        FlowState::Reset,
        FlowState::Unanswered,
        FlowState::Answered,
    ];

    /// The stable name in the API and in the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            FlowState::SynSent => "syn_sent",
            FlowState::SynReceived => "syn_received",
            FlowState::Established => "established",
            FlowState::Closing => "closing",
            FlowState::TimeWait => "time_wait",
            FlowState::Reset => "reset",
            FlowState::Unanswered => "unanswered",
            FlowState::Answered => "answered",
        }
    }

    pub(crate) fn of(flow: &Flow) -> FlowState {
        if flow.proto != proto::TCP {
            return match flow.packets[End::Server as usize] {
                0 => FlowState::Unanswered,
                _ => FlowState::Answered,
            };
        }
        match flow.tcp.state {
            State::SynSent => FlowState::SynSent,
            State::SynReceived => FlowState::SynReceived,
            State::Established => FlowState::Established,
            State::Closing => FlowState::Closing,
            State::TimeWait => FlowState::TimeWait,
            State::Reset => FlowState::Reset,
        }
    }
}

/// What flows must have in common. What is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// An address of either end, before or after translation.
    pub address: Option<IpNet>,
    /// The address of the end that opened it.
    pub from: Option<IpNet>,
    /// The address of the end that it was opened to.
    pub to: Option<IpNet>,
    /// IP protocol number.
    pub proto: Option<u8>,
    /// A port of either end, before or after translation, or the identifier of an ICMP query.
    pub port: Option<u16>,
    /// The port of the end that opened it.
    pub from_port: Option<u16>,
    /// The port of the end that it was opened to.
    pub to_port: Option<u16>,
    /// How far it has come.
    pub state: Option<FlowState>,
    /// Index of the source group that decides, in the question's policy.
    pub group: Option<u32>,
    /// Index of the rule in that group.
    pub rule: Option<u32>,
    /// Whether its source is translated.
    pub translated: Option<bool>,
}

impl Filter {
    /// Whether every flow is meant.
    pub fn is_everything(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether it asks for more than a packet says of itself.
    pub fn has_more_than_ends(&self) -> bool {
        let more = (self.state, self.group, self.rule, self.translated);
        more != (None, None, None, None)
    }

    /// Whether a packet that belongs to no flow is meant: it may come from either end.
    pub(crate) fn matches_packet(&self, key: &Key) -> bool {
        let within = |net: Option<IpNet>, a| net.is_none_or(|net| Prefix::from(net).contains(a));
        let is = |wanted: Option<u16>, port| wanted.is_none_or(|wanted| wanted == port);
        let from_client = |key: &Key| {
            within(self.from, key.src)
                && within(self.to, key.dst)
                && is(self.from_port, key.src_port)
                && is(self.to_port, key.dst_port)
        };
        self.proto.is_none_or(|proto| proto == key.proto)
            && (is(self.port, key.src_port) || is(self.port, key.dst_port))
            && (within(self.address, key.src) || within(self.address, key.dst))
            && (from_client(key) || from_client(&key.reversed()))
    }

    /// Whether a flow is meant, by all but group and rule.
    pub(crate) fn matches(&self, flow: &Flow) -> bool {
        let within = |net: Option<IpNet>, addresses: &[crate::address::Addr]| {
            net.is_none_or(|net| {
                let prefix = Prefix::from(net);
                addresses.iter().any(|a| prefix.contains(*a))
            })
        };
        let ports = [flow.client_port, flow.server_port, flow.nat_port];
        self.proto.is_none_or(|proto| proto == flow.proto)
            && self.port.is_none_or(|port| ports.contains(&port))
            && self.from_port.is_none_or(|port| port == flow.client_port)
            && self.to_port.is_none_or(|port| port == flow.server_port)
            && within(self.from, &[flow.client])
            && within(self.to, &[flow.server])
            && within(self.address, &[flow.client, flow.server, flow.nat])
            && self.state.is_none_or(|state| state == FlowState::of(flow))
            && self
                .translated
                .is_none_or(|translated| translated == flow.is_translated())
    }

    /// Whether the decision on a flow is meant.
    pub(crate) fn matches_decision(&self, group: Option<u32>, rule: Option<u32>) -> bool {
        self.group.is_none_or(|wanted| Some(wanted) == group)
            && self.rule.is_none_or(|wanted| Some(wanted) == rule)
    }
}

/// What a policy decides about a flow, with what is granted under it if that is known: group, rule, and whether it passes.
/// What it has judged already is not judged again.
pub(crate) fn decided(
    flow: &Flow,
    policy: &Arc<Compiled>,
    grants: Option<&Table>,
) -> (Option<u32>, Option<u32>, bool) {
    use crate::flow::{NO_GROUP, NO_RULE};
    if flow.revision == policy.revision() as u32 {
        let group = (flow.group != NO_GROUP).then_some(u32::from(flow.group));
        let rule = (flow.rule != NO_RULE).then_some(flow.rule);
        return (group, rule, true);
    }
    let facts = crate::pipeline::facts(&flow.client_key(), flow.icmp);
    let decision = match grants {
        Some(grants) => grants.judge(policy, &facts).0,
        None => policy.evaluate(&facts),
    };
    (decision.group, decision.rule, decision.allow)
}
