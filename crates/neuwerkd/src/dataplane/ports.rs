//! Opening the data ports and the host lane.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use engine::port::Port;
use io::packet::{Hold, HoldConfig, PacketConfig, PacketPort, Socket};
use io::tun::{Segments, Tun, TunConfig, TunDevice};
use io::xdp::WorkerQueues;
use policy::Compiled;

use super::settings::settings;
use super::{Dataplane, Opened, monotonic};
use crate::config::{Config, DataInterface, DataPlaneMode};

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
        let mut holds = Vec::new();
        for (key, interface) in &interfaces {
            holds.push(hold(config, interface).context(*key)?);
        }
        let dataplane = match bootstrap.data_plane_mode {
            DataPlaneMode::Xdp => {
                let names: Vec<String> = interfaces.into_iter().map(|(_, name)| name).collect();
                let mut workers = WorkerQueues::open(&names, 1, &config.dataplane.xdp.to_backend())
                    .context("bootstrap.data_plane_mode")?;
                let queues = workers.pop().context("one worker was asked for")?;
                launch(config, policy, Segments::Plain, move || {
                    Ok(queues.into_ports()?)
                })?
            }
            _ => {
                let open = |(key, interface): &(&'static str, String)| {
                    Socket::open(&PacketConfig::new(interface)).context(*key)
                };
                let sockets: Vec<Socket> =
                    interfaces.iter().map(open).collect::<anyhow::Result<_>>()?;
                launch(config, policy, Segments::Super, move || {
                    Ok(sockets.into_iter().map(PacketPort::new).collect())
                })?
            }
        };
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

/// Starts the packet worker on the ports that `make` makes, on the worker's thread.
fn launch<P: Port + 'static>(
    config: &Config,
    policy: Arc<Compiled>,
    from_host: Segments,
    make: impl FnOnce() -> anyhow::Result<Vec<P>> + Send + 'static,
) -> anyhow::Result<Dataplane> {
    let lane = TunDevice::open(&TunConfig::host_lane(config.dns.served().to_vec()))?;
    lane.set_segments(from_host)
        .context("cannot configure the host lane")?;
    let open = move || {
        Ok(Opened {
            ports: make()?,
            lane: Some(Tun::new(lane)),
        })
    };
    let capacity = config.dataplane.flow_table_capacity;
    Dataplane::start(settings(config, monotonic()), policy, capacity, vec![open])
        .context("the dataplane cannot start")
}

fn hold(config: &Config, interface: &str) -> Result<Hold, io::packet::HoldError> {
    Hold::open(&HoldConfig {
        interface: interface.to_owned(),
        management_interface: Some(config.bootstrap.management_interface.as_str().to_owned()),
        state_dir: PathBuf::from(&config.runtime.run_dir),
    })
}

fn interface(interface: &DataInterface) -> anyhow::Result<String> {
    let name = interface.name().ok_or_else(|| {
        anyhow!("{interface} can only be opened by DPDK, which this build does not have: name a kernel interface")
    })?;
    Ok(name.as_str().to_owned())
}
