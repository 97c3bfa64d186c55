//! `neuwerk cluster preflight`: will a node that is about to be started be able to join, and to keep up?
//!
//! It looks at what the node's own configuration names: the disk, the listeners, the way to the members given by
//! `--join`. What only a member can tell (the way back, the clocks, whether somebody has this node's id or address) is
//! asked of one if `--url` and a token are given.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::Client;
use api::cluster::{ClusterMemberView, PreflightRequest};
use clap::ArgMatches;
use neuwerkd::config::{Config, Flags};
use neuwerkd::interfaces;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::args::Preflight;
use crate::check::{self, Finding, Verdict};
use crate::connect::client;
use crate::failure::Failure;

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A round trip above this makes elections, and every write, slow.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(20);

/// Syncs that are measured.
const SYNCS: usize = 32;

/// A sync above these makes every write slow, or elections likely.
const SLOW_SYNC: Duration = Duration::from_millis(20);
const TOO_SLOW_SYNC: Duration = Duration::from_millis(200);

/// How far clocks may be apart.
const CLOCK_WARNING_MS: u64 = 1_000;
const CLOCK_FAILURE_MS: u64 = 30_000;

/// Addresses of one name that are tried, at most.
const MAX_ADDRESSES: usize = 8;

pub(crate) async fn preflight(
    preflight: Preflight,
    matches: &ArgMatches,
) -> Result<ExitCode, Failure> {
    let config = Config::load(preflight.config.as_deref(), &Flags::from_matches(matches))?;
    let target = &preflight.target;
    let member = match (&target.url, &target.http_addr) {
        (None, None) => None,
        _ => Some(client(target)?),
    };
    let mut findings = vec![mode(&config), disk(&config.cluster.data_dir)];
    // Held open while the member connects back.
    let mut held = Vec::new();
    for (check, address) in [
        ("cluster listener", config.cluster.bind),
        ("join listener", config.cluster.join_bind()),
    ] {
        let running = config.runtime.control_socket().exists();
        findings.push(listener(check, address, running, &mut held));
    }
    for peer in &config.cluster.join {
        findings.extend(way_to(&config, &peer.host, peer.port).await);
    }
    match member {
        Some(member) => findings.extend(by_member(&config, &member).await),
        None => {
            let detail = "give --url and --token-file of a member";
            for check in ["way back", "clock", "duplicates"] {
                findings.push(Finding::new(check, Verdict::Skipped, detail));
            }
        }
    }
    drop(held);
    check::report(&findings, target.json)
}

fn mode(config: &Config) -> Finding {
    let check = "configuration";
    if !config.cluster_mode {
        return Finding::new(
            check,
            Verdict::Failed,
            "cluster mode is off: give --cluster-bind and --join",
        );
    }
    let detail = format!("advertises {}", config.cluster.advertise());
    if config.cluster.advertise().ip().is_loopback() {
        let detail = format!("{detail}, which no other host reaches; set --cluster-bind");
        return Finding::new(check, Verdict::Warning, detail);
    }
    Finding::new(check, Verdict::Ok, detail)
}

/// Measures what every write waits for.
fn disk(data_dir: &Path) -> Finding {
    let check = "sync time";
    let mut there = data_dir;
    while !there.is_dir() {
        match there.parent() {
            Some(parent) => there = parent,
            None => break,
        }
    }
    let shown = there.display();
    match syncs(there) {
        Ok((median, worst)) => {
            let verdict = match () {
                () if median > TOO_SLOW_SYNC => Verdict::Failed,
                () if median > SLOW_SYNC || worst > TOO_SLOW_SYNC => Verdict::Warning,
                () => Verdict::Ok,
            };
            let mut detail = format!(
                "{:.1} ms in the middle, {:.1} ms at worst, in {shown}",
                median.as_secs_f64() * 1e3,
                worst.as_secs_f64() * 1e3
            );
            if verdict != Verdict::Ok {
                detail.push_str("; use a disk of this node's own");
            }
            Finding::new(check, verdict, detail)
        }
        Err(error) => Finding::new(check, Verdict::Failed, format!("{shown}: {error}")),
    }
}

fn syncs(directory: &Path) -> std::io::Result<(Duration, Duration)> {
    let path = directory.join(format!(".neuwerk-preflight-{}", std::process::id()));
    let _gone_again = Removed(path.clone());
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&[0; 4096])?;
        let begun = std::time::Instant::now();
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok((times[SYNCS / 2], times[SYNCS - 1]))
}

/// A file that goes with this value.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn listener(
    check: &'static str,
    address: SocketAddr,
    running: bool,
    held: &mut Vec<TcpListener>,
) -> Finding {
    match TcpListener::bind(address) {
        Ok(listener) => {
            held.push(listener);
            Finding::new(check, Verdict::Ok, format!("{address} is free"))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse && running => Finding::new(
            check,
            Verdict::Ok,
            format!("{address} is this node's, which runs"),
        ),
        Err(error) => Finding::new(check, Verdict::Failed, format!("{address}: {error}")),
    }
}

/// Whether a member that was given by `--join` is reached: both of its listeners, fast, and by packets of full size.
async fn way_to(config: &Config, host: &str, port: u16) -> Vec<Finding> {
    let check = "way to members";
    let addresses: Vec<IpAddr> = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.map(|at| at.ip()).take(MAX_ADDRESSES).collect(),
        Err(error) => {
            let detail = format!("{host}: {error}; check the name, or DNS");
            return vec![Finding::new(check, Verdict::Failed, detail)];
        }
    };
    let own = config.cluster.advertise();
    let own_join = SocketAddr::new(own.ip(), config.cluster.join_bind().port());
    let mut findings = Vec::new();
    for ip in addresses {
        let join = SocketAddr::new(ip, port);
        if join == own_join || join == own {
            continue;
        }
        let mut local = None;
        for target in [join, SocketAddr::new(ip, port.saturating_sub(1))] {
            match connect(target).await {
                Ok((from, took)) => {
                    local = Some(from);
                    findings.push(reached(check, target, took));
                }
                Err(reason) => {
                    let detail = format!(
                        "{host}, {target}: {reason}; is it up, and open in every firewall between?"
                    );
                    findings.push(Finding::new(check, Verdict::Failed, detail));
                }
            }
        }
        if let Some(local) = local {
            findings.push(full_size(local, join).await);
        }
    }
    findings
}

fn reached(check: &'static str, target: SocketAddr, took: Duration) -> Finding {
    let detail = format!("{target} in {:.1} ms", took.as_secs_f64() * 1e3);
    if took > LONG_ROUND_TRIP {
        let detail = format!(
            "{detail}: the timers of consensus will be longer, and so will the time until a lost leader is noticed"
        );
        return Finding::new(check, Verdict::Warning, detail);
    }
    Finding::new(check, Verdict::Ok, detail)
}

/// The address that this host uses towards `target`, and how long a round trip takes.
async fn connect(target: SocketAddr) -> Result<(IpAddr, Duration), String> {
    let begun = Instant::now();
    match timeout(CONNECT_LIMIT, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => {
            let local = stream.local_addr().map_err(|error| error.to_string())?;
            Ok((local.ip(), begun.elapsed()))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
    }
}

/// Whether a packet as large as the interface takes arrives. Nobody listens on the port for UDP, so the other kernel
/// says that it got it by refusing it; Linux does not let such a packet be cut up on the way.
async fn full_size(local: IpAddr, target: SocketAddr) -> Finding {
    let check = "packet size";
    let Some((interface, mtu)) = interfaces::mtu_of(local) else {
        return Finding::new(check, Verdict::Skipped, format!("no interface has {local}"));
    };
    let headers = if local.is_ipv4() { 28 } else { 48 };
    let payload = mtu.min(u16::MAX.into()).saturating_sub(headers);
    match (
        is_refused(local, target, 1).await,
        is_refused(local, target, payload).await,
    ) {
        (_, Some(true)) => Finding::new(
            check,
            Verdict::Ok,
            format!("{mtu} bytes of {interface} reach {target}"),
        ),
        (Some(true), _) => Finding::new(
            check,
            Verdict::Failed,
            format!(
                "{mtu} bytes of {interface} do not reach {target}, smaller packets do: set the MTU of the path"
            ),
        ),
        _ => Finding::new(
            check,
            Verdict::Skipped,
            format!("{target} tells nothing about UDP packets"),
        ),
    }
}

/// Whether a datagram of this size is refused at the other end; none if it could not be sent.
async fn is_refused(local: IpAddr, target: SocketAddr, size: usize) -> Option<bool> {
    /// Refusals are limited to one a second.
    const PAUSE: Duration = Duration::from_millis(1_100);
    let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await.ok()?;
    socket.connect(target).await.ok()?;
    let mut nothing = [0; 1];
    for _ in 0..3 {
        // The refusal of the datagram before this one may come here.
        if let Err(error) = socket.send(&vec![0; size]).await {
            return Some(error.kind() == ErrorKind::ConnectionRefused);
        }
        match timeout(PAUSE, socket.recv(&mut nothing)).await {
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Some(true),
            Ok(_) => return Some(false),
            Err(_) => {}
        }
    }
    Some(false)
}

/// What only a member can tell.
async fn by_member(config: &Config, member: &Client) -> Vec<Finding> {
    let own = config.cluster.advertise();
    let join = SocketAddr::new(own.ip(), config.cluster.join_bind().port());
    let request = PreflightRequest {
        addresses: vec![own.to_string(), join.to_string()],
    };
    let answer = match member.preflight(&request).await {
        Ok(answer) => answer,
        Err(error) => {
            let detail = format!("the member was not asked: {error}");
            return vec![Finding::new("way back", Verdict::Failed, detail)];
        }
    };
    // The member's clock was read at the end, after it had connected.
    let offset_ms = answer.time_ms.abs_diff(now_ms());
    let mut findings: Vec<Finding> = answer
        .addresses
        .iter()
        .map(|reached| match &reached.failure {
            None => Finding::new(
                "way back",
                Verdict::Ok,
                format!("{} is reached", reached.address),
            ),
            Some(reason) => Finding::new(
                "way back",
                Verdict::Failed,
                format!(
                    "{}: {reason}; is it open in every firewall between?",
                    reached.address
                ),
            ),
        })
        .collect();
    findings.push(clock(offset_ms));
    findings.push(match member.members().await {
        Ok(answer) => duplicates(
            &answer.members,
            own,
            known_id(&config.cluster.node_id_path).as_deref(),
            &host_name(),
        ),
        Err(error) => Finding::new("duplicates", Verdict::Failed, error.to_string()),
    });
    findings
}

fn clock(offset_ms: u64) -> Finding {
    let verdict = match offset_ms {
        CLOCK_FAILURE_MS.. => Verdict::Failed,
        CLOCK_WARNING_MS.. => Verdict::Warning,
        _ => Verdict::Ok,
    };
    let mut detail = format!("{offset_ms} ms from the member's");
    if verdict != Verdict::Ok {
        detail.push_str(": run a time service on both");
    }
    Finding::new("clock", verdict, detail)
}

/// Whether somebody has what should be this node's alone.
fn duplicates(
    members: &[ClusterMemberView],
    own: SocketAddr,
    own_id: Option<&str>,
    name: &str,
) -> Finding {
    let check = "duplicates";
    let own = own.to_string();
    for member in members {
        let ClusterMemberView { node_id, addr, .. } = member;
        let same_id = own_id == Some(node_id);
        if same_id && *addr != own && member.live == Some(true) {
            let detail = format!(
                "{node_id}, which this node has on disk, is live at {addr}: this is a copy of that machine; remove its data directory and node id"
            );
            return Finding::new(check, Verdict::Failed, detail);
        }
        if !same_id && *addr == own {
            let detail = format!(
                "{addr} is the address of {node_id} ({}): remove that member first, or use another address",
                member.name
            );
            return Finding::new(check, Verdict::Failed, detail);
        }
        if !same_id && member.name == name {
            let detail =
                format!("{node_id} has the host name {name} too: operators will mix them up");
            return Finding::new(check, Verdict::Warning, detail);
        }
    }
    Finding::new(
        check,
        Verdict::Ok,
        "no member has this node's id, address or name",
    )
}

fn known_id(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().expect("there is room");
        let finding = disk(&dir.path().join("not/there/yet"));
        assert_ne!(finding.verdict, Verdict::Skipped, "{finding:?}");
        assert!(finding.detail.contains("in the middle"), "{finding:?}");
        let left = std::fs::read_dir(dir.path()).expect("it is there").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_listener_in_use_fails_unless_it_is_the_nodes_own() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = taken.local_addr().expect("bound");
        let mut held = Vec::new();
        let verdict = |running, held: &mut Vec<TcpListener>| {
            listener("cluster listener", address, running, held).verdict
        };
        assert_eq!(verdict(false, &mut held), Verdict::Failed);
        assert_eq!(verdict(true, &mut held), Verdict::Ok);
        drop(taken);
        assert_eq!(verdict(false, &mut held), Verdict::Ok);
        assert_eq!(held.len(), 1);
    }

    #[test]
    fn what_another_has_is_named() {
        let member = |node_id: &str, name: &str, addr: &str| ClusterMemberView {
            node_id: node_id.into(),
            name: name.into(),
            addr: addr.into(),
            live: Some(true),
            ..ClusterMemberView::default()
        };
        let members = [
            member("00000000000000a1", "one", "10.0.0.1:9600"),
            member("00000000000000a2", "two", "10.0.0.2:9600"),
        ];
        let verdict = |own: &str, id: Option<&str>, name: &str| {
            duplicates(&members, own.parse().expect("an address"), id, name).verdict
        };
        let (own, new) = ("10.0.0.1:9600", "10.0.0.9:9600");
        assert_eq!(verdict(own, Some("00000000000000a1"), "one"), Verdict::Ok);
        assert_eq!(verdict(new, None, "nine"), Verdict::Ok);
        assert_eq!(verdict(new, None, "two"), Verdict::Warning);
        assert_eq!(verdict(own, None, "nine"), Verdict::Failed);
        assert_eq!(
            verdict(new, Some("00000000000000a1"), "one"),
            Verdict::Failed
        );
    }

    #[tokio::test]
    async fn a_full_packet_reaches_this_host() {
        let local = IpAddr::from([127, 0, 0, 1]);
        let finding = full_size(local, SocketAddr::new(local, 9)).await;
        assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
    }

    #[test]
    fn clocks_may_differ_a_little() {
        assert_eq!(clock(20).verdict, Verdict::Ok);
        assert_eq!(clock(1_500).verdict, Verdict::Warning);
        assert_eq!(clock(3_600_000).verdict, Verdict::Failed);
    }
}
