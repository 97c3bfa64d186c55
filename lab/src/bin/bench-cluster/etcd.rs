//! The yardstick: etcd from Debian's packages, three members in the nodes' namespaces, TLS everywhere.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lab::address;
use lab::netns::Netns;
use lab::topology::Topology;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

/// See the file for the reason of each value.
const CONFIGURATION: &str = include_str!("../../../etcd/member.yaml");

/// Installs etcd if it is absent, with Debian's own service kept off.
pub(crate) fn install() -> Result<()> {
    if Command::new("etcd").arg("--version").output().is_ok() {
        return Ok(());
    }
    // A masked unit is not started by its installation, nor by the next boot.
    let mask = PathBuf::from("/etc/systemd/system/etcd.service");
    if fs::symlink_metadata(&mask).is_err() {
        fs::create_dir_all("/etc/systemd/system")?;
        std::os::unix::fs::symlink("/dev/null", &mask)?;
    }
    println!("installing: etcd-server etcd-client (the unit stays off)");
    let apt = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .context("cannot start apt-get")?;
        ensure!(
            status.success(),
            "apt-get {}: {status}",
            arguments.join(" ")
        );
        Ok(())
    };
    apt(&["update", "-qq"])?;
    let packages = ["etcd-server", "etcd-client"];
    apt(&[
        &["install", "-y", "-qq", "--no-install-recommends"],
        &packages[..],
    ]
    .concat())
}

/// Three members.
pub(crate) struct Etcd {
    members: Vec<Member>,
    /// Signed all certificates.
    pub(crate) ca_pem: String,
}

struct Member {
    netns: Arc<Netns>,
    dir: PathBuf,
    child: Option<Child>,
}

impl Etcd {
    /// Writes certificates and configuration, and starts every member.
    pub(crate) fn start(topology: &Topology) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let ca_pem = issuer.pem();
        let numbers = 1..=topology.node_count();
        let names: Vec<String> = numbers
            .clone()
            .map(|number| format!("etcd{number}=https://{}:2380", address::management(number)))
            .collect();
        let mut etcd = Self {
            members: Vec::new(),
            ca_pem,
        };
        for number in numbers {
            let own = address::management(number);
            let netns = Arc::clone(topology.node(number));
            let dir = netns.run().dir().join(format!("etcd{number}"));
            fs::create_dir_all(&dir)?;
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(Vec::new())?;
            leaf.subject_alt_names = vec![SanType::IpAddress(own.into())];
            fs::write(dir.join("member.crt"), leaf.signed_by(&key, &issuer)?.pem())?;
            fs::write(dir.join("member.key"), key.serialize_pem())?;
            fs::write(dir.join("ca.crt"), &etcd.ca_pem)?;
            let configuration = CONFIGURATION
                .replace("NAME", &format!("etcd{number}"))
                .replace("DIR", &dir.display().to_string())
                .replace("ADDRESS", &own.to_string())
                .replace("CLUSTER", &names.join(","));
            fs::write(dir.join("member.yaml"), configuration)?;
            etcd.members.push(Member {
                netns,
                dir,
                child: None,
            });
        }
        for member in &mut etcd.members {
            member.start()?;
        }
        Ok(etcd)
    }

    /// Starts member `number` again from its data.
    pub(crate) fn restart(&mut self, number: u8) -> Result<()> {
        self.member(number).start()
    }

    pub(crate) fn signal(&mut self, number: u8, signal: Signal) -> Result<()> {
        let child = self.member(number).child.as_ref();
        let id = child.context("the member does not run")?.id();
        Ok(kill(Pid::from_raw(i32::try_from(id)?), signal)?)
    }

    /// Waits for the end of a member that was told to end.
    pub(crate) fn reap(&mut self, number: u8) -> Result<()> {
        if let Some(mut child) = self.member(number).child.take() {
            child.wait()?;
        }
        Ok(())
    }

    pub(crate) fn pid(&mut self, number: u8) -> Option<u32> {
        self.member(number).child.as_ref().map(Child::id)
    }

    fn member(&mut self, number: u8) -> &mut Member {
        &mut self.members[usize::from(number) - 1]
    }
}

impl Member {
    fn start(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let child = self
            .netns
            .command("etcd")
            .arg("--config-file")
            .arg(self.dir.join("member.yaml"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start etcd")?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
