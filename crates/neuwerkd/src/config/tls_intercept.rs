//! `tls_intercept.*`: the TLS service plane.

use super::key::{Part, section};
use super::value::choice;

section! {
    /// The TLS service plane, which decrypts where the policy says so.
    TlsIntercept, Part::Tls;

    /// Whether a server's certificate must be valid.
    upstream_verify: UpstreamVerify = UpstreamVerify::Strict;
    /// How long a read or a write may take.
    io_timeout_secs: u32 = 3, unit("s"), range(1..=31_536_000);
    /// Connections that may wait to be accepted.
    listen_backlog: u32 = 1024, range(1..=65_535);

    group h2: InterceptH2;
}

section! {
    /// HTTP/2 inside intercepted connections.
    InterceptH2, Part::Tls;

    /// How long a body may take.
    body_timeout_secs: u32 = 10, unit("s"), range(1..=31_536_000);
    /// Requests at a time on one connection.
    max_concurrent_streams: u32 = 64, range(1..=u64::from(u32::MAX));
    /// Requests after which a connection is replaced.
    max_requests_per_connection: u32 = 800, range(1..=u64::from(u32::MAX));
    /// Pools of connections to one server.
    pool_shards: u32 = 1, range(1..=1024);
    /// Metrics for every pool.
    detailed_metrics: bool = false;
    /// Weight of open requests when a connection is chosen.
    selection_inflight_weight: u32 = 128, range(1..=u64::from(u32::MAX));
    /// First wait before connecting again.
    reconnect_backoff_base_ms: u32 = 5, unit("ms"), range(1..=600_000);
    /// Longest wait before connecting again.
    reconnect_backoff_max_ms: u32 = 250, unit("ms"), range(1..=600_000);
}

choice! {
    /// Whether a server's certificate must be valid.
    UpstreamVerify {
        /// It must.
        Strict = "strict",
        /// It need not.
        Insecure = "insecure",
    }
}
