//! DPDK's environment: started once in a process, with nothing shared with other processes and no device but those that
//! were asked for.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::sync::{Mutex, PoisonError};

use super::ffi;

/// How the environment is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EalConfig {
    /// Addresses of the PCI devices that may be touched; all others are left alone.
    pub pci: Vec<String>,
    /// Memory where there are no huge pages, MiB: address space, of which only what is used is taken.
    pub memory_mib: u32,
    /// Takes huge pages from a mounted hugetlbfs instead of anonymously.
    pub without_in_memory: bool,
    /// How devices address memory.
    pub iova: Option<Iova>,
    /// Libraries of drivers beside those of the installation: a file's name or path.
    pub drivers: Vec<String>,
}

/// How devices address memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iova {
    /// By virtual address, through an IOMMU.
    Virtual,
    /// By physical address.
    Physical,
}

/// The environment could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EalError {
    /// DPDK refused.
    #[error("cannot start DPDK{}", in_brackets(.said))]
    Refused {
        /// Its last complaint, if it made one.
        said: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// A device needs memory that does not move.
    #[error(
        "{device} needs huge pages and the system has none free: sysctl -w vm.nr_hugepages=512, and add the same to \
         /etc/sysctl.d"
    )]
    NoHugePages {
        /// Its PCI address.
        device: String,
    },
    /// It runs already, and cannot be started anew.
    #[error("DPDK runs already with other settings; it starts once in a process")]
    Running,
}

pub(super) fn in_brackets(said: &Option<String>) -> String {
    said.as_ref()
        .map_or_else(String::new, |line| format!(" (it says: {line})"))
}

/// What the environment was started with, once it was.
static STARTED: Mutex<Option<EalConfig>> = Mutex::new(None);

/// The last complaint of DPDK.
static COMPLAINT: Mutex<Option<String>> = Mutex::new(None);

/// The environment runs. It ends with the process.
#[derive(Clone, Copy, Debug)]
pub struct Eal(());

impl Eal {
    /// Starts the environment, or finds that it runs with the same settings.
    ///
    /// # Errors
    /// DPDK refuses, or runs with other settings.
    pub fn start(config: &EalConfig) -> Result<Self, EalError> {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(with) = &*started {
            return if with == config {
                Ok(Self(()))
            } else {
                Err(EalError::Running)
            };
        }
        let huge_pages = free_huge_pages() > 0;
        if let (false, Some(device)) = (huge_pages, config.pci.first()) {
            let device = device.clone();
            return Err(EalError::NoHugePages { device });
        }
        let arguments = arguments(config, huge_pages, first_core());
        tracing::debug!(arguments = arguments.join(" "), "starting DPDK");
        forget_complaint();
        // It pins the thread that calls it, so that is one of its own.
        let error = std::thread::spawn(move || init(arguments))
            .join()
            .expect("it does not panic");
        if error != 0 {
            return Err(EalError::Refused {
                said: complaint(),
                source: io::Error::from_raw_os_error(error),
            });
        }
        *started = Some(config.clone());
        Ok(Self(()))
    }
}

fn init(arguments: Vec<String>) -> i32 {
    let owned = arguments
        .into_iter()
        .map(|argument| CString::new(argument).unwrap_or_default());
    // DPDK keeps pointers to its arguments: they live as long as the process, once.
    let mut pointers: Vec<*mut c_char> = owned.map(CString::into_raw).collect();
    let count = pointers.len() as c_int;
    pointers.push(std::ptr::null_mut());
    // SAFETY: `count` C strings and a null behind them, none of which is ever freed; called once.
    unsafe { ffi::nw_eal_init(count, pointers.leak().as_mut_ptr()) }
}

/// The arguments, the program's name first.
fn arguments(config: &EalConfig, huge_pages: bool, core: usize) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "neuwerk",
        // Its main thread; packet workers are ours, and register themselves.
        &format!("--lcores=0@{core}"),
        "--no-telemetry",
        "--no-shconf",
        &format!("--file-prefix=neuwerk-{}", std::process::id()),
    ]
    .map(str::to_owned)
    .into();
    let mut add = |argument: &str| arguments.push(argument.to_owned());
    match (huge_pages, config.without_in_memory) {
        (false, _) => {
            add("--no-huge");
            add("-m");
            add(&config.memory_mib.to_string());
        }
        (true, false) => add("--in-memory"),
        (true, true) => add("--huge-unlink"),
    }
    if config.pci.is_empty() {
        add("--no-pci");
    }
    for address in &config.pci {
        add("-a");
        add(address);
    }
    match config.iova {
        Some(Iova::Virtual) => add("--iova-mode=va"),
        Some(Iova::Physical) => add("--iova-mode=pa"),
        None => {}
    }
    for library in &config.drivers {
        add("-d");
        add(library);
    }
    arguments
}

/// Huge pages of any size that are free now.
fn free_huge_pages() -> u64 {
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages");
    let free = |size: io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(size.ok()?.path().join("free_hugepages")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    sizes.into_iter().flatten().filter_map(free).sum()
}

/// The first core that this process may use.
fn first_core() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None);
    let is_set = |core: &usize| allowed.as_ref().is_ok_and(|set| set.is_set(*core));
    (0..rustix::thread::CpuSet::MAX_CPU)
        .find(is_set)
        .unwrap_or(0)
}

/// The last complaint of DPDK since [`forget_complaint`].
pub(super) fn complaint() -> Option<String> {
    COMPLAINT
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

pub(super) fn forget_complaint() {
    complaint();
}

/// What DPDK says: its errors are kept for ours, and all of it is logged.
#[unsafe(no_mangle)]
extern "C" fn nw_log(level: u32, text: *const c_char, len: usize) {
    // SAFETY: the shim hands over `len` bytes that live for the length of the call.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match level {
            // From emergencies to errors.
            0..=4 => {
                let mut last = COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some(line.to_owned());
                tracing::info!(message = line, "DPDK reports an error");
            }
            5 => tracing::info!(message = line, "DPDK warns"),
            _ => tracing::debug!(message = line, "DPDK"),
        }
    }
}

thread_local! {
    static REGISTERED: Registration = Registration::new();
}

/// A thread's place in the environment, which gives it caches of its own. Given back when the thread ends.
struct Registration {
    registered: bool,
}

impl Registration {
    fn new() -> Self {
        // SAFETY: the environment runs wherever this is called; see `register_thread`.
        let error = unsafe { ffi::nw_thread_register() };
        if error != 0 {
            // It works all the same.
            let error = io::Error::from_raw_os_error(error);
            tracing::info!(%error, "a packet worker goes without DPDK's per-thread caches");
        }
        Self {
            registered: error == 0,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.registered {
            // SAFETY: this thread registered itself, once.
            unsafe { ffi::nw_thread_unregister() }
        }
    }
}

/// Gives this thread caches of its own, as long as it lives.
pub(super) fn register_thread(_: Eal) {
    REGISTERED.with(|_| ());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_but_those_asked_for_is_touched() {
        let check = |config: &EalConfig, huge_pages, expected: &[&str]| {
            let all = arguments(config, huge_pages, 3);
            assert_eq!(
                all[..4],
                ["neuwerk", "--lcores=0@3", "--no-telemetry", "--no-shconf"]
            );
            assert_eq!(all[5..], *expected);
        };
        let none = EalConfig {
            memory_mib: 64,
            ..EalConfig::default()
        };
        check(&none, false, &["--no-huge", "-m", "64", "--no-pci"]);
        check(&none, true, &["--in-memory", "--no-pci"]);
        let full = EalConfig {
            pci: vec!["0000:00:05.0".into(), "0000:00:06.0".into()],
            without_in_memory: true,
            iova: Some(Iova::Virtual),
            drivers: vec!["librte_net_ena.so".into()],
            ..none
        };
        check(
            &full,
            true,
            &[
                "--huge-unlink",
                "-a",
                "0000:00:05.0",
                "-a",
                "0000:00:06.0",
                "--iova-mode=va",
                "-d",
                "librte_net_ena.so",
            ],
        );
    }
}
