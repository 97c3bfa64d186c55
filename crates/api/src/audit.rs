//! What the policy denies, or would deny if it were not in audit mode.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which findings are meant, as query parameters. What is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FindingFilter {
    /// `dns_deny`, `l4_deny` or `icmp_deny`; several: any of them.
    pub finding_type: Vec<String>,
    /// The source group that decided; several: any of them.
    pub source_group: Vec<String>,
    /// Seen last at this time or later, seconds since 1970.
    pub since: Option<u64>,
    /// Seen first at this time or earlier.
    pub until: Option<u64>,
    /// How many at most.
    pub limit: Option<usize>,
}

impl FindingFilter {
    /// The parameters that say something.
    pub fn pairs(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let lists = [
            ("finding_type", &self.finding_type),
            ("source_group", &self.source_group),
        ];
        let lists = lists.into_iter().flat_map(|(name, texts)| {
            let texts = texts.iter().map(|text| Cow::Borrowed(text.as_str()));
            texts.map(move |text| (name, text))
        });
        let limit = self.limit.map(|limit| limit as u64);
        let numbers = [
            ("since", self.since),
            ("until", self.until),
            ("limit", limit),
        ];
        let numbers = numbers
            .into_iter()
            .filter_map(|(name, number)| Some((name, number?.to_string().into())));
        lists.chain(numbers).collect()
    }
}

/// What a node's policy has denied since the node started, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FindingList {
    /// The node that has them.
    pub node_id: String,
    /// Those that were asked for; those that were seen last come first.
    pub items: Vec<AuditFinding>,
    /// Denials that are in no finding, since there were more than are taken in.
    pub lost: u64,
    /// Findings that had to go for want of room: 10,000 of flows and as many of names are kept, those that were seen last.
    pub forgotten: u64,
}

/// Something that the policy has denied, however often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditFinding {
    /// `dns_deny` for a name that was asked for, `icmp_deny` for an ICMP query, `l4_deny` for any other flow.
    pub finding_type: String,
    /// It was let pass all the same, since the policy is in audit mode there.
    pub would_deny: bool,
    /// The source group that decided; absent for the policy's default, and where the policy was replaced meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_group: Option<String>,
    /// Its rule that decided; absent for a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policy revision that decided last.
    pub revision: u64,
    /// Where the last of the packets or queries came from.
    pub src_ip: String,
    /// The name that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Where the packets were to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_ip: Option<String>,
    /// To which port; 0 where there is none.
    #[serde(default)]
    pub dst_port: u16,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Type of the ICMP query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// When that happened first, seconds since 1970.
    pub first_seen: u64,
    /// When that happened last.
    pub last_seen: u64,
    /// Queries, or packets that began such a flow.
    pub count: u64,
    /// The nodes that have seen it.
    pub node_ids: Vec<String>,
}
