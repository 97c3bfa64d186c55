//! A real `neuwerk` process in a node's namespace: its configuration, its start and the ways in which it may end.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::address::{self, FAMILIES, Family};
use crate::management::Management;
use crate::netns::Netns;
use crate::tamper::Tamper;
use crate::tool;
use crate::topology::Topology;
use crate::unsynced::Unsynced;
use crate::wait;

/// How long an orderly stop may take.
const STOP: Duration = Duration::from_secs(20);
/// Lines of a node's log that a failing test shows.
const LOG_TAIL: usize = 60;

/// One node: directories of its own, and at most one process.
#[derive(Debug)]
pub struct Node {
    number: u8,
    netns: Arc<Netns>,
    operator: Arc<Netns>,
    dir: PathBuf,
    child: Option<Child>,
    unsynced: Option<Unsynced>,
    /// The binary to run, if it is not the one under test.
    program: Option<PathBuf>,
    /// Flags of `run` besides the configuration file.
    flags: Vec<String>,
    /// Its directory is what its processes see as `/var/lib/neuwerk`.
    at_default_paths: bool,
    /// Where its API is.
    https: SocketAddr,
    tamper: Option<Tamper>,
    /// What the process is told to log; none: nothing, so that it logs as shipped.
    log_filter: Option<&'static str>,
    /// Further variables of the process.
    environment: Vec<(&'static str, PathBuf)>,
}

impl Node {
    /// Writes the configuration of node `number`; `join` are the join listeners it is told of (none: a seed). The
    /// process is not started.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn prepare(topology: &Topology, number: u8, join: &[u8], secret: &str) -> Result<Node> {
        let netns = Arc::clone(topology.node(number));
        let dir = netns.run().dir().join(format!("node{number}"));
        fs::create_dir_all(dir.join("run"))?;
        let token = dir.join("bootstrap-token");
        fs::write(&token, secret)?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        fs::write(dir.join("config.yaml"), configuration(number, &dir, join))?;
        let operator = Arc::clone(&topology.operator);
        Ok(Node {
            number,
            netns,
            operator,
            dir,
            child: None,
            unsynced: None,
            program: None,
            flags: Vec::new(),
            at_default_paths: false,
            https: address::https(number),
            tamper: None,
            log_filter: Some("info,openraft=warn"),
            environment: Vec::new(),
        })
    }

    /// From the next start on, runs `program` with `flags`.
    pub fn set_program(&mut self, program: &Path, flags: &[&str]) {
        self.program = Some(program.to_owned());
        self.flags = flags.iter().map(ToString::to_string).collect();
    }

    /// Its number, counted from 1.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Everything that it keeps on disk.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA that the cluster's HTTPS certificates come from, as this node exports it.
    #[must_use]
    pub fn ca_path(&self) -> PathBuf {
        self.dir.join("http-tls/ca.crt")
    }

    /// From the next start on, what the process wrote and did not sync is lost at its kill.
    ///
    /// # Errors
    /// When the library cannot be built.
    pub fn lose_unsynced_writes(&mut self) -> Result<()> {
        self.unsynced = Some(Unsynced::build(self.netns.run(), &self.dir)?);
        Ok(())
    }

    /// From the next start on, it runs as a standalone node: without any key that opens cluster mode, its data at the
    /// default paths. The files are the same ones.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn stand_alone(&mut self) -> Result<()> {
        let config = self.dir.join("config.yaml");
        let text = configuration(self.number, &self.dir, &[]);
        let (before, after) = text
            .split_once("cluster:\n")
            .context("the configuration has a cluster section")?;
        let rest = after
            .find("dataplane:\n")
            .context("the cluster section is followed by the dataplane's")?;
        fs::write(config, format!("{before}{}", &after[rest..]))?;
        self.at_default_paths = true;
        Ok(())
    }

    /// From the next start on, it has one arm: what it takes from clients on the inside segment goes out there again, to
    /// the router of [`Topology::join_sides`].
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn take_one_arm(&self) -> Result<()> {
        let config = self.dir.join("config.yaml");
        let text = fs::read_to_string(&config)?;
        let (two, _) = text
            .split_once("    outside:\n")
            .context("the configuration has a port outside")?;
        let routers = FAMILIES.map(|family| format!("\"{}\"", address::inside_router(family)));
        let one = two.replace("  outside_interface: out0\n", "");
        let gateways = format!("      gateway: [{}]\n", routers.join(", "));
        Ok(fs::write(config, one + &gateways)?)
    }

    /// From the next start on, frames reach it another way: the value of `bootstrap.data_plane_mode`.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn set_mode(&self, mode: &str) -> Result<()> {
        self.rewrite(|line| {
            line.starts_with("  data_plane_mode:")
                .then(|| format!("  data_plane_mode: {mode}"))
        })
    }

    /// Has it run, from the next start on, on DPDK's packet sockets, so many of each interface, over which the kernel
    /// spreads what comes by a hash of its own.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn take_dpdk_queues(&self, queues: u8) -> Result<()> {
        let device = |interface: &str| {
            format!(
                "vdev:net_af_packet_{interface},iface={interface},qpairs={queues},\
                 blocksz=65536,framesz=2048,framecnt=2048"
            )
        };
        self.set_keys(&[
            ("data_plane_mode", "dpdk"),
            ("data_interface", &device("in0")),
            ("outside_interface", &device("out0")),
        ])
    }

    /// Has it run, from the next start on, on two TAP devices.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn take_taps(&self, inside: &str, outside: &str) -> Result<()> {
        self.set_keys(&[
            ("data_plane_mode", "tap"),
            ("data_interface", inside),
            ("outside_interface", outside),
        ])
    }

    /// Has it run, from the next start on, on one TUN device that it makes, with these addresses of its own and of the
    /// host on the other end.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn take_tun(&self, device: &str, ours: &[&str], hosts: &[&str]) -> Result<()> {
        self.take_one_arm()?;
        self.set_keys(&[
            ("data_plane_mode", "soft"),
            ("data_interface", device),
            ("addresses", &format!("{ours:?}")),
            ("gateway", &format!("{hosts:?}")),
        ])
    }

    /// From the next start on, it answers clients' queries at these addresses too and asks these resolvers.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn serve_names(&self, at: &[IpAddr], upstreams: &[SocketAddr]) -> Result<()> {
        let quoted = |text: &dyn ToString| format!("\"{}\"", text.to_string());
        let at: Vec<_> = at.iter().map(|address| quoted(address)).collect();
        let upstreams: Vec<_> = upstreams.iter().map(|address| quoted(address)).collect();
        self.set_keys(&[
            ("target_ips", &format!("[{}]", at.join(", "))),
            ("upstreams", &format!("[{}]", upstreams.join(", "))),
        ])
    }

    /// Gives keys, each of which stands in its configuration once, other values.
    fn set_keys(&self, keys: &[(&str, &str)]) -> Result<()> {
        self.rewrite(|line| {
            let (name, _) = line.split_once(": ")?;
            let (_, value) = keys.iter().find(|(key, _)| name.trim_start() == *key)?;
            Some(format!("{name}: {value}"))
        })
    }

    /// From the next start on, its outside port has no configured addresses and asks for them.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn ask_for_outside_addresses(&self) -> Result<()> {
        let config = self.dir.join("config.yaml");
        let text = fs::read_to_string(&config)?;
        let (before, _) = text
            .split_once("    outside:\n")
            .context("the configuration has a port outside")?;
        Ok(fs::write(config, before)?)
    }

    /// Gives it, while it does not run, another list of join listeners: addresses or names, with or without a port.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn set_join(&self, join: &[String]) -> Result<()> {
        self.rewrite(|line| {
            line.starts_with("  join:")
                .then(|| format!("  join: [{}]", join.join(", ")))
        })
    }

    /// Adds lines to a section of its configuration while it does not run, such as `cluster` and
    /// `replace_after_secs: 10`.
    ///
    /// # Errors
    /// When its configuration cannot be rewritten.
    pub fn configure(&self, section: &str, line: &str) -> Result<()> {
        let head = format!("{section}:");
        self.rewrite(|old| (old == head).then(|| format!("{head}\n  {line}")))
    }

    /// Gives it, while it does not run, another configuration file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_config(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.dir.join("config.yaml"), text)?)
    }

    /// Gives it, while it does not run, another address on the management segment.
    ///
    /// # Errors
    /// When the address cannot be set or its configuration not be rewritten.
    pub fn move_away(&mut self) -> Result<()> {
        let (old, new) = (
            address::management(self.number),
            address::moved(self.number),
        );
        self.netns.ip(&format!(
            "addr flush dev mgmt0\naddr add {new}/24 dev mgmt0"
        ))?;
        self.https.set_ip(new.into());
        let (old, new) = (format!("\"{old}:"), format!("\"{new}:"));
        self.rewrite(|line| line.contains(&old).then(|| line.replace(&old, &new)))
    }

    fn rewrite(&self, change: impl Fn(&str) -> Option<String>) -> Result<()> {
        let path = self.dir.join("config.yaml");
        let text = fs::read_to_string(&path)?;
        let lines: Vec<String> = text
            .lines()
            .map(|line| change(line).unwrap_or_else(|| line.to_owned()))
            .collect();
        Ok(fs::write(&path, lines.join("\n") + "\n")?)
    }

    /// Runs a verb of the command line on this node, over its control socket, and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub fn control(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.path("run/admin.sock")?;
        self.cli(&[arguments, &["--control-socket", &socket]].concat())
    }

    /// From the next start on, the service manager that it notifies is this socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn notify(&mut self) -> Result<UnixDatagram> {
        let path = self.dir.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        self.environment.push(("NOTIFY_SOCKET", path));
        Ok(socket)
    }

    /// From the next start on it logs what it logs without being told.
    pub fn log_as_shipped(&mut self) {
        self.log_filter = None;
    }

    /// From the next start on, its disk and its clock can be tampered with.
    ///
    /// # Errors
    /// When the library cannot be built.
    pub fn allow_tampering(&mut self) -> Result<()> {
        self.tamper = Some(Tamper::build(&self.dir)?);
        Ok(())
    }

    /// What its disk and its clock are told.
    ///
    /// # Errors
    /// Without [`Node::allow_tampering`].
    pub fn tamper(&self) -> Result<&Tamper> {
        self.tamper
            .as_ref()
            .context("the node was started without the library")
    }

    /// Starts the process. Its log goes to [`Node::log_path`].
    ///
    /// # Errors
    /// When it is running already or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        ensure!(
            !self.is_running(),
            "node {} is running already",
            self.number
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.command()?;
        command
            .args(["run", "--config"])
            .arg(self.dir.join("config.yaml"))
            .args(&self.flags);
        command.stdout(log.try_clone()?).stderr(log);
        match self.log_filter {
            Some(filter) => command.env("NEUWERK_LOG_LEVEL", filter),
            None => command.env_remove("NEUWERK_LOG_LEVEL"),
        };
        command.envs(self.environment.iter().cloned());
        if let Some(unsynced) = &self.unsynced {
            unsynced.preload(&mut command)?;
        }
        if let Some(tamper) = &self.tamper {
            tamper.preload(&mut command);
        }
        self.child = Some(command.spawn().context("cannot start neuwerk")?);
        Ok(())
    }

    /// Runs a verb of the command line on this node, and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        tool::run(self.command()?.args(arguments))
    }

    /// [`Node::cli`] in the directory `here`.
    ///
    /// # Errors
    /// As [`Node::cli`].
    pub fn cli_in(&self, here: &Path, arguments: &[&str]) -> Result<String> {
        tool::run(self.command()?.args(arguments).current_dir(here))
    }

    /// A token for the API, minted on this node over its control socket.
    ///
    /// # Errors
    /// What the command says.
    pub fn mint_token(&self, subject: &str, role: &str) -> Result<String> {
        let socket = self.path("run/admin.sock")?;
        self.mint(subject, role, &["--control-socket", &socket])
    }

    /// A token for the API, minted by another member, with this node's cluster identity as proof.
    ///
    /// # Errors
    /// What the command says.
    pub fn mint_token_through(&self, member: u8, subject: &str, role: &str) -> Result<String> {
        let address = address::cluster(member).to_string();
        let tls_dir = self.path("cluster/tls")?;
        self.mint(
            subject,
            role,
            &["--cluster-addr", &address, "--cluster-tls-dir", &tls_dir],
        )
    }

    fn mint(&self, subject: &str, role: &str, through: &[&str]) -> Result<String> {
        let verb = ["auth", "token", "mint", "--sub", subject, "--roles", role];
        Ok(self.cli(&[&verb[..], through].concat())?.trim().to_owned())
    }

    /// A client of this node's API, without a token.
    ///
    /// # Errors
    /// While the node has not written its CA.
    pub fn management(&self) -> Result<Management> {
        Management::new(&self.operator, self.https, &self.ca_path())
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Fails unless the process runs.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn ensure_running(&mut self) -> Result<()> {
        self.pid().map(drop)
    }

    /// Stops it in order (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// When it does not end, or not with status 0.
    pub fn terminate(&mut self) -> Result<Duration> {
        self.signal(Signal::SIGTERM)?;
        self.wait_stopped()
    }

    /// Waits for the end of a process that was asked to stop.
    ///
    /// # Errors
    /// When it does not end, or not with status 0.
    pub fn wait_stopped(&mut self) -> Result<Duration> {
        let number = self.number;
        let child = self.child.as_mut().context("not started")?;
        let (status, time) = wait::until(&format!("end of node {number}"), STOP, || {
            Ok(child.try_wait()?)
        })?;
        self.child = None;
        ensure!(status.success(), "node {number} ended with {}", status);
        Ok(time)
    }

    /// Kills it (SIGKILL), and takes back what it had not synced if [`Node::lose_unsynced_writes`] was asked for.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.reap()
    }

    /// The second half of [`Node::kill`], for a test that first signals several nodes.
    ///
    /// # Errors
    /// When it was not killed.
    pub fn reap(&mut self) -> Result<()> {
        let mut child = self.child.take().context("not started")?;
        let status = child.wait()?;
        ensure!(
            status.signal() == Some(Signal::SIGKILL as i32),
            "node {} ended with {}",
            self.number,
            status
        );
        if let Some(unsynced) = &self.unsynced {
            let seen = unsynced.revert()?;
            ensure!(
                seen.written > 0 && seen.synced > 0,
                "node {}: of its writes and syncs the preloaded library saw {seen:?}",
                self.number
            );
        }
        Ok(())
    }

    /// Stops its threads where they are (SIGSTOP).
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// The id of its process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process_id(&mut self) -> Result<u32> {
        Ok(self.pid()?.as_raw().unsigned_abs())
    }

    fn pid(&mut self) -> Result<Pid> {
        let number = self.number;
        let child = self
            .child
            .as_mut()
            .with_context(|| format!("node {number} was not started"))?;
        if let Some(status) = child.try_wait()? {
            bail!(
                "node {number} ended by itself with {status}\n{}",
                self.log_tail()
            );
        }
        Ok(Pid::from_raw(
            i32::try_from(child.id()).expect("a pid fits"),
        ))
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
        format!(
            "--- node {}, {} of {} log lines\n{}",
            self.number,
            tail.len(),
            lines.len(),
            tail.join("\n")
        )
    }

    /// Its log, beside its directory.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// The binary, in this node's namespace.
    fn command(&self) -> Result<Command> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => binary()?,
        };
        if !self.at_default_paths {
            return Ok(self.netns.command(program));
        }
        // `ip netns exec` gives each command a mount namespace of its own.
        let mut command = self.netns.command("sh");
        let script = "mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/neuwerk && \
                      mount --bind \"$0\" /var/lib/neuwerk && exec \"$@\"";
        command.args(["-c", script]).arg(&self.dir).arg(program);
        Ok(command)
    }

    /// Something that it keeps on disk, as text for a command line.
    ///
    /// # Errors
    /// When the path is not UTF-8.
    pub fn path(&self, name: &str) -> Result<String> {
        let path = self.dir.join(name).into_os_string().into_string();
        path.map_err(|path| anyhow!("{} is not UTF-8", path.display()))
    }
}

impl Drop for Node {
    #[expect(
        clippy::print_stderr,
        reason = "a failing test shows the log before the directory goes"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The binary under test: `NEUWERK_BIN`, or the one that was built beside this program.
///
/// # Errors
/// When there is none: the message says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NEUWERK_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("neuwerk"))
        .find(|path| path.is_file());
    beside.context(
        "there is no neuwerk binary beside this program; build it first: cargo build -p neuwerk",
    )
}

fn configuration(number: u8, dir: &Path, join: &[u8]) -> String {
    let dir = dir.display();
    let list = |addresses: Vec<String>| format!("[{}]", addresses.join(", "));
    let quoted = |text: String| format!("\"{text}\"");
    let with_lengths = |address: fn(u8, Family) -> std::net::IpAddr| {
        list(
            FAMILIES
                .iter()
                .map(|&family| quoted(address::with_length(address(number, family))))
                .collect(),
        )
    };
    let inside = with_lengths(address::inside);
    let outside = with_lengths(address::outside);
    let gateways = list(
        FAMILIES
            .iter()
            .map(|&family| quoted(address::router(family).to_string()))
            .collect(),
    );
    let join = list(
        join.iter()
            .map(|&peer| quoted(address::join(peer).to_string()))
            .collect(),
    );
    let bind = address::cluster(number);
    format!(
        "version: 1
bootstrap:
  management_interface: mgmt0
  data_interface: in0
  outside_interface: out0
  cloud_provider: none
  data_plane_mode: packet
dns:
  target_ips: [\"10.1.0.53\"]
  upstreams: [\"192.0.2.254:53\"]
policy:
  default: deny
runtime:
  run_dir: {dir}/run
http:
  tls_dir: {dir}/http-tls
cluster:
  bind: \"{bind}\"
  advertise: \"{bind}\"
  join: {join}
  data_dir: {dir}/cluster
  node_id_path: {dir}/node_id
  token_path: {dir}/bootstrap-token
dataplane:
  snat: auto
  nat66: auto
  ports:
    inside:
      addresses: {inside}
    outside:
      addresses: {outside}
      gateway: {gateways}
"
    )
}
