//! The runbook, `docs/recovery.md`, as something that can be carried out: its commands are run as they stand there, so that
//! the page cannot say what does not work.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;
use crate::wait;

const PAGE: &str = include_str!("../../docs/recovery.md");

/// How long a command that only looks may take to be answered.
const SOON: Duration = Duration::from_secs(60);

/// A command, and where it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What the prompt says.
    pub role: String,
    /// The line after the prompt.
    pub command: String,
}

/// The commands below a heading, in order.
///
/// # Errors
/// There is no such heading, or a line has no prompt.
pub fn steps(heading: &str) -> Result<Vec<Step>> {
    let title = format!("## {heading}");
    let mut lines = PAGE.lines().skip_while(|line| *line != title);
    ensure!(
        lines.next().is_some(),
        "docs/recovery.md has no section {heading:?}"
    );
    let section = lines.take_while(|line| !line.starts_with("## "));
    let mut inside = false;
    let mut steps = Vec::new();
    for line in section {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if inside => {
                let (role, command) = line
                    .split_once("# ")
                    .with_context(|| format!("docs/recovery.md: no prompt in {line:?}"))?;
                steps.push(Step {
                    role: role.into(),
                    command: command.into(),
                });
            }
            _ => {}
        }
    }
    ensure!(
        !steps.is_empty(),
        "docs/recovery.md: no commands below {heading:?}"
    );
    Ok(steps)
}

impl Step {
    /// Runs it on node `number`, in the directory `here`, with each of `words` put in place of what the page writes for it.
    ///
    /// # Errors
    /// What the command says.
    pub fn run(
        &self,
        cluster: &mut Cluster,
        number: u8,
        here: &Path,
        words: &[(&str, &str)],
    ) -> Result<String> {
        let mut command: Vec<String> = self.command.split(' ').map(str::to_owned).collect();
        for word in &mut command {
            if let Some((_, instead)) = words.iter().find(|(word_here, _)| word == word_here) {
                *word = (*instead).to_owned();
            }
        }
        match command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["systemctl", "stop", "neuwerk"] => {
                cluster.node(number).terminate().map(|_| String::new())
            }
            ["systemctl", "start", "neuwerk"] => {
                cluster.node(number).start().map(|()| String::new())
            }
            ["neuwerk", ref verb @ ..] => {
                let paths = paths(cluster, number, verb)?;
                let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                let arguments = [verb, &paths[..]].concat();
                let node = cluster.node(number);
                if !matches!(verb, ["status", ..] | ["cluster", "members", ..]) {
                    return node.cli_in(here, &arguments);
                }
                // An operator looks again.
                let asked = || node.cli_in(here, &arguments).map(Some);
                wait::until(&self.command, SOON, asked).map(|(printed, _)| printed)
            }
            _ => bail!(
                "docs/recovery.md: {:?} is no command of a kind that can be run here",
                self.command
            ),
        }
    }
}

/// Where a node of the lab keeps what lies at the default paths elsewhere.
fn paths(cluster: &mut Cluster, number: u8, verb: &[&str]) -> Result<Vec<String>> {
    let node = cluster.node(number);
    let at =
        |flag: &str, name: &str| -> Result<[String; 2]> { Ok([flag.to_owned(), node.path(name)?]) };
    let socket = || at("--control-socket", "run/admin.sock").map(Vec::from);
    match verb {
        ["cluster", "recover", ..] => at("--data-dir", "cluster").map(Vec::from),
        ["cluster", "restore", ..] => Ok([
            at("--data-dir", "cluster")?,
            at("--node-id-path", "node_id")?,
        ]
        .concat()),
        ["cluster", "backup", "verify" | "keygen", ..] => Ok(Vec::new()),
        _ => socket(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_with_commands_is_read() {
        for heading in [
            "Backups",
            "The quorum is lost for good",
            "A node comes back with data that cannot be used",
            "Nothing is left but a backup",
        ] {
            let steps = steps(heading).unwrap_or_else(|error| panic!("{error}"));
            assert!(
                steps.iter().all(|step| !step.role.contains(' ')),
                "{steps:?}"
            );
        }
        assert!(steps("No such thing").is_err());
    }
}
