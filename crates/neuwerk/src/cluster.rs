//! `neuwerk cluster`: who the members are.

use api::cluster::ClusterMemberView;

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

pub(crate) async fn members(target: Target) -> Result<(), Failure> {
    let answer = client(&target)?.members().await?;
    if target.json {
        return print::json(&answer);
    }
    print::to_stdout(&table(&answer.members))
}

fn table(members: &[ClusterMemberView]) -> String {
    let heading = [
        "NODE", "NAME", "ROLE", "VOTES", "LIVE", "ADDRESS", "API", "VERSION",
    ]
    .map(String::from)
    .to_vec();
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let row = |member: &ClusterMemberView| {
        vec![
            member.node_id.clone(),
            or_dash(&member.name),
            member.role.clone(),
            yes_no(member.is_voter),
            member.live.map_or_else(|| "-".into(), yes_no),
            member.addr.clone(),
            or_dash(&member.http_addr),
            member.version.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    print::columns(
        &std::iter::once(heading)
            .chain(members.iter().map(row))
            .collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash() {
        let member = ClusterMemberView {
            node_id: "00000000000000a1".into(),
            addr: "10.0.0.1:9600".into(),
            role: "follower".into(),
            is_voter: true,
            ..ClusterMemberView::default()
        };
        let text = table(&[member]);
        assert_eq!(
            text.lines().nth(1),
            Some("00000000000000a1  -     follower  yes    -     10.0.0.1:9600  -    -")
        );
    }
}
