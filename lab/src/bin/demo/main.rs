//! `make demo`: three real nodes in network namespaces, shown at work and in trouble. With `ONCE=1` it ends with a
//! verdict, else it stays up and says how to talk to it.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a command-line program shows what it does"
)]

mod report;
mod scenes;

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::Result;
use lab::address::{self, Family};
use lab::cluster::Cluster;
use lab::run;
use nix::sys::signal::{SigSet, Signal};

use report::Report;

/// Set in the process that shows the demo; the one that was started watches over it.
const WATCHED: &str = "NEUWERK_DEMO_WATCHED";

fn main() -> ExitCode {
    let done = if std::env::var_os(WATCHED).is_some() {
        show()
    } else {
        watch()
    };
    done.unwrap_or_else(|error| {
        println!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the demo in a process of its own, and removes what it has made however it ends: Ctrl-C and SIGTERM included.
fn watch() -> Result<ExitCode> {
    let mut shown = Command::new(std::env::current_exe()?)
        .env(WATCHED, "1")
        .spawn()?;
    // Only now: children inherit what is blocked.
    let signals: SigSet = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ]
    .into_iter()
    .collect();
    signals.thread_block()?;
    let status = loop {
        if let Some(status) = shown.try_wait()? {
            break Some(status);
        }
        if signals.wait()? != Signal::SIGCHLD {
            println!("\ntearing down");
            shown.kill()?;
            shown.wait()?;
            break None;
        }
    };
    run::remove_leftovers();
    // Ctrl-C is how a demo ends that stays up.
    Ok(if status.map_or(!once(), |status| status.success()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show() -> Result<ExitCode> {
    let mut report = Report::new();
    report.step("laying out a client side, three nodes, an internet side with servers");
    let mut cluster = Cluster::lay_out(3)?;
    let outcome = scenes::play(&mut cluster, &mut report);
    let held = report.conclude() && outcome.is_ok();
    if let Err(error) = &outcome {
        println!("the demo could not go on: {error:#}");
    }
    if !held {
        for node in &cluster.nodes {
            println!("{}", node.log_tail());
        }
    }
    if !once() && outcome.is_ok() {
        invite(&mut cluster)?;
        loop {
            thread::park();
        }
    }
    Ok(if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether it is to end with a verdict.
fn once() -> bool {
    std::env::var_os("ONCE").is_some_and(|value| value != "0")
}

/// How to talk to the running cluster.
fn invite(cluster: &mut Cluster) -> Result<()> {
    let dir = cluster.topology.switch.run().dir().to_owned();
    let file = dir.join("env");
    let node = cluster.node(1);
    let ca = node.ca_path();
    let bin = lab::node::binary()?;
    let settings = [
        ("URL", format!("https://{}", address::https(1))),
        ("CA", ca.display().to_string()),
        ("TOKEN", cluster.token().unwrap_or_default().to_owned()),
        (
            "OPERATOR",
            format!("ip netns exec {}", cluster.topology.operator.name()),
        ),
        (
            "CLIENT",
            format!("ip netns exec {}", cluster.topology.client.name()),
        ),
        (
            "NODE1",
            format!("ip netns exec {}", cluster.topology.node(1).name()),
        ),
        (
            "SOCKET",
            dir.join("node1/run/admin.sock").display().to_string(),
        ),
        ("NEUWERK", bin.display().to_string()),
        ("ALLOWED", address::allowed_server(Family::V4).to_string()),
        ("DENIED", address::denied_server(Family::V4).to_string()),
    ];
    let lines: String = settings
        .iter()
        .map(|(name, value)| format!("{name}='{value}'\n"))
        .collect();
    let mut private = fs::OpenOptions::new();
    std::io::Write::write_all(
        &mut private
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&file)?,
        lines.as_bytes(),
    )?;
    println!(
        "
The cluster stays up until Ctrl-C. In another shell, as root:

  . {}

  $OPERATOR curl --cacert $CA -H \"Authorization: Bearer $TOKEN\" $URL/api/v1/policy
  $OPERATOR curl --cacert $CA -H \"Authorization: Bearer $TOKEN\" $URL/api/v1/cluster/members
  $NODE1 $NEUWERK status --control-socket $SOCKET

  $CLIENT curl http://$ALLOWED/who                # allowed: the server sees a node's address
  $CLIENT curl --max-time 3 http://$DENIED/who    # denied: no answer
  $CLIENT ping -c3 $ALLOWED

URL    {}   (node 2: https://{}, node 3: https://{})
CA     {}
token  in the file above
logs   {}/node*.log",
        file.display(),
        settings[0].1,
        address::https(2),
        address::https(3),
        ca.display(),
        dir.display(),
    );
    Ok(())
}
