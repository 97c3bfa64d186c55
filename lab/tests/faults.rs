//! Every kind of fault at real processes, while clients write, read and compare-and-set through all of them.

use lab::fault::plan::{Fault, Plan};

#[test]
#[ignore = "needs root; make test runs it"]
fn through_every_fault_nothing_acknowledged_is_lost_and_the_history_is_linearizable() {
    let told = lab::fault::run(&Plan::each_once(1), |_| ()).unwrap();
    assert_eq!(told.faults, Fault::SHORT.len());
    assert!(told.operations > 200, "{told:?}");
    assert!(told.lost.is_empty(), "{:#?}", told.lost);
    assert!(told.violations.is_empty(), "{}", told.violations.join("\n"));
}
