//! Looking at a node's dataplane on its command line, through the real binary.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// What a verb prints on node 1, over its control socket.
fn at_home(cluster: &mut Cluster, verb: &str) -> String {
    let words: Vec<_> = verb.split_whitespace().collect();
    cluster.node(1).control(&words).unwrap()
}

fn json(cluster: &mut Cluster, verb: &str) -> Value {
    serde_json::from_str(&at_home(cluster, &format!("{verb} --json"))).unwrap()
}

#[test]
#[ignore = "needs root; make test runs it"]
fn flows_are_seen_and_ended() {
    let mut cluster = Cluster::start(1).unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    let live = FAMILIES.map(|family| cluster.live(1, address::allowed_server(family)).unwrap());
    let lines = live.each_ref().map(|live| live.account().lines);
    wait::until_true("lines on both connections", SOON, || {
        let now = live.each_ref().map(|live| live.account().lines);
        Ok(now.iter().zip(&lines).all(|(now, before)| now > before))
    })
    .unwrap();
    for verb in ["flows list", "flows top", "nat"] {
        println!("{}", at_home(&mut cluster, verb));
    }

    let server = address::allowed_server(Family::V4);
    let list = json(
        &mut cluster,
        &format!("flows list --state established --to {server}"),
    );
    let flows = list["flows"].as_array().unwrap();
    assert_eq!(flows.len(), 1, "{list}");
    assert_eq!(
        flows[0]["nat_ip"],
        address::outside(1, Family::V4).to_string()
    );
    let top = json(&mut cluster, "flows top --by rate --count 2");
    assert!(
        top["flows"][1]["bytes_per_s"].as_u64().unwrap() > 0,
        "{top}"
    );
    let nat = json(&mut cluster, "nat");
    assert_eq!(nat["addresses"][0]["tcp_ports"], 1, "{nat}");

    let killed = json(&mut cluster, &format!("flows kill --to {server} --reset"));
    assert_eq!(killed["killed"], 1);
    wait::until_true("the end of the killed connection", SOON, || {
        Ok(live[0].account().ended.is_some())
    })
    .unwrap();
    assert_eq!(live[1].account().ended, None, "the other one goes on");
}
