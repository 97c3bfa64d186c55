//! `cargo xtask ci`: everything that is checked beside the tests.

use anyhow::Result;

use crate::{cargo, dependencies, dpdk};

/// Formatting, lints, documentation, dependencies, instructions per packet; ends at the first that fails.
pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    eprintln!("==> dependencies: licences, bans, sources, unused");
    dependencies::check()?;
    cargo(
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            // The fuzz targets, too, and the benches of single stages.
            "--features",
            "fuzz/link,fuzz/control,engine/stages",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    if dpdk::is_installed()? {
        let crates = ["-p", "io", "-p", "neuwerkd", "-p", "neuwerk"];
        let lints = [
            &["clippy", "--all-targets", "--locked"],
            &crates[..],
            &dpdk::FEATURES,
            &["--", "-D", "warnings"],
        ];
        let lints = lints.concat();
        cargo(&lints, &[])?;
    }
    cargo(
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--locked",
        ],
        // The pages are for those who change the code, so they may lead to private items.
        &[(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private-intra-doc-links",
        )],
    )?;
    eprintln!("==> instructions per packet");
    cargo(
        &["bench", "-p", "io", "--bench", "instructions", "--locked"],
        &[],
    )
}
