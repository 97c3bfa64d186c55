//! The dependency checks of `cargo xtask ci`: licences, bans and sources by the lists in `deny.toml`, and dependencies
//! that no source file names. From `cargo metadata`, without network.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use toml_edit::{DocumentMut, Item};

use crate::{cargo_command, licence};

const REGISTRY: &str = "registry+";

/// Checks the whole workspace and names every problem at once.
pub(crate) fn check() -> Result<()> {
    let output = cargo_command()
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let root = metadata["workspace_root"]
        .as_str()
        .context("metadata names the workspace")?;
    let rules: DocumentMut = fs::read_to_string(Path::new(root).join("deny.toml"))?.parse()?;
    let linked = linked(&rules)?;
    let mut problems = Vec::new();
    let id = |package: &Value| format!("{} v{}", text(&package["name"]), text(&package["version"]));
    for package in packages(&metadata).filter(|package| linked.contains(&id(package))) {
        problems.extend(judge(package, &rules));
        if package["source"].is_null() {
            problems.extend(unused(package)?);
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("{}", problems.join("\n"))
    }
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `NAME vVERSION` of all packages that the workspace links on the targets of `deny.toml`, with the features that are on.
/// The lock file, and the graph in cargo's metadata, hold more.
fn linked(rules: &DocumentMut) -> Result<HashSet<String>> {
    let tree = [
        "tree",
        "--workspace",
        "--locked",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ];
    let targets = strings(&rules["graph"]["targets"]).flat_map(|target| ["--target", target]);
    let output = cargo_command().args(tree).args(targets).output()?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout)?;
    let id = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    Ok(lines
        .lines()
        .filter(|line| !line.is_empty())
        .map(id)
        .collect())
}

/// Licence, bans and source of one package.
fn judge(package: &Value, rules: &DocumentMut) -> Vec<String> {
    let mut problems = Vec::new();
    let (name, source) = (text(&package["name"]), text(&package["source"]));
    let banned = tables(&rules["bans"]["deny"]).find(|(banned, _)| *banned == name);
    if let Some((_, table)) = banned {
        problems.push(format!(
            "{name} is banned: {}",
            table
                .get("reason")
                .and_then(|r| r.as_str())
                .unwrap_or_default()
        ));
    }
    if !source.is_empty() && !source.starts_with(REGISTRY) {
        problems.push(format!("{name} comes from {source}"));
    }
    let own = tables(&rules["licenses"]["exceptions"]).find(|(excepted, _)| *excepted == name);
    let allowed = |licence: &str| {
        let excepted = own
            .iter()
            .filter_map(|(_, table)| table.get("allow")?.as_array())
            .flatten();
        strings(&rules["licenses"]["allow"])
            .chain(excepted.filter_map(|value| value.as_str()))
            .any(|on| on == licence)
    };
    if !licence::is_allowed(text(&package["license"]), &allowed) {
        problems.push(format!(
            "{name} has the licence {:?}, which deny.toml does not list",
            text(&package["license"])
        ));
    }
    problems
}

/// The inline tables of a list, each by its key `crate`.
fn tables(list: &Item) -> impl Iterator<Item = (&str, &toml_edit::InlineTable)> {
    let tables = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|value| value.as_inline_table());
    tables.filter_map(|table| Some((table.get("crate")?.as_str()?, table)))
}

fn strings(list: &Item) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|value| value.as_str())
}

/// Dependencies of a member that none of its source files names.
fn unused(package: &Value) -> Result<Vec<String>> {
    let manifest = Path::new(text(&package["manifest_path"]));
    let dir = manifest
        .parent()
        .context("a manifest lies in a directory")?;
    let mut sources = String::new();
    read_sources(dir, &mut sources)?;
    let kept: Vec<&str> = package["metadata"]["machete"]["ignored"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    Ok(dependencies
        .map(|dependency| {
            dependency["rename"]
                .as_str()
                .unwrap_or(text(&dependency["name"]))
        })
        .filter(|name| !kept.contains(name) && !names(&sources, &name.replace('-', "_")))
        .map(|name| {
            format!(
                "{}: the dependency {name} is not used",
                text(&package["name"])
            )
        })
        .collect())
}

fn read_sources(dir: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            read_sources(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
            into.push('\n');
        }
    }
    Ok(())
}

/// Whether `word` stands in `sources` as a word of its own.
fn names(sources: &str, word: &str) -> bool {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    sources.match_indices(word).any(|(at, _)| {
        !sources[..at].ends_with(part_of_word)
            && !sources[at + word.len()..].starts_with(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_as_a_whole_only() {
        assert!(names("use nix::sched;", "nix"));
        assert!(names("nix", "nix"));
        assert!(!names("let unix = 1; nixos::x", "nix"));
    }

    #[test]
    fn a_package_is_judged_by_licence_ban_and_source() {
        let package = |name: &str, licence: &str, source: &str| serde_json::json!({"name": name, "license": licence, "source": source});
        check(&package("a", "MIT", "registry+https://r"), &[]);
        check(
            &package("bad", "MIT", "registry+https://r"),
            &["bad is banned: because"],
        );
        check(
            &package("a", "GPL-3.0", "registry+https://r"),
            &["a has the licence \"GPL-3.0\", which deny.toml does not list"],
        );
        check(&package("weak", "MPL-2.0", "registry+https://r"), &[]);
        check(
            &package("a", "MIT", "git+https://r"),
            &["a comes from git+https://r"],
        );
    }

    fn check(package: &Value, expected: &[&str]) {
        let rules = "[licenses]\nallow = ['MIT']\nexceptions = [{ crate = 'weak', allow = ['MPL-2.0'] }]\n\
                     [bans]\ndeny = [{ crate = 'bad', reason = 'because' }]\n[sources]\nallow-registry = ['https://r']";
        assert_eq!(judge(package, &rules.parse().unwrap()), expected);
    }
}
