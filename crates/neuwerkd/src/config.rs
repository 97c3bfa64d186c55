//! The node's configuration: one struct, read from `/etc/neuwerk/config.yaml` and from flags, of which a flag wins.
//!
//! Each key is declared once, beside the field that it fills ([`key::section!`]). The file's schema, the flags, the
//! validation and `docs/configuration.md` are read off these declarations. All problems are reported at once, each
//! under the key or flag by which the value was given. Nothing else in the program reads settings or the environment.

mod bootstrap;
mod cluster;
mod cpus;
mod dataplane;
mod dns;
mod dpdk;
mod flags;
mod integration;
mod key;
mod log;
mod management;
mod net;
mod policy;
mod read;
mod reference;
mod runtime;
mod tls_intercept;
mod value;
mod xdp;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;

use engine::snapshot::SettingsError;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

pub use bootstrap::{Bootstrap, CloudProvider, DataPlaneMode};
pub use cluster::{Backup, Cluster, JoinApproval};
pub use cpus::Cpus;
pub use dataplane::{Admission, Dataplane, EncapMode, NatMapping, Port, Ports};
pub use dns::{DeniedAnswer, Dns, RecordType, Upstream};
pub use dpdk::{Dpdk, IovaMode, PerfMode};
pub use flags::Flags;
pub use integration::{Integration, IntegrationMode};
pub use key::{Key, Part, Shape};
pub use log::{Format, Log, LogError, RecentLog};
pub use management::{HTTP_PORT, Http, METRICS_PORT, Metrics};
pub use net::{DataInterface, Interface, JOIN_PORT, Mac, Peer, Route, SourceNat};
pub use policy::{Policy, PolicyDefault};
pub use reference::reference;
pub use runtime::{KubernetesRuntime, Runtime};
pub use tls_intercept::TlsIntercept;
pub use value::Auto;
pub use xdp::{Xdp, XdpAttach, XdpZeroCopy};

use read::Reader;

/// Where the file lies unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/neuwerk/config.yaml";

/// Largest file that is read, bytes; a real one has a few thousand.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything that an operator can set, complete and consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Interfaces and mode.
    pub bootstrap: Bootstrap,
    /// DNS proxy.
    pub dns: Dns,
    /// Threads and run directory.
    pub runtime: Runtime,
    /// Default policy and what is inside.
    pub policy: Policy,
    /// Management API.
    pub http: Http,
    /// Metrics listener.
    pub metrics: Metrics,
    /// Replication.
    pub cluster: Cluster,
    /// Cloud.
    pub integration: Integration,
    /// TLS service plane.
    pub tls_intercept: TlsIntercept,
    /// Ports, flows, translation.
    pub dataplane: Dataplane,
    /// DPDK backend.
    pub dpdk: Dpdk,
    /// Whether the cluster's listeners are opened: one of the keys that ask for it was given.
    pub cluster_mode: bool,
    /// Keys and flags, as given, that ask for something that this release does not have.
    pub without_effect: Vec<String>,
    /// The settings that were given, for people.
    pub given: Given,
}

/// Settings as they were given, by key path. They say nothing that the configuration does not: two configurations that
/// differ in nothing else are the same.
#[derive(Clone, Default)]
pub struct Given(BTreeMap<String, String>);

impl Given {
    /// Key paths and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl PartialEq for Given {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given")
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Key path or flag, as given; for a file that cannot be read at all, its path.
    pub at: String,
    /// What is wrong, with the value, and what to do.
    pub reason: String,
}

/// A configuration that was refused: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// In the order in which the keys are declared; never empty.
    pub problems: Vec<Problem>,
}

impl Invalid {
    fn one(at: impl Into<String>, reason: impl Into<String>) -> Invalid {
        Invalid {
            problems: vec![Problem {
                at: at.into(),
                reason: reason.into(),
            }],
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {}", problem.at, problem.reason)?;
        }
        Ok(())
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_PATH`] if there is one, and `flags` on top.
    pub fn load(path: Option<&Path>, flags: &Flags) -> Result<Config, Invalid> {
        let place = path.unwrap_or(Path::new(DEFAULT_PATH));
        let name = place.display().to_string();
        match read_file(place) {
            Ok(text) => Config::of(document(&name, &text)?, flags),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Config::of(Map::new(), flags)
            }
            Err(error) => Err(Invalid::one(name, format!("cannot be read: {error}"))),
        }
    }

    /// Reads the text of a file, if there is one, and `flags` on top.
    pub fn parse(file: Option<&str>, flags: &Flags) -> Result<Config, Invalid> {
        let file = file.map_or(Ok(Map::new()), |text| document("config file", text))?;
        Config::of(file, flags)
    }

    fn of(file: Map<String, Json>, flags: &Flags) -> Result<Config, Invalid> {
        let mut reader = Reader::new(file, flags.by_path());
        let config = Config::read(&mut reader);
        reader.finish()?;
        Ok(config)
    }

    /// What keeps a node with this configuration from forwarding, although it starts.
    pub fn forwards_nothing(&self) -> Option<String> {
        // Any other port asks for its addresses.
        let asks = self.bootstrap.data_plane_mode != DataPlaneMode::Tun;
        let two_arms = self.bootstrap.outside_interface.is_some();
        let keys = self.dataplane.unaddressed(two_arms);
        (!asks && !keys.is_empty()).then(|| {
            format!(
                "no address is set, and nobody can be asked for one in the mode tun: set {}",
                keys.join(" and ")
            )
        })
    }

    /// A short fingerprint of every setting in force, to see which nodes run with the same.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(format!("{self:?}"));
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// All keys with their defaults, in the order of the reference page.
    pub fn keys() -> &'static [Key] {
        static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| Config::declared().keys);
        &KEYS
    }

    /// A reading of nothing: what it leaves behind are the declarations.
    fn declared() -> Reader {
        let mut reader = Reader::new(Map::new(), BTreeMap::new());
        Config::read(&mut reader);
        reader
    }

    fn read(reader: &mut Reader) -> Config {
        let mut config = Config {
            bootstrap: reader.section("", "bootstrap"),
            dns: reader.section("", "dns"),
            runtime: reader.section("", "runtime"),
            policy: reader.section("", "policy"),
            http: reader.section("", "http"),
            metrics: reader.section("", "metrics"),
            cluster: reader.section("", "cluster"),
            integration: reader.section("", "integration"),
            tls_intercept: reader.section("", "tls_intercept"),
            dataplane: reader.section("", "dataplane"),
            dpdk: reader.section("", "dpdk"),
            cluster_mode: false,
            without_effect: Vec::new(),
            given: Given::default(),
        };
        config.cluster_mode = reader
            .keys
            .iter()
            .any(|key| key.enables_cluster && reader.was_given(&key.path));
        config.policy.normalise();
        config.dataplane.normalise(reader);
        config.dpdk.fill(&mut config.dataplane.ports.inside, reader);
        config.check(reader);
        config.without_effect = std::mem::take(&mut reader.without_effect);
        config.given = Given(std::mem::take(&mut reader.shown));
        config
    }

    /// What no key can tell by itself.
    fn check(&self, reader: &mut Reader) {
        self.bootstrap.check(reader);
        let mode = self.bootstrap.data_plane_mode;
        self.dataplane.xdp.check(mode, reader);
        self.http.check(reader);
        self.metrics.check(reader);
        self.cluster.check(reader);
        self.integration.check(reader);
        self.dpdk.check(self.bootstrap.data_plane_mode, reader);
        self.dataplane
            .check(self.bootstrap.outside_interface.is_some(), reader);
        self.check_listeners(reader);
        // The engine has the last word, on settings that are sound one by one.
        if reader.problems.is_empty()
            && let Err(error) = crate::dataplane::check(self)
        {
            let key = match error {
                SettingsError::NoNat66Address | SettingsError::Nat66Address(_) => "dataplane.nat66",
                SettingsError::OverlayPorts | SettingsError::OverlayTunnels => {
                    "dataplane.encap_mode"
                }
                SettingsError::Nptv6Prefix(_) => "dataplane.nptv6.outside",
                SettingsError::RouteFamily { .. } => "dataplane.ports",
                _ => "dataplane.snat",
            };
            reader.problem(key, error.to_string());
        }
    }

    /// Nothing that manages this node listens where clients' traffic goes.
    fn check_listeners(&self, reader: &mut Reader) {
        let ports = &self.dataplane.ports;
        for (key, bind) in [
            ("http.bind", self.http.bind),
            ("metrics.bind", self.metrics.bind),
            ("cluster.bind", Some(self.cluster.bind)),
            ("cluster.join_bind", Some(self.cluster.join_bind())),
        ] {
            let Some(bind) = bind else { continue };
            for (port, network) in [("inside", &ports.inside), ("outside", &ports.outside)] {
                if network.addresses.iter().any(|own| own.addr() == bind.ip()) {
                    let reason = format!(
                        "{bind} is an address of the {port} data port (dataplane.ports.{port}.addresses); take one of {}",
                        self.bootstrap.management_interface
                    );
                    reader.problem(key, reason);
                }
            }
        }
    }

    /// As the check of the configured addresses, by what the host says: an error names the data port that holds `bind`.
    ///
    /// # Errors
    /// One of the data ports holds the address.
    pub fn off_data_ports(&self, key: &str, bind: SocketAddr) -> anyhow::Result<()> {
        let Some(holder) = crate::interfaces::holder_of(bind.ip()) else {
            return Ok(());
        };
        let bootstrap = &self.bootstrap;
        let mut ports = [
            Some(&bootstrap.data_interface),
            bootstrap.outside_interface.as_ref(),
        ]
        .into_iter()
        .flatten();
        anyhow::ensure!(
            !ports.any(|port| port.name().is_some_and(|name| name.as_str() == holder)),
            "{key}: {bind} is an address of {holder}, which is a data port; take one of {}",
            bootstrap.management_interface
        );
        Ok(())
    }
}

/// The top-level mapping of the file called `name`, its version checked and taken out.
fn document(name: &str, text: &str) -> Result<Map<String, Json>, Invalid> {
    // Only `true` and `false` are truth values: `no` may be a name.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    };
    let value: Json = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let plain = error.without_snippet();
        let reason = plain.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        Invalid::one(name, format!("is not one valid YAML document: {reason}"))
    })?;
    let mut map = match value {
        Json::Object(map) => map,
        Json::Null => Map::new(),
        other => {
            return Err(Invalid::one(
                name,
                format!("must be a mapping of keys, not {}", value::shown(&other)),
            ));
        }
    };
    match map.remove("version") {
        Some(Json::Number(number)) if number.as_u64() == Some(1) => Ok(map),
        Some(other) => Err(Invalid::one(
            "version",
            format!("{other} is not a version that this release reads; write 1"),
        )),
        None => Err(Invalid::one(
            "version",
            "is required; write version: 1 at the top of the file",
        )),
    }
}

#[cfg(test)]
mod tests;
