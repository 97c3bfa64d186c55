//! `neuwerk explain`, `neuwerk trace` and `neuwerk drops`: what becomes of packets, and why.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::client::Watch;
use api::dataplane::{Explanation, FlowFilter, PacketQuery, TraceEnd, TraceLine, TracedPacket};
use api::dns::NameExplanation;
use clap::{Args, Subcommand};
use neuwerkd::explain::FileError;

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::flows::Ends;
use crate::{pcapng, print};

/// Bytes of each frame in a capture.
const SNAP: u16 = 256;

#[derive(Debug, Subcommand)]
pub(crate) enum Explain {
    /// Say what a node would do with a packet that begins a flow, and why. Nothing is sent.
    Packet(Box<ExplainPacket>),
    /// Say what a node would answer a client that asks for a name, what the answer would be granted to, and what is granted
    /// now. Nothing is asked.
    Dns(Box<ExplainDns>),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainDns {
    /// The name.
    name: String,
    /// The client's address.
    #[arg(long, value_name = "ADDRESS")]
    from: IpAddr,
    /// Ask this policy, json for *.json, else yaml, instead of a node; no node is needed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["node", "url", "http_addr"])]
    policy: Option<PathBuf>,
    /// Member to ask about, by its id [default: the node asked]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainPacket {
    /// Source address.
    #[arg(long, value_name = "ADDRESS")]
    from: IpAddr,
    /// Destination address.
    #[arg(long, value_name = "ADDRESS")]
    to: IpAddr,
    /// tcp, udp, icmp, icmpv6 or a number.
    #[arg(long, default_value = "tcp")]
    proto: String,
    /// Source port [default: 49152]
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Destination port.
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
    /// ICMP type [default: an echo request]
    #[arg(long, value_name = "TYPE")]
    icmp_type: Option<u8>,
    /// ICMP code.
    #[arg(long, value_name = "CODE", requires = "icmp_type")]
    icmp_code: Option<u8>,
    /// Port that it comes from: inside or outside [default: inside]
    #[arg(long, value_name = "PORT", value_parser = ["inside", "outside"], conflicts_with = "policy")]
    port: Option<String>,
    /// Ask this policy, json for *.json, else yaml, instead of a node; no node is needed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["node", "url", "http_addr"])]
    policy: Option<PathBuf>,
    /// Member to ask about, by its id [default: the node asked]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Follow packets through a node, live: where each came from, its flow, what decided, how it left.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    target: Target,
}

/// Follow dropped frames with the reason of each, live, or show how many there were.
#[derive(Debug, Args)]
#[command(after_help = "Reasons and what they mean: docs/metrics.md.")]
pub(crate) struct Drops {
    /// Show how many frames were dropped for which reason, and how many in a second, instead of following them.
    #[arg(long, conflicts_with_all = ["reason", "pcap", "node"])]
    counters: bool,
    /// Only those that are dropped for this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Write the frames to a new file, each with its reason as a comment (pcapng); - for standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pcap: Option<PathBuf>,
    /// Bytes of each frame to write.
    #[arg(long, value_name = "BYTES", default_value_t = SNAP, value_parser = clap::value_parser!(u16).range(14..=2048))]
    snap: u16,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    target: Target,
}

/// Which packets, and for how long.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    ends: Ends,
    /// End after so many packets.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// End after so many seconds.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=300))]
    seconds: u16,
    /// Member to look at, by its id; its packets are shown when the time is over [default: the node asked]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
}

impl WatchArgs {
    fn filter(&self) -> FlowFilter {
        self.ends.clone().filter()
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

pub(crate) async fn explain(asked: Explain) -> Result<(), Failure> {
    match asked {
        Explain::Packet(asked) => explain_packet(*asked).await,
        Explain::Dns(asked) => explain_dns(*asked).await,
    }
}

async fn explain_dns(asked: ExplainDns) -> Result<(), Failure> {
    let from = asked.from;
    let name = asked.name.trim_end_matches('.').to_ascii_lowercase();
    let explanation = match &asked.policy {
        Some(file) => of_file(file, |bytes, is_json| {
            neuwerkd::explain::name_by_document(bytes, is_json, from, &name)
        })?,
        None => {
            let node = client(&asked.target)?;
            node.explain_name(asked.node.as_deref(), &name, &from.to_string())
                .await?
        }
    };
    if asked.target.json {
        print::json(&explanation)
    } else {
        print::to_stdout(&explained_name(&explanation))
    }
}

fn explained_name(explanation: &NameExplanation) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        text.push_str(format!("{name:<11}  {value}").trim_end());
        text.push('\n');
    };
    line("policy", &format!("revision {}", explanation.revision));
    for step in &explanation.walk {
        line("", step);
    }
    let audited = if explanation.would_deny {
        ", only since the deny is in audit mode"
    } else {
        ""
    };
    line("verdict", &format!("{}{audited}", explanation.verdict));
    if !explanation.grants_to.is_empty() {
        let rules = explanation.grants_to.join(", ");
        line("granted to", &rules);
    }
    for grant in &explanation.grants {
        let rule = grant.rule.as_deref().unwrap_or("no rule");
        let value = format!(
            "{} by {rule}, {}, {} flows, {} s left",
            grant.address, grant.state, grant.uses, grant.expires_in_secs
        );
        line("grant", &value);
    }
    text
}

async fn explain_packet(asked: ExplainPacket) -> Result<(), Failure> {
    let query = PacketQuery {
        from: asked.from.to_string(),
        to: asked.to.to_string(),
        proto: asked.proto,
        sport: asked.sport,
        dport: asked.dport,
        icmp_type: asked.icmp_type,
        icmp_code: asked.icmp_code,
        port: asked.port,
    };
    let explanation = match &asked.policy {
        Some(file) => of_file(file, |bytes, is_json| {
            neuwerkd::explain::by_document(bytes, is_json, &query)
        })?,
        None => {
            let node = client(&asked.target)?;
            node.explain(asked.node.as_deref(), &query).await?
        }
    };
    if asked.target.json {
        print::json(&explanation)
    } else {
        print::to_stdout(&explained(&explanation))
    }
}

/// What `explain` makes of a policy's file.
fn of_file<T>(
    file: &Path,
    explain: impl FnOnce(&[u8], bool) -> Result<T, FileError>,
) -> Result<T, Failure> {
    let bytes = std::fs::read(file).map_err(|error| Failure::file(file, &error))?;
    let is_json = file
        .extension()
        .is_some_and(|extension| extension == "json");
    explain(&bytes, is_json)
        .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
}

fn explained(explanation: &Explanation) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        text.push_str(format!("{name:<11}  {value}").trim_end());
        text.push('\n');
    };
    let (before, after): (Vec<_>, Vec<_>) = explanation
        .stages
        .iter()
        .partition(|stage| !matches!(stage.stage.as_str(), "translation" | "limits" | "flow"));
    for stage in before {
        line(&stage.stage, &stage.text);
    }
    if !explanation.walk.is_empty() {
        line("policy", &format!("revision {}", explanation.revision));
    }
    for step in &explanation.walk {
        line("", step);
    }
    for stage in after {
        line(&stage.stage, &stage.text);
    }
    let mut verdict = match &explanation.reason {
        None => explanation.verdict.clone(),
        Some(reason) => format!("{}: {reason}", explanation.verdict),
    };
    if explanation.resets {
        verdict.push_str(", answered with a reset");
    }
    if explanation.icmp_error {
        verdict.push_str(", answered with an ICMP error");
    }
    if explanation.would_deny {
        verdict.push_str(", only since the deny is in audit mode");
    }
    line("verdict", &verdict);
    if let Some(reason) = &explanation.reason_text {
        line("", reason);
    }
    text
}

pub(crate) async fn trace(verb: Trace) -> Result<(), Failure> {
    let watch = Watch {
        drops: false,
        reason: None,
        count: verb.watch.count.into(),
        time: verb.watch.time(),
        snap: 0,
    };
    follow(&verb.watch, &watch, &verb.target, |packet| {
        print::to_stdout(&traced(packet))
    })
    .await
}

pub(crate) async fn drops(verb: Drops) -> Result<(), Failure> {
    if verb.counters {
        return counters(&verb.target).await;
    }
    let watch = Watch {
        drops: true,
        reason: verb.reason.as_deref(),
        count: verb.watch.count.into(),
        time: verb.watch.time(),
        snap: if verb.pcap.is_some() {
            verb.snap.into()
        } else {
            0
        },
    };
    let Some(path) = &verb.pcap else {
        let show = |packet: &TracedPacket| print::to_stdout(&traced(packet));
        return follow(&verb.watch, &watch, &verb.target, show).await;
    };
    let failed = |error: std::io::Error| Failure::file(path, &error);
    let mut out: Box<dyn std::io::Write> = if path == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        Box::new(create(path).map_err(failed)?)
    };
    let mut is_empty = true;
    let outcome = match out.write_all(&pcapng::header(verb.snap)) {
        // Each at once and whole: whoever interrupts this keeps what there was.
        Ok(()) => {
            let show = |packet: &TracedPacket| {
                is_empty = false;
                let written = out.write_all(&pcapng::packet(packet));
                written.and_then(|()| out.flush()).map_err(failed)
            };
            follow(&verb.watch, &watch, &verb.target, show).await
        }
        Err(error) => Err(failed(error)),
    };
    if outcome.is_err() && is_empty && path != Path::new("-") {
        // Nothing is in the way of another try.
        let _ = std::fs::remove_file(path);
    }
    outcome
}

/// A new file for its owner only: it holds what clients send.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Shows packets until they end. What is shown is shown at once: a reader may wait for it.
async fn follow(
    which: &WatchArgs,
    watch: &Watch<'_>,
    target: &Target,
    mut show: impl FnMut(&TracedPacket) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let node = client(target)?;
    let (mut outcome, mut end) = (Ok(()), None);
    let json = target.json;
    node.watch_packets(which.node.as_deref(), &which.filter(), watch, |line| {
        outcome = match &line {
            TraceLine::Packet(_) if json => line_of_json(&line),
            TraceLine::Packet(packet) => show(packet),
            TraceLine::End(tally) => {
                end = Some(tally.clone());
                Ok(())
            }
        };
        outcome.is_ok()
    })
    .await?;
    outcome?;
    let TraceEnd {
        shown,
        lost,
        is_full,
    } = end.ok_or_else(|| Failure::Failed("the node broke off before the end".into()))?;
    let mut text = format!("{shown} packets");
    if lost > 0 {
        text.push_str(&format!(
            "; {lost} more passed unseen, since this was too slow"
        ));
    }
    if is_full {
        text.push_str("; more than another member passes on in one answer: ask that member itself");
    }
    print::to_stderr(&text);
    Ok(())
}

fn line_of_json(line: &TraceLine) -> Result<(), Failure> {
    let mut text = serde_json::to_string(line).expect("API types have string keys only");
    text.push('\n');
    print::to_stdout(&text)
}

/// A packet and its stages, a line each.
fn traced(packet: &TracedPacket) -> String {
    let or = |text: &Option<String>, other: &str| text.clone().unwrap_or_else(|| other.into());
    let clock = packet.time.split('T').nth(1).unwrap_or(&packet.time);
    let mut text = format!(
        "{clock}  {} {}  {} > {}",
        or(&packet.port, "-"),
        or(&packet.proto, "frame"),
        or(&packet.src, "?"),
        or(&packet.dst, "?"),
    );
    for (name, value) in [("", &packet.tcp_flags), ("type ", &packet.icmp)] {
        if let Some(value) = value {
            text.push_str(&format!("  {name}{value}"));
        }
    }
    text.push_str(&format!("  {} bytes", packet.length));
    if let Some(fragments) = packet.fragments {
        text.push_str(&format!(" in {fragments} fragments"));
    }
    if let Some(ttl) = packet.ttl {
        text.push_str(&format!("  ttl {ttl}"));
    }
    let mut stage = |name: &str, value: String| text.push_str(&format!("\n    {name:<7} {value}"));
    if let Some(network) = packet.network {
        stage("tunnel", format!("network {network}"));
    }
    if let Some(from) = &packet.flow_from {
        let again = if packet.rejudged {
            ", judged again"
        } else {
            ""
        };
        let state = or(&packet.flow_state, "");
        stage("flow", format!("{state}, from the {from}{again}"));
    } else if packet.verdict == "forward" && packet.port.as_deref() != Some("host") {
        stage("flow", "new".into());
    }
    if let Some(revision) = packet.revision {
        let by = match (&packet.source_group, &packet.rule) {
            (Some(group), Some(rule)) => format!("group {group}, rule {rule}"),
            (Some(group), None) => format!("group {group}, default action"),
            (None, _) => "default policy".into(),
        };
        stage("policy", format!("{by}, revision {revision}"));
    }
    if (&packet.sent_src, &packet.sent_dst) != (&packet.src, &packet.dst)
        && let (Some(src), Some(dst)) = (&packet.sent_src, &packet.sent_dst)
    {
        stage("nat", format!("{src} > {dst}"));
    }
    let verdict = match (&packet.reason, &packet.reason_text) {
        (Some(reason), Some(words)) => format!("drop: {reason}: {words}"),
        _ => match (&packet.out_port, &packet.next_hop) {
            (Some(port), Some(mac)) => format!("forward to the {port} port, to {mac}"),
            (Some(port), None) if packet.waits => {
                format!("forward to the {port} port, once the next hop answers")
            }
            (Some(port), None) => format!("forward to the {port} port"),
            (None, _) => packet.verdict.clone(),
        },
    };
    stage("verdict", verdict);
    if let Some(worker) = packet.handed_to {
        stage("turn", format!("back in, at worker {worker}"));
    }
    if packet.answers > 0 {
        stage("answer", "a reset or an ICMP error".into());
    }
    text.push('\n');
    text
}

/// How many frames were dropped, by reason, and how many in a second.
async fn counters(target: &Target) -> Result<(), Failure> {
    const BETWEEN: Duration = Duration::from_secs(1);
    let node = client(target)?;
    let first = node.stats().await?.dataplane.drops;
    tokio::time::sleep(BETWEEN).await;
    let second = node.stats().await?.dataplane.drops;
    if target.json {
        return print::json(&second);
    }
    let mut rows = vec![vec!["REASON".into(), "FRAMES".into(), "PER SECOND".into()]];
    let mut sorted: Vec<_> = second.iter().collect();
    sorted.sort_by_key(|(_, frames)| std::cmp::Reverse(**frames));
    for (reason, frames) in sorted {
        let before = first.get(reason).copied().unwrap_or(0);
        let rate = frames.saturating_sub(before).to_string();
        rows.push(vec![reason.clone(), frames.to_string(), rate]);
    }
    print::to_stdout(&print::columns(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_told_stage_by_stage() {
        let packet = TracedPacket {
            time: "2026-01-01T10:00:00.000001Z".into(),
            port: Some("inside".into()),
            length: 74,
            proto: Some("tcp".into()),
            src: Some("10.0.0.2:5000".into()),
            dst: Some("1.1.1.1:443".into()),
            ttl: Some(64),
            tcp_flags: Some("S".into()),
            source_group: Some("clients".into()),
            rule: Some("web".into()),
            revision: Some(7),
            verdict: "forward".into(),
            sent_src: Some("192.0.2.1:5000".into()),
            sent_dst: Some("1.1.1.1:443".into()),
            out_port: Some("outside".into()),
            next_hop: Some("02:00:00:00:00:99".into()),
            ..TracedPacket::default()
        };
        let expected = "\
10:00:00.000001Z  inside tcp  10.0.0.2:5000 > 1.1.1.1:443  S  74 bytes  ttl 64
    flow    new
    policy  group clients, rule web, revision 7
    nat     192.0.2.1:5000 > 1.1.1.1:443
    verdict forward to the outside port, to 02:00:00:00:00:99
";
        assert_eq!(traced(&packet), expected);
    }

    #[test]
    fn an_explanation_ends_with_the_verdict() {
        let explanation = Explanation {
            verdict: "drop".into(),
            reason: Some("policy_denied".into()),
            reason_text: Some("The policy denies the flow.".into()),
            resets: true,
            walk: vec!["default policy: deny".into()],
            revision: 3,
            ..Explanation::default()
        };
        let expected = "\
policy       revision 3
             default policy: deny
verdict      drop: policy_denied, answered with a reset
             The policy denies the flow.
";
        assert_eq!(explained(&explanation), expected);
    }
}
