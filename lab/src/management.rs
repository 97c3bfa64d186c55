//! The operator: requests to a node's management API over HTTPS, as any client would make them.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::client::connect_from;
use crate::http::{self, Response};
use crate::netns::Netns;
use crate::tool;

/// How long a request may take. Longer than any `timeout=` that a test asks for.
const LIMIT: Duration = Duration::from_secs(15);

/// A client of one node's API. Trusts the cluster's CA and nothing else.
#[derive(Debug, Clone)]
pub struct Management {
    operator: Arc<Netns>,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    token: Option<String>,
    limit: Duration,
}

impl Management {
    /// A client that talks to `address` from the operator's namespace and trusts the CA in `ca_path`.
    ///
    /// # Errors
    /// When there is no certificate in the file.
    pub fn new(operator: &Arc<Netns>, address: SocketAddr, ca_path: &Path) -> Result<Management> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca_path)
            .with_context(|| format!("{}", ca_path.display()))?
        {
            roots.add(certificate?)?;
        }
        ensure!(!roots.is_empty(), "{}: no certificate", ca_path.display());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Management {
            operator: Arc::clone(operator),
            address,
            tls: Arc::new(tls),
            token: None,
            limit: LIMIT,
        })
    }

    /// The same client, which waits for so long at most.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Management {
        self.limit = limit;
        self
    }

    /// The same client, with a bearer token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Management {
        self.token = Some(token.to_owned());
        self
    }

    /// Sends one request.
    ///
    /// # Errors
    /// When no response came. A response of any status is none.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut all = headers.to_vec();
        if let Some(bearer) = &bearer {
            all.push(("Authorization", bearer));
        }
        let exchanged = self.operator.enter(|| -> Result<Response> {
            let stream = connect_from(None, self.address, self.limit)?;
            let name = ServerName::from(self.address.ip());
            let mut tls =
                StreamOwned::new(ClientConnection::new(Arc::clone(&self.tls), name)?, stream);
            Ok(http::exchange(
                &mut tls,
                method,
                &self.address.to_string(),
                path,
                &all,
                body,
            )?)
        });
        exchanged.with_context(|| format!("{method} https://{}{path}", self.address))
    }

    /// `GET`.
    ///
    /// # Errors
    /// As [`Management::request`].
    pub fn get(&self, path: &str) -> Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// `GET` of a JSON document; any status but 200 is an error here.
    ///
    /// # Errors
    /// As [`Management::request`], and on another status.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        let response = self.get(path)?;
        ensure!(
            response.status == 200,
            "GET {path} at {}: {} {}",
            self.address,
            response.status,
            response.text()
        );
        Ok(response.json()?)
    }

    /// `POST` or `PUT` of a JSON document.
    ///
    /// # Errors
    /// As [`Management::request`].
    pub fn send_json(&self, method: &str, path: &str, body: &Value) -> Result<Response> {
        self.request(
            method,
            path,
            &[("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    /// Puts a policy and waits until every member enforces it.
    ///
    /// # Errors
    /// On another answer than 200.
    pub fn put_policy(&self, policy: &Value) -> Result<Response> {
        let response = self.send_json("PUT", "/api/v1/policy?wait=all&timeout=10s", policy)?;
        ensure!(
            response.status == 200,
            "PUT policy at {}: {} {}",
            self.address,
            response.status,
            response.text()
        );
        Ok(response)
    }

    /// Creates a service account. Its name is the idempotency key: tried again, it is the same account.
    ///
    /// # Errors
    /// On another answer than 200 or 201.
    pub fn create_account(&self, name: &str) -> Result<()> {
        let body = json!({"name": name, "role": "readonly"}).to_string();
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", name),
        ];
        let response = self.request(
            "POST",
            "/api/v1/service-accounts",
            &headers,
            body.as_bytes(),
        )?;
        ensure!(
            matches!(response.status, 200 | 201),
            "{name}: {} {}",
            response.status,
            response.text()
        );
        Ok(())
    }

    /// The status of `GET path`, without a token: what a load balancer's probe sees.
    ///
    /// # Errors
    /// As [`Management::request`].
    pub fn status_of(&self, path: &str) -> Result<u16> {
        Ok(Management {
            token: None,
            ..self.clone()
        }
        .get(path)?
        .status)
    }
}

/// The status of `GET path` at a node that may not have its certificate from the cluster yet, such as a joiner that has
/// not been let in.
///
/// # Errors
/// When nothing answers.
pub fn unverified_status(operator: &Netns, address: SocketAddr, path: &str) -> Result<u16> {
    let mut curl = operator.command("curl");
    curl.args([
        "--insecure",
        "--silent",
        "--show-error",
        "--max-time",
        "5",
        "--output",
        "/dev/null",
    ]);
    let printed = tool::run(
        curl.args(["--write-out", "%{http_code}"])
            .arg(format!("https://{address}{path}")),
    )?;
    Ok(printed.trim().parse()?)
}

/// The body of `GET path` at such a node.
///
/// # Errors
/// When nothing answers.
pub fn unverified_body(operator: &Netns, address: SocketAddr, path: &str) -> Result<String> {
    let mut curl = operator.command("curl");
    curl.args(["--insecure", "--silent", "--show-error", "--max-time", "5"]);
    tool::run(curl.arg(format!("https://{address}{path}")))
}

/// The values on a metrics page whose lines begin so, added up.
#[must_use]
pub fn sum(page: &str, beginning: &str) -> u64 {
    page.lines()
        .filter(|line| line.starts_with(beginning))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The metrics page of a node, which is plain HTTP.
///
/// # Errors
/// When it cannot be read.
pub fn metrics(operator: &Netns, address: SocketAddr) -> Result<String> {
    let response = operator.enter(|| -> Result<Response> {
        let mut stream = connect_from(None, address, LIMIT)?;
        Ok(http::exchange(
            stream.by_ref(),
            "GET",
            &address.to_string(),
            "/metrics",
            &[],
            b"",
        )?)
    })?;
    ensure!(
        response.status == 200,
        "GET /metrics at {address}: {}",
        response.status
    );
    Ok(response.text())
}
