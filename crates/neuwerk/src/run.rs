//! `neuwerk run`: read the configuration, then hand over to the daemon.

use std::process::ExitCode;

use clap::ArgMatches;
use neuwerkd::config::{Config, Flags, Log};

use crate::args::Run;
use crate::failure::Failure;
use crate::print;

pub(crate) fn run(run: &Run, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let config = Config::load(run.config.as_deref(), &Flags::from_matches(matches))?;
    if run.check {
        print::to_stdout(&summary(&config))?;
        return Ok(ExitCode::SUCCESS);
    }
    let log = Log::from_env()
        .and_then(|log| log.install())
        .map_err(|error| Failure::Usage(error.to_string()))?;
    neuwerkd::app::run(config, log).map_err(|error| Failure::Failed(format!("{error:#}")))?;
    Ok(ExitCode::SUCCESS)
}

/// What `--check` found, for people.
fn summary(config: &Config) -> String {
    let bootstrap = &config.bootstrap;
    let outside = bootstrap.outside_interface.as_ref();
    let ports = match outside {
        Some(outside) => format!("{} inside, {outside} outside", bootstrap.data_interface),
        None => format!("{}, one arm", bootstrap.data_interface),
    };
    let cluster = if config.cluster_mode {
        let (bind, join) = (config.cluster.bind, &config.cluster.join);
        let peers: Vec<String> = join.iter().map(ToString::to_string).collect();
        let role = if peers.is_empty() {
            "founds or resumes".into()
        } else {
            format!("joins {}", peers.join(", "))
        };
        format!("on {bind}, {role}")
    } else {
        "off: a cluster of one, no listeners".into()
    };
    let mut text = format!(
        "the configuration is valid\nmanagement  {}\ndata        {ports}\ncluster     {cluster}\n",
        bootstrap.management_interface
    );
    if !config.without_effect.is_empty() {
        text.push_str(&format!(
            "warning: without effect in this release: {}\n",
            config.without_effect.join(", ")
        ));
    }
    text
}
