//! Members of neighbouring versions: what is refused until all are new, when the level rises, and what an old version
//! says afterwards.

use cluster::command::EventKind;
use cluster::node::{FEATURE_LEVEL, StartError};
use cluster::{Command, Failure, ProposeError, TooOld};

use super::bench::{Bench, spec};

/// A command that needs level 2.
fn new_command() -> Command {
    Command::RecordEvent {
        kind: EventKind::Recovered,
        subject: "a".into(),
        detail: String::new(),
    }
}

#[tokio::test]
async fn the_level_rises_once_the_last_member_is_new() {
    let mut bench: Bench = Bench::new(3);
    bench.found_at_level_1();
    for n in 0..3 {
        bench.set_feature_level(n, 1);
    }
    bench.start_all().await;
    bench.form().await;

    for n in 0..3 {
        let leader = bench.wait_leader().await;
        let refused = bench.node(leader).propose(new_command()).await;
        let Err(ProposeError::FeatureLevel { needed: 2, .. }) = &refused else {
            panic!("{refused:?}")
        };
        bench
            .propose(leader, Command::CreateAccount(spec(&format!("a{n}"))))
            .await;
        bench.stop(n).await;
        bench.set_feature_level(n, 2);
        bench.start(n).await;
        bench.wait_equal().await;
    }
    bench
        .wait(|bench| (0..3).all(|n| bench.node(n).state().feature_level() == 2))
        .await;
    let leader = bench.wait_leader().await;
    bench.propose(leader, new_command()).await;
    assert_eq!(
        bench.node(leader).state().feature_version(),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(bench.node(leader).state().accounts().count(), 3);
}

#[tokio::test]
async fn a_member_that_holds_the_level_back_is_named() {
    let mut bench: Bench = Bench::new(2);
    bench.found_at_level_1();
    bench.set_feature_level(1, 1);
    bench.start_all().await;
    bench.form().await;
    bench.node(0).transfer_leader(None).await.ok();
    let old = bench.id(1);
    bench
        .wait(|bench| {
            let features = bench.leader().map(|leader| bench.node(leader).features());
            // Which of both leads is left to chance; only the new one looks up to level 2.
            features.is_some_and(|features| {
                features.supported == 1
                    || features.held_back_by.iter().any(|member| {
                        member.contains(&old.to_string()) && member.contains("supports 1")
                    })
            })
        })
        .await;
    assert_eq!(bench.node(0).state().feature_level(), 1);
}

#[tokio::test]
async fn a_version_that_is_too_old_stops_and_names_the_one_to_start() {
    let mut bench: Bench = Bench::new(1);
    bench.found_at_level_1();
    bench.start(0).await;
    bench.found(0).await;
    bench
        .wait(|bench| bench.node(0).state().feature_level() == FEATURE_LEVEL)
        .await;
    bench.stop(0).await;

    bench.set_feature_level(0, 1);
    let refused = bench.try_start(0).await.expect_err("is too old");
    let StartError::TooOld(TooOld::Level {
        level,
        supported: 1,
        ..
    }) = &refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(*level, FEATURE_LEVEL);
    let text = refused.to_string();
    assert!(
        text.contains(concat!("start version ", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );

    // Nothing was spoilt by trying.
    bench.set_feature_level(0, FEATURE_LEVEL);
    bench.start(0).await;
    bench.wait_leader().await;
}

#[tokio::test]
async fn a_running_member_that_is_too_old_stops_when_the_level_rises() {
    let mut bench: Bench = Bench::new(1);
    bench.start(0).await;
    bench.found(0).await;
    bench.stop(0).await;
    bench.set_feature_level(0, FEATURE_LEVEL + 1);
    bench.start(0).await;
    bench
        .wait(|bench| bench.node(0).state().feature_level() > FEATURE_LEVEL)
        .await;
    bench.stop(0).await;
    bench.set_feature_level(0, FEATURE_LEVEL);
    match bench.try_start(0).await {
        Err(StartError::TooOld(_)) => {}
        Err(other) => panic!("{other:?}"),
        // What was committed is known only once it leads again.
        Ok(()) => {
            let failure = bench.node(0).failed().await;
            assert!(matches!(failure, Failure::TooOld(_)), "{failure:?}");
        }
    }
}
