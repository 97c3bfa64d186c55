//! A network namespace: made by `ip netns`, entered by threads of ours or by child processes, deleted on drop.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::address::Family;
use crate::run::{self, Run};
use crate::tool;

/// A network namespace of this run, with `lo` up.
#[derive(Debug)]
pub struct Netns {
    name: String,
    run: Arc<Run>,
}

impl Netns {
    /// Makes the namespace for `role` (unique within the run).
    ///
    /// # Errors
    /// What `ip` says.
    pub fn add(run: &Arc<Run>, role: &str) -> Result<Netns> {
        let name = run.name(role);
        tool::run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Netns {
            name,
            run: Arc::clone(run),
        };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run that it belongs to.
    #[must_use]
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Runs `ip` commands in the namespace, one a line, without the leading `ip`.
    ///
    /// # Errors
    /// What `ip` says to the first line that fails.
    pub fn ip(&self, commands: &str) -> Result<()> {
        feed(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            commands,
        )
    }

    /// The same for commands that are about one IP version, such as routes without an address in them.
    ///
    /// # Errors
    /// What `ip` says to the first line that fails.
    pub fn ip_of(&self, family: Family, commands: &str) -> Result<()> {
        let flag = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        feed(
            Command::new("ip").args([flag, "-n", &self.name, "-batch", "-"]),
            commands,
        )
    }

    /// Names for the processes that are started in the namespace from now on, as `/etc/hosts` has them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_hosts(&self, hosts: &str) -> Result<()> {
        self.set_file("hosts", hosts)
    }

    /// Whom the processes that are started in the namespace from now on ask for names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_resolver(&self, resolver: IpAddr) -> Result<()> {
        self.set_file("resolv.conf", &format!("nameserver {resolver}\n"))
    }

    /// What the processes see in `/etc`.
    fn set_file(&self, name: &str, text: &str) -> Result<()> {
        let dir = Path::new("/etc/netns").join(&self.name);
        std::fs::create_dir_all(&dir)?;
        Ok(std::fs::write(dir.join(name), text)?)
    }

    /// Loads nftables commands in the namespace.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn nft(&self, commands: &str) -> Result<()> {
        feed(self.command("nft").args(["-f", "-"]), commands)
    }

    /// Sets a value below `/proc/sys/net`, for example `ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the kernel has no such value or refuses it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| std::fs::write(&path, value))
            .with_context(|| format!("{} = {value}", path.display()))
    }

    /// A veth pair: `name` here, `peer_name` in `peer`, both up.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn link(&self, name: &str, peer: &Netns, peer_name: &str) -> Result<()> {
        self.ip(&format!(
            "link add {name} type veth peer name {peer_name} netns {}\nlink set {name} up",
            peer.name
        ))?;
        peer.ip(&format!("link set {peer_name} up"))
    }

    /// A child process in the namespace. `ip netns exec` also gives it the namespace's own `/sys`, and becomes the
    /// program, so that the child's pid is the program's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let handle = File::open(Path::new("/run/netns").join(&self.name));
        thread::scope(|scope| {
            let joined = scope
                .spawn(move || {
                    let file = handle.expect("the namespace exists as long as this value");
                    setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                    work()
                })
                .join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `work` on a thread of its own inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be opened or the thread not started.
    pub fn spawn<T: Send + 'static>(
        &self,
        thread_name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let file = File::open(Path::new("/run/netns").join(&self.name))
            .context("cannot open the namespace")?;
        let builder = thread::Builder::new().name(thread_name.to_owned());
        Ok(builder.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            work()
        })?)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // There only after `set_hosts` or `set_resolver`.
        let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(&self.name));
        run::remove_namespace(&self.name);
    }
}

/// Runs a command with `input` on its standard input.
fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut pipe = child
        .stdin
        .take()
        .expect("standard input was asked to be a pipe");
    pipe.write_all(input.as_bytes())?;
    pipe.write_all(b"\n")?;
    drop(pipe);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}\n{input}",
            output.status,
            tool::printed(&output)
        );
    }
    Ok(())
}
