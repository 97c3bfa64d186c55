//! Tokens that were minted on this node and that the change log does not name yet.
//!
//! Minting must work when nobody leads, and must not go unnoticed because of that. So each mint is written down beside
//! the log before its token is given out, and told to the leader as soon as there is one, from whichever node; a crash in
//! between loses nothing, and the token's id as key keeps a retry from standing in the log twice.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::command::EventKind;
use cluster::{Event, EventError, Node, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// The file, in the data directory.
pub const FILE: &str = "minted.json";

/// Mints that are remembered. Far more than anybody makes during one loss of the leader; the oldest go first.
const KEPT: usize = 1_000;

/// Pause between two attempts to tell the leader.
const RETRY: Duration = Duration::from_secs(1);

/// One mint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mint {
    /// Id of the token.
    pub jti: String,
    /// Its subject.
    pub subject: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Key that signed it.
    pub kid: String,
    /// When, seconds since 1970, by this node's clock.
    pub at_s: u64,
    /// The member whose root asked for it; none: this node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<NodeId>,
}

impl Mint {
    fn event(&self) -> Event {
        let asked_by = self
            .asked_by
            .map_or_else(String::new, |member| format!(", asked by member {member}"));
        Event {
            kind: EventKind::BreakGlass,
            actor: "root".into(),
            subject: self.subject.clone(),
            detail: format!(
                "jti {}, roles {}, kid {}, at {}{asked_by}",
                self.jti,
                self.roles.join(","),
                self.kid,
                crate::http::rfc3339(self.at_s.saturating_mul(1_000)),
            ),
            key: self.jti.clone(),
        }
    }
}

/// The mints that remain to be told.
#[derive(Debug, Default)]
pub struct Minted {
    kept: Mutex<Kept>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    path: Option<PathBuf>,
    pending: VecDeque<Mint>,
}

impl Minted {
    /// Keeps them in `data_dir` from now on, and takes up what an earlier life of the node left there.
    ///
    /// # Errors
    /// What is there cannot be read. It is left alone, and further mints are kept in memory only.
    pub fn open(&self, data_dir: &Path) -> io::Result<()> {
        let path = data_dir.join(FILE);
        let earlier: VecDeque<Mint> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => VecDeque::new(),
            Err(error) => return Err(error),
        };
        let mut kept = self.kept();
        // A restart of the control plane finds what it has in memory already.
        let known = std::mem::take(&mut kept.pending);
        kept.pending = earlier;
        let mut has_more = false;
        for mint in known {
            if !kept.pending.iter().any(|other| other.jti == mint.jti) {
                kept.pending.push_back(mint);
                has_more = true;
            }
        }
        kept.path = Some(path);
        if has_more {
            kept.write();
        }
        Ok(())
    }

    /// Notes a mint, before its token is given out. A disk that takes nothing more must not keep root out: then it is
    /// remembered until the process ends, and the node's own log has it anyway.
    pub fn note(&self, mint: Mint) {
        tracing::info!(
            subject = mint.subject,
            roles = ?mint.roles,
            kid = mint.kid,
            jti = mint.jti,
            asked_by = ?mint.asked_by,
            "token minted on this node"
        );
        let mut kept = self.kept();
        if kept.pending.len() >= KEPT {
            let oldest = kept.pending.pop_front();
            tracing::warn!(
                jti = oldest.map(|mint| mint.jti),
                "too many mints wait for a leader: only this log names the oldest"
            );
        }
        kept.pending.push_back(mint);
        kept.write();
        drop(kept);
        self.news.notify_one();
    }

    /// How many the change log does not name yet.
    pub fn pending(&self) -> usize {
        self.kept().pending.len()
    }

    /// Tells the leader, whoever it is, until `node` is dropped by its owner.
    pub async fn tell(&self, node: &Node) {
        loop {
            while let Some(mint) = self.first() {
                match node.record_event(mint.event()).await {
                    Ok(()) => self.told(&mint.jti),
                    Err(EventError::Refused(refusal)) => {
                        // The cluster will not take it later either.
                        tracing::warn!(jti = mint.jti, %refusal, "the change log does not take a mint");
                        self.told(&mint.jti);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the change log does not name a mint yet");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            self.news.notified().await;
        }
    }

    fn first(&self) -> Option<Mint> {
        self.kept().pending.front().cloned()
    }

    fn told(&self, jti: &str) {
        let mut kept = self.kept();
        kept.pending.retain(|mint| mint.jti != jti);
        kept.write();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let written = if self.pending.is_empty() {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        } else {
            let bytes = serde_json::to_vec(&self.pending).expect("plain data");
            cluster::durable::replace(path, &bytes, cluster::durable::PRIVATE)
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the list of minted tokens cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mint(jti: &str) -> Mint {
        Mint {
            jti: jti.into(),
            subject: "ops".into(),
            roles: vec!["admin".into()],
            kid: "k1".into(),
            at_s: 1,
            asked_by: None,
        }
    }

    #[test]
    fn what_was_not_told_survives_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let first = Minted::default();
        first.open(directory.path()).unwrap();
        first.note(mint("a"));
        first.note(mint("b"));
        drop(first);

        let second = Minted::default();
        second.note(mint("c"));
        second.open(directory.path()).unwrap();
        // A restart of the control plane opens it once more.
        second.open(directory.path()).unwrap();
        assert_eq!(second.pending(), 3);
        for jti in ["a", "b", "c"] {
            assert_eq!(second.first().unwrap().jti, jti);
            second.told(jti);
        }
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn a_damaged_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        std::fs::write(&path, "[{").unwrap();
        let minted = Minted::default();
        assert!(minted.open(directory.path()).is_err());
        minted.note(mint("a"));
        assert_eq!(minted.pending(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), b"[{");
    }

    #[test]
    fn the_oldest_go_first_when_there_are_too_many() {
        let minted = Minted::default();
        for n in 0..=KEPT {
            minted.note(mint(&n.to_string()));
        }
        assert_eq!(minted.pending(), KEPT);
        assert_eq!(minted.first().unwrap().jti, "1");
    }

    #[test]
    fn the_event_says_who_what_and_when() {
        let event = Mint {
            asked_by: Some(NodeId(0xa1)),
            ..mint("j")
        }
        .event();
        assert_eq!(
            event.detail,
            "jti j, roles admin, kid k1, at 1970-01-01T00:00:01Z, asked by member 00000000000000a1"
        );
        assert_eq!(event.key, "j");
    }
}
