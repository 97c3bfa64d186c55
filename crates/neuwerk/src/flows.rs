//! `neuwerk flows` and `neuwerk nat`: what a node's dataplane holds at the moment.

use std::time::Duration;

use api::dataplane::{FlowEntry, FlowFilter, FlowList, NatUse};
use clap::{Args, Subcommand};

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

/// Flows that are asked for at once.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum FlowsVerb {
    /// List flows: who talks to whom, how far it has come, which rule allows it.
    List {
        #[command(flatten)]
        which: Which,
        /// How many at most.
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// List the largest flows, largest first.
    Top {
        #[command(flatten)]
        which: Which,
        /// What to compare.
        #[arg(long, default_value = "rate", value_parser = ["bytes", "packets", "rate"])]
        by: String,
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
        /// How long rates are measured, at most 10s.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = api::duration::parse)]
        interval: Duration,
        #[command(flatten)]
        target: Target,
    },
    /// End flows. Who sends on opens a new one, if the policy lets it.
    Kill {
        #[command(flatten)]
        which: Which,
        /// Every flow of the node, if no filter says which.
        #[arg(long)]
        all: bool,
        /// Tell both ends of TCP connections by a reset.
        #[arg(long)]
        reset: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Between whom. What is not said does not matter.
#[derive(Clone, Debug, Args)]
pub(crate) struct Ends {
    /// Address or prefix of either end, before or after translation.
    #[arg(long, value_name = "ADDRESS[/LEN]")]
    address: Option<String>,
    /// Address or prefix of the end that opened the flow.
    #[arg(long, value_name = "ADDRESS[/LEN]")]
    from: Option<String>,
    /// Address or prefix of the end that it was opened to.
    #[arg(long, value_name = "ADDRESS[/LEN]")]
    to: Option<String>,
    /// tcp, udp, icmp, icmpv6 or a number.
    #[arg(long)]
    proto: Option<String>,
    /// Port of either end, before or after translation.
    #[arg(long)]
    port: Option<u16>,
    /// Port of the end that opened the flow.
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Port of the end that it was opened to.
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
}

impl Ends {
    /// All flows between them.
    pub(crate) fn filter(self) -> FlowFilter {
        FlowFilter {
            address: self.address,
            from: self.from,
            to: self.to,
            proto: self.proto,
            port: self.port,
            sport: self.sport,
            dport: self.dport,
            ..FlowFilter::default()
        }
    }
}

/// Which flows. What is not said does not matter.
#[derive(Debug, Args)]
pub(crate) struct Which {
    #[command(flatten)]
    ends: Ends,
    /// syn_sent, syn_received, established, closing, time_wait, reset, unanswered or answered.
    #[arg(long)]
    state: Option<String>,
    /// Source group that decides.
    #[arg(long)]
    group: Option<String>,
    /// Rule of that group that decides.
    #[arg(long, requires = "group")]
    rule: Option<String>,
    /// Only flows whose source is translated.
    #[arg(long)]
    translated: bool,
    /// Member to look at, by its id [default: the node asked]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
}

impl Which {
    fn filter(self) -> (FlowFilter, Option<String>) {
        let filter = FlowFilter {
            state: self.state,
            group: self.group,
            rule: self.rule,
            translated: self.translated.then_some(true),
            ..self.ends.filter()
        };
        (filter, self.node)
    }
}

/// Looks at translation addresses and their ports.
#[derive(Debug, Args)]
pub(crate) struct Nat {
    /// Member to look at, by its id [default: the node asked]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn flows(verb: FlowsVerb) -> Result<(), Failure> {
    match verb {
        FlowsVerb::List {
            which,
            limit,
            target,
        } => list(which, limit, &target).await,
        FlowsVerb::Top {
            which,
            by,
            count,
            interval,
            target,
        } => {
            let (filter, node) = which.filter();
            let asked = client(&target)?;
            let list = asked
                .flows_top(node.as_deref(), &filter, &by, count.into(), interval)
                .await?;
            show(&list, target.json)
        }
        FlowsVerb::Kill {
            which,
            all,
            reset,
            target,
        } => {
            let (filter, node) = which.filter();
            let asked = client(&target)?;
            let killed = asked
                .flows_kill(node.as_deref(), &filter, all, reset)
                .await?;
            if target.json {
                return print::json(&killed);
            }
            let flows = if killed.killed == 1 { "flow" } else { "flows" };
            print::to_stdout(&format!("ended {} {flows}\n", killed.killed))
        }
    }
}

async fn list(which: Which, limit: usize, target: &Target) -> Result<(), Failure> {
    let (filter, node) = which.filter();
    let asked = client(target)?;
    let mut whole = FlowList::default();
    loop {
        let wanted = (limit - whole.flows.len()).min(PAGE);
        if wanted == 0 {
            break;
        }
        let cursor = whole.next.as_deref();
        let page = asked
            .flows(node.as_deref(), &filter, wanted, cursor)
            .await?;
        whole.flows.extend(page.flows);
        (whole.node_id, whole.active, whole.next) = (page.node_id, page.active, page.next);
        if whole.next.is_none() {
            break;
        }
    }
    show(&whole, target.json)
}

fn show(list: &FlowList, json: bool) -> Result<(), Failure> {
    if json {
        return print::json(list);
    }
    print::to_stdout(&table(list))?;
    let shown = list.flows.len();
    let more = if list.next.is_some() {
        ", and there are more that match"
    } else {
        ""
    };
    print::to_stderr(&format!("{shown} shown of {} flows{more}", list.active));
    Ok(())
}

fn table(list: &FlowList) -> String {
    let rates = list.flows.iter().any(|flow| flow.bytes_per_s.is_some());
    let mut heading = vec!["PROTO", "SOURCE", "DESTINATION", "NAT", "STATE"];
    heading.extend(["OUT", "IN", "IDLE", "GROUP", "RULE"]);
    if rates {
        heading.insert(5, "RATE");
    }
    let heading = heading.into_iter().map(str::to_owned).collect();
    let rows = list.flows.iter().map(|flow| row(flow, rates));
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    print::columns(&rows)
}

fn row(flow: &FlowEntry, rates: bool) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let nat = flow.nat_ip.as_ref().zip(flow.nat_port);
    let destination = match (flow.icmp_type, flow.icmp_code) {
        (Some(kind), Some(code)) => format!("{} type {kind}/{code}", flow.dst_ip),
        _ => endpoint(&flow.dst_ip, flow.dst_port),
    };
    let state = match flow.allowed {
        true => flow.state.clone(),
        false => format!("{} (to be denied)", flow.state),
    };
    let mut row = vec![
        flow.proto.clone(),
        endpoint(&flow.src_ip, flow.src_port),
        destination,
        nat.map_or_else(|| "-".into(), |(ip, port)| endpoint(ip, port)),
        state,
        bytes(flow.bytes_out),
        bytes(flow.bytes_in),
        seconds(flow.idle_ms),
        or_dash(&flow.source_group),
        or_dash(&flow.rule),
    ];
    if rates {
        let rate = flow.bytes_per_s.unwrap_or_default();
        row.insert(5, format!("{}/s", bytes(rate)));
    }
    row
}

pub(crate) fn endpoint(ip: &str, port: u16) -> String {
    match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    }
}

/// A number of bytes in three digits.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 1 } else { 0 };
    format!("{value:.digits$} {}", UNITS[unit])
}

pub(crate) fn seconds(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

pub(crate) async fn nat(verb: Nat) -> Result<(), Failure> {
    let nat = client(&verb.target)?.nat(verb.node.as_deref()).await?;
    if verb.target.json {
        return print::json(&nat);
    }
    print::to_stdout(&nat_table(&nat))
}

fn nat_table(nat: &NatUse) -> String {
    let mut rows = vec![
        [
            "ADDRESS",
            "FLOWS",
            "TCP PORTS",
            "UDP PORTS",
            "ICMP IDS",
            "IN USE",
        ]
        .map(String::from),
    ];
    for address in &nat.addresses {
        rows.push([
            address.address.clone(),
            address.bindings.to_string(),
            address.tcp_ports.to_string(),
            address.udp_ports.to_string(),
            address.icmp_ids.to_string(),
            format!("{:.1} %", address.utilization * 100.0),
        ]);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let mut text = print::columns(&rows);
    let (bindings, capacity) = (nat.bindings, nat.capacity);
    text.push_str(&format!(
        "{bindings} of at most {capacity} translated flows\n"
    ));
    if nat.elsewhere > 0 {
        let flows = nat.elsewhere;
        text.push_str(&format!(
            "{flows} of them have an address that is not listed\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (20_480, "20 KiB"),
            (1_047_552, "1.0 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(
            [0, 119_999, 120_000, 7_200_000].map(seconds),
            ["0 s", "119 s", "2 min", "2 h"]
        );
    }

    #[test]
    fn a_flow_is_one_line() {
        let flow = FlowEntry {
            proto: "tcp".into(),
            src_ip: "10.0.0.2".into(),
            src_port: 5000,
            dst_ip: "2001:db8::1".into(),
            dst_port: 443,
            state: "established".into(),
            allowed: true,
            source_group: Some("clients".into()),
            ..FlowEntry::default()
        };
        let list = FlowList {
            flows: vec![flow],
            ..FlowList::default()
        };
        let text = table(&list);
        let line = text.lines().nth(1).expect("a line");
        let words: Vec<_> = line.split_whitespace().collect();
        let expected = "tcp 10.0.0.2:5000 [2001:db8::1]:443 - established 0 B 0 B 0 s clients -";
        assert_eq!(words.join(" "), expected);
    }
}
