//! Reading and replacing the policy: everything but the document itself, which [`crate::document`]
//! describes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the document is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    #[default]
    Json,
    /// `application/yaml`
    Yaml,
}

impl Format {
    /// The media type that is sent.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
        }
    }

    /// Which format a media type means; parameters such as a charset are ignored.
    pub fn of_media_type(value: &str) -> Option<Self> {
        let essence = value.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            "application/json" | "text/json" => Some(Format::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => {
                Some(Format::Yaml)
            }
            _ => None,
        }
    }
}

/// What a `PUT` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// The cluster has committed it.
    Committed,
    /// The node that was asked enforces it.
    #[serde(rename = "self")]
    Own,
    /// Every member that is not removed enforces it.
    #[default]
    All,
}

impl Wait {
    /// The word in the query.
    pub fn as_str(self) -> &'static str {
        match self {
            Wait::Committed => "committed",
            Wait::Own => "self",
            Wait::All => "all",
        }
    }
}

/// Answer of `GET /api/v1/policy/revisions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyHistory {
    /// The revisions that are kept, oldest first; the last one is the policy.
    pub revisions: Vec<PolicyRevision>,
}

/// One revision of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyRevision {
    /// Counts the policies of this lineage.
    pub revision: u64,
    /// SHA-256 of the document as it is kept, in hexadecimal.
    pub hash: String,
    /// Size of the document as it is kept, in bytes.
    pub bytes: u64,
    /// When, by the leader's clock, RFC 3339.
    pub time: String,
    /// Who put it: a credential's subject, `root`, or `system` for the cluster itself.
    pub author: String,
    /// Why, if its author said so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A policy's tag: lineage and revision, `"<lineage>-<revision>"` with the quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTag {
    /// Generation of the cluster's history, 16 hexadecimal digits.
    pub lineage: String,
    /// Revision of the policy.
    pub revision: u64,
}

impl fmt::Display for PolicyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}-{}\"", self.lineage, self.revision)
    }
}

/// Text that is not a [`PolicyTag`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a tag such as \"0123456789abcdef-7\", quotes included")]
pub struct ParseTagError;

impl FromStr for PolicyTag {
    type Err = ParseTagError;

    fn from_str(text: &str) -> Result<Self, ParseTagError> {
        let inner = text
            .trim()
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .ok_or(ParseTagError)?;
        let (lineage, revision) = inner.rsplit_once('-').ok_or(ParseTagError)?;
        if lineage.is_empty()
            || revision.is_empty()
            || !revision.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(ParseTagError);
        }
        Ok(Self {
            lineage: lineage.to_owned(),
            revision: revision.parse().map_err(|_| ParseTagError)?,
        })
    }
}

/// Answer 202 of a `PUT`: committed, and not yet enforced everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    /// Revision that was committed.
    pub revision: u64,
    /// Members that do not enforce it yet.
    pub pending: Vec<PendingMember>,
    /// What in the document is probably not meant so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lints: Vec<Lint>,
}

/// A member that does not enforce the newest policy yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingMember {
    /// Its id, 16 hexadecimal digits.
    pub node_id: String,
    /// Why, as a sentence.
    pub reason: String,
}

/// Something in a valid document that is probably not meant so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lint {
    /// Where.
    pub path: String,
    /// What, as a sentence.
    pub message: String,
}

/// Answer of a `PUT` with `dry_run=true`: the document is valid and nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// Always true: an invalid document is answered with 400.
    pub valid: bool,
    /// SHA-256 of the canonical document, hexadecimal.
    pub hash: String,
    /// Whether it differs from the policy in force.
    pub changed: bool,
    /// What in it is probably not meant so.
    pub lints: Vec<Lint>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_back() {
        let tag = PolicyTag {
            lineage: "0123456789abcdef".into(),
            revision: 7,
        };
        assert_eq!(tag.to_string(), "\"0123456789abcdef-7\"");
        assert_eq!(tag.to_string().parse(), Ok(tag));
    }

    #[test]
    fn other_text_is_no_tag() {
        for text in [
            "",
            "*",
            "abc-7",
            "\"abc\"",
            "\"-7\"",
            "\"abc-\"",
            "\"abc-x\"",
            "\"abc-+7\"",
            "W/\"abc-7\"",
        ] {
            assert!(text.parse::<PolicyTag>().is_err(), "{text}");
        }
    }

    #[test]
    fn media_types() {
        for (value, format) in [
            ("application/json", Some(Format::Json)),
            ("Application/JSON; charset=utf-8", Some(Format::Json)),
            ("application/yaml", Some(Format::Yaml)),
            ("text/x-yaml", Some(Format::Yaml)),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(Format::of_media_type(value), format, "{value}");
        }
    }

    #[test]
    fn waiting_words_are_those_of_serde() {
        for wait in [Wait::Committed, Wait::Own, Wait::All] {
            let json = serde_json::to_value(wait).unwrap();
            assert_eq!(json, wait.as_str());
        }
    }
}
