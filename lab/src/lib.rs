//! Network namespaces, links, clients, servers and real `neuwerk` processes, for end-to-end tests and the demo.
//!
//! A [`Run`] names everything after its own process, so that two runs coexist and the leftovers of a killed one can be
//! told apart and removed. A [`Topology`] is the wiring, a [`Cluster`] the nodes in it; dropping them tears all of it
//! down. Everything here needs root; development only.
#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod cluster;
pub mod fault;
pub mod history;
pub mod http;
pub mod live;
pub mod management;
pub mod names;
pub mod netns;
pub mod node;
pub mod process;
pub mod relay;
pub mod run;
pub mod runbook;
pub mod server;
pub mod tamper;
pub mod tool;
pub mod topology;
pub mod unsynced;
pub mod upgrade;
pub mod wait;

pub use cluster::Cluster;
pub use netns::Netns;
pub use node::Node;
pub use run::Run;
pub use topology::Topology;
