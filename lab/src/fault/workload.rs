//! Clients that write, compare-and-set and read the policy and some accounts through every node, and take down what they
//! were told.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use serde_json::{Value, json};

use super::plan::Random;
use crate::cluster::Cluster;
use crate::history::{Action, History, Outcome, Version};
use crate::http::Response;
use crate::management::Management;

const POLICY: &str = "/api/v1/policy";
const ACCOUNTS: &str = "/api/v1/service-accounts";
/// How long a client waits for an answer.
const LIMIT: Duration = Duration::from_millis(1500);
const CLIENTS: usize = 6;
/// Accounts whose history is taken down.
const REGISTERS: usize = 3;
/// How often a write without an answer is tried again, under the same key.
const RETRIES: usize = 3;

/// What all clients share.
pub(super) struct Workload {
    apis: Vec<Management>,
    seed: u64,
    history: History,
    /// The accounts, by the key of their register.
    accounts: BTreeMap<String, String>,
    /// What every tag begins with.
    lineage: String,
    next_value: AtomicU64,
    acknowledged: Mutex<Vec<String>>,
}

impl Workload {
    /// Makes the registers.
    pub(super) fn begin(cluster: &mut Cluster, seed: u64) -> Result<Workload> {
        let apis = (1..=3)
            .map(|number| Ok(cluster.api(number)?.with_limit(LIMIT)))
            .collect::<Result<Vec<_>>>()?;
        let patient = cluster.api(1)?;
        let history = History::default();
        let put = patient.put_policy(&policy(0))?;
        let tag = put.header("etag").context("a policy has a tag")?.to_owned();
        let (lineage, _) = tag.rsplit_once('-').context("lineage and revision")?;
        history.open("policy", written(&put, 0)?);
        let mut accounts = BTreeMap::new();
        for number in 0..REGISTERS {
            let key = format!("register-{number}");
            let created = patient.send_json("POST", ACCOUNTS, &account(&key, 0))?;
            ensure!(created.status == 201, "{}", created.text());
            let id = created.json()?["id"].as_str().context("an id")?.to_owned();
            history.open(&key, written(&created, 0)?);
            accounts.insert(key, id);
        }
        Ok(Workload {
            apis,
            seed,
            history,
            accounts,
            lineage: lineage.to_owned(),
            next_value: AtomicU64::new(1),
            acknowledged: Mutex::default(),
        })
    }

    /// The clients, each for a thread of its own.
    pub(super) fn clients(&self) -> impl Iterator<Item = Client<'_>> {
        (0..CLIENTS).map(|number| Client {
            shared: self,
            number,
            random: Random(self.seed.wrapping_mul(1000) + number as u64),
            seen: BTreeMap::new(),
        })
    }

    /// Reads every register through every node, as the last operations of the history.
    pub(super) fn read_all(&self) -> Result<()> {
        for (node, _) in self.apis.iter().enumerate() {
            let mut reader = Client {
                shared: self,
                number: CLIENTS,
                random: Random(0),
                seen: BTreeMap::new(),
            };
            reader.read("policy", node)?;
            reader.read("register-0", node)?;
            ensure!(
                reader.seen.len() == 1 + REGISTERS,
                "a register is not there"
            );
        }
        Ok(())
    }

    /// The names of all accounts that are there, and of those whose creation was acknowledged.
    pub(super) fn accounts(&self) -> Result<(Vec<String>, Vec<String>)> {
        let list = self.apis[0].get_json(&format!("{ACCOUNTS}?consistency=linearizable"))?;
        let names = list
            .as_array()
            .context("a list")?
            .iter()
            .filter_map(|account| account["name"].as_str().map(str::to_owned));
        let acknowledged = self
            .acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok((names.collect(), acknowledged.clone()))
    }

    pub(super) fn into_history(self) -> History {
        self.history
    }
}

/// One client.
pub(super) struct Client<'a> {
    shared: &'a Workload,
    number: usize,
    random: Random,
    /// The revision of each register that it last saw.
    seen: BTreeMap<String, u64>,
}

/// What became of one attempt to write.
enum Fate {
    Done(Response),
    /// Certainly nothing.
    Refused,
    Unknown,
}

impl Client<'_> {
    /// Works until `stop`.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let keys: Vec<String> = self.shared.accounts.keys().cloned().collect();
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let node = self.any_node();
            let key = match self.random.below(keys.len() as u64 + 1) as usize {
                0 => "policy",
                number => &keys[number - 1],
            };
            match self.random.below(10) {
                0..=3 => self.read(key, node)?,
                4 => self.create(round, node)?,
                choice => self.write(key, node, choice >= 7)?,
            }
            thread::sleep(Duration::from_millis(5 + self.random.below(20)));
        }
        Ok(())
    }

    /// Reads a register; an account's with all others, since they come in one list.
    fn read(&mut self, key: &str, node: usize) -> Result<()> {
        let shared = self.shared;
        let path = if key == "policy" { POLICY } else { ACCOUNTS };
        let called = shared.history.now();
        let got = shared.apis[node].get(&format!("{path}?consistency=linearizable"));
        let Ok(response) = got else { return Ok(()) };
        match response.status {
            200 => {}
            // Not possible now, or this node's clock does not let the token in.
            401 | 503 | 504 => return Ok(()),
            status => bail!("reading {key}: {status} {}", response.text()),
        }
        let body = response.json()?;
        let mut saw = Vec::new();
        if key == "policy" {
            let id = body["source_groups"][0]["id"].as_str();
            saw.push((key.to_owned(), written(&response, value_of(id)?)?));
        } else {
            for (key, id) in &shared.accounts {
                let accounts = body.as_array().context("a list")?;
                let account = accounts.iter().find(|account| account["id"] == **id);
                let account = account.with_context(|| format!("{key} has vanished"))?;
                let version = Version {
                    revision: account["revision"].as_u64().context("a revision")?,
                    value: value_of(account["description"].as_str())?,
                };
                saw.push((key.clone(), version));
            }
        }
        for (key, version) in saw {
            let seen = Outcome::Seen(version);
            shared
                .history
                .add(&key, self.number, Action::Read, seen, called);
            self.seen.insert(key, version.revision);
        }
        Ok(())
    }

    /// Creates an account that must be there from its acknowledgement on.
    fn create(&mut self, round: u64, node: usize) -> Result<()> {
        let name = format!("fresh-{}-{round}", self.number);
        let body = account(&name, 0);
        if let Fate::Done(response) = self.attempt("POST", ACCOUNTS, node, &name, None, &body)? {
            ensure!(response.status == 201, "{name}: {}", response.text());
            let mut acknowledged = self
                .shared
                .acknowledged
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            acknowledged.push(name);
        }
        Ok(())
    }

    /// Writes a register, with `compare` only if it is as this client last saw it. Without an answer some writes are
    /// tried again, under the same key: they must take effect once at most.
    fn write(&mut self, key: &str, node: usize, compare: bool) -> Result<()> {
        let shared = self.shared;
        let value = shared.next_value.fetch_add(1, Ordering::Relaxed);
        let expected = self.seen.get(key).copied().filter(|_| compare);
        let action = match expected {
            Some(expected) => Action::Replace { expected, value },
            None => Action::Write(value),
        };
        let (path, body) = match shared.accounts.get(key) {
            None => (format!("{POLICY}?wait=committed"), policy(value)),
            Some(id) => (format!("{ACCOUNTS}/{id}"), account(key, value)),
        };
        let tag = expected.map(|revision| format!("{}-{revision}\"", shared.lineage));
        let called = shared.history.now();
        let idempotency_key = format!("write-{value}");
        let attempts = if self.random.below(2) == 0 {
            1
        } else {
            RETRIES
        };
        let mut outcome = None;
        let mut node = node;
        for _ in 0..attempts {
            let fate = self.attempt("PUT", &path, node, &idempotency_key, tag.as_deref(), &body)?;
            match fate {
                Fate::Done(response) if response.status == 412 => {
                    outcome = Some(Outcome::Conflict);
                }
                Fate::Done(response) => {
                    let revision = written(&response, value)?.revision;
                    self.seen.insert(key.to_owned(), revision);
                    outcome = Some(Outcome::Written(revision));
                }
                // What an earlier attempt did stays unknown.
                Fate::Refused if outcome.is_none() => return Ok(()),
                Fate::Refused => {}
                Fate::Unknown => outcome = Some(Outcome::Unknown),
            }
            if outcome != Some(Outcome::Unknown) {
                break;
            }
            node = self.any_node();
        }
        if let Some(outcome) = outcome {
            shared
                .history
                .add(key, self.number, action, outcome, called);
        }
        Ok(())
    }

    fn attempt(
        &self,
        method: &str,
        path: &str,
        node: usize,
        idempotency_key: &str,
        tag: Option<&str>,
        body: &Value,
    ) -> Result<Fate> {
        let mut headers = vec![
            ("Content-Type", "application/json"),
            ("Idempotency-Key", idempotency_key),
        ];
        headers.extend(tag.map(|tag| ("If-Match", tag)));
        let sent =
            self.shared.apis[node].request(method, path, &headers, body.to_string().as_bytes());
        let response = match sent {
            Ok(response) => response,
            Err(error) if was_not_sent(&error) => return Ok(Fate::Refused),
            Err(_) => return Ok(Fate::Unknown),
        };
        Ok(match response.status {
            200 | 201 | 202 | 412 => Fate::Done(response),
            // The clock of a node does not let the token in; others change the record all the time; no leader; no room.
            401 | 409 | 503 | 507 => Fate::Refused,
            504 => Fate::Unknown,
            status => bail!("{method} {path}: {status} {}", response.text()),
        })
    }

    fn any_node(&mut self) -> usize {
        self.random.below(self.shared.apis.len() as u64) as usize
    }
}

/// Whether there was no connection to send anything over.
fn was_not_sent(error: &anyhow::Error) -> bool {
    let connecting = [
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::EINPROGRESS,
    ];
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .is_some_and(|number| connecting.contains(&Errno::from_raw(number)))
    })
}

/// The version that an answer's tag names, of this value.
fn written(response: &Response, value: u64) -> Result<Version> {
    let tag = response.header("etag").context("an answer has a tag")?;
    let revision = tag.trim_matches('"').rsplit('-').next();
    Ok(Version {
        revision: revision.context("a tag has a revision")?.parse()?,
        value,
    })
}

fn value_of(text: Option<&str>) -> Result<u64> {
    let value = text.and_then(|text| text.strip_prefix('v'));
    Ok(value.context("a value")?.parse()?)
}

fn policy(value: u64) -> Value {
    json!({
        "default_policy": "deny",
        "source_groups": [{
            "id": format!("v{value}"),
            "mode": "enforce",
            "sources": {"cidrs": ["10.1.0.0/24"]},
            "rules": [],
        }],
    })
}

fn account(name: &str, value: u64) -> Value {
    json!({"name": name, "role": "readonly", "description": format!("v{value}")})
}
