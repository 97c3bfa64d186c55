//! `neuwerk findings`: what the policy denies on a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::audit::{AuditFinding, FindingFilter, FindingList};
use clap::Args;

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::flows::{endpoint, seconds};
use crate::print;

/// Looks at what the policy has denied.
#[derive(Debug, Args)]
pub(crate) struct Findings {
    /// Source group that decided; repeated: any of them.
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Only names that were asked for (dns_deny), ICMP queries (icmp_deny), or other flows (l4_deny).
    #[arg(long = "type", value_name = "TYPE", value_parser = ["dns_deny", "l4_deny", "icmp_deny"])]
    kind: Option<String>,
    /// Only what was seen within this time.
    #[arg(long, value_name = "TIME", value_parser = api::duration::parse)]
    within: Option<Duration>,
    /// How many at most.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    /// Member to look at, by its id [default: the node asked]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn findings(asked: Findings) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now.unwrap_or_default().as_secs();
    let filter = FindingFilter {
        finding_type: asked.kind.into_iter().collect(),
        source_group: asked.group,
        since: asked
            .within
            .map(|time| now_s.saturating_sub(time.as_secs())),
        until: None,
        limit: Some(asked.limit.into()),
    };
    let node = client(&asked.target)?;
    let list = node.findings(asked.node.as_deref(), &filter).await?;
    if asked.target.json {
        return print::json(&list);
    }
    print::to_stdout(&table(&list, now_s))?;
    for (count, what) in [
        (
            list.lost,
            "denials were lost, since there were more than are taken in",
        ),
        (list.forgotten, "findings had to go for want of room"),
    ] {
        if count > 0 {
            print::to_stderr(&format!("{count} {what}"));
        }
    }
    Ok(())
}

fn table(list: &FindingList, now_s: u64) -> String {
    let heading = [
        "TIMES",
        "LAST",
        "SOURCE",
        "PROTO",
        "DESTINATION",
        "GROUP",
        "RULE",
        "VERDICT",
    ];
    let heading = heading.map(str::to_owned).to_vec();
    let rows = list.items.iter().map(|finding| row(finding, now_s));
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    print::columns(&rows)
}

fn row(finding: &AuditFinding, now_s: u64) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let ip = finding.dst_ip.as_deref().unwrap_or("-");
    let destination = match (&finding.hostname, finding.icmp_type, finding.icmp_code) {
        (Some(name), ..) => name.clone(),
        (None, Some(kind), Some(code)) => format!("{ip} type {kind}/{code}"),
        _ => endpoint(ip, finding.dst_port),
    };
    let ago_ms = now_s.saturating_sub(finding.last_seen).saturating_mul(1000);
    vec![
        finding.count.to_string(),
        seconds(ago_ms),
        finding.src_ip.clone(),
        finding.proto.clone().unwrap_or_else(|| "dns".into()),
        destination,
        or_dash(&finding.source_group),
        or_dash(&finding.rule),
        match finding.would_deny {
            true => "would deny".into(),
            false => "deny".into(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = AuditFinding {
            src_ip: "fd00::2".into(),
            dst_ip: Some("2001:db8::1".into()),
            dst_port: 443,
            proto: Some("tcp".into()),
            source_group: Some("clients".into()),
            would_deny: true,
            last_seen: 100,
            count: 7,
            ..AuditFinding::default()
        };
        let query = AuditFinding {
            proto: Some("icmp".into()),
            dst_ip: Some("192.0.2.1".into()),
            icmp_type: Some(8),
            icmp_code: Some(0),
            src_ip: "10.0.0.2".into(),
            last_seen: 100,
            count: 1,
            ..AuditFinding::default()
        };
        let name = AuditFinding {
            hostname: Some("a.example.com".into()),
            src_ip: "10.0.0.2".into(),
            last_seen: 129,
            count: 3,
            ..AuditFinding::default()
        };
        let list = FindingList {
            items: vec![finding, query, name],
            ..FindingList::default()
        };
        let text = table(&list, 130);
        let lines = text.lines().skip(1);
        let lines: Vec<String> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "7 30 s fd00::2 tcp [2001:db8::1]:443 clients - would deny",
                "1 30 s 10.0.0.2 icmp 192.0.2.1 type 8/0 - - deny",
                "3 1 s 10.0.0.2 dns a.example.com - - deny",
            ]
        );
    }
}
