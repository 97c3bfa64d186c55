//! Which device a port is: found before DPDK starts, which must be told what it may touch.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Drivers that hand a device over to a process as a whole.
const USER_DRIVERS: [&str; 4] = ["vfio-pci", "uio_pci_generic", "igb_uio", "uio_hv_generic"];
/// Drivers of the kernel that a process can use beside the kernel.
const SHARED_DRIVERS: [&str; 2] = ["mlx5_core", "mlx4_core"];

/// How an operator names a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// A PCI address, as `0000:00:05.0`.
    Pci(String),
    /// A hardware address.
    Mac([u8; 6]),
    /// A device of DPDK's own making: a driver's name, a number and arguments, as `net_memif0,id=1`.
    Vdev(String),
    /// An interface of the kernel: used directly where its driver allows it, otherwise through `net_af_packet`.
    Interface(String),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => write!(f, "pci:{address}"),
            Self::Mac([a, b, c, d, e, g]) => {
                write!(f, "mac:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Vdev(arguments) => write!(f, "vdev:{arguments}"),
            Self::Interface(name) => f.write_str(name),
        }
    }
}

/// There is no device that can be used under that name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// Nothing has that address.
    #[error("there is no PCI device {0}: lspci -D lists those of this machine")]
    NoSuchPci(String),
    /// The device is the kernel's.
    #[error(
        "{device} is driven by {} and not free for DPDK: modprobe vfio-pci, then dpdk-devbind.py --bind=vfio-pci {pci}",
        .driver.as_deref().unwrap_or("no driver")
    )]
    NotBound {
        /// As the operator named it.
        device: String,
        /// Its PCI address.
        pci: String,
        /// Its driver now.
        driver: Option<String>,
    },
    /// No device that could have that hardware address.
    #[error(
        "{0} is neither an interface that DPDK can use nor is any network card bound to vfio-pci: bind it with \
         dpdk-devbind.py --bind=vfio-pci and its PCI address"
    )]
    NoCandidate(String),
    /// A virtual interface of the kernel has that hardware address.
    #[error(
        "{device} is the kernel's interface {interface}, which is no device: name {interface} itself"
    )]
    Virtual {
        /// As the operator named it.
        device: String,
        /// The interface.
        interface: String,
    },
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub(super) name: String,
    pub(super) place: Place,
    /// PCI devices that DPDK has to look at to find it.
    pci: Vec<String>,
    /// The kernel's interface that it shares its frames with.
    interface: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Pci(String),
    Mac([u8; 6]),
    Vdev(String),
}

impl Located {
    /// PCI devices that DPDK has to be allowed.
    pub fn pci(&self) -> &[String] {
        &self.pci
    }

    /// Whether its buffers must lie without gaps: DPDK 22.11 registers with AF_XDP as many bytes as they have together, and
    /// what lies beyond is lost. A version with "net/af_xdp: fix umem map size for zero copy" (24.07) does not need it.
    pub(super) fn wants_dense_buffers(&self) -> bool {
        matches!(&self.place, Place::Vdev(arguments) if arguments.starts_with("net_af_xdp"))
    }

    /// The kernel's interface that it shares its frames with, which the kernel has to leave alone.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }
}

impl Selector {
    /// Finds the device on this machine.
    ///
    /// # Errors
    /// It is not there, or the kernel has it.
    pub fn locate(&self) -> Result<Located, SelectError> {
        self.locate_below(Path::new("/sys"))
    }

    fn locate_below(&self, sysfs: &Path) -> Result<Located, SelectError> {
        let name = self.to_string();
        let located = |place, pci, interface| Located {
            name: name.clone(),
            place,
            pci,
            interface,
        };
        match self {
            Self::Pci(address) => {
                let pci = Pci::at(sysfs, address)
                    .ok_or_else(|| SelectError::NoSuchPci(address.clone()))?;
                if !pci.is_free() {
                    return Err(pci.not_bound(name));
                }
                let (address, interface) = (pci.address.clone(), pci.interface());
                Ok(located(
                    Place::Pci(address.clone()),
                    vec![address],
                    interface,
                ))
            }
            Self::Vdev(arguments) => {
                let interface = arguments
                    .split(',')
                    .find_map(|argument| argument.strip_prefix("iface="));
                let interface = interface.map(str::to_owned);
                Ok(located(
                    Place::Vdev(arguments.clone()),
                    Vec::new(),
                    interface,
                ))
            }
            Self::Interface(interface) => {
                let shared = Pci::of_interface(sysfs, interface).filter(Pci::is_shared);
                Ok(match shared {
                    Some(pci) => located(
                        Place::Pci(pci.address.clone()),
                        vec![pci.address],
                        Some(interface.clone()),
                    ),
                    None => located(
                        Place::Vdev(over_packet_socket(interface)),
                        Vec::new(),
                        Some(interface.clone()),
                    ),
                })
            }
            Self::Mac(mac) => {
                let (pci, interface) = with_mac(sysfs, *mac, &name)?;
                Ok(match interface {
                    Some(_) => located(Place::Pci(pci[0].clone()), pci, interface),
                    None => located(Place::Mac(*mac), pci, None),
                })
            }
        }
    }
}

/// The device that carries a kernel's interface. Slots of 2 KiB, 8192 of them each way.
fn over_packet_socket(interface: &str) -> String {
    format!("net_af_packet_{interface},iface={interface},blocksz=65536,framesz=2048,framecnt=8192")
}

/// The PCI devices that may have this address, and the interface where that is known.
fn with_mac(
    sysfs: &Path,
    mac: [u8; 6],
    name: &str,
) -> Result<(Vec<String>, Option<String>), SelectError> {
    let [a, b, c, d, e, g] = mac;
    let text = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}");
    let has_it = |interface: &String| {
        let path = sysfs.join("class/net").join(interface).join("address");
        fs::read_to_string(path).is_ok_and(|found| found.trim() == text)
    };
    let holders: Vec<String> = names(&sysfs.join("class/net")).filter(has_it).collect();
    let devices: Vec<Pci> = holders
        .iter()
        .filter_map(|interface| Pci::of_interface(sysfs, interface))
        .collect();
    if let Some(pci) = devices.iter().find(|pci| pci.is_shared()) {
        return Ok((vec![pci.address.clone()], pci.interface()));
    }
    if let Some(pci) = devices.first() {
        return Err(pci.not_bound(name.to_owned()));
    }
    if let Some(interface) = holders.first() {
        let (device, interface) = (name.to_owned(), interface.clone());
        return Err(SelectError::Virtual { device, interface });
    }
    let user = |pci: &Pci| pci.has_driver(&USER_DRIVERS) && pci.is_network_card();
    let candidates: Vec<String> = names(&sysfs.join("bus/pci/devices"))
        .filter_map(|address| Pci::at(sysfs, &address))
        .filter(user)
        .map(|pci| pci.address)
        .collect();
    let on_vmbus =
        names(&sysfs.join("bus/vmbus/drivers/uio_hv_generic")).any(|entry| entry.len() == 36);
    if candidates.is_empty() && !on_vmbus {
        return Err(SelectError::NoCandidate(name.to_owned()));
    }
    Ok((candidates, None))
}

/// The entries of a directory, in order; none if it is not there.
fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter()
}

/// A PCI device as sysfs describes it.
struct Pci {
    path: PathBuf,
    address: String,
    driver: Option<String>,
}

impl Pci {
    fn at(sysfs: &Path, address: &str) -> Option<Self> {
        let path = sysfs.join("bus/pci/devices").join(address);
        path.exists().then(|| Self {
            driver: link_name(&path.join("driver")),
            address: address.to_owned(),
            path,
        })
    }

    fn of_interface(sysfs: &Path, interface: &str) -> Option<Self> {
        let device = sysfs.join("class/net").join(interface).join("device");
        Self::at(sysfs, &link_name(&device)?)
    }

    fn has_driver(&self, drivers: &[&str]) -> bool {
        let driver = self.driver.as_deref();
        driver.is_some_and(|driver| drivers.contains(&driver))
    }

    fn is_shared(&self) -> bool {
        self.has_driver(&SHARED_DRIVERS)
    }

    fn is_free(&self) -> bool {
        self.is_shared() || self.has_driver(&USER_DRIVERS)
    }

    fn is_network_card(&self) -> bool {
        fs::read_to_string(self.path.join("class")).is_ok_and(|class| class.starts_with("0x02"))
    }

    /// The kernel's interface of it, where there is one.
    fn interface(&self) -> Option<String> {
        names(&self.path.join("net")).next()
    }

    fn not_bound(&self, device: String) -> SelectError {
        SelectError::NotBound {
            device,
            pci: self.address.clone(),
            driver: self.driver.clone(),
        }
    }
}

/// The last part of where a link leads.
fn link_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const FREE: &str = "0000:00:05.0";
    const SHARED: &str = "0000:00:06.0";
    const KERNEL: &str = "0000:00:07.0";
    const DISK: &str = "0000:00:08.0";

    #[test]
    fn devices_are_found_as_they_are_named() {
        let sysfs = sysfs();
        let check = |selector: Selector, expected: Result<Located, &str>| {
            let found = selector.locate_below(sysfs.path());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().contains(words), "{error}");
                }
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        };
        let located = |name: &str, place, pci: &[&str], interface: Option<&str>| Located {
            name: name.to_owned(),
            place,
            pci: pci.iter().map(|address| (*address).to_owned()).collect(),
            interface: interface.map(str::to_owned),
        };
        let at = |address: &str| Place::Pci(address.to_owned());
        check(
            Selector::Pci(FREE.into()),
            Ok(located("pci:0000:00:05.0", at(FREE), &[FREE], None)),
        );
        check(
            Selector::Pci(SHARED.into()),
            Ok(located(
                "pci:0000:00:06.0",
                at(SHARED),
                &[SHARED],
                Some("fast0"),
            )),
        );
        check(
            Selector::Pci(KERNEL.into()),
            Err(
                "is driven by e1000 and not free for DPDK: modprobe vfio-pci, then dpdk-devbind.py --bind=vfio-pci 0000:00:07.0",
            ),
        );
        check(
            Selector::Pci("0000:00:09.0".into()),
            Err("there is no PCI device"),
        );
        check(
            Selector::Interface("fast0".into()),
            Ok(located("fast0", at(SHARED), &[SHARED], Some("fast0"))),
        );
        let packet = "net_af_packet_veth0,iface=veth0,blocksz=65536,framesz=2048,framecnt=8192";
        check(
            Selector::Interface("veth0".into()),
            Ok(located(
                "veth0",
                Place::Vdev(packet.into()),
                &[],
                Some("veth0"),
            )),
        );
        check(
            Selector::Vdev("net_af_xdp0,iface=veth0".into()),
            Ok(located(
                "vdev:net_af_xdp0,iface=veth0",
                Place::Vdev("net_af_xdp0,iface=veth0".into()),
                &[],
                Some("veth0"),
            )),
        );
        let mac = |last| Selector::Mac([2, 0, 0, 0, 0, last]);
        check(
            mac(6),
            Ok(located(
                "mac:02:00:00:00:00:06",
                at(SHARED),
                &[SHARED],
                Some("fast0"),
            )),
        );
        check(mac(7), Err("is driven by e1000"));
        check(mac(1), Err("name veth0 itself"));
        check(
            mac(5),
            Ok(located(
                "mac:02:00:00:00:00:05",
                Place::Mac([2, 0, 0, 0, 0, 5]),
                &[FREE],
                None,
            )),
        );
        let empty = tempfile::tempdir().expect("a directory");
        let error = mac(5)
            .locate_below(empty.path())
            .expect_err("there is none");
        assert!(error.to_string().contains("bind it with"), "{error}");
    }

    /// A card for DPDK, one that is shared, one that is the kernel's, a disk, and a virtual interface.
    fn sysfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let make = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        for (address, driver, class, interface) in [
            (FREE, "vfio-pci", "0x020000", None),
            (SHARED, "mlx5_core", "0x020000", Some(("fast0", 6))),
            (KERNEL, "e1000", "0x020000", Some(("eth0", 7))),
            (DISK, "vfio-pci", "0x010000", None),
        ] {
            let device = make(&format!("bus/pci/devices/{address}"));
            let driver = make(&format!("bus/pci/drivers/{driver}"));
            symlink(driver, device.join("driver")).expect("a link");
            fs::write(device.join("class"), class).expect("a file");
            if let Some((interface, last)) = interface {
                make(&format!("bus/pci/devices/{address}/net/{interface}"));
                let net = make(&format!("class/net/{interface}"));
                symlink(&device, net.join("device")).expect("a link");
                fs::write(net.join("address"), format!("02:00:00:00:00:0{last}\n"))
                    .expect("a file");
            }
        }
        let net = make("class/net/veth0");
        fs::write(net.join("address"), "02:00:00:00:00:01\n").expect("a file");
        root
    }
}
