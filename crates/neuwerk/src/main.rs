//! The neuwerk binary: the daemon's entry and the verbs of the command line.
//!
//! Exit codes: 0 done; 1 it failed or was refused; 2 the command line or the configuration is wrong; 3 the policy is
//! committed, and members remain that do not enforce it yet.

#![forbid(unsafe_code)]

mod args;
mod auth;
mod backup;
mod cluster;
mod connect;
mod failure;
mod joining;
mod policy;
mod print;
mod recovery;
mod run;
mod status;
mod sysdump;

use std::process::ExitCode;

use args::{Auth, Cli, Cluster, Document, MembersVerb, Policy, Token, Verb};
use failure::Failure;

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
        Verb::Sysdump(verb) => connect::block_on(sysdump::sysdump(verb)),
        Verb::Status(target) => connect::block_on(status::status(target)),
        Verb::Cluster(Cluster::Members { list, target }) => match list {
            Some(MembersVerb::Approve(approve)) => connect::block_on(joining::approve(approve)),
            Some(MembersVerb::List(target)) => connect::block_on(cluster::members(target)),
            None => connect::block_on(cluster::members(target)),
        },
        Verb::Cluster(Cluster::Token(verb)) => connect::block_on(joining::token(verb)),
        Verb::Cluster(Cluster::Approval(approval)) => {
            connect::block_on(joining::approval(approval))
        }
        Verb::Cluster(Cluster::Ca(verb)) => connect::block_on(joining::ca(verb)),
        Verb::Cluster(Cluster::Changes {
            since,
            limit,
            target,
        }) => connect::block_on(cluster::changes(since, limit, target)),
        Verb::Auth(Auth::Key(verb)) => connect::block_on(auth::key(verb)),
        Verb::Cluster(Cluster::Recover(recover)) => connect::block_on(recovery::recover(recover)),
        Verb::Cluster(Cluster::Rejoin(rejoin)) => connect::block_on(recovery::rejoin(rejoin)),
        Verb::Cluster(Cluster::Restore(restore)) => connect::block_on(recovery::restore(restore)),
        Verb::Cluster(Cluster::Backup(backup)) => connect::block_on(backup::perform(*backup)),
        Verb::Auth(Auth::Token(Token::Mint(mint))) => connect::block_on(auth::mint(mint)),
        Verb::Completions { shell } => args::completions(shell),
        Verb::Reference {
            document: Document::Configuration,
        } => print::to_stdout(&neuwerkd::config::reference()),
        Verb::Reference {
            document: Document::Openapi,
        } => print::to_stdout(&neuwerkd::http::openapi::document_text()),
    };
    done.map(|()| ExitCode::SUCCESS)
}
