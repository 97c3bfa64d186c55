use std::net::IpAddr;

use policy::Document;

use super::*;

const GROUP: &str = "web";

fn open(data_dir: &Path, bound: Duration) -> Arc<Grants> {
    let minutes = Duration::from_secs(420);
    let barred = Barred::nothing();
    let grants = Arc::new(Grants::new(data_dir, minutes, minutes, bound, barred));
    let document = Document::parse_json(
        br#"{"source_groups":[{"id":"web","mode":"enforce","sources":{"cidrs":["10.0.0.0/8"]},
        "rules":[{"id":"names","action":"allow","match":{"dns_names":["**.example"]}}]}]}"#,
    );
    let document = document.expect("a constant");
    let policy = Arc::new(Compiled::compile(&document, 1).expect("a constant"));
    grants.install(|table| table(&policy));
    grants
}

fn tell(grants: &Arc<Grants>, name: &str) -> Granted {
    let group = Arc::from(GROUP);
    let (denied, _) = DeniedNames::new();
    Programming(Arc::clone(grants), denied).grant(&Told {
        group: &group,
        client: IpAddr::from([10, 0, 0, 1]),
        name,
        addresses: &[IpAddr::from([192, 0, 2, 1])],
        ttl_s: 300,
    })
}

fn names(grants: &Grants) -> Vec<String> {
    let mut names = Vec::new();
    grants.each(&Wanted::default(), |grant, _now_ms| {
        names.push(grant.name.to_string());
    });
    names.sort();
    names
}

#[tokio::test]
async fn without_peers_no_answer_waits() {
    let dir = tempfile::tempdir().expect("there is a disk");
    let grants = open(dir.path(), Duration::from_secs(60));
    let granted = tell(&grants, "a.example");
    assert!(granted.wait.is_none());
    assert!((299_000..=300_000).contains(&granted.for_ms));
    assert!(tell(&grants, "a.test").wait.is_none(), "it grants nothing");
    assert_eq!(names(&grants), ["a.example"]);
}

#[tokio::test]
async fn an_address_is_granted_to_nobody_while_it_is_a_nodes_own() {
    let dir = tempfile::tempdir().expect("there is a disk");
    let grants = open(dir.path(), Duration::ZERO);
    let address = IpAddr::from([192, 0, 2, 1]);
    let is_granted = || grants.read(|store, _now_ms| store.table().of(address).is_some());
    tell(&grants, "a.example");
    assert!(is_granted());
    grants.bar(&[address], &[]);
    assert!(!is_granted());
    tell(&grants, "b.example");
    assert!(!is_granted(), "whatever is told of it");
    grants.bar(&[], &[address]);
    assert!(is_granted());
}

#[tokio::test]
async fn an_answer_waits_for_peers_and_for_those_that_miss_it_thrice_no_more() {
    let dir = tempfile::tempdir().expect("there is a disk");
    let grants = open(dir.path(), Duration::from_millis(5));
    grants.change_peers(|peers| {
        peers.insert(7, Peer::default());
    });
    for n in 0..MISSES {
        let granted = tell(&grants, &format!("n{n}.example"));
        granted.wait.expect("the peer knows nothing").await;
    }
    let peer = lock(&grants.peers)[&7];
    assert_eq!((peer.misses, peer.waited_for), (u64::from(MISSES), false));
    assert_eq!(
        grants.late_answers.load(Ordering::Relaxed),
        u64::from(MISSES)
    );
    assert!(tell(&grants, "next.example").wait.is_none());

    // It has caught up, and takes in the next one in time.
    let newest = *grants.news.borrow();
    let caught_up = |at| {
        grants.change_peers(|peers| {
            let peer = peers.get_mut(&7).expect("it is there");
            (peer.at, peer.waited_for, peer.missed) = (at, true, 0);
        });
    };
    caught_up(newest);
    let granted = tell(&grants, "last.example").wait.expect("not known yet");
    caught_up(newest + 1);
    granted.await;
    assert_eq!(lock(&grants.peers)[&7].misses, u64::from(MISSES));
}

#[tokio::test]
async fn a_node_that_starts_has_what_was_written_down() {
    let dir = tempfile::tempdir().expect("there is a disk");
    let grants = open(dir.path(), Duration::ZERO);
    grants.write_down(false);
    assert!(
        !dir.path().join("grants").exists(),
        "there is nothing to keep"
    );
    tell(&grants, "a.example");
    grants.write_down(false);
    tell(&grants, "b.example");
    grants.write_down(false);
    assert_eq!(
        names(&open(dir.path(), Duration::ZERO)),
        ["a.example", "b.example"]
    );

    // The end of the file was cut off by a crash.
    let path = dir.path().join("grants");
    let bytes = std::fs::read(&path).expect("it was written");
    std::fs::write(&path, &bytes[..bytes.len() - 3]).expect("writable");
    let next = open(dir.path(), Duration::ZERO);
    assert_eq!(names(&next), ["a.example"]);
    tell(&next, "c.example");
    next.write_down(true);
    assert_eq!(
        names(&open(dir.path(), Duration::ZERO)),
        ["a.example", "c.example"]
    );

    std::fs::write(&path, b"nonsense").expect("writable");
    assert_eq!(names(&open(dir.path(), Duration::ZERO)), [""; 0]);
}

#[tokio::test]
async fn a_node_is_ready_when_it_has_what_its_reachable_peers_have() {
    let dir = tempfile::tempdir().expect("there is a disk");
    let grants = open(dir.path(), Duration::ZERO);
    let waiting = grants
        .standing()
        .expect_err("the control plane does not run");
    assert!(waiting.contains("control plane"), "{waiting}");
    grants.met.send_replace(true);
    assert!(grants.standing().is_ok());
    grants.change_peers(|peers| {
        peers.insert(7, Peer::default());
    });
    let waiting = grants.standing().expect_err("the peer has said nothing");
    assert!(waiting.contains("0000000000000007"), "{waiting}");
    assert!(grants.may_be_incomplete());
    grants.change_peers(|peers| {
        peers.get_mut(&7).expect("it is there").reachable = Some(false);
    });
    assert!(grants.standing().is_ok());
    assert!(!grants.may_be_incomplete());

    let peer = open(tempfile::tempdir().expect("a disk").path(), Duration::ZERO);
    tell(&peer, "a.example");
    let end = grants::stream::End { next: 2 };
    let (told, _) = peer.read(|store, now_ms| store.everything(0, 0, 10, end, now_ms));
    grants.change(|store, now_ms| store.take(7, 8, &told, now_ms));
    grants.change_peers(|peers| {
        peers.get_mut(&7).expect("it is there").reachable = Some(true);
    });
    grants
        .standing()
        .expect_err("it has told nothing since the control plane began");
    grants.change_peers(|peers| {
        peers.get_mut(&7).expect("it is there").in_touch = true;
    });
    assert_eq!(
        grants.standing().expect("it has everything"),
        "addresses of names that are granted: 1"
    );
}

#[test]
fn a_first_packet_is_held_while_a_peer_may_be_telling_of_it() {
    let dir = tempfile::tempdir().expect("there is a disk");
    let grants = open(dir.path(), Duration::ZERO);
    assert!(grants.may_be_incomplete(), "it is not known who there is");
    grants.met.send_replace(true);
    assert!(!grants.may_be_incomplete(), "there is nobody");
    let with = |reachable, heard| {
        let peer = Peer {
            reachable,
            heard,
            ..Peer::default()
        };
        grants.change_peers(|peers| {
            peers.insert(7, peer);
        });
        grants.may_be_incomplete()
    };
    let now = Instant::now();
    assert!(with(None, None), "it is about to be asked");
    assert!(with(Some(true), Some(now)));
    assert!(with(Some(false), Some(now)), "it was there just now");
    assert!(!with(Some(false), None), "it was never there");
    if let Some(long_ago) = now.checked_sub(FORGOTTEN) {
        assert!(!with(Some(false), Some(long_ago)));
    }
    grants.needed.send_replace(false);
    assert!(!with(Some(true), Some(now)), "no policy needs names");
}
