//! Opening the data ports and the host lane.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use io::packet::{Hold, HoldConfig, PacketConfig, PacketPort, Socket};
use io::tun::{Tun, TunConfig, TunDevice};
use policy::Compiled;

use super::settings::settings;
use super::{Dataplane, Opened, monotonic};
use crate::config::{Config, DataInterface};

/// Everything that holds a node's data ports: the packet workers, and what keeps the kernel off
/// the interfaces as long as they run.
pub struct HeldDataplane {
    dataplane: Arc<Dataplane>,
    _holds: Vec<Hold>,
}

impl Drop for HeldDataplane {
    /// The workers end before the kernel gets its interfaces back.
    fn drop(&mut self) {
        self.dataplane.stop();
    }
}

impl HeldDataplane {
    /// Takes the data ports from the kernel and starts the packet worker on them, under `policy`
    /// from the first packet on.
    ///
    /// # Errors
    /// An interface is missing, in use or not permitted, or settings contradict each other.
    pub fn start(config: &Config, policy: Arc<Compiled>) -> anyhow::Result<HeldDataplane> {
        let bootstrap = &config.bootstrap;
        // Each with the key that an error is to name.
        let mut interfaces = vec![(
            "bootstrap.data_interface",
            interface(&bootstrap.data_interface)?,
        )];
        if let Some(outside) = &bootstrap.outside_interface {
            interfaces.push(("bootstrap.outside_interface", interface(outside)?));
        }
        let management = bootstrap.management_interface.as_str();
        let hold = |(key, interface): &(&'static str, String)| {
            Hold::open(&HoldConfig {
                interface: interface.clone(),
                management_interface: Some(management.to_owned()),
                state_dir: PathBuf::from(&config.runtime.run_dir),
            })
            .context(*key)
        };
        let holds = interfaces.iter().map(hold).collect::<Result<Vec<_>, _>>()?;
        let sockets = interfaces
            .iter()
            .map(|(key, interface)| Socket::open(&PacketConfig::new(interface)).context(*key))
            .collect::<Result<Vec<_>, _>>()?;
        let lane = TunDevice::open(&TunConfig::host_lane(config.dns.served().to_vec()))?;
        let open = move || {
            let ports = sockets.into_iter().map(PacketPort::new).collect();
            Ok(Opened {
                ports,
                lane: Some(Tun::new(lane)),
            })
        };
        let capacity = config.dataplane.flow_table_capacity;
        let dataplane =
            Dataplane::start(settings(config, monotonic()), policy, capacity, vec![open])
                .context("the dataplane cannot start")?;
        Ok(HeldDataplane {
            dataplane: Arc::new(dataplane),
            _holds: holds,
        })
    }

    /// The packet workers.
    pub fn dataplane(&self) -> &Arc<Dataplane> {
        &self.dataplane
    }
}

fn interface(interface: &DataInterface) -> anyhow::Result<String> {
    let name = interface.name().ok_or_else(|| {
        anyhow!("{interface} can only be opened by DPDK, which this build does not have: name a kernel interface")
    })?;
    Ok(name.as_str().to_owned())
}
