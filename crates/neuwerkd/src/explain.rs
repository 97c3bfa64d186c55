//! What would become of a packet, and why: the policy's walk, and everything else that the dataplane
//! asks before it opens a flow.

use std::net::IpAddr;

use api::dataplane::{Explanation, Stage};
use api::dns::NameExplanation;
use std::sync::Arc;

use engine::foresee::{Fate, Foresight, Probe, Translation, foresee};
use engine::look::Filter;
use engine::port::PortId;
use engine::{Now, Snapshot};
use policy::{Compiled, Decision, Document, Facts, NameRule, OnDeny, Step};

use crate::dataplane::PORT_NAMES;

/// Lines of a walk that are shown; of a longer one, as many of its beginning and its end.
const WALK_LINES: usize = 1000;

/// The source port unless the question names one: rules rarely look at it, and clients choose one
/// like this.
pub const SOURCE_PORT: u16 = 49_152;

/// A packet that somebody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Source port; [`SOURCE_PORT`] if none.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// ICMP type and code; an echo request if none.
    pub icmp: Option<(u8, u8)>,
}

/// A packet that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Impossible {
    /// IPv4 here, IPv6 there.
    #[error("from and to must be of one address family")]
    Families,
    /// TCP or UDP to no port.
    #[error("dport is needed for tcp and udp")]
    NoPort,
    /// A port where there is none.
    #[error("this protocol has no ports")]
    HasNoPorts,
    /// ICMP of the other family.
    #[error("icmp goes with IPv4 addresses, icmpv6 with IPv6 addresses")]
    IcmpFamily,
    /// A type without ICMP.
    #[error("only icmp and icmpv6 have types and codes")]
    NoIcmp,
}

impl Packet {
    /// What the policy is asked about it.
    ///
    /// # Errors
    /// There is no such packet.
    pub fn facts(&self) -> Result<Facts, Impossible> {
        if self.from.is_ipv4() != self.to.is_ipv4() {
            return Err(Impossible::Families);
        }
        let has_ports = matches!(self.proto, 6 | 17);
        let is_icmp = matches!(self.proto, 1 | 58);
        match self.proto {
            1 if !self.from.is_ipv4() => return Err(Impossible::IcmpFamily),
            58 if self.from.is_ipv4() => return Err(Impossible::IcmpFamily),
            _ if !is_icmp && self.icmp.is_some() => return Err(Impossible::NoIcmp),
            _ if has_ports && self.dport.is_none() => return Err(Impossible::NoPort),
            _ if !has_ports && (self.sport.is_some() || self.dport.is_some()) => {
                return Err(Impossible::HasNoPorts);
            }
            _ => {}
        }
        let echo = if self.proto == 1 { (8, 0) } else { (128, 0) };
        let port = |port: Option<u16>, default| {
            if has_ports {
                port.unwrap_or(default)
            } else {
                0
            }
        };
        Ok(Facts {
            src: self.from,
            dst: self.to,
            proto: self.proto,
            src_port: port(self.sport, SOURCE_PORT),
            dst_port: port(self.dport, 0),
            icmp: is_icmp.then(|| self.icmp.unwrap_or(echo)),
        })
    }
}

/// The flow that the packet would belong to, if it is there already.
pub fn same_flow(packet: &Packet, facts: &Facts) -> Filter {
    let has_ports = packet.dport.is_some();
    Filter {
        from: Some(packet.from.into()),
        to: Some(packet.to.into()),
        proto: Some(packet.proto),
        from_port: packet.sport,
        to_port: has_ports.then_some(facts.dst_port),
        ..Filter::default()
    }
}

/// A question that cannot be answered from a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The question is wrong.
    #[error("{0}")]
    Question(String),
    /// The document is not valid.
    #[error("{0}")]
    Document(String),
}

/// What the policy in a document says.
///
/// # Errors
/// The document or the question is not valid.
pub fn by_document(
    bytes: &[u8],
    is_json: bool,
    query: &api::dataplane::PacketQuery,
) -> Result<Explanation, FileError> {
    let wrong = |what: &str| FileError::Question(what.to_owned());
    let address = |text: &str, what: &str| -> Result<IpAddr, FileError> {
        let parsed = text.parse().map_err(|_| wrong(what));
        parsed.map(|address: IpAddr| address.to_canonical())
    };
    let packet = Packet {
        from: address(&query.from, "from must be an address")?,
        to: address(&query.to, "to must be an address")?,
        proto: crate::http::dataplane::protocol_number(&query.proto)
            .ok_or_else(|| wrong("proto must be tcp, udp, icmp, icmpv6 or a number to 255"))?,
        sport: query.sport,
        dport: query.dport,
        icmp: query
            .icmp_type
            .map(|kind| (kind, query.icmp_code.unwrap_or(0))),
    };
    let facts = packet.facts().map_err(|error| wrong(&error.to_string()))?;
    let policy = compile(bytes, is_json)?;
    Ok(by_policy(&policy, &facts))
}

/// What a policy alone says, on no node.
pub fn by_policy(policy: &Compiled, facts: &Facts) -> Explanation {
    let decision = policy.evaluate(facts);
    let mut explanation = Explanation {
        verdict: if decision.allow { "forward" } else { "drop" }.into(),
        ..Explanation::default()
    };
    if !decision.allow {
        drop_reason(&mut explanation, engine::DropReason::PolicyDenied);
    }
    add_policy(&mut explanation, policy, facts, &decision, &[]);
    explanation.resets = !decision.allow && decision.on_deny == OnDeny::Reset && facts.proto == 6;
    explanation
}

/// What a node would do at `now` with a packet from `port` that begins a flow.
///
/// # Errors
/// There is no memory to find out.
pub fn by_node(
    snapshot: &Arc<Snapshot>,
    now: Now,
    port: PortId,
    facts: Facts,
) -> std::io::Result<Explanation> {
    let Foresight {
        in_tunnel,
        from_inside,
        to_us,
        turns_back,
        route,
        to_inside,
        decision,
        resets,
        icmp_error,
        fate,
    } = foresee(snapshot, now, &Probe { port, facts })?;
    let names = PORT_NAMES[snapshot.arms() - 1];
    let name = |port: PortId| names.get(usize::from(port.0)).copied().unwrap_or("unknown");
    let side = |inside| if inside { "inside" } else { "outside" };
    let mut explanation = Explanation {
        port: Some(name(port).into()),
        ..Explanation::default()
    };
    let mut stage = |name: &str, text: String| {
        explanation.stages.push(Stage {
            stage: name.into(),
            text,
        });
    };
    if in_tunnel {
        stage("port", format!("from the tunnel, {}", name(port)));
    } else {
        stage("port", format!("from the {} port", name(port)));
    }
    stage("source", format!("{} is {}", facts.src, side(from_inside)));
    if turns_back {
        let text = format!("{} stands for clients outside", facts.dst);
        stage("destination", text);
    } else if to_us {
        stage("destination", format!("{} is the node itself", facts.dst));
    }
    if let Some((out, via)) = route {
        let via = via.map_or_else(|| "on the link".into(), |via| format!("by router {via}"));
        stage("route", format!("to the {} port, {via}", name(out)));
    }
    if let Some(to_inside) = to_inside {
        stage(
            "destination",
            format!("{} is {}", facts.dst, side(to_inside)),
        );
    }
    let policy = snapshot.policy();
    if let Some(decision) = &decision {
        let granted = snapshot.grants().load();
        let granted = granted.of(facts.dst);
        let granted = granted.map_or_else(Vec::new, |granted| granted.rules_of(facts.src));
        add_policy(&mut explanation, policy, &facts, decision, &granted);
    }
    let mut stage = |name: &str, text: String| {
        explanation.stages.push(Stage {
            stage: name.into(),
            text,
        });
    };
    if turns_back {
        let text = "as on the way outside; then it turns back to the client that has asked for it, if there is one";
        stage("translation", text.into());
    }
    match fate {
        Fate::Forward { translation, port } => {
            let text = match translation {
                Translation::None => "none".to_owned(),
                Translation::Prefix(address) => format!("the source becomes {address}"),
                Translation::Port => {
                    let all: Vec<_> = snapshot.translations_of(facts.src).take(5).collect();
                    let shown = all.iter().take(4).map(IpAddr::to_string);
                    let shown = shown.collect::<Vec<_>>().join(" or ");
                    let more = if all.len() > 4 { " or another" } else { "" };
                    format!("the source becomes {shown}{more}")
                }
            };
            stage("translation", text);
            explanation.verdict = "forward".into();
            explanation.out_port = Some(name(port).into());
        }
        Fate::Local => explanation.verdict = "local".into(),
        Fate::Reply => explanation.verdict = "reply".into(),
        Fate::Drop(reason) => {
            explanation.verdict = "drop".into();
            drop_reason(&mut explanation, reason);
        }
    }
    (explanation.resets, explanation.icmp_error) = (resets, icmp_error);
    Ok(explanation)
}

fn drop_reason(explanation: &mut Explanation, reason: engine::DropReason) {
    explanation.reason = Some(reason.name().into());
    explanation.reason_text = Some(reason.description().trim().into());
}

fn add_policy(
    explanation: &mut Explanation,
    policy: &Compiled,
    facts: &Facts,
    decision: &Decision,
    granted: &[NameRule],
) {
    let group = decision.group;
    let rule = group.zip(decision.rule);
    let text = |id: Option<&str>| id.map(str::to_owned);
    explanation.revision = policy.revision();
    explanation.source_group = group.and_then(|group| text(policy.group_id(group)));
    explanation.rule = rule.and_then(|(group, rule)| text(policy.rule_id(group, rule)));
    explanation.would_deny = decision.would_deny;
    explanation.walk = shown(&policy.explain_granted(facts, granted));
}

/// The steps of a walk, of a long one its beginning and its end.
fn shown(walk: &[Step]) -> Vec<String> {
    let lines = |steps: &[Step]| steps.iter().map(ToString::to_string).collect::<Vec<_>>();
    if walk.len() <= WALK_LINES {
        return lines(walk);
    }
    let half = WALK_LINES / 2;
    let mut shown = lines(&walk[..half]);
    shown.push(format!("… {} lines …", walk.len() - WALK_LINES));
    shown.extend(lines(&walk[walk.len() - half..]));
    shown
}

/// What a policy says of a client's query, and what the answer would be granted to.
pub fn name_by_policy(policy: &Compiled, from: IpAddr, name: &str) -> NameExplanation {
    let decision = policy.evaluate_name(from, name);
    let text = |id: Option<&str>| id.map(str::to_owned);
    let rule = decision.group.zip(decision.rule);
    let mut rules = Vec::new();
    if let Some(group) = decision.group.filter(|_| decision.allow) {
        policy.rules_by_name(group, name, &mut rules);
    }
    let granted = rules.iter().filter_map(|rule| {
        let (group, rule) = policy.name_rule_position(*rule)?;
        text(policy.rule_id(group, rule))
    });
    NameExplanation {
        node_id: None,
        verdict: if decision.allow { "allow" } else { "deny" }.into(),
        would_deny: decision.would_deny,
        source_group: decision
            .group
            .and_then(|group| text(policy.group_id(group))),
        rule: rule.and_then(|(group, rule)| text(policy.rule_id(group, rule))),
        revision: policy.revision(),
        walk: shown(&policy.explain_name(from, name)),
        grants_to: granted.collect(),
        grants: Vec::new(),
    }
}

/// The same for the policy in a document.
///
/// # Errors
/// The document is not valid.
pub fn name_by_document(
    bytes: &[u8],
    is_json: bool,
    from: IpAddr,
    name: &str,
) -> Result<NameExplanation, FileError> {
    let policy = compile(bytes, is_json)?;
    Ok(name_by_policy(&policy, from.to_canonical(), name))
}

fn compile(bytes: &[u8], is_json: bool) -> Result<Compiled, FileError> {
    let document = if is_json {
        Document::parse_json(bytes)
    } else {
        Document::parse_yaml(bytes)
    };
    let invalid = |error: &dyn std::fmt::Display| FileError::Document(error.to_string());
    let document = document.map_err(|error| invalid(&error))?;
    Compiled::compile(&document, 0).map_err(|error| invalid(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str, proto: u8) -> Packet {
        Packet {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            proto,
            sport: None,
            dport: None,
            icmp: None,
        }
    }

    #[test]
    fn packets_that_cannot_be_are_refused() {
        let tcp = packet("10.0.0.2", "10.0.0.3", 6);
        assert_eq!(tcp.facts(), Err(Impossible::NoPort));
        let tcp = Packet {
            dport: Some(443),
            ..tcp
        };
        assert_eq!(tcp.facts().unwrap().src_port, SOURCE_PORT);
        assert_eq!(
            Packet {
                icmp: Some((8, 0)),
                ..tcp
            }
            .facts(),
            Err(Impossible::NoIcmp)
        );
        assert_eq!(
            packet("10.0.0.2", "fd00::1", 17).facts(),
            Err(Impossible::Families)
        );
        assert_eq!(
            packet("fd00::2", "fd00::1", 1).facts(),
            Err(Impossible::IcmpFamily)
        );
        let gre = packet("10.0.0.2", "10.0.0.3", 47);
        assert_eq!(
            Packet {
                dport: Some(1),
                ..gre
            }
            .facts(),
            Err(Impossible::HasNoPorts)
        );
        let echo = packet("fd00::2", "fd00::1", 58).facts().unwrap();
        assert_eq!((echo.icmp, echo.src_port), (Some((128, 0)), 0));
    }
}
