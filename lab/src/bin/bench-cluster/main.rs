//! The cluster's figures, beside those of etcd in the same namespaces and the same run.
//!
//! `make bench-cluster`, or `cargo xtask bench cluster` (root). Three nodes, each with a member of Neuwerk and one of
//! etcd: TLS on for clients and between members, real syncs to the same file system, the same client program in the
//! operator's namespace. Writes of the two take turns. Neither is paused while the other is measured: what an idle one
//! costs is among the figures.
//!
//! Every write is checked: the record holds what was written last, as often as was acknowledged. `--full` takes the
//! times that the targets speak of (about an hour and a half); without it fewer and shorter samples are taken, and the
//! lines say so. `--only WORD` measures the scenes whose name has the word in it, for work on one of them.
//!
//! The result goes to `target/bench/cluster.json`; what the figures mean is in `docs/reliability.md`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod etcd;
mod load;
mod report;
mod scenes;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Parser;
use report::{Line, heading};
use scenes::Bench;
use serde_json::{Value, json};

/// Measures the cluster, and etcd as the yardstick.
#[derive(Parser)]
struct Options {
    /// Take as many and as long samples as the targets speak of.
    #[arg(long)]
    full: bool,
    /// Only the scenes whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(
        !cfg!(debug_assertions),
        "figures of a debug build say nothing; use cargo xtask bench cluster"
    );
    etcd::install()?;
    let mut bench = Bench::lay(options.full)?;
    let mut lines: Vec<Line> = Vec::new();
    for (name, scene) in scenes::ALL {
        if !name.contains(&options.only) {
            continue;
        }
        println!("==> {name}");
        for line in scene(&mut bench)? {
            println!("    {}", line.to_text());
            lines.push(line);
        }
    }
    println!("\n{}", heading());
    for line in &lines {
        println!("{}", line.to_text());
    }
    let path = result_path();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let result: Vec<Value> = lines.iter().map(Line::to_json).collect();
    fs::write(&path, format!("{:#}\n", json!(result)))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// `bench/cluster.json` where cargo builds.
fn result_path() -> PathBuf {
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    built.join("bench/cluster.json")
}
