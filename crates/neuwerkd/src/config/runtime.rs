//! `runtime.*`: threads and the run directory.

use std::path::PathBuf;

use super::key::{Part, section};

section! {
    /// Threads, and what exists only while the node runs.
    Runtime, Part::Node;

    /// Threads of the control plane. Consensus has one more.
    controlplane_worker_threads: u32 = 4, range(1..=1024);
    /// Threads of the management API.
    http_worker_threads: u32 = 2, range(1..=1024);
    /// Directory of the control socket `admin.sock`, open to root only. Nodes on one host need one each.
    run_dir: PathBuf = PathBuf::from("/run/neuwerk");
    /// How long a node that is asked to stop waits for its last flows to end. It takes no new ones meanwhile.
    drain_timeout_secs: u32 = 10, unit("s"), range(0..=86_400);

    group kubernetes: KubernetesRuntime;
}

section! {
    /// Following of pods and nodes.
    KubernetesRuntime, Part::Kubernetes;

    /// How often sources are listed anew.
    reconcile_interval_secs: u32 = 5, unit("s"), range(1..=31_536_000);
    /// How long the last known addresses stay in force when a cluster cannot be reached.
    stale_grace_secs: u32 = 300, unit("s"), range(1..=31_536_000);
}

impl Runtime {
    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
}
