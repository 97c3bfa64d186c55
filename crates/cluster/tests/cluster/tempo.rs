//! Timers of consensus that differ between members, and how they become alike.

use std::time::Duration;

use futures::future::select_all;

use super::bench::Bench;

#[tokio::test]
async fn members_take_over_the_leaders_timers_one_after_the_other() {
    let mut bench: Bench = Bench::new(3);
    for n in 0..3 {
        bench.set_stretch(n, 1);
    }
    bench.start_all().await;
    bench.form().await;
    // The timers of these were right for another cluster.
    let leader = bench.wait_leader().await;
    for n in (0..3).filter(|n| *n != leader) {
        bench.stop(n).await;
        bench.set_stretch(n, 2);
        bench.start(n).await;
        bench.wait_equal().await;
    }

    let wanted = bench.stretch(bench.wait_leader().await);
    for _ in 0..3 {
        if (0..3).all(|n| bench.stretch(n) == wanted) {
            break;
        }
        let (n, factor) = asked(&bench).await;
        assert_ne!(bench.stretch(n), wanted, "{n}");
        assert_eq!(Some(factor), wanted);
        bench.stop(n).await;
        bench.set_stretch(n, factor);
        bench.start(n).await;
        bench.wait_equal().await;
    }
    assert!((0..3).all(|n| bench.stretch(n) == wanted));
    let more = tokio::time::timeout(Duration::from_secs(2), asked(&bench)).await;
    assert!(
        more.is_err(),
        "timers that are alike are to be changed: {more:?}"
    );
}

/// The first node that the cluster wants other timers of, and by what they are to be multiplied.
async fn asked(bench: &Bench) -> (usize, u32) {
    let all = (0..3).map(|n| Box::pin(async move { (n, bench.node(n).retimed().await) }));
    select_all(all).await.0
}
