//! Faults of every kind at a cluster of real processes, while clients write and read and their history is taken down.
//!
//! One runner for all: strike, hold for a while, mend, wait until the cluster is whole again, next. What may fail is a
//! table ([`plan::Fault`]); which of them, at whom and for how long is a [`plan::Plan`], the same for the same seed. In
//! the end every acknowledged change must be there, and the history must be linearizable.

mod field;
pub mod plan;
mod workload;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};

use crate::history::{Verdict, check};
use field::Field;
use plan::Plan;
use workload::Workload;

/// What came of it.
#[derive(Debug, Default)]
pub struct Told {
    /// How often something was made to fail.
    pub faults: usize,
    /// Operations in the history.
    pub operations: usize,
    /// Of them, those of which nobody knows what became.
    pub unknown: usize,
    /// Acknowledged and not there, or there twice.
    pub lost: Vec<String>,
    /// Registers whose history has no order, each with the place where it ends.
    pub violations: Vec<String>,
}

/// Carries out `plan` on a cluster of its own.
///
/// # Errors
/// When a node ends by itself, or the cluster is not whole again in time after a fault: with the fault and the end of
/// the nodes' logs. Lost writes and violations are told, not errors.
pub fn run(plan: &Plan, tell: impl Fn(&str)) -> Result<Told> {
    let mut field = Field::lay()?;
    let workload = Workload::begin(&mut field.cluster, plan.seed)?;
    let stop = AtomicBool::new(false);
    let mut told = Told::default();
    let struck = thread::scope(|scope| {
        let clients: Vec<_> = workload
            .clients()
            .map(|client| scope.spawn(|| client.run(&stop)))
            .collect();
        let struck = (|| {
            for step in plan.steps() {
                tell(&step.to_string());
                field
                    .step(&step)
                    .with_context(|| format!("{step}\n{}", field.logs()))?;
                told.faults += 1;
            }
            anyhow::Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        struck
    });
    struck?;
    workload.read_all().with_context(|| field.logs())?;

    let (names, acknowledged) = workload.accounts()?;
    let twice = names.len() != names.iter().collect::<BTreeSet<_>>().len();
    told.lost = acknowledged
        .into_iter()
        .filter(|name| !names.contains(name))
        .collect();
    if twice {
        told.lost.push("an account is there twice".into());
    }
    for (key, register) in workload.into_history().into_registers() {
        told.operations += register.operations.len();
        let unknown = |operation: &&crate::history::Operation| {
            operation.outcome == crate::history::Outcome::Unknown
        };
        told.unknown += register.operations.iter().filter(unknown).count();
        match check(&register) {
            Verdict::Linearizable => {}
            Verdict::Violated(violation) => told.violations.push(format!("{key}: {violation}")),
            Verdict::Undecided => told.violations.push(format!("{key}: undecided")),
        }
    }
    Ok(told)
}
