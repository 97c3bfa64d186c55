//! A member at the end of a long way: the whole cluster's timers follow.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::time::Duration;

use lab::cluster::{Cluster, LAN_MS};
use lab::relay::{Impairment, Relay};
use lab::topology::Segment;
use serde_json::Value;

/// 80 ms there and back.
const ONE_WAY: Duration = Duration::from_millis(40);

/// What the timers of a LAN are multiplied by for such a way.
const FACTOR: u64 = 4;

#[test]
#[ignore = "needs root; make test runs it"]
fn timers_follow_the_longest_way_and_no_election_comes_of_it() {
    let mut cluster = Cluster::lay_out(3).unwrap();
    let impairment = Impairment {
        delay: ONE_WAY,
        loss_percent: 0,
        queue_frames: 4096,
    };
    let relay = Relay::insert(&cluster.topology, 3, Segment::Management, impairment).unwrap();
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    cluster.wait_timers(FACTOR).unwrap();
    cluster.wait_ready().unwrap();

    // Nothing but writes happens for a while: through the far member too, and nobody stands for election.
    let before = terms(&mut cluster);
    for number in [3, 1, 2] {
        let api = cluster.api(number).unwrap();
        for n in 0..20 {
            api.create_account(&format!("far-{number}-{n}")).unwrap();
        }
    }
    assert_eq!(terms(&mut cluster), before);

    // A restarted node begins with what suited.
    cluster.node(2).kill().unwrap();
    cluster.node(2).start().unwrap();
    cluster.wait_node_ready(2).unwrap();
    assert_eq!(stats(&mut cluster, 2)["detection_time_ms"], LAN_MS * FACTOR);
    drop(relay);
}

fn terms(cluster: &mut Cluster) -> Vec<Value> {
    let numbers = cluster.numbers();
    let term = |number: u8| stats(cluster, number)["current_term"].clone();
    numbers.into_iter().map(term).collect()
}

fn stats(cluster: &mut Cluster, number: u8) -> Value {
    let api = cluster.api(number).unwrap();
    api.get_json("/api/v1/stats").unwrap()["cluster"].clone()
}
