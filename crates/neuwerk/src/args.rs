//! What may stand on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{
    ArgGroup, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use neuwerkd::config::Flags;

use crate::failure::Failure;
use crate::findings::Findings;
use crate::flows::{FlowsVerb, Nat};
use crate::joining;
use crate::packets::{Drops, Explain, Trace};
use crate::print;

/// An egress firewall: enforces one policy on every node of a cluster.
///
/// Without a verb, `neuwerk [flags]` means `neuwerk run [flags]`.
#[derive(Debug, Parser)]
#[command(name = "neuwerk", version, max_term_width = 120, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed or refused; 2 wrong command line or configuration; \
3 policy committed, but members remain that do not enforce it yet; \
4 and 5 of the checks of `cluster verify` and `cluster preflight`: warnings, failures.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the node until SIGTERM, which drains it; a second one stops it at once.
    Run(Run),
    /// Have the running node start its program anew, with another configuration or version, and cut no connection.
    Restart(Restart),
    /// Show how a node and its cluster are.
    Status(Target),
    /// Read or replace the policy.
    #[command(subcommand)]
    Policy(Policy),
    /// Look at the flows of a node, and end some.
    #[command(subcommand)]
    Flows(FlowsVerb),
    /// Show how much of a node's translation addresses is in use.
    Nat(Nat),
    /// Show what the policy denies, or would deny if it were not in audit mode.
    Findings(Findings),
    /// Say what would become of a packet, and why.
    #[command(subcommand)]
    Explain(Explain),
    /// Follow packets through a node, live: where each came from, its flow, what decided, how it left.
    Trace(Trace),
    /// Follow dropped frames with the reason of each, live, or show how many there were.
    Drops(Drops),
    /// Look at the cluster.
    #[command(subcommand)]
    Cluster(Cluster),
    /// Tokens for the management API.
    #[command(subcommand)]
    Auth(Auth),
    /// Collect a support archive; it holds no secrets. Of a node that does not run, what can be had without it.
    Sysdump(Sysdump),
    /// Print a script that completes neuwerk's command line.
    Completions {
        /// The shell to print it for.
        shell: Shell,
    },
    /// Print a reference page.
    #[command(hide = true)]
    Reference {
        /// Which one.
        document: Document,
    },
}

/// Flags of `run`, besides those of the configuration.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Configuration file [default: /etc/neuwerk/config.yaml, if there is one]
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Read and validate the configuration, say what was found, and exit with 0 or 2
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The program is the one that is installed by now under the path that the node was started by. A node whose configuration it refuses goes on as it is."
)]
pub(crate) struct Restart {
    /// The node's control socket.
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub(crate) control_socket: PathBuf,
    /// How long to wait until the node is back, as 250ms, 5s, 1m.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = api::duration::parse)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Print the policy.
    Get(PolicyGet),
    /// Replace the policy, and wait until it is enforced.
    Apply(PolicyApply),
    /// List the revisions that are kept: when, by whom and why.
    #[command(
        after_help = "To go back to one: neuwerk policy get --revision N | neuwerk policy apply -"
    )]
    History(Target),
}

#[derive(Debug, Args)]
pub(crate) struct PolicyGet {
    /// How to write it.
    #[arg(long, value_enum, default_value = "json")]
    pub(crate) format: Format,
    /// As it was at this revision, as policy history lists them.
    #[arg(long, value_name = "N")]
    pub(crate) revision: Option<u64>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exits with 3 if the policy is committed and members remain that do not enforce it yet."
)]
pub(crate) struct PolicyApply {
    /// The document; - for standard input.
    pub(crate) file: PathBuf,
    /// How it is written [default: json for *.json, else yaml]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// What to wait for: that the cluster has committed it, that the node asked enforces it, or that all members do.
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) wait: Wait,
    /// How long to wait, as 250ms, 5s, 1m.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = api::duration::parse)]
    pub(crate) timeout: Duration,
    /// Validate and compile it only, and say whether it would change anything.
    #[arg(long, conflicts_with_all = ["if_match", "idempotency_key"])]
    pub(crate) dry_run: bool,
    /// Replace it only if this is still its tag, as printed by an earlier apply or get --json.
    #[arg(long, value_name = "ETAG")]
    pub(crate) if_match: Option<String>,
    /// Names this change, so that trying it again cannot make it twice.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Why, for those who read the history.
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Sysdump {
    /// Collect from every member that the node reaches, not only from the node itself.
    #[arg(long)]
    pub(crate) cluster: bool,
    /// Where to write it, a new file; - for standard output [default: neuwerk-sysdump-TIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Configuration file of a node that does not run [default: /etc/neuwerk/config.yaml]
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List the members, and decide who votes and who is to go.
    #[command(args_conflicts_with_subcommands = true)]
    Members {
        #[command(subcommand)]
        verb: Option<MembersVerb>,
        #[command(flatten)]
        target: Target,
    },
    /// Join tokens, and the bootstrap secret.
    #[command(subcommand)]
    Token(joining::TokenVerb),
    /// Say whether new members are let in at once, or wait for an administrator.
    Approval(joining::Approval),
    /// The CA that issues the members' certificates.
    #[command(subcommand)]
    Ca(joining::CaVerb),
    /// Set who votes.
    #[command(subcommand)]
    Voters(VotersVerb),
    /// Take the node asked out of its cluster, for good. It goes on enforcing its policy until it is stopped.
    Leave(Leave),
    /// Hand leadership over.
    Transfer(Transfer),
    /// Have a node refuse new flows and keep those it has, until it is undrained.
    Drain(DrainNode),
    /// Have a node take new flows again.
    Undrain(Undrain),
    /// Wait until the node asked is as it should be.
    Wait(WaitFor),
    /// Check a cluster after it was deployed or changed.
    #[command(after_help = CHECKS)]
    Verify(Target),
    /// Check, before a node is started for the first time, that it will be able to join: its disk, its listeners, its
    /// way to the members and back. Takes the flags of run; with --url of a member, also what only a member can tell.
    #[command(after_help = CHECKS)]
    Preflight(Preflight),
    /// Print the change log: who changed what, and what happened to the cluster.
    Changes {
        /// Only entries after this log index.
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        since: u64,
        /// How many at most, the newest ones.
        #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        #[command(flatten)]
        target: Target,
    },
    /// Make a backup of the replicated state on any node, sealed for a key that you hold.
    Backup(Box<Backup>),
    /// Put a backup to work on a node that holds no data: a new lineage with this node as its only member.
    Restore(Restore),
    /// When a quorum is lost for good: show what the data of stopped nodes holds, and go on from the best of it.
    Recover(Recover),
    /// Put this node's stale or damaged data aside and join as a new member; it goes on enforcing its policy meanwhile.
    Rejoin(Rejoin),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Backup {
    #[command(subcommand)]
    pub(crate) verb: Option<BackupVerb>,
    #[command(flatten)]
    pub(crate) make: BackupMake,
}

#[derive(Debug, Args)]
pub(crate) struct BackupMake {
    /// Where to write it.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Public key to seal it for [default: cluster.backup.recipient of the node that is asked]
    #[arg(long, value_name = "KEY", conflicts_with = "passphrase_file")]
    pub(crate) recipient: Option<String>,
    /// Seal it with the passphrase in this file instead.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackupVerb {
    /// Check that a backup is whole and, with a key, that it can be restored.
    Verify {
        /// The backup.
        file: PathBuf,
        /// Private key that opens it, as keygen wrote it.
        #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
        key_file: Option<PathBuf>,
        /// Passphrase that opens it.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Make a key that opens backups, and print the public key to seal them for.
    Keygen {
        /// Where to write the private key: away from the nodes.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    /// Private key that opens it.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub(crate) key_file: Option<PathBuf>,
    /// Passphrase that opens it.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// The node's cluster.data_dir.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/neuwerk/cluster")]
    pub(crate) data_dir: PathBuf,
    /// The node's cluster.node_id_path.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/neuwerk/node_id")]
    pub(crate) node_id_path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// Data of a stopped node, its cluster.data_dir or a copy of it; may be given several times.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/neuwerk/cluster")]
    pub(crate) data_dir: Vec<PathBuf>,
    /// Go on from the best one; the cluster's name, typed out.
    #[arg(long, value_name = "NAME")]
    pub(crate) confirm: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Rejoin {
    /// Join listener of a member [default: cluster.join, or those that this node knew]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) join: Vec<String>,
    /// The cluster's name, typed out; needed while this node is a member in good standing.
    #[arg(long, value_name = "NAME")]
    pub(crate) confirm: Option<String>,
    /// This node's control socket.
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub(crate) control_socket: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const CHECKS: &str = "\
Exits with 0 if all is well, with 4 if there are warnings, with 5 if a check failed, and with 1 or 2 if the checks could
not be made at all.";

/// What it takes to do what endangers the quorum.
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// Do it even if the cluster survives no failure afterwards. NAME is the cluster's name, as status shows it.
    #[arg(long, value_name = "NAME")]
    pub(crate) confirm: Option<String>,
    /// The same without the name, for published scripts.
    #[arg(long, conflicts_with = "confirm", hide = true)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VotersVerb {
    /// Have these members vote, and no other.
    Set {
        /// Their ids, names or addresses.
        #[arg(long, value_name = "NODE,...", value_delimiter = ',', required = true)]
        ids: Vec<String>,
        #[command(flatten)]
        confirm: Confirm,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    #[command(flatten)]
    pub(crate) confirm: Confirm,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// Who is to lead: id, name or address [default: the voter that is furthest]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct DrainNode {
    /// Id, name or address [default: the node asked]
    pub(crate) node: Option<String>,
    /// Wait at most so long until its last flow has ended, as 5m.
    #[arg(long, value_name = "TIME", value_parser = api::duration::parse)]
    pub(crate) wait: Option<Duration>,
    #[command(flatten)]
    pub(crate) confirm: Confirm,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Undrain {
    /// Id, name or address [default: the node asked]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct WaitFor {
    /// Until GET /ready answers 200.
    #[arg(long, required = true)]
    pub(crate) ready: bool,
    /// And until so many members are healthy and, up to three, vote.
    #[arg(long, value_name = "COUNT")]
    pub(crate) members: Option<usize>,
    /// Give up after this long.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = api::duration::parse)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Preflight {
    /// Configuration file [default: /etc/neuwerk/config.yaml, if there is one]
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Bearer tokens.
    #[command(subcommand)]
    Token(Token),
    /// The keys that sign bearer tokens.
    #[command(subcommand)]
    Key(KeyVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it. Works without a quorum; the change log names it once there is a leader.
    Mint(Mint),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// List the keys.
    List {
        #[command(flatten)]
        through: Through,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sign with a new key from now on; tokens of older keys stay good.
    Rotate {
        #[command(flatten)]
        through: Through,
        /// Names this change, so that trying it again cannot make it twice.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Retire a key: every token that it signed stops working.
    Retire {
        /// The key, as listed.
        kid: String,
        #[command(flatten)]
        through: Through,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Mint {
    /// Who it is for.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) sub: String,
    /// What its holder may do: admin, readonly.
    #[arg(long, value_delimiter = ',', default_value = "readonly")]
    pub(crate) roles: Vec<String>,
    /// How long it is valid, as 24h or 90d.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = api::duration::parse)]
    pub(crate) ttl: Duration,
    /// Key to sign with [default: the active one]
    #[arg(long)]
    pub(crate) kid: Option<String>,
    #[command(flatten)]
    pub(crate) through: Through,
    /// Print all that is known of the token, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How root on this node reaches the cluster's keys. Without --cluster-addr: over this node's control socket.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("through").args(["cluster_addr", "http_tls_dir"]))]
pub(crate) struct Through {
    /// Ask the member at this address, with this node's identity as proof.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) cluster_addr: Option<String>,
    /// Where this node's identity lies.
    #[arg(
        long,
        value_name = "PATH",
        requires = "cluster_addr",
        default_value = "/var/lib/neuwerk/cluster/tls"
    )]
    pub(crate) cluster_tls_dir: PathBuf,
    /// Ask this node, over its control socket. The directory is not read; the flag is there for published scripts.
    #[arg(long, value_name = "PATH")]
    pub(crate) http_tls_dir: Option<PathBuf>,
    /// This node's control socket.
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub(crate) control_socket: PathBuf,
}

/// The control socket of a node with the default `runtime.run_dir`.
pub(crate) const CONTROL_SOCKET: &str = "/run/neuwerk/admin.sock";

/// Which node to ask. Without --url or --http-addr: this one, over its control socket, which only root may use and
/// which needs no token.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("remote").args(["url", "http_addr"]))]
pub(crate) struct Target {
    /// A node's management API.
    #[arg(long, value_name = "https://HOST:PORT")]
    pub(crate) url: Option<String>,
    /// The same by address and port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) http_addr: Option<String>,
    /// Token to show there.
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "remote",
        conflicts_with = "token_file"
    )]
    pub(crate) token: Option<String>,
    /// File that holds the token.
    #[arg(long, value_name = "PATH", requires = "remote")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate authority that the node must have its certificate from, PEM.
    #[arg(
        long,
        value_name = "PATH",
        requires = "remote",
        default_value = "/var/lib/neuwerk/http-tls/ca.crt"
    )]
    pub(crate) ca: PathBuf,
    /// This node's control socket.
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET, conflicts_with = "remote")]
    pub(crate) control_socket: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MembersVerb {
    /// List the members.
    List(Target),
    /// Let a node in that waits for approval.
    Approve(joining::Approve),
    /// Have a member vote, before those that nobody has promoted.
    Promote {
        /// Leave it to the cluster again whether it votes.
        #[arg(long)]
        auto: bool,
        #[command(flatten)]
        change: MemberChange,
    },
    /// Have a member vote no more, until it is promoted.
    Demote(MemberChange),
    /// Take a member out of the cluster, for good: nobody trusts it from then on.
    Remove(MemberChange),
}

#[derive(Debug, Args)]
pub(crate) struct MemberChange {
    /// Id, name or address.
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) confirm: Confirm,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
    Yaml,
}

impl From<Format> for api::policy::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => api::policy::Format::Json,
            Format::Yaml => api::policy::Format::Yaml,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    Committed,
    #[value(name = "self")]
    Own,
    All,
}

impl From<Wait> for api::policy::Wait {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Committed => api::policy::Wait::Committed,
            Wait::Own => api::policy::Wait::Own,
            Wait::All => api::policy::Wait::All,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Document {
    Configuration,
    /// The management API, `docs/openapi.json`.
    Openapi,
    /// All metrics, and all reasons for which a frame is discarded.
    Metrics,
}

/// Reads a command line. `neuwerk [flags]` is `neuwerk run [flags]`.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
) -> Result<(Cli, ArgMatches), clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let is_verb_or_general = |arg: &OsString| {
        let text = arg.to_string_lossy();
        !text.starts_with('-') || matches!(&*text, "-h" | "--help" | "-V" | "--version")
    };
    if !args.get(1).is_some_and(is_verb_or_general) {
        args.insert(args.len().min(1), "run".into());
    }
    let matches = command().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((cli, matches))
}

/// The whole command line: the verbs, and below `run` and `cluster preflight` a flag for each key of the configuration.
fn command() -> clap::Command {
    let with_keys = |verb: clap::Command| verb.args(Flags::args());
    Cli::command()
        .mut_subcommand("run", with_keys)
        .mut_subcommand("cluster", |cluster| {
            cluster.mut_subcommand("preflight", with_keys)
        })
}

/// Prints the completions for `shell`.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "neuwerk", &mut script);
    print::to_stdout(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Cli, ArgMatches), clap::Error> {
        let words = ["neuwerk"].into_iter().chain(line.split_whitespace());
        parse(words.map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_help_tells_the_configurations_defaults() {
        use neuwerkd::config::{Config, DEFAULT_PATH};
        let help = parsed("run --help").err().map(|error| error.to_string());
        assert!(help.is_some_and(|help| help.contains(DEFAULT_PATH)));
        let run_dir = Config::keys()
            .iter()
            .find(|key| key.path == "runtime.run_dir");
        let socket = run_dir.map(|key| format!("{}/admin.sock", key.default));
        assert_eq!(socket.as_deref(), Some(CONTROL_SOCKET));
    }

    #[test]
    fn without_a_verb_it_runs() {
        for line in [
            "",
            "--management-interface=eth0",
            "--check",
            "run",
            "run --join node1:9601 --join node2",
        ] {
            assert!(
                matches!(parsed(line).expect(line).0.verb, Verb::Run(_)),
                "{line}"
            );
        }
    }

    #[test]
    fn help_and_version_are_not_runs() {
        use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
        assert_eq!(
            parsed("--help").err().map(|error| error.kind()),
            Some(DisplayHelp)
        );
        assert_eq!(
            parsed("-V").err().map(|error| error.kind()),
            Some(DisplayVersion)
        );
    }

    #[test]
    fn members_may_be_listed_with_and_without_the_word() {
        for line in ["cluster members --json", "cluster members list --json"] {
            let Verb::Cluster(Cluster::Members { verb, target }) = parsed(line).expect(line).0.verb
            else {
                panic!("{line}");
            };
            let target = match verb {
                None => target,
                Some(MembersVerb::List(target)) => target,
                Some(other) => panic!("{line}: {other:?}"),
            };
            assert!(target.json, "{line}");
        }
    }

    #[test]
    fn command_lines_that_mean_nothing_are_refused() {
        for line in [
            "--no-such-flag=1",
            "walk",
            "status --token x",
            "status --url https://a:1 --http-addr b:1",
            "status --url https://a:1 --control-socket /s",
            "status --url https://a:1 --token x --token-file /t",
            "policy apply",
            "policy apply f --wait some",
            "policy apply f --timeout 5",
            "auth token mint",
            "auth token mint --sub a --cluster-addr b:1 --http-tls-dir /t",
            "auth key",
            "auth key retire",
            "auth key list --cluster-addr b:1 --http-tls-dir /t",
            "cluster changes --limit 0",
            "policy apply f --dry-run --if-match x",
            "completions tcsh",
            "cluster members remove",
            "cluster members remove a --confirm",
            "cluster members remove a --confirm b --force",
            "cluster voters set",
            "cluster wait",
            "cluster token bootstrap maybe",
            "cluster token create --uses -1",
            "cluster approval",
            "cluster backup --output /f --recipient age1x --passphrase-file /p",
            "cluster restore --key-file /k",
            "flows",
            "flows list --rule r",
            "flows top --by size",
            "flows top --count 0",
            "nat list",
            "findings --type tls_deny",
            "findings --limit 0",
            "explain dns a.example",
            "explain dns --from 10.0.0.2",
            "explain packet --from 10.0.0.2",
            "explain packet --from a --to b",
            "explain packet --from 10.0.0.2 --to 1.1.1.1 --policy f --node 1",
            "trace --seconds 0",
            "drops --counters --reason martian",
        ] {
            assert_eq!(
                parsed(line).err().map(|error| error.exit_code()),
                Some(2),
                "{line}"
            );
        }
    }

    #[test]
    fn published_command_lines_are_read() {
        for line in [
            "auth token mint --sub ops --roles admin,readonly --ttl 24h --cluster-addr 10.0.0.1:9600",
            "auth token mint --sub ops --cluster-addr 10.0.0.1:9600 --cluster-tls-dir /c/tls",
            "auth key rotate --cluster-addr 10.0.0.1:9600 --cluster-tls-dir /var/lib/neuwerk/cluster/tls",
            "auth key list --cluster-addr 10.0.0.1:9600",
            "auth key retire k1 --http-tls-dir /var/lib/neuwerk/http-tls",
            "auth token mint --sub ops --kid k1 --http-tls-dir /var/lib/neuwerk/http-tls",
            "cluster members list --http-addr 10.0.0.1:8443 --token t --ca /ca.crt",
            "policy apply p.yaml --wait committed --timeout 2s --if-match \"x-1\"",
            "policy apply - --format json",
            "cluster members remove 00000000000000a1 --force --http-addr 10.0.0.1:8443 --token t",
            "cluster voters set --ids a1,a2,a3 --http-addr 10.0.0.1:8443 --token t --ca /ca.crt",
            "cluster members promote node-4 --auto",
            "cluster leave --confirm neuwerk",
            "cluster drain --wait 5m",
            "cluster wait --ready --members 3 --timeout 1m",
            "cluster preflight --join node1 --cluster-bind 10.0.0.4:9600 --url https://10.0.0.1:8443 --token-file /t",
            "cluster token create --ttl 30m --uses 3",
            "cluster token list --json",
            "cluster token revoke 00000000-0000-0000-0000-000000000001",
            "cluster token bootstrap rotate",
            "cluster approval manual",
            "cluster members approve 00000000000000a1",
            "cluster ca status",
            "cluster ca rotate --abort",
            "sysdump",
            "sysdump --output /tmp/a.tar.gz",
            "sysdump --cluster --output - --http-addr 10.0.0.1:8443 --token t",
            "cluster backup --output /f --recipient age1x",
            "cluster backup --output /f --passphrase-file /p --url https://a:1 --token t",
            "cluster backup verify /f --key-file /k",
            "cluster backup keygen --output /k",
            "cluster restore --from /f --key-file /k",
            "cluster recover",
            "cluster recover --data-dir /a --data-dir /b --confirm berlin",
            "cluster rejoin --join node1:9601",
            "flows list --from 10.0.0.0/8 --proto tcp --dport 443 --state established --json",
            "flows top --by bytes --count 20 --node 00000000000000a1",
            "flows kill --group clients --rule web --reset",
            "nat --json",
            "findings --group clients --type icmp_deny --within 1h --limit 10 --node 00000000000000a1",
            "explain packet --from 10.0.0.2 --to 1.1.1.1 --proto tcp --dport 443",
            "explain dns a.example --from 10.0.0.2",
            "explain dns a.example. --from fd00::2 --policy /p.yaml",
            "explain packet --from fd00::2 --to 2001:db8::1 --proto icmpv6 --icmp-type 128 --policy /p.yaml",
            "trace --to 1.1.1.1 --count 5 --seconds 10 --json",
            "drops --reason policy_denied --pcap /tmp/f.pcapng",
            "drops --counters",
        ] {
            assert!(
                parsed(line).is_ok(),
                "{line}: {}",
                parsed(line).expect_err("refused")
            );
        }
    }
}
