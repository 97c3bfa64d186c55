//! Replay's hands on this node: compile off the packet threads, swap, keep the last-known-good policy.

use std::path::PathBuf;
use std::sync::Arc;

use cluster::State;
use cluster::replay::{self, Target};
use policy::{Compiled, Document};

use crate::dataplane::Dataplane;

/// Enforces policies on this node's dataplane.
pub(super) struct Enforcer {
    dataplane: Arc<Dataplane>,
    data_dir: PathBuf,
}

impl Enforcer {
    pub(super) fn new(dataplane: Arc<Dataplane>, data_dir: PathBuf) -> Self {
        Self {
            dataplane,
            data_dir,
        }
    }
}

impl replay::Enforcer for Enforcer {
    type Prepared = Arc<Compiled>;

    async fn compile(&self, target: &Target) -> Result<Arc<Compiled>, String> {
        let target = target.clone();
        let compiled = tokio::task::spawn_blocking(move || compile(&target)).await;
        compiled
            .unwrap_or_else(|_| Err("the policy compiler panicked".into()))
            .map(Arc::new)
    }

    async fn enforce(&self, policy: Arc<Compiled>) -> Result<(), String> {
        self.dataplane
            .set_policy(policy)
            .await
            .map_err(|error| error.to_string())
    }

    async fn keep(&self, target: &Target) -> Result<(), String> {
        let (target, data_dir) = (target.clone(), self.data_dir.clone());
        let written = tokio::task::spawn_blocking(move || cluster::lkg::write(&data_dir, &target));
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!(
                "the last-known-good policy cannot be written: {error}"
            )),
            Err(_) => Err("writing the last-known-good policy panicked".into()),
        }
    }
}

/// The compiled form of a policy that was validated before it was proposed.
///
/// # Errors
/// A sentence for the operator: this version cannot read or enforce it.
pub fn compile(target: &Target) -> Result<Compiled, String> {
    let document = Document::parse_json(&target.document).map_err(|error| error.to_string())?;
    Compiled::compile(&document, target.revision).map_err(|error| error.to_string())
}

/// Whether `new` has another policy than `old`.
pub(super) fn is_another_policy(old: &State, new: &State) -> bool {
    let index = |state: &State| state.policy().map(|policy| policy.index);
    index(old) != index(new)
}

/// The newest applied policy, unless it is the one at `index` already.
pub(super) fn newer(state: &State, index: Option<u64>) -> Option<Target> {
    let policy = state
        .policy()
        .filter(|policy| Some(policy.index) != index)?;
    let document = state.document(policy)?;
    Some(Target {
        lineage: state.lineage()?,
        index: policy.index,
        revision: policy.revision,
        hash: policy.hash.0,
        document: document.into(),
    })
}
