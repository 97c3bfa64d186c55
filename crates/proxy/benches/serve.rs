//! Queries a second from the cache, beside dnsdist and unbound on the same cores: `dnsperf` asks each in
//! turn for the same names. Needs Debian's dnsperf; dnsdist and unbound are left out where they are not
//! installed. `cargo bench -p proxy`.

#![allow(clippy::print_stdout, reason = "the table is the result")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dns::reply::Denial;
use policy::{Compiled, Document};
use prometheus_client::registry::Registry;
use proxy::dns::{NoGrants, Proxy, Settings, Upstream};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

/// Names that are asked for.
const NAMES: usize = 10_000;
const SECONDS: &str = "5";

fn name(i: usize) -> String {
    format!("host{i}.zone{}.example.com", i % 97)
}

/// A policy that allows the names asked for, beside `more` others.
fn policy(more: usize) -> Arc<Compiled> {
    let mut json = String::from(
        "{\"source_groups\":[{\"id\":\"g\",\"mode\":\"enforce\",\"sources\":{\"cidrs\":[\"127.0.0.0/8\"]},\"rules\":[",
    );
    for start in (0..more).step_by(1_000) {
        let list: Vec<String> = (start..more.min(start + 1_000))
            .map(|i| format!("\"h{i}.svc{}.example.net\"", i % 5_003))
            .collect();
        write!(
            json,
            "{{\"id\":\"r{start}\",\"action\":\"allow\",\"match\":{{\"dns_names\":[{}]}}}},",
            list.join(",")
        )
        .unwrap();
    }
    json +=
        "{\"id\":\"ok\",\"action\":\"allow\",\"match\":{\"dns_names\":[\"**.example.com\"]}}]}]}";
    let document = Document::parse_json(json.as_bytes()).unwrap();
    Arc::new(Compiled::compile(&document, 1).unwrap())
}

/// Answers every question with one address that lives for an hour.
async fn upstream(socket: UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
        let end = 12 + buffer[12..].iter().position(|b| *b == 0).unwrap_or(0) + 5;
        let mut out = buffer[..end].to_vec();
        out[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1]);
        let _ = socket.send_to(&out, from).await;
    }
}

fn settings(upstream: SocketAddr) -> Settings {
    Settings {
        upstreams: vec![Upstream {
            address: upstream,
            tls: None,
        }],
        upstream_timeout: Duration::from_secs(2),
        allow_private_answers: vec![],
        own_addresses: Arc::new(Vec::new),
        allow_ech: false,
        more_kinds: vec![],
        denial: Denial::NxDomain,
        cache_bytes: 64 << 20,
        client_queries_per_second: 0,
        client_burst: 0,
    }
}

/// What `dnsperf` says at its end, after a first pass that fills the cache.
fn dnsperf(what: &str, server: SocketAddr, file: &str) {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let run = |extra: &[&str]| {
        let output = Command::new("dnsperf")
            .args(["-s", &ip, "-p", &port, "-d", file, "-c", "8", "-q", "200"])
            .args(extra)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&["-n", "1"]);
    let text = run(&["-l", SECONDS]);
    let wanted = ["Queries per second", "Queries lost", "Average Latency"];
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| wanted.iter().any(|w| line.starts_with(w)))
        .collect();
    println!("{what:24} {}", lines.join("; "));
}

/// A server of Debian's, which ends with the benchmark.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn other(program: &str, arguments: &[&str]) -> Option<Other> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    std::thread::sleep(Duration::from_secs(1));
    Some(Other(child))
}

fn main() {
    let dir = std::env::temp_dir().join(format!("neuwerk-dns-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let queries: String = (0..NAMES).map(|i| name(i) + " A\n").collect();
    std::fs::write(path("queries"), queries).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let up = runtime.block_on(async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(upstream(socket));
        address
    });
    let port = up.port();
    let lua = format!(
        "setLocal('127.0.0.1:5391',{{reusePort=true}})\n\
         addLocal('127.0.0.1:5391',{{reusePort=true}})\n\
         newServer('127.0.0.1:{port}')\n\
         getPool(''):setCache(newPacketCache(100000))\n"
    );
    std::fs::write(path("dnsdist.lua"), lua).unwrap();
    let unbound = format!(
        "server:\n interface: 127.0.0.1@5392\n num-threads: 2\n so-reuseport: yes\n \
         do-daemonize: no\n username: \"\"\n chroot: \"\"\n use-syslog: no\n pidfile: \"{}\"\n \
         do-not-query-localhost: no\n module-config: \"iterator\"\n\
         forward-zone:\n name: \".\"\n forward-addr: 127.0.0.1@{port}\n",
        path("unbound.pid")
    );
    std::fs::write(path("unbound.conf"), unbound).unwrap();
    for _ in 0..2 {
        for names in [10, 100_000] {
            let compiled = policy(names);
            let stop = CancellationToken::new();
            let address = runtime.block_on(async {
                let mut registry = Registry::default();
                let policy = Box::new(move || Arc::clone(&compiled));
                let proxy = Proxy::new(settings(up), policy, Arc::new(NoGrants), &mut registry);
                proxy
                    .listen((Ipv4Addr::LOCALHOST, 0).into(), 2, &stop)
                    .unwrap()
            });
            dnsperf(
                &format!("neuwerk, {names} names"),
                address,
                &path("queries"),
            );
            stop.cancel();
        }
        let arguments = ["--supervised", "-C", &path("dnsdist.lua")];
        if let Some(_dnsdist) = other("dnsdist", &arguments) {
            let server = ([127, 0, 0, 1], 5391).into();
            dnsperf("dnsdist, packet cache", server, &path("queries"));
        }
        if let Some(_unbound) = other("unbound", &["-d", "-c", &path("unbound.conf")]) {
            let server = ([127, 0, 0, 1], 5392).into();
            dnsperf("unbound, forwarding", server, &path("queries"));
        }
    }
    let _ = std::fs::remove_dir_all(dir);
}
