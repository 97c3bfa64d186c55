//! Devices that this process drives itself, as metrics see them.

/// What a device tells now.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// By queue, frames that it has lost before they were received.
    pub rx_dropped: Vec<u64>,
    /// Buffers in all.
    pub buffers: u32,
    /// Those that are in use.
    pub buffers_in_use: u32,
    /// Everything that its driver counts, by the driver's own names.
    pub xstats: Vec<(String, u64)>,
}

/// A device of a data port.
pub struct Device(Box<dyn Fn() -> Option<Figures> + Send + Sync>);

impl Device {
    /// A device that tells its figures by this function, as long as it is open.
    pub fn new(read: impl Fn() -> Option<Figures> + Send + Sync + 'static) -> Self {
        Self(Box::new(read))
    }

    /// Its figures; none if it is closed.
    pub fn read(&self) -> Option<Figures> {
        self.0()
    }
}
