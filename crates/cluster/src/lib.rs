//! Replicated control-plane state: commands, state, log store, network, join, membership, replay.
pub mod replay;
