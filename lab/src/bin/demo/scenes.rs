//! What the demo shows, scene by scene.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::address::{self, FAMILIES, Family};
use lab::client::{self, Outcome, PATIENCE};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::http;
use lab::live::{Account, Live};
use lab::management::{Management, unverified_status};
use lab::server::PORT;
use lab::wait;
use serde_json::Value;

use crate::report::{Report, span};

const POLICY: &str = "/api/v1/policy";
const LIMIT: Duration = Duration::from_secs(30);
/// One attempt to connect, where the time until the first that succeeds is measured.
const ATTEMPT: Duration = Duration::from_millis(40);
/// Bytes of a body that is compared.
const BODY_BYTES: usize = 1_000_000;
/// Connections of the client that spreads them.
const SPREAD: usize = 48;

/// Plays every scene. An error means that the next scene would make no sense.
pub(crate) fn play(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    join(cluster, report)?;
    replicate(cluster, report)?;
    carry(cluster, report);
    let killed = lose_leader(cluster, report)?;
    judge_again(cluster, report, killed)?;
    come_back(cluster, report, killed);
    boot_alone(cluster, report)?;
    name_the_missing(cluster, report)
}

fn join(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    report.step("starting the joiners, nodes 2 and 3, before there is anything to join");
    for node in [2, 3] {
        cluster.node(node).start()?;
    }
    for node in [2, 3] {
        report.check(
            &format!("node {node} waits: /health 200, /ready 503"),
            || {
                let status = |path| {
                    unverified_status(&cluster.topology.operator, address::https(node), path)
                };
                wait::until_true("waiting", LIMIT, || {
                    Ok(status("/health")? == 200 && status("/ready")? == 503)
                })
                .map(span)
            },
        );
    }
    report.step("starting the seed, node 1");
    let begin = Instant::now();
    cluster.node(1).start()?;
    for node in 1..=3 {
        report.check(
            &format!("node {node} ready, since the seed's start"),
            || {
                cluster.wait_node_ready(node)?;
                Ok(span(begin.elapsed()))
            },
        );
    }
    cluster.api(1).context("no token could be minted")?;
    report.check(
        "every node votes, once it has kept up for ten seconds",
        || {
            cluster.wait_voters()?;
            Ok(span(begin.elapsed()))
        },
    );
    Ok(())
}

fn replicate(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let leader = wait::until("a leader", LIMIT, || cluster.leader(1).map(Some))?.0;
    let follower = if leader == 2 { 3 } else { 2 };
    report.step(&format!(
        "node {leader} leads; putting a policy through node {follower}, a follower"
    ));
    for node in 1..=3 {
        report.check(
            &format!("node {node} denies as long as there is no policy"),
            || silent(cluster, node, address::allowed_server(Family::V4)),
        );
    }
    let api = cluster.api(follower)?;
    let policy = policy_allowing(&allowed_servers());
    let begin = Instant::now();
    report.check("committed, as the follower answers", || {
        let response = api.send_json("PUT", &format!("{POLICY}?wait=committed"), &policy)?;
        ensure!(
            matches!(response.status, 200 | 202),
            "{} {}",
            response.status,
            response.text()
        );
        Ok(span(begin.elapsed()))
    });
    let shared: &Cluster = cluster;
    let enforced: Vec<Result<Duration>> = thread::scope(|scope| {
        let first = |node| move || first_connection(shared, node, begin);
        let watches: Vec<_> = (1..=3).map(|node| scope.spawn(first(node))).collect();
        watches
            .into_iter()
            .map(|watch| watch.join().expect("a probe does not panic"))
            .collect()
    });
    for (node, time) in (1..).zip(enforced) {
        report.check(
            &format!("node {node} lets the first packet through, since the PUT"),
            || time.map(span),
        );
    }
    report.check(
        "the same again, waiting until every member enforces it",
        || {
            let begin = Instant::now();
            api.put_policy(&policy)?;
            Ok(span(begin.elapsed()))
        },
    );
    Ok(())
}

fn carry(cluster: &Cluster, report: &mut Report) {
    report.step("connections through every node, allowed and denied");
    for node in 1..=3 {
        for family in FAMILIES {
            let name = name(family);
            report.check(
                &format!("node {node}, {name}: allowed, {BODY_BYTES} bytes compared"),
                || {
                    cluster
                        .fetch(node, address::allowed_server(family), BODY_BYTES)
                        .map(span)
                },
            );
            report.check(&format!("node {node}, {name}: denied"), || {
                silent(cluster, node, address::denied_server(family))
            });
        }
    }
    report.check(
        &format!("{SPREAD} connections of one client, spread over the nodes"),
        || {
            let shares = spread(cluster)?;
            ensure!(shares.len() == 3, "not every node got some: {shares:?}");
            Ok(shares
                .values()
                .map(|(v4, v6)| format!("{v4}+{v6}"))
                .collect::<Vec<_>>()
                .join(" / "))
        },
    );
}

/// Kills the leader and returns its number.
fn lose_leader(cluster: &mut Cluster, report: &mut Report) -> Result<u8> {
    let leader = wait::until("a leader", LIMIT, || cluster.leader(1).map(Some))?.0;
    report.step(&format!(
        "killing the leader, node {leader}, with connections open through the others"
    ));
    let survivors = others(leader);
    let api = cluster.api(survivors[0])?;
    let mut lives = Vec::new();
    for &node in &survivors {
        for family in FAMILIES {
            lives.push(cluster.live(node, address::allowed_server(family))?);
        }
    }
    thread::sleep(Duration::from_millis(500));
    lives.iter().for_each(Live::begin_gap);
    cluster.node(leader).kill()?;
    report.check("time until the next accepted write", || {
        let policy = policy_allowing(&allowed_servers());
        let put = || {
            let response = api.send_json("PUT", &format!("{POLICY}?wait=committed"), &policy)?;
            ensure!(
                matches!(response.status, 200 | 202),
                "{} {}",
                response.status,
                response.text()
            );
            Ok(true)
        };
        wait::until_true("an accepted write", LIMIT, put).map(span)
    });
    for &node in &survivors {
        report.check(
            &format!("node {node} forwards new connections meanwhile"),
            || {
                cluster
                    .fetch(node, address::allowed_server(Family::V4), BODY_BYTES)
                    .map(span)
            },
        );
    }
    thread::sleep(Duration::from_secs(1));
    report.check(
        "open connections through the survivors: lines lost, longest gap",
        || {
            let accounts: Vec<Account> = lives.iter().map(Live::account).collect();
            if let Some(reason) = accounts.iter().find_map(|account| account.ended.clone()) {
                anyhow::bail!("one ended: {reason}");
            }
            let gap = accounts
                .iter()
                .map(|account| account.longest_gap)
                .max()
                .unwrap_or_default();
            Ok(format!(
                "0 of {}, {}",
                accounts.iter().map(|account| account.lines).sum::<u64>(),
                span(gap)
            ))
        },
    );
    Ok(leader)
}

fn judge_again(cluster: &mut Cluster, report: &mut Report, down: u8) -> Result<()> {
    report.step(
        "changing the policy after the failover, with live connections that it allows and denies",
    );
    let survivors = others(down);
    let api = cluster.api(survivors[1])?;
    let both = [
        address::allowed_server(Family::V4),
        address::denied_server(Family::V4),
    ];
    let put = |allowed: &[IpAddr]| put_named(&api, &policy_allowing(allowed));
    put(&both)?;
    let mut pairs = Vec::new();
    for &node in &survivors {
        let open = |server| {
            wait::until("a connection", LIMIT, || {
                cluster.live(node, server).map(Some)
            })
        };
        pairs.push((node, open(both[0])?.0, open(both[1])?.0));
    }
    thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    put(&both[..1])?;
    for (node, kept, ended) in &pairs {
        report.check(
            &format!("node {node}: no line of the denied connection after"),
            || {
                // Silence for a while says that the last line was the last.
                const SILENCE: Duration = Duration::from_millis(300);
                let silence = || {
                    let lines = ended.account().lines;
                    thread::sleep(SILENCE);
                    Ok(ended.account().lines == lines)
                };
                wait::until_true("an end of lines", LIMIT, silence)?;
                let stopped = begin.elapsed().saturating_sub(SILENCE);
                Ok(format!("{} at most", span(stopped)))
            },
        );
        report.check(
            &format!("node {node}: the allowed connection goes on, lines lost"),
            || {
                let before = kept.account().lines;
                wait::until_true("more lines", LIMIT, || {
                    Ok(kept.account().lines > before + 20)
                })?;
                let account = kept.account();
                ensure!(account.ended.is_none(), "it ended: {:?}", account.ended);
                Ok(format!("0 of {}", account.lines))
            },
        );
    }
    Ok(())
}

fn come_back(cluster: &mut Cluster, report: &mut Report, down: u8) {
    report.step(&format!("starting node {down} again"));
    report.check(&format!("node {down} ready, since its start"), || {
        let begin = Instant::now();
        cluster.node(down).start()?;
        cluster.wait_node_ready(down)?;
        Ok(span(begin.elapsed()))
    });
    report.check(
        &format!("node {down} enforces what was decided while it was down"),
        || {
            cluster.fetch(down, address::allowed_server(Family::V4), BODY_BYTES)?;
            silent(cluster, down, address::denied_server(Family::V4))
        },
    );
}

/// The node that is cut off in the last two scenes.
const ALONE: u8 = 3;

fn boot_alone(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    report.step(&format!(
        "restarting node {ALONE} while it can reach no peer"
    ));
    let api = cluster.api(1)?;
    put_named(&api, &policy_allowing(&allowed_servers()))?;
    cluster.node(ALONE).terminate()?;
    cluster.topology.isolate(ALONE)?;
    cluster.node(ALONE).start()?;
    let own = cluster.node(ALONE).management()?;
    report.check(
        "it forwards: /ready/traffic 200, /ready 503, since its start",
        || {
            let time = wait::until_true("traffic", LIMIT, || {
                Ok(own.status_of("/ready/traffic")? == 200)
            })?;
            ensure!(own.status_of("/ready")? == 503, "/ready is not 503");
            Ok(span(time))
        },
    );
    for family in FAMILIES {
        report.check(
            &format!("same verdicts as before, {}", name(family)),
            || {
                cluster.fetch(ALONE, address::allowed_server(family), BODY_BYTES)?;
                silent(cluster, ALONE, address::denied_server(family))
            },
        );
    }
    Ok(())
}

fn name_the_missing(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    report.step(&format!(
        "changing the policy while node {ALONE} is cut off"
    ));
    let missing = cluster.node_id(1, ALONE)?;
    let api = cluster.api(1)?;
    let both = [
        address::allowed_server(Family::V4),
        address::denied_server(Family::V4),
    ];
    report.check(&format!("PUT answers 202 and names node {ALONE}"), || {
        let put = || {
            let response = api.send_json("PUT", POLICY, &policy_allowing(&both))?;
            ensure!(response.status != 503, "{}", response.text());
            Ok(Some(response))
        };
        let (response, time) = wait::until("an answer", LIMIT, put)?;
        ensure!(
            response.status == 202,
            "{} {}",
            response.status,
            response.text()
        );
        let named = named(&response)?;
        ensure!(
            named == [missing.clone()],
            "it names {named:?}, node {ALONE} is {missing}"
        );
        Ok(format!("{}, after {}", named.join(", "), span(time)))
    });
    report.check(
        "the others enforce the change, the one cut off does not",
        || {
            for node in others(ALONE) {
                cluster.fetch(node, both[1], 1000)?;
            }
            silent(cluster, ALONE, both[1])
        },
    );
    cluster.topology.heal(ALONE)?;
    report.check("back in reach, it enforces the change after", || {
        first_connection_to(cluster, ALONE, both[1], Instant::now()).map(span)
    });
    report.check(&format!("node {ALONE} ready again"), || {
        cluster.wait_node_ready(ALONE).map(span)
    });
    report.check(
        "and the policy that the demo began with, enforced everywhere",
        || {
            let begin = Instant::now();
            api.put_policy(&policy_allowing(&allowed_servers()))?;
            Ok(span(begin.elapsed()))
        },
    );
    Ok(())
}

/// Puts a policy that a member which is down may keep from being enforced everywhere.
fn put_named(api: &Management, policy: &Value) -> Result<http::Response> {
    let put = || {
        let response = api.send_json("PUT", &format!("{POLICY}?wait=all&timeout=3s"), policy)?;
        ensure!(
            matches!(response.status, 200 | 202),
            "{} {}",
            response.status,
            response.text()
        );
        Ok(Some(response))
    };
    Ok(wait::until("an accepted policy", LIMIT, put)?.0)
}

/// The nodes that a 202 names.
fn named(response: &http::Response) -> Result<Vec<String>> {
    let body = response.json()?;
    let pending = body["pending"].as_array().context("pending is a list")?;
    Ok(pending
        .iter()
        .filter_map(|member| member["node_id"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The time from `begin` until a connection through `node` to the allowed server comes about.
fn first_connection(cluster: &Cluster, node: u8, begin: Instant) -> Result<Duration> {
    first_connection_to(cluster, node, address::allowed_server(Family::V4), begin)
}

fn first_connection_to(
    cluster: &Cluster,
    node: u8,
    server: IpAddr,
    begin: Instant,
) -> Result<Duration> {
    let (source, target) = (
        address::client(node, Family::V4),
        SocketAddr::new(server, PORT),
    );
    let connect = || {
        Ok(client::probe(&cluster.topology.client, source, target, ATTEMPT) == Outcome::Connected)
    };
    wait::until_true("a connection", LIMIT, connect)?;
    Ok(begin.elapsed())
}

/// That nothing comes back from `server` through `node`.
fn silent(cluster: &Cluster, node: u8, server: IpAddr) -> Result<Outcome> {
    let outcome = cluster.probe(node, server);
    ensure!(
        outcome == Outcome::Silent,
        "{server} through node {node}: {outcome}"
    );
    Ok(outcome)
}

/// How many connections of the client that spreads them took which node, by what the server sees: IPv4 and IPv6.
fn spread(cluster: &Cluster) -> Result<BTreeMap<u8, (usize, usize)>> {
    let mut shares = BTreeMap::new();
    for family in FAMILIES {
        let target = SocketAddr::new(address::allowed_server(family), PORT);
        let source = address::spread_client(family);
        for _ in 0..SPREAD / 2 {
            let seen = cluster.topology.client.enter(|| -> Result<String> {
                let mut stream = client::connect_from(Some(source), target, PATIENCE)?;
                Ok(
                    http::exchange(&mut stream, "GET", &target.to_string(), "/who", &[], b"")?
                        .text(),
                )
            })?;
            let through = |node: &u8| address::outside(*node, family).to_string() == seen;
            let node = (1..=3)
                .find(through)
                .with_context(|| format!("{seen} is no node's address"))?;
            let share: &mut (usize, usize) = shares.entry(node).or_default();
            match family {
                Family::V4 => share.0 += 1,
                Family::V6 => share.1 += 1,
            }
        }
    }
    Ok(shares)
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn others(node: u8) -> Vec<u8> {
    (1..=3).filter(|&other| other != node).collect()
}
