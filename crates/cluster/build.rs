//! Generates the wire types and the gRPC service, without a `protoc` binary, and names the program by what encodes its
//! replicated state, so that only members with the same encoding compare their states.

use std::collections::hash_map::DefaultHasher;
use std::error::Error;
use std::fs;
use std::hash::Hasher;
use std::path::Path;

const FILES: [&str; 2] = [
    "neuwerk/cluster/v1/transport.proto",
    "neuwerk/join/v1/join.proto",
];

/// Sources that decide what a state encodes to.
const STATE: [&str; 5] = [
    "src/command.rs",
    "src/command",
    "src/id.rs",
    "src/state.rs",
    "src/state",
];

fn hash(path: &Path, hasher: &mut DefaultHasher) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", path.display());
    if !path.is_dir() {
        hasher.write(&fs::read(path)?);
        return Ok(());
    }
    let mut inside = fs::read_dir(path)?
        .map(|item| item.map(|item| item.path()))
        .collect::<Result<Vec<_>, _>>()?;
    inside.sort();
    inside.iter().try_for_each(|path| hash(path, hasher))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut hasher = DefaultHasher::new();
    for path in STATE {
        hash(Path::new(path), &mut hasher)?;
    }
    println!(
        "cargo::rustc-env=NEUWERK_STATE_SOURCE={:016x}",
        hasher.finish()
    );
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".neuwerk.cluster.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
