//! `bootstrap.*`: which interfaces the node has, and how it moves packets.

use super::key::{Part, section};
use super::net::{DataInterface, Interface};
use super::read::Reader;
use super::value::choice;

section! {
    /// Which interfaces the node has, and how it moves packets.
    Bootstrap, Part::Node;

    /// Interface of the management API, the metrics and the cluster. It keeps its addresses in the kernel.
    management_interface: Interface = Interface::default(), flag("management-interface"), required();
    /// Data port: the only one (traffic enters and leaves by it), or the inside one when there is an outside
    /// interface too. The node takes it over from the kernel while it runs; in the modes `tun` and `tap` it is a device
    /// that the node makes if it is not there. `pci:`, `mac:` and `vdev:` need the mode `dpdk`.
    data_interface: DataInterface = DataInterface::default(), flag("data-plane-interface"), required();
    /// Second data port, towards the internet. Without it the node has one arm.
    outside_interface: Option<DataInterface> = None, flag("outside-interface");
    /// How packets reach the node. `soft` is another name of `tun`. `dpdk`, which [its page](dpdk.md) describes, is in
    /// builds with that feature only; the others refuse it.
    data_plane_mode: DataPlaneMode = DataPlaneMode::Packet, flag("data-plane-mode");
    /// Cloud that the node runs in.
    cloud_provider: CloudProvider = CloudProvider::None, flag("cloud-provider");
}

choice! {
    /// How packets reach the node.
    DataPlaneMode {
        /// AF_PACKET, on any Linux.
        Packet = "packet",
        /// AF_XDP.
        Xdp = "xdp",
        /// DPDK poll mode drivers.
        Dpdk = "dpdk",
        /// A TUN device of the kernel.
        Tun = "tun" | "soft",
        /// A TAP device of the kernel.
        Tap = "tap",
    }
}

choice! {
    /// A cloud.
    CloudProvider {
        /// None of them.
        None = "none",
        /// Amazon.
        Aws = "aws",
        /// Microsoft.
        Azure = "azure",
        /// Google.
        Gcp = "gcp",
    }
}

impl Bootstrap {
    pub(super) fn check(&self, reader: &mut Reader) {
        const DATA: &str = "bootstrap.data_interface";
        const OUTSIDE: &str = "bootstrap.outside_interface";
        let management = DataInterface::Name(self.management_interface.clone());
        if reader.was_given(DATA) && self.data_interface == management {
            let reason = format!(
                "{management} is the management interface already; a data port must be another one"
            );
            reader.problem(DATA, reason);
        }
        if let Some(outside) = &self.outside_interface {
            if *outside == management {
                let reason = format!(
                    "{outside} is the management interface already; a data port must be another one"
                );
                reader.problem(OUTSIDE, reason);
            } else if *outside == self.data_interface {
                let reason = format!(
                    "{outside} is the inside port already; leave it out for a node with one arm"
                );
                reader.problem(OUTSIDE, reason);
            }
        }
        for (path, port) in [
            (DATA, Some(&self.data_interface)),
            (OUTSIDE, self.outside_interface.as_ref()),
        ] {
            if let Some(port) = port
                && port.name().is_none()
                && self.data_plane_mode != DataPlaneMode::Dpdk
            {
                let reason = format!(
                    "{port} needs data_plane_mode dpdk; name the kernel's interface instead"
                );
                reader.problem(path, reason);
            }
        }
        if self.data_plane_mode == DataPlaneMode::Dpdk && !cfg!(feature = "dpdk") {
            let reason = "dpdk is not in this build of neuwerk; take one built with the feature dpdk, or set packet";
            reader.problem("bootstrap.data_plane_mode", reason.into());
        }
    }
}
