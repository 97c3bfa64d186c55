//! Generates the wire types and the gRPC service, without a `protoc` binary.

use std::error::Error;

const FILES: [&str; 2] = [
    "neuwerk/cluster/v1/transport.proto",
    "neuwerk/join/v1/join.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".neuwerk.cluster.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
