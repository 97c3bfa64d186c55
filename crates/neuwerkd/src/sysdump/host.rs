//! The host around the node: named facts of the kernel, of its interfaces and of a few commands; and of the node's own
//! directories a listing, and those files in them that are public.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::archive::Archive;
use super::scrub::Scrub;
use crate::config::Config;

/// Of `/proc`, what says how the machine is; nothing of other processes.
const PROC: [&str; 12] = [
    "cpuinfo",
    "meminfo",
    "mounts",
    "uptime",
    "version",
    "loadavg",
    "net/dev",
    "net/route",
    "net/snmp",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
];

/// Of `/proc/self`, what says how this process is.
const PROC_SELF: [&str; 4] = ["limits", "status", "io", "cgroup"];

/// Of `/etc`.
const ETC: [&str; 3] = ["os-release", "resolv.conf", "hosts"];

/// Of an interface in `/sys/class/net`.
const INTERFACE: [&str; 7] = [
    "address",
    "carrier",
    "duplex",
    "mtu",
    "operstate",
    "speed",
    "tx_queue_len",
];

/// Parameters of the kernel whose values are kept; of all others only the name is.
const KERNEL_PARAMETERS: [&str; 14] = [
    "BOOT_IMAGE",
    "console",
    "default_hugepagesz",
    "hugepages",
    "hugepagesz",
    "intel_iommu",
    "iommu",
    "irqaffinity",
    "isolcpus",
    "mitigations",
    "nohz_full",
    "rcu_nocbs",
    "root",
    "transparent_hugepage",
];

/// What systemd is asked about the unit. Its environment is not among it.
const UNIT_PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,Result,ExecMainPID,ExecMainStatus,ExecMainCode,\
NRestarts,ActiveEnterTimestamp,InactiveEnterTimestamp,MemoryCurrent,CPUUsageNSec,TasksCurrent,LimitNOFILE,\
LimitMEMLOCK,FragmentPath,UnitFileState,WatchdogUSec";

const UNIT: &str = "neuwerk.service";

/// Files of a directory that are listed at most.
const LISTED: usize = 2_000;

/// How deep directories are listed.
const LISTED_DEPTH: usize = 5;

pub(super) fn add(
    config: Option<&Config>,
    scrub: &Scrub,
    archive: &mut Archive<File>,
) -> io::Result<()> {
    if let Some(config) = config {
        own_files(config, archive)?;
    }
    for name in PROC {
        file(Path::new("/proc").join(name), scrub, archive)?;
    }
    for name in PROC_SELF {
        file(Path::new("/proc/self").join(name), scrub, archive)?;
    }
    match fs::read_to_string("/proc/cmdline") {
        Ok(line) => archive.text("proc/cmdline", &kernel_parameters(&line))?,
        Err(error) => archive.leave_out("proc/cmdline", error),
    }
    for name in ETC {
        file(Path::new("/etc").join(name), scrub, archive)?;
    }
    interfaces(archive)?;
    for (name, line) in commands() {
        command(name, &line, scrub, archive)?;
    }
    Ok(())
}

/// A file of the system under its own path.
fn file(path: PathBuf, scrub: &Scrub, archive: &mut Archive<File>) -> io::Result<()> {
    let name = path.to_string_lossy();
    let name = name.trim_start_matches('/').to_owned();
    match read(&path, archive.limits().file_bytes) {
        Ok(text) => archive.text(&name, &scrub.text(&text)),
        Err(error) => {
            archive.leave_out(&name, error);
            Ok(())
        }
    }
}

fn read(path: &Path, limit_bytes: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit_bytes)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The kernel's command line with the values of known parameters only.
fn kernel_parameters(line: &str) -> String {
    let mut text = String::new();
    for word in line.split_ascii_whitespace() {
        match word.split_once('=') {
            Some((name, _)) if !KERNEL_PARAMETERS.contains(&name) => {
                text.push_str(&format!("{name}=(redacted)\n"));
            }
            _ => text.push_str(&format!("{word}\n")),
        }
    }
    text
}

fn interfaces(archive: &mut Archive<File>) -> io::Result<()> {
    let root = Path::new("/sys/class/net");
    let names = match fs::read_dir(root) {
        Ok(names) => names,
        Err(error) => {
            archive.leave_out("sys/class/net", error);
            return Ok(());
        }
    };
    let mut all = serde_json::Map::new();
    for name in names.filter_map(Result::ok).take(1_000) {
        let directory = name.path();
        let value = |file: PathBuf| {
            fs::read_to_string(file)
                .ok()
                .map(|text| text.trim().to_owned())
        };
        let mut facts = serde_json::Map::new();
        for fact in INTERFACE {
            if let Some(text) = value(directory.join(fact)) {
                facts.insert(fact.into(), text.into());
            }
        }
        let mut counters = serde_json::Map::new();
        for counter in fs::read_dir(directory.join("statistics"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Some(text) = value(counter.path()) {
                counters.insert(counter.file_name().to_string_lossy().into(), text.into());
            }
        }
        facts.insert("statistics".into(), counters.into());
        all.insert(name.file_name().to_string_lossy().into(), facts.into());
    }
    archive.json("sys/class/net.json", &all)
}

fn commands() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("ip-addr", vec!["ip", "-details", "addr"]),
        ("ip-link", vec!["ip", "-statistics", "link"]),
        (
            "ip-route",
            vec!["ip", "-4", "route", "show", "table", "all"],
        ),
        (
            "ip-6-route",
            vec!["ip", "-6", "route", "show", "table", "all"],
        ),
        ("ip-rule", vec!["ip", "-4", "rule"]),
        ("ip-6-rule", vec!["ip", "-6", "rule"]),
        ("ip-neigh", vec!["ip", "neigh"]),
        (
            "systemctl-show",
            vec!["systemctl", "show", UNIT, "--property", UNIT_PROPERTIES],
        ),
        ("timedatectl", vec!["timedatectl", "show"]),
        (
            "journal",
            vec![
                "journalctl",
                "--unit",
                UNIT,
                "--lines",
                "5000",
                "--no-pager",
                "--output",
                "short-iso",
            ],
        ),
    ]
}

/// What a command prints, as far as it does so in time.
fn command(
    name: &str,
    line: &[&str],
    scrub: &Scrub,
    archive: &mut Archive<File>,
) -> io::Result<()> {
    let path = format!("commands/{name}.txt");
    let limits = archive.limits();
    let time = limits.command_time.min(archive.time_left());
    match run(line, time, limits.file_bytes) {
        Ok(output) => archive.text(&path, &scrub.text(&output)),
        Err(error) => {
            archive.leave_out(&path, format!("{}: {error}", line.join(" ")));
            Ok(())
        }
    }
}

fn run(line: &[&str], time: Duration, limit_bytes: u64) -> io::Result<String> {
    // Into a file, so that a command that prints without end stops nobody.
    let mut output = tempfile::tempfile()?;
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let mut child = ::io::inherited::unmask(&mut command).spawn()?;
    let give_up = Instant::now() + time;
    let ended = loop {
        if child.try_wait()?.is_some() {
            break true;
        }
        if Instant::now() >= give_up || output.metadata()?.len() > limit_bytes {
            child.kill()?;
            child.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    output.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    output.take(limit_bytes).read_to_end(&mut bytes)?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if !ended {
        text.push_str("\n(ended early: it took too long or printed too much)\n");
    }
    Ok(text)
}

/// A file of the node that is listed and not opened.
#[derive(Serialize)]
struct Listed {
    path: String,
    bytes: u64,
    mode: String,
    owner: u32,
    modified_s: i64,
}

fn own_files(config: &Config, archive: &mut Archive<File>) -> io::Result<()> {
    let cluster = &config.cluster;
    let mut listed = Vec::new();
    let single = [&cluster.node_id_path, &cluster.token_path];
    for path in single {
        list(path, 0, &mut listed);
    }
    for directory in [
        &cluster.data_dir,
        &config.http.tls_dir,
        &config.runtime.run_dir,
    ] {
        list(directory, 0, &mut listed);
    }
    archive.json("files/listing.json", &listed)?;

    let tls = cluster.data_dir.join("tls");
    for (name, path) in [
        ("files/cluster/tls/ca.crt", tls.join("ca.crt")),
        ("files/cluster/tls/node.crt", tls.join("node.crt")),
        ("files/http-tls/ca.crt", config.http.tls_dir.join("ca.crt")),
        (
            "files/http-tls/server.crt",
            config.http.tls_dir.join("server.crt"),
        ),
    ] {
        // Written anew from what was parsed: whatever else stands in the file stays there.
        match fs::read(&path).map(|bytes| cluster::pem::parse_certificates(&bytes)) {
            Ok(Ok(certificates)) => {
                let text: String = certificates
                    .iter()
                    .map(|certificate| cluster::pem::certificate(certificate))
                    .collect();
                archive.text(name, &text)?;
            }
            Ok(Err(error)) => archive.leave_out(name, error),
            Err(error) => archive.leave_out(name, error),
        }
    }
    match cluster::meta::Meta::load(&cluster.data_dir) {
        Ok(Some(meta)) => archive.json(
            "files/cluster/meta.json",
            &json!({
                "cluster_id": meta.cluster_id.to_string(),
                "lineage": meta.lineage.to_string(),
                "node_id": meta.node_id.to_string(),
                "joined": meta.joined,
                "several_members": meta.several_members,
            }),
        )?,
        Ok(None) => archive.leave_out("files/cluster/meta.json", "there is none"),
        Err(error) => archive.leave_out("files/cluster/meta.json", error),
    }
    match cluster::peers::Peers::load(&cluster.data_dir) {
        Ok(Some(peers)) => {
            let members: Vec<_> = peers
                .members()
                .map(|member| {
                    json!({
                        "node_id": member.node_id.to_string(),
                        "cluster": member.cluster_address,
                        "join": member.join_address,
                        "key_sha256": member.spki.to_string(),
                    })
                })
                .collect();
            archive.json("files/cluster/peers.json", &members)
        }
        Ok(None) => {
            archive.leave_out("files/cluster/peers.json", "there is none");
            Ok(())
        }
        Err(error) => {
            archive.leave_out("files/cluster/peers.json", error);
            Ok(())
        }
    }
}

fn list(path: &Path, depth: usize, listed: &mut Vec<Listed>) {
    if depth > LISTED_DEPTH || listed.len() >= LISTED {
        return;
    }
    // Links are listed as links and not followed.
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    listed.push(Listed {
        path: path.display().to_string(),
        bytes: metadata.len(),
        mode: format!("{:o}", metadata.mode()),
        owner: metadata.uid(),
        modified_s: metadata.mtime(),
    });
    if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            list(&entry.path(), depth + 1, listed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_unknown_kernel_parameters_go() {
        assert_eq!(
            kernel_parameters("root=/dev/vda1 quiet luks.key=s3cret hugepages=8"),
            "root=/dev/vda1\nquiet\nluks.key=(redacted)\nhugepages=8\n"
        );
    }

    #[test]
    fn a_command_is_cut_off_in_time_and_in_size() {
        let second = Duration::from_secs(20);
        assert_eq!(run(&["echo", "hello"], second, 100).unwrap(), "hello\n");
        let endless = run(&["yes"], second, 1_000).unwrap();
        assert!(endless.starts_with("y\ny\n") && endless.len() < 1_100);
        let slow = run(&["sleep", "600"], Duration::ZERO, 100).unwrap();
        assert!(slow.contains("ended early"), "{slow}");
        assert!(run(&["there-is-no-such-command"], second, 100).is_err());
    }
}
