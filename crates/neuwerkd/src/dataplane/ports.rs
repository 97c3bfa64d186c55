//! Opening the data ports and the host lane.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use engine::port::Port;
use io::idle::CpuLatency;
use io::kept::Kept;
use io::packet::{Hold, HoldConfig, PacketConfig, PacketPort, Socket};
use io::tun::{Kind, Segments, Tun, TunConfig, TunDevice};
use io::xdp::{OpenError, WorkerQueues};
use ipnet::IpNet;

use super::addresses::{self, Acquire, Addresses};
use super::held::Held;
use super::places::{Home, go_first, homes};
use super::settings::{settings, share};
use super::{Dataplane, Judging, Opened, monotonic};
use crate::config::{self, Auto, Config, DataInterface, DataPlaneMode};
use crate::handover::Received;

/// Everything that holds a node's data ports: the packet workers, and what keeps the kernel off
/// the interfaces as long as they run.
pub struct HeldDataplane {
    dataplane: Arc<Dataplane>,
    addresses: Option<Addresses>,
    ports: Kept,
    held: Held,
}

impl Drop for HeldDataplane {
    /// The workers end before the kernel gets its interfaces back. If one does not, they stay held, as after a kill: the
    /// next start puts them right.
    fn drop(&mut self) {
        if !self.dataplane.stop() {
            self.held.forget();
        }
        self.ports.close();
    }
}

impl HeldDataplane {
    /// Workers that run, over interfaces that are held.
    #[cfg(feature = "dpdk")]
    pub(super) fn new(
        dataplane: Dataplane,
        addresses: Option<Addresses>,
        ports: Kept,
        holds: Vec<Hold>,
    ) -> anyhow::Result<HeldDataplane> {
        Ok(HeldDataplane {
            dataplane: Arc::new(dataplane),
            addresses,
            ports,
            held: Held::new(holds)?,
        })
    }

    /// Takes the data ports from the kernel, or makes them, and starts the packet workers on them,
    /// under what is judged by from the first packet on, with the flows that were `received` from the process before.
    ///
    /// # Errors
    /// An interface is missing, in use or not permitted, or settings contradict each other.
    pub fn start(
        config: &Config,
        judging: Judging,
        received: &Arc<Received>,
    ) -> anyhow::Result<HeldDataplane> {
        let bootstrap = &config.bootstrap;
        #[cfg(feature = "dpdk")]
        if bootstrap.data_plane_mode == DataPlaneMode::Dpdk {
            return super::dpdk::start(config, judging, received);
        }
        // Each with the key that an error is to name.
        let mut interfaces = vec![(
            "bootstrap.data_interface",
            interface(&bootstrap.data_interface)?,
        )];
        if let Some(outside) = &bootstrap.outside_interface {
            interfaces.push(("bootstrap.outside_interface", interface(outside)?));
        }
        let own: Vec<String> = interfaces.iter().map(|(_, name)| name.clone()).collect();
        let (acquire, addresses) = addresses::prepare(config, own, &received.addresses()).unzip();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = config.dataplane.workers(processors);
        let soft = |kind, acquire| {
            let queues = soft_devices(config, &interfaces, kind, workers, &received.ports)?;
            let make =
                |devices: Vec<TunDevice>| move || Ok(devices.into_iter().map(Tun::new).collect());
            let makes = queues.into_iter().map(make).collect();
            launch(
                config,
                judging.clone(),
                acquire,
                Segments::Super,
                makes,
                received,
            )
        };
        let mode = bootstrap.data_plane_mode;
        let holds = match mode {
            DataPlaneMode::Tun | DataPlaneMode::Tap => hold(config, [])?,
            _ => hold(config, interfaces.clone())?,
        };
        let dataplane = match mode {
            DataPlaneMode::Tun => soft(Kind::Tun, acquire)?,
            DataPlaneMode::Tap => soft(Kind::Tap, acquire)?,
            DataPlaneMode::Xdp => {
                let names: Vec<String> = interfaces.iter().map(|(_, name)| name.clone()).collect();
                let open = |workers| {
                    WorkerQueues::open(&names, workers, &config.dataplane.xdp.to_backend())
                };
                let queues = match open(workers) {
                    // As many as there are queues, if the number is left to us.
                    Err(OpenError::TooFewQueues { queues, .. })
                        if queues > 0 && config.dataplane.workers == Auto::Auto =>
                    {
                        open(queues as usize)
                    }
                    opened => opened,
                };
                let queues = queues.context("bootstrap.data_plane_mode")?;
                let make = |queues: WorkerQueues| move || Ok(queues.into_ports()?);
                let makes = queues.into_iter().map(make).collect();
                launch(config, judging, acquire, Segments::Plain, makes, received)?
            }
            _ => {
                // By worker, its queue of each interface.
                let mut queues: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
                let mut fanouts = Vec::new();
                for (key, interface) in &interfaces {
                    let mut port = PacketConfig::new(interface);
                    port.ring_frames = ring_frames(port.ring_frames, workers);
                    let opened = Socket::open_kept(&port, workers, &received.ports);
                    let (sockets, fanout) = opened.context(*key)?;
                    for (queues, socket) in queues.iter_mut().zip(sockets) {
                        queues.push(socket);
                    }
                    fanouts.extend(fanout);
                }
                let make = |sockets: Vec<Socket>| {
                    move || Ok(sockets.into_iter().map(PacketPort::new).collect())
                };
                let makes = queues.into_iter().map(make).collect();
                let mut dataplane =
                    launch(config, judging, acquire, Segments::Super, makes, received)?;
                dataplane.steer(fanouts);
                dataplane
            }
        };
        Ok(HeldDataplane {
            dataplane: Arc::new(dataplane),
            addresses,
            ports: received.ports.clone(),
            held: Held::new(holds)?,
        })
    }

    /// What is left of the ports to the process that takes over.
    pub fn ports(&self) -> &Kept {
        &self.ports
    }

    /// Does nothing more to the interfaces, which stay held: the process that takes over goes on with that.
    pub fn leave_held(&self) {
        self.held.forget();
    }

    /// Does not give the interfaces back to the kernel.
    pub fn keep_held(self) {
        self.leave_held();
        std::mem::forget(self);
    }

    /// Who is to follow what addresses the ports get by themselves, if any do; to be asked once.
    pub fn take_addresses(&mut self) -> Option<Addresses> {
        self.addresses.take()
    }

    /// The packet workers.
    pub fn dataplane(&self) -> &Arc<Dataplane> {
        &self.dataplane
    }
}

/// Starts a packet worker for each of `makes`, on the ports that it makes on the worker's thread.
pub(super) fn launch<P: Port + 'static>(
    config: &Config,
    judging: Judging,
    acquire: Option<Acquire>,
    from_host: Segments,
    makes: Vec<impl FnOnce() -> anyhow::Result<Vec<P>> + Send + 'static>,
    received: &Arc<Received>,
) -> anyhow::Result<Dataplane> {
    let lane_config = TunConfig::host_lane(config.dns.served().to_vec());
    let lane = TunDevice::open_kept(&lane_config, &received.ports)?;
    let upkeep = lane
        .set_segments(from_host)
        .and_then(|()| lane.upkeep(lane_config))
        .context("cannot configure the host lane")?;
    let workers = makes.len();
    // What is for the host is the first worker's.
    let lanes = std::iter::once(Some(lane)).chain(std::iter::repeat_with(|| None));
    let homes = homes(config, workers)?;
    let hold = Duration::from_millis(config.dataplane.cpu_latency_hold_ms.into());
    let sleeps = config.bootstrap.data_plane_mode != DataPlaneMode::Dpdk;
    let open = makes.into_iter().zip(lanes).zip(homes);
    let open = open.map(|((make, lane), home)| {
        move || {
            // First, so that all memory is near it.
            let cpu = home.map_or(Ok(None), Home::take)?;
            if sleeps {
                go_first();
            }
            Ok(Opened {
                ports: make()?,
                lane: lane.map(Tun::new),
                cpu,
                latency: latency(hold),
            })
        }
    });
    let capacity = share(config.dataplane.flow_table_capacity, workers);
    let mut settings = settings(config, monotonic(), workers);
    if let Some(acquire) = &acquire {
        settings.ports.clone_from(&acquire.settings);
    }
    let mut dataplane = Dataplane::start(
        settings,
        judging,
        capacity,
        acquire,
        open.collect(),
        received,
    )
    .context("the dataplane cannot start")?;
    dataplane.look_after(upkeep);
    Ok(dataplane)
}

/// What keeps processors awake for a while after frames, if they are to be and the process may have that.
fn latency(hold: Duration) -> Option<CpuLatency> {
    if hold.is_zero() {
        return None;
    }
    match CpuLatency::open(hold) {
        Ok(latency) => Some(latency),
        Err(error) => {
            tracing::info!(%error, "processors sleep between frames as the kernel sees fit");
            None
        }
    }
}

/// Takes interfaces from the kernel, each with the key that an error is to name, and gives those back that were data ports
/// of a process before this one and are none any more.
pub(super) fn hold(
    config: &Config,
    interfaces: impl IntoIterator<Item = (&'static str, String)>,
) -> anyhow::Result<Vec<Hold>> {
    let state_dir = PathBuf::from(&config.runtime.run_dir);
    let (mut holds, mut own) = (Vec::new(), Vec::new());
    for (key, interface) in interfaces {
        let hold = Hold::open(&HoldConfig {
            interface: interface.clone(),
            management_interface: Some(config.bootstrap.management_interface.as_str().to_owned()),
            state_dir: state_dir.clone(),
        });
        holds.push(hold.context(key)?);
        own.push(interface);
    }
    Hold::give_back_others(&state_dir, &own);
    Ok(holds)
}

/// Frames that may wait for one of several workers: together as many as for one alone, and still enough for a moment in
/// which it does not run.
fn ring_frames(alone: u32, workers: usize) -> u32 {
    const LEAST: u32 = 2048;
    const STEP: u32 = 256;
    let share = alone / u32::try_from(workers).unwrap_or(u32::MAX).max(1);
    share.next_multiple_of(STEP).clamp(LEAST.min(alone), alone)
}

/// The devices of the modes `tun` and `tap`: by worker, its queue of each.
fn soft_devices(
    config: &Config,
    interfaces: &[(&'static str, String)],
    kind: Kind,
    workers: usize,
    kept: &Kept,
) -> anyhow::Result<Vec<Vec<TunDevice>>> {
    let ports = [
        &config.dataplane.ports.inside,
        &config.dataplane.ports.outside,
    ];
    // A device that is there may have a single queue. If the number is left to us, that one will do.
    let has_single = |(_, interface): &(_, String)| TunDevice::has_single_queue(interface);
    let workers = match config.dataplane.workers {
        Auto::Auto if interfaces.iter().any(has_single) => 1,
        _ => workers,
    };
    let mut queues: Vec<Vec<TunDevice>> = (0..workers).map(|_| Vec::new()).collect();
    for ((key, interface), port) in interfaces.iter().zip(ports) {
        let device = TunConfig::data_port(interface, kind, host_addresses(port));
        let opened = TunDevice::open_queues_kept(&device, workers, kept).context(*key)?;
        for (queues, device) in queues.iter_mut().zip(opened) {
            queues.push(device);
        }
    }
    Ok(queues)
}

/// What the host is called on a device that is made for it: the port's gateway.
fn host_addresses(port: &config::Port) -> Vec<IpNet> {
    let on_link = |gateway: &std::net::IpAddr| {
        let network = port.addresses.iter().find(|own| own.contains(gateway));
        // A link-local gateway is in no network of ours, but in one of every link (RFC 4291, 2.5.6).
        let length = network.map_or(64, IpNet::prefix_len);
        IpNet::new(*gateway, length).ok()
    };
    port.gateway.iter().filter_map(on_link).collect()
}

fn interface(interface: &DataInterface) -> anyhow::Result<String> {
    let name = interface.name().ok_or_else(|| {
        anyhow!("{interface} can only be opened in data_plane_mode dpdk: name a kernel interface")
    })?;
    Ok(name.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_gateway_of_a_device_that_is_made() {
        let check = |addresses: &[&str], gateways: &[&str], expected: &[&str]| {
            let port = config::Port {
                addresses: addresses.iter().map(|a| a.parse().expect("test")).collect(),
                gateway: gateways.iter().map(|g| g.parse().expect("test")).collect(),
                routes: Vec::new(),
            };
            let found: Vec<String> = host_addresses(&port).iter().map(IpNet::to_string).collect();
            assert_eq!(found, expected);
        };
        check(&["10.64.0.2/30"], &[], &[]);
        check(
            &["10.64.0.2/30", "fd64::2/64"],
            &["10.64.0.1", "fd64::1"],
            &["10.64.0.1/30", "fd64::1/64"],
        );
        check(&["fd64::2/80"], &["fe80::1"], &["fe80::1/64"]);
    }

    /// The one that is made for the node can have any number.
    #[test]
    #[ignore = "needs root; make test runs it"]
    fn two_soft_devices_have_one_queue_each_if_one_has_no_more_and_keep_it() {
        in_a_namespace(|| {
            ip("tuntap add out0 mode tun");
            let text = "version: 1\nbootstrap: {management_interface: eth0, data_interface: in0}";
            let config = Config::parse(Some(text), &config::Flags::default()).expect("a constant");
            let interfaces = ["in0", "out0"].map(|name| ("", name.to_owned()));
            let open = |kept: &Kept| {
                let queues = soft_devices(&config, &interfaces, Kind::Tun, 2, kept);
                queues.expect("the devices open")
            };
            let kept = Kept::default();
            let queues = open(&kept);
            assert_eq!((queues.len(), queues[0].len()), (1, 2));
            let made = ip("-d -o link show in0");
            assert!(made.contains("numtxqueues 1 "), "{made}");

            kept.keep();
            let next = Kept::take(&mut kept.leave().into_iter().collect());
            drop(queues);
            let _queues = open(&next);
            assert_eq!(ip("-d -o link show in0"), made, "it is still the same");
        });
    }

    fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn ip(arguments: &str) -> String {
        let output = std::process::Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .expect("ip is there");
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn workers_share_the_frames_that_may_wait_and_have_enough_each() {
        let each = [1, 2, 3, 4, 100].map(|workers| ring_frames(8192, workers));
        assert_eq!(each, [8192, 4096, 2816, 2048, 2048]);
        assert_eq!(ring_frames(256, 3), 256);
    }
}
