//! The change log.

use std::sync::Arc;

use api::changes::{ChangeLog, ChangeView};
use axum::Json;
use axum::extract::{RawQuery, State};
use cluster::state::{Action, Change};

use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use super::{App, gate, rfc3339};

/// Entries that are given unless the request says otherwise.
const DEFAULT_LIMIT: usize = 100;

pub(super) static LIST: Doc = Doc::new("Read the change log")
    .params(&[
        Param {
            name: "since",
            description: "only entries with a greater log index",
        },
        Param {
            name: "limit",
            description: "how many at most, the newest ones; default 100, at most 1000",
        },
    ])
    .answers(&[
        (
            200,
            "The entries, oldest first",
            Some(openapi::json("ChangeLog")),
        ),
        (400, "A parameter is not valid", Some(openapi::ERROR)),
    ]);

pub(super) async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<ChangeLog>> {
    let (since, limit) = asked(query.as_deref())?;
    let state = app.node()?.state();
    let newer = state
        .changes()
        .rev()
        .take_while(|change| change.index > since);
    let mut changes: Vec<_> = newer.take(limit).map(|change| view(change)).collect();
    changes.reverse();
    Ok(Json(ChangeLog { changes }))
}

/// Parameters: the index to begin after, and how many.
fn asked(query: Option<&str>) -> Answer<(u64, usize)> {
    let (mut since, mut limit) = (0, DEFAULT_LIMIT);
    let number = |key: &str, value: &str| -> Answer<u64> {
        let wrong = || Refused::bad_request(format!("{key} must be a number"));
        value.parse().map_err(|_| wrong())
    };
    for (key, value) in gate::query_pairs(query) {
        match key {
            "since" => since = number(key, value)?,
            "limit" => {
                limit = usize::try_from(number(key, value)?)
                    .ok()
                    .filter(|limit| (1..=cluster::state::CHANGES_KEPT).contains(limit))
                    .ok_or_else(|| Refused::bad_request("limit must be between 1 and 1000"))?;
            }
            _ => {}
        }
    }
    Ok((since, limit))
}

/// An entry as it is shown.
pub(crate) fn view(change: &Change) -> ChangeView {
    let (action, record) = match change.action {
        Action::Created(record) => ("created", word(record)),
        Action::Changed(record) => ("changed", word(record)),
        Action::Ended(record) => ("ended", word(record)),
        Action::Event(kind) => ("event", word(kind)),
    };
    ChangeView {
        index: change.index,
        time: rfc3339(change.time_ms),
        actor: change.author.subject.clone(),
        node_id: change.author.node.map(|node| node.to_string()),
        action: action.into(),
        record,
        subject: change.subject.clone(),
        detail: change.detail.clone(),
    }
}

/// A unit variant's name as it is written in the log.
fn word(variant: impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use cluster::command::{Author, EventKind, Record};

    use super::*;

    #[test]
    fn parameters() {
        assert_eq!(asked(None).unwrap(), (0, 100));
        assert_eq!(asked(Some("since=7&limit=2")).unwrap(), (7, 2));
        for query in ["since=x", "limit=0", "limit=1001", "limit=-1"] {
            assert!(asked(Some(query)).is_err(), "{query}");
        }
    }

    #[test]
    fn an_entry_in_words() {
        let change = |action| Change {
            index: 3,
            time_ms: 1_000,
            author: Author {
                subject: "ops".into(),
                node: None,
            },
            action,
            subject: "x".into(),
            detail: String::new(),
        };
        for (action, words) in [
            (
                Action::Created(Record::SigningKey),
                ("created", "signing_key"),
            ),
            (Action::Ended(Record::Member), ("ended", "member")),
            (
                Action::Event(EventKind::BreakGlass),
                ("event", "break_glass"),
            ),
        ] {
            let view = view(&change(action));
            assert_eq!((view.action.as_str(), view.record.as_str()), words);
            assert_eq!(view.time, "1970-01-01T00:00:01Z");
        }
    }
}
