//! The encodings that came with operators' say in membership (feature level 2).

use std::collections::BTreeMap;

use super::*;

#[test]
fn membership_commands_are_read_for_ever() {
    let node_id = NodeId(0x22);
    let members = BTreeMap::from([
        (node_id, Suffrage::Voter),
        (NodeId(0x23), Suffrage::Learner),
        (NodeId(0x24), Suffrage::Auto),
    ]);
    for command in [
        Command::SetSuffrage {
            members,
            if_match: None,
        },
        Command::DrainMember {
            node_id,
            draining: true,
        },
    ] {
        let name = format!("command-{}", command_name(&command));
        check(&name, &stamped(command));
    }
    check("refusal-no-voter", &Response::Refused(Refusal::NoVoter));
}

#[test]
fn a_member_with_a_word_of_an_operators_is_read_for_ever() {
    let member = Member {
        node_id: NodeId(0x22),
        name: "node".into(),
        addresses: addresses(),
        spki: Digest([1; 32]),
        csr: None,
        certificate: Some(certificate()),
        joined_ms: 2,
        incarnation: 3,
        feature_level: 2,
        standing: Standing::Member,
        suffrage: Suffrage::Learner,
        draining: true,
    };
    check("member-demoted-draining", &member);
    let report = NodeReport {
        version: "0.2.0".into(),
        drained: true,
        ..NodeReport::default()
    };
    check("node-report-drained", &report);
}
