//! Generated from `proto/`: what goes over the wire.

#![allow(
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

pub(crate) mod cluster {
    tonic::include_proto!("neuwerk.cluster.v1");
}

pub(crate) mod join {
    tonic::include_proto!("neuwerk.join.v1");
}
