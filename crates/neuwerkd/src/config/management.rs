//! `http.*` and `metrics.*`: the two listeners on the management interface.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::key::{Part, section};
use super::read::Reader;

/// Port of the management API where `http.bind` is unset.
pub const HTTP_PORT: u16 = 8443;
/// Port of the metrics listener where `metrics.bind` is unset.
pub const METRICS_PORT: u16 = 8080;

section! {
    /// The management API, over HTTPS.
    Http, Part::Management;

    /// Address and port of the management API.
    bind: Option<SocketAddr> = None, default_is("first global address of the management interface, port 8443");
    /// Address under which other nodes and clients reach it.
    advertise: Option<SocketAddr> = None, default_is("the bind address");
    /// URL under which browsers reach it, for sign-on through other identity providers.
    external_url: Option<String> = None, part(Part::SingleSignOn);
    /// Directory of the certificate authority and of this node's certificate.
    tls_dir: PathBuf = PathBuf::from("/var/lib/neuwerk/http-tls");
    /// Certificate chain to present instead of one that the node issues itself, PEM.
    cert_path: Option<PathBuf> = None;
    /// Private key of `cert_path`, PEM.
    key_path: Option<PathBuf> = None;
    /// Authority that signed `cert_path`, PEM.
    ca_path: Option<PathBuf> = None;
    /// More names and addresses for the certificate that the node issues itself.
    tls_san: Vec<String> = Vec::new();
}

section! {
    /// The metrics listener: plain HTTP, no login.
    Metrics, Part::Management;

    /// Address and port of the metrics listener.
    bind: Option<SocketAddr> = None, default_is("first global address of the management interface, port 8080");
    /// Lets the metrics listen on an address that the internet routes, or on all addresses.
    allow_public_bind: bool = false;
}

impl Http {
    pub(super) fn check(&self, reader: &mut Reader) {
        for (one, other, given, missing) in [
            (
                "http.cert_path",
                "http.key_path",
                self.cert_path.is_some(),
                self.key_path.is_none(),
            ),
            (
                "http.key_path",
                "http.cert_path",
                self.key_path.is_some(),
                self.cert_path.is_none(),
            ),
        ] {
            if given && missing {
                reader.problem(one, format!("needs {other} too; give both or neither"));
            }
        }
        if let Some(advertise) = self.advertise
            && advertise.ip().is_unspecified()
        {
            reader.problem(
                "http.advertise",
                format!("{advertise} cannot be reached; give an address of this node"),
            );
        }
    }
}

impl Metrics {
    pub(super) fn check(&self, reader: &mut Reader) {
        if let Some(reason) = self.bind.and_then(|bind| self.refusal(bind)) {
            reader.problem("metrics.bind", reason);
        }
    }

    /// Why metrics may not be served on `bind`, if they may not: it is public and that was not asked for.
    pub fn refusal(&self, bind: SocketAddr) -> Option<String> {
        (!self.allow_public_bind && is_public(bind.ip())).then(|| {
            format!("{bind} is open to the public; set metrics.bind to another address, or metrics.allow_public_bind: true")
        })
    }
}

/// Whether hosts elsewhere on the internet can reach this address: global unicast, or all addresses at once.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_means_reachable_from_elsewhere() {
        for (address, expected) in [
            ("10.0.0.1", false),
            ("172.20.0.1", false),
            ("100.64.0.1", false),
            ("127.0.0.1", false),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::1", false),
            ("::ffff:10.0.0.1", false),
            ("8.8.8.8", true),
            ("172.32.0.1", true),
            ("2a00::1", true),
            ("0.0.0.0", true),
            ("::", true),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }
}
