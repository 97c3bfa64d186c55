//! Programs of other people, on both ends of a node: what they send arrives byte for byte.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::address::{self, FAMILIES};
use lab::client;
use lab::cluster::{Cluster, allowed_servers, family_of, policy_allowing};
use lab::netns::Netns;
use lab::server::{PORT, pattern};
use lab::{management, tool, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
/// What is carried each way.
const SIZE: usize = 5 << 20;

#[test]
#[ignore = "needs root; make test runs it"]
fn ssh_carries_files_both_ways() {
    tool::require(&["sshd", "ssh"]).unwrap();
    let cluster = one_node();
    let dir = Dir::new(&cluster, "ssh");
    for key in ["host", "user"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        tool::run(keygen.arg(dir.path(key))).unwrap();
    }
    // Where sshd keeps what it does not trust itself with.
    fs::create_dir_all("/run/sshd").unwrap();
    let listen: String = FAMILIES
        .map(|family| {
            format!(
                "ListenAddress {}\n",
                bracketed(address::allowed_server(family))
            )
        })
        .concat();
    let config = format!(
        "{listen}HostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM yes\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\n",
        dir.name("host"),
        dir.name("user.pub")
    );
    dir.write("sshd_config", config.as_bytes());
    let internet = &cluster.topology.internet;
    let mut sshd = internet.command("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f", &dir.name("sshd_config")]);
    let _sshd = Daemon::start(&mut sshd, internet, 22);

    let sent = pattern(1, SIZE);
    let there = dir.name("there");
    for family in FAMILIES {
        let source = address::client(1, family).to_string();
        let server = format!("root@{}", address::allowed_server(family));
        let ssh = |command: &str| {
            let mut ssh = cluster.topology.client.command("ssh");
            ssh.args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=5",
            ]);
            ssh.args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ]);
            ssh.args(["-i", &dir.name("user"), "-b", &source, &server, command]);
            ssh
        };
        dir.write("sent", &sent);
        let input = fs::File::open(dir.path("sent")).unwrap();
        tool::run(ssh(&format!("cat > {there}")).stdin(input)).unwrap();
        assert!(dir.read("there") == sent, "{server}: differs at the server");
        let output = fs::File::create(dir.path("back")).unwrap();
        tool::run(ssh(&format!("cat {there}; rm {there}")).stdout(output)).unwrap();
        assert!(dir.read("back") == sent, "{server}: differs at the client");
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn passive_ftp_carries_files_both_ways() {
    tool::require(&["vsftpd", "curl"]).unwrap();
    let cluster = one_node();
    let dir = Dir::new(&cluster, "ftp");
    let sent = pattern(2, SIZE);
    dir.write("sent", &sent);
    // Outside of the run's directory, which only root may enter.
    let root = tool::run(Command::new("mktemp").args(["-d", "/tmp/nwlab-ftp.XXXXXX"])).unwrap();
    let root = Removed(PathBuf::from(root.trim()));
    for (name, mode) in [("", 0o755), ("in", 0o777), ("empty", 0o755)] {
        let path = root.0.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let internet = &cluster.topology.internet;
    for family in FAMILIES {
        let server = address::allowed_server(family);
        let listen = [
            "listen=YES\nlisten_address=",
            "listen=NO\nlisten_ipv6=YES\nlisten_address6=",
        ];
        let config = format!(
            "{}{server}\nbackground=NO\nanonymous_enable=YES\nlocal_enable=NO\nwrite_enable=YES\n\
             anon_upload_enable=YES\nanon_umask=022\nanon_root={}\nsecure_chroot_dir={}\nseccomp_sandbox=NO\n\
             pasv_enable=YES\nport_enable=NO\nxferlog_enable=NO\n",
            listen[family as usize],
            root.0.display(),
            root.0.join("empty").display()
        );
        let name = format!("vsftpd-{}", family as usize);
        dir.write(&name, config.as_bytes());
        let _vsftpd = Daemon::start(
            internet.command("/usr/sbin/vsftpd").arg(dir.path(&name)),
            internet,
            21,
        );
        let source = address::client(1, family).to_string();
        let url = format!("ftp://{}/in/file-{}", bracketed(server), family as usize);
        // PASV in IPv4, EPSV in IPv6, where there is nothing else.
        let how = ["--disable-epsv", "--ftp-pasv"][family as usize];
        let curl = |more: &[&str]| {
            let mut curl = cluster.topology.client.command("curl");
            curl.args([
                "-sS",
                "--fail",
                "--max-time",
                "20",
                how,
                "--interface",
                &source,
            ]);
            tool::run(curl.args(more).arg(&url)).unwrap();
        };
        curl(&["-T", &dir.name("sent")]);
        curl(&["-o", &dir.name("back")]);
        assert!(dir.read("back") == sent, "{url}: differs");
    }
}

/// QUIC with HTTP/3, by the programs that come with ngtcp2.
#[test]
#[ignore = "needs root; make test runs it"]
fn http_3_over_quic_carries_files() {
    tool::require(&["gtlsclient", "gtlsserver"]).unwrap();
    let cluster = one_node();
    let dir = Dir::new(&cluster, "quic");
    let certified = rcgen::generate_simple_self_signed(["server.test".to_owned()]).unwrap();
    dir.write("cert", certified.cert.pem().as_bytes());
    dir.write("key", certified.signing_key.serialize_pem().as_bytes());
    fs::create_dir(dir.path("root")).unwrap();
    let sent = pattern(3, SIZE);
    dir.write("root/file", &sent);
    fs::create_dir(dir.path("got")).unwrap();
    let internet = &cluster.topology.internet;
    for family in FAMILIES {
        let server = address::allowed_server(family);
        let mut gtlsserver = internet.command("/usr/sbin/gtlsserver");
        gtlsserver.args(["-q", "-d", &dir.name("root"), &server.to_string(), "443"]);
        gtlsserver.args([dir.path("key"), dir.path("cert")]);
        let _gtlsserver = Daemon::start(&mut gtlsserver, internet, 443);
        let mut gtlsclient = cluster.topology.client.command("gtlsclient");
        gtlsclient.args([
            "-q",
            "--exit-on-all-streams-close",
            "--download",
            &dir.name("got"),
        ]);
        gtlsclient.args([&server.to_string(), "443", "https://server.test/file"]);
        tool::run(&mut gtlsclient).unwrap();
        assert!(dir.read("got/file") == sent, "{server}: differs");
        fs::remove_file(dir.path("got/file")).unwrap();
    }
    let page = management::metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
    let udp = management::sum(&page, r#"dp_bytes_total{direction="inbound",proto="udp""#);
    assert!(
        udp > 2 * SIZE as u64,
        "{udp} bytes of UDP came through the node"
    );
}

/// Each of the node's links carries less than the ends believe once, and the other one as much: what is too large arrives
/// at the node, by itself or in a super-packet, and finds no way out.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_reports_what_its_link_does_not_carry() {
    tool::require(&["ethtool"]).unwrap();
    for (link, way) in [("in0", Way::Down), ("out0", Way::Up)] {
        for segmenting in ["off", "on"] {
            // Anew, since the ends remember what they have been told.
            let mut cluster = Cluster::lay_out(1).unwrap();
            let node = cluster.topology.node(1);
            node.ip(&format!("link set {link} mtu 1400")).unwrap();
            set_segmenting(&cluster, segmenting);
            begin(&mut cluster);
            for family in FAMILIES {
                let before = Sizes::of(&cluster);
                way.carry(&cluster, address::allowed_server(family), 500_000);
                let after = Sizes::of(&cluster);
                assert!(
                    after.too_big > before.too_big && after.reported > before.reported,
                    "{way:?} {family:?} segmenting {segmenting}: {before:?}, then {after:?}"
                );
            }
        }
    }
}

/// Behind the node, in both directions, what is larger vanishes without a word: the ends find out by trying.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_path_that_swallows_what_is_large_is_found_out_without_reports() {
    tool::require(&["ethtool", "nft"]).unwrap();
    let cluster = one_node();
    // A super-packet would be judged by its own length, whatever its segments have.
    set_segmenting(&cluster, "off");
    let (client, internet) = (&cluster.topology.client, &cluster.topology.internet);
    for (end, interface) in [(client, "in0"), (internet, "out0")] {
        end.nft(&format!(
            "add table netdev hole\n\
             add chain netdev hole ingress {{ type filter hook ingress device {interface} priority 0; policy accept; }}\n\
             add rule netdev hole ingress meta length > 1300 counter drop"
        ))
        .unwrap();
        for (key, value) in [
            ("ipv4/tcp_mtu_probing", "1"),
            ("ipv4/tcp_retries1", "1"),
            ("ipv4/tcp_base_mss", "1024"),
        ] {
            end.sysctl(key, value).unwrap();
        }
    }
    for family in FAMILIES {
        for way in [Way::Down, Way::Up] {
            let receiver = match way {
                Way::Down => client,
                Way::Up => internet,
            };
            let before = swallowed(receiver);
            way.carry(&cluster, address::allowed_server(family), 200_000);
            assert!(swallowed(receiver) > before, "{way:?} {family:?}");
        }
    }
    let sizes = Sizes::of(&cluster);
    assert_eq!((sizes.too_big, sizes.reported), (0, 0));
}

/// Frames are lost in front of the node and behind it, in both directions: what is sent again, out of order and beside what
/// is acknowledged selectively, fits the windows that the node keeps.
#[test]
#[ignore = "needs root; make test runs it"]
fn what_a_lossy_path_loses_is_made_up_for_by_selective_acknowledgments() {
    tool::require(&["ethtool", "nft", "nstat"]).unwrap();
    // Super-packets are fewer: of more of them a larger part is lost.
    for (segmenting, percent, size_bytes) in [("off", 1, SIZE), ("on", 5, 4 * SIZE)] {
        let cluster = one_node();
        set_segmenting(&cluster, segmenting);
        let (client, internet) = (&cluster.topology.client, &cluster.topology.internet);
        let switch = &cluster.topology.switch;
        switch
            .nft(&format!(
                "add table netdev hole\n\
                 add chain netdev hole ingress {{ type filter hook ingress \
                 devices = {{ i-cl, i-1, o-1, o-inet }} priority 0; policy accept; }}\n\
                 add rule netdev hole ingress tcp flags & syn == 0 numgen random mod 100 < {percent} counter drop"
            ))
            .unwrap();
        for family in FAMILIES {
            for way in [Way::Down, Way::Up] {
                let sender = match way {
                    Way::Down => internet,
                    Way::Up => client,
                };
                let before = (swallowed(switch), Recovered::by(sender));
                way.carry(&cluster, address::allowed_server(family), size_bytes);
                let after = (swallowed(switch), Recovered::by(sender));
                assert!(
                    after.0 > before.0 && after.1.selectively > before.1.selectively,
                    "{way:?} {family:?} segmenting {segmenting}: {before:?}, then {after:?}"
                );
                assert_eq!(after.1.otherwise, 0);
            }
        }
        let page = management::metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
        for reason in ["tcp_window", "no_flow", "bad_tcp_flags", "from_outside"] {
            let dropped = format!(r#"neuwerk_dp_drops_total{{reason="{reason}"}}"#);
            assert_eq!(management::sum(&page, &dropped), 0, "{reason}");
        }
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn frames_of_9000_bytes_pass_whole() {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let topology = &cluster.topology;
    for (netns, interface) in [
        (topology.node(1), "in0"),
        (topology.node(1), "out0"),
        (&topology.client, "in0"),
        (&topology.internet, "out0"),
        (&topology.switch, "i-1"),
        (&topology.switch, "o-1"),
        (&topology.switch, "i-cl"),
        (&topology.switch, "o-inet"),
        (&topology.switch, "inside"),
        (&topology.switch, "outside"),
    ] {
        netns.ip(&format!("link set {interface} mtu 9000")).unwrap();
    }
    begin(&mut cluster);
    for family in FAMILIES {
        let server = address::allowed_server(family);
        // With the headers of IP and ICMP just 9,000 bytes, and not to be fragmented.
        let payload = ["8972", "8952"][family as usize];
        ping(&cluster, server, &["-M", "do", "-s", payload]);
        cluster.fetch(1, server, 5_000_000).unwrap();
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn pings_in_pieces_and_segments_out_of_order_are_answered() {
    let cluster = one_node();
    let dir = Dir::new(&cluster, "segments");
    let client = &cluster.topology.client;
    // Nothing here knows the script's connection but the script.
    client
        .nft(
            "add table inet keep\n\
             add chain inet keep out { type filter hook output priority 0; policy accept; }\n\
             add rule inet keep out tcp sport 4444 tcp flags & rst == rst drop",
        )
        .unwrap();
    dir.write("segments.py", include_bytes!("../clients/segments.py"));
    for family in FAMILIES {
        let server = address::allowed_server(family);
        for payload in ["4000", "60000"] {
            ping(&cluster, server, &["-s", payload]);
        }
        let source = address::client(1, family).to_string();
        let mut script = client.command("/usr/bin/python3");
        script.args([&dir.name("segments.py"), &source, &server.to_string()]);
        script.args(["80", "/bytes/20000/7", &dir.name("answer")]);
        tool::run(&mut script).unwrap();
        let answer = dir.read("answer");
        assert!(
            answer.ends_with(&pattern(7, 20_000)),
            "{server}: {} bytes",
            answer.len()
        );
    }
}

/// A single node with the usual policy.
fn one_node() -> Cluster {
    let mut cluster = Cluster::lay_out(1).unwrap();
    begin(&mut cluster);
    cluster
}

fn begin(cluster: &mut Cluster) {
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let mut policy = policy_allowing(&[]);
    // Whichever ports these programs use.
    policy["source_groups"][0]["rules"] =
        json!([{"id": "all", "action": "allow", "match": {"dst_ips": allowed_servers()}}]);
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
}

/// Which way what is large goes.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// From the server to the client.
    Down,
    /// From the client to the server.
    Up,
}

impl Way {
    /// Carries so many bytes over a connection of its own.
    fn carry(self, cluster: &Cluster, server: IpAddr, size_bytes: usize) {
        let source = address::client(1, family_of(server));
        let server = SocketAddr::new(server, PORT);
        let carry = match self {
            Way::Down => client::fetch,
            Way::Up => client::put,
        };
        carry(&cluster.topology.client, source, server, size_bytes).unwrap();
    }
}

/// What the node has counted of packets that are larger than the next link carries.
#[derive(Debug)]
struct Sizes {
    too_big: u64,
    reported: u64,
}

impl Sizes {
    fn of(cluster: &Cluster) -> Sizes {
        let page = management::metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
        let sum = |beginning| management::sum(&page, beginning);
        Sizes {
            too_big: sum(r#"neuwerk_dp_drops_total{reason="too_big"}"#),
            reported: sum("neuwerk_dp_icmp_errors_sent_total "),
        }
    }
}

/// Whether the kernels at both ends hand several segments to their interfaces at once.
fn set_segmenting(cluster: &Cluster, state: &str) {
    for (end, interface) in [
        (&cluster.topology.client, "in0"),
        (&cluster.topology.internet, "out0"),
    ] {
        let offloads = ["-K", interface, "gso", state, "tso", state];
        tool::run(end.command("ethtool").args(offloads)).unwrap();
    }
}

/// How often a host's TCP connections have begun to send again what acknowledgments told them was lost.
#[derive(Debug)]
struct Recovered {
    /// Those told the parts that have arrived (RFC 6675).
    selectively: u64,
    /// Those were repeated, and told nothing more (RFC 6582).
    otherwise: u64,
}

impl Recovered {
    fn by(end: &Netns) -> Recovered {
        let names = ["TcpExtTCPSackRecovery", "TcpExtTCPRenoRecovery"];
        let printed = tool::run(end.command("nstat").args(["-asz"]).args(names)).unwrap();
        let [selectively, otherwise] = names.map(|name| {
            let line = printed.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.unwrap().parse().unwrap()
        });
        Recovered {
            selectively,
            otherwise,
        }
    }
}

/// How many packets the rule of this end has dropped.
fn swallowed(end: &Netns) -> u64 {
    let chain = ["list", "chain", "netdev", "hole", "ingress"];
    let printed = tool::run(end.command("nft").args(chain)).unwrap();
    let (_, counted) = printed.split_once("counter packets ").unwrap();
    let (packets, _) = counted.split_once(' ').unwrap();
    packets.parse().unwrap()
}

fn ping(cluster: &Cluster, server: IpAddr, more: &[&str]) {
    let source = address::client(1, family_of(server)).to_string();
    let mut ping = cluster.topology.client.command("ping");
    ping.args(["-n", "-c2", "-i0.2", "-W2", "-I", &source]);
    tool::run(ping.args(more).arg(server.to_string())).unwrap();
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Where the files of one test are.
struct Dir(PathBuf);

impl Dir {
    fn new(cluster: &Cluster, name: &str) -> Dir {
        let dir = cluster.topology.client.run().dir().join(name);
        fs::create_dir(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

/// A directory that goes with the test.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

/// A server, until dropped.
struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until it listens to the port.
    fn start(command: &mut Command, netns: &Netns, port: u16) -> Daemon {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut daemon = Daemon(child);
        let wanted = format!("sport = :{port}");
        wait::until_true(&format!("a server at port {port}"), SOON, || {
            if let Some(status) = daemon.0.try_wait()? {
                anyhow::bail!("it has ended: {status}");
            }
            let sockets = tool::run(netns.command("ss").args(["-Hlntu", &wanted]))?;
            Ok(!sockets.is_empty())
        })
        .unwrap();
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
