//! `dataplane.xdp.*`: how the mode `xdp` opens the data ports.

use io::xdp::{Attach, XdpConfig, ZeroCopy};

use super::bootstrap::DataPlaneMode;
use super::key::{Part, section};
use super::read::Reader;
use super::value::choice;

/// Frames that may wait on a queue, unless told otherwise.
const RX_FRAMES: u32 = 2048;

section! {
    /// How the mode `xdp` opens the data ports.
    Xdp, Part::Node;

    /// Where the XDP program runs that hands frames over: in the driver (`native`), behind it (`generic`, which works
    /// with any driver and costs more), or in the driver where that is possible.
    attach: XdpAttach = XdpAttach::Auto;
    /// Whether the device writes frames into the node's memory itself (`on`), the kernel copies them (`off`), or the
    /// device does where the drivers of all data ports can.
    zero_copy: XdpZeroCopy = XdpZeroCopy::Auto;
    /// Frames that may wait to be received on each queue of a port, a power of two. Each takes 2 KiB of memory from the
    /// start on, 4 KiB where the MTU is above 1756.
    rx_frames: u32 = RX_FRAMES, unit("frames"), range(64..=32_768);
}

choice! {
    /// Where the XDP program runs.
    XdpAttach {
        /// In the driver if it can, else behind it.
        Auto = "auto",
        /// In the driver.
        Native = "native",
        /// Behind the driver.
        Generic = "generic",
    }
}

choice! {
    /// Who moves frames between the device and the node's memory.
    XdpZeroCopy {
        /// The device if it can, else the kernel.
        Auto = "auto",
        /// The device.
        On = "on",
        /// The kernel.
        Off = "off",
    }
}

impl Xdp {
    /// The same, as the backend takes it.
    pub(crate) fn to_backend(&self) -> XdpConfig {
        XdpConfig {
            attach: match self.attach {
                XdpAttach::Auto => Attach::Auto,
                XdpAttach::Native => Attach::Native,
                XdpAttach::Generic => Attach::Generic,
            },
            zero_copy: match self.zero_copy {
                XdpZeroCopy::Auto => ZeroCopy::Auto,
                XdpZeroCopy::On => ZeroCopy::On,
                XdpZeroCopy::Off => ZeroCopy::Off,
            },
            rx_frames: self.rx_frames,
            ..XdpConfig::default()
        }
    }

    pub(super) fn check(&self, mode: DataPlaneMode, reader: &mut Reader) {
        if mode != DataPlaneMode::Xdp {
            for (key, differs) in [
                ("attach", self.attach != XdpAttach::Auto),
                ("zero_copy", self.zero_copy != XdpZeroCopy::Auto),
                ("rx_frames", self.rx_frames != RX_FRAMES),
            ] {
                if differs {
                    let path = format!("dataplane.xdp.{key}");
                    let reason =
                        format!("is for data_plane_mode xdp, and the mode is {mode}; leave it out");
                    reader.problem(&path, reason);
                }
            }
        }
        if !self.rx_frames.is_power_of_two() {
            let next = self.rx_frames.next_power_of_two();
            reader.problem(
                "dataplane.xdp.rx_frames",
                format!("{} is not a power of two; take {next}", self.rx_frames),
            );
        }
        if self.attach == XdpAttach::Generic && self.zero_copy == XdpZeroCopy::On {
            reader.problem(
                "dataplane.xdp.zero_copy",
                "needs the program in the driver; set attach to native or auto".into(),
            );
        }
    }
}
