//! What a device tells of itself beside its queues: for metrics, from any thread.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError, Weak};

use super::device::{Device, Queue};
use super::ffi;

/// Figures of a driver's own that are read at most.
const XSTATS: usize = 1024;

/// Reads a device's figures as long as it is open.
#[derive(Clone)]
pub struct Meter {
    device: Weak<Device>,
    queues: u16,
}

/// What a device tells now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// By queue, frames that it has lost before they were received; 0 where the driver does not tell queues apart.
    pub rx_dropped: Vec<u64>,
    /// Buffers in all.
    pub buffers: u32,
    /// Those that hold a frame or wait for one in a ring.
    pub buffers_in_use: u32,
    /// Everything that the driver counts, by its own names.
    pub xstats: Vec<(String, u64)>,
}

impl Meter {
    /// One for the device of these queues, which are all that it has.
    pub fn of(queues: &[Queue]) -> Option<Self> {
        let first = queues.first()?;
        Some(Self {
            device: Arc::downgrade(&first.device),
            queues: queues.len() as u16,
        })
    }

    /// The figures; none if the device has been closed.
    pub fn read(&self) -> Option<Figures> {
        let device = self.device.upgrade()?;
        let mut rx_dropped = vec![0; usize::from(self.queues)];
        let mut raw = vec![ffi::Xstat::EMPTY; XSTATS];
        // Drivers add up in memory of their own, one reader at a time.
        let reading = device
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the port is open as long as the device lives; there is room for as many as is said.
        let count = unsafe {
            // Without an answer they stay 0.
            ffi::nw_port_lost_by_queue(device.port, rx_dropped.as_mut_ptr(), self.queues);
            ffi::nw_port_xstats(device.port, raw.as_mut_ptr(), XSTATS as u32)
        };
        drop(reading);
        let xstats = raw.iter().take(count as usize).map(|figure| {
            // SAFETY: the shim ends each with a zero byte.
            let name = unsafe { CStr::from_ptr(figure.name.as_ptr()) };
            (name.to_string_lossy().into_owned(), figure.value)
        });
        Some(Figures {
            rx_dropped,
            buffers: device.pool.count(),
            // SAFETY: the pool is never freed.
            buffers_in_use: unsafe { ffi::nw_pool_in_use(device.pool.as_ptr()) },
            xstats: xstats.collect(),
        })
    }
}
