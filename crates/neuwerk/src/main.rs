//! The neuwerk binary: the daemon's entry and the verbs of the command line.
//!
//! Exit codes: 0 done; 1 it failed or was refused; 2 the command line or the configuration is wrong; 3 the policy is
//! committed, and members remain that do not enforce it yet.

#![forbid(unsafe_code)]

mod args;
mod auth;
mod backup;
mod check;
mod cluster;
mod connect;
mod failure;
mod findings;
mod flows;
mod joining;
mod packets;
mod pcapng;
mod policy;
mod preflight;
mod print;
mod recovery;
mod restart;
mod run;
mod status;
mod sysdump;
mod verify;

use std::process::ExitCode;

use args::{Auth, Cli, Document, Policy, Token, Verb};
use failure::Failure;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (cli, matches) = match args::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version count as done, everything else as a wrong command line; clap knows which.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Whoever asked for help may have closed the pipe already.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match perform(cli, &matches) {
        Ok(code) => code,
        Err(failure) => {
            print::to_stderr(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn perform(cli: Cli, matches: &clap::ArgMatches) -> Result<ExitCode, Failure> {
    let done = match cli.verb {
        Verb::Run(run) => {
            let matches = matches.subcommand_matches("run").expect("the verb is run");
            return run::run(&run, matches);
        }
        Verb::Policy(Policy::Apply(apply)) => return connect::block_on(policy::apply(apply)),
        Verb::Policy(Policy::Get(get)) => connect::block_on(policy::get(get)),
        Verb::Policy(Policy::History(target)) => connect::block_on(policy::history(target)),
        Verb::Sysdump(verb) => connect::block_on(sysdump::sysdump(verb)),
        Verb::Restart(verb) => connect::block_on(restart::restart(verb)),
        Verb::Flows(verb) => connect::block_on(flows::flows(verb)),
        Verb::Nat(verb) => connect::block_on(flows::nat(verb)),
        Verb::Findings(verb) => connect::block_on(findings::findings(verb)),
        Verb::Explain(verb) => connect::block_on(packets::explain(verb)),
        Verb::Trace(verb) => connect::block_on(packets::trace(verb)),
        Verb::Drops(verb) => connect::block_on(packets::drops(verb)),
        Verb::Status(target) => connect::block_on(status::status(target)),
        Verb::Cluster(verb) => {
            let of_cluster = matches.subcommand_matches("cluster");
            return cluster::perform(verb, of_cluster.expect("the verb is cluster"));
        }
        Verb::Auth(Auth::Key(verb)) => connect::block_on(auth::key(verb)),
        Verb::Auth(Auth::Token(Token::Mint(mint))) => connect::block_on(auth::mint(mint)),
        Verb::Completions { shell } => args::completions(shell),
        Verb::Reference {
            document: Document::Configuration,
        } => print::to_stdout(&neuwerkd::config::reference()),
        Verb::Reference {
            document: Document::Openapi,
        } => print::to_stdout(&neuwerkd::http::openapi::document_text()),
        Verb::Reference {
            document: Document::Metrics,
        } => print::to_stdout(&neuwerkd::metrics::reference()),
    };
    done.map(|()| ExitCode::SUCCESS)
}
