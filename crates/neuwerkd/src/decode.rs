//! All that the daemon itself decodes from clients, other members, disks and the process before, in one place: for the fuzz targets, and for the
//! tests that replay what these have found. What consensus and joining decode is in [`cluster::decode`].
//!
//! Whatever the bytes, nothing panics; and what is understood is written as something that is understood the same.

use std::collections::VecDeque;
use std::fmt::Debug;

use api::account::{
    ServiceAccountCreateRequest, ServiceAccountTokenCreateRequest, ServiceAccountUpdateRequest,
};
use api::auth::{MintRequest, TokenLoginRequest};
use api::cluster::{
    PreflightRequest, PromoteClusterMemberRequest, RemoveClusterMemberRequest,
    ReplaceClusterVotersRequest, TransferRequest,
};
use api::joining::{JoinSettingsRequest, JoinTokenCreateRequest};
use api::recovery::{BackupRequest, RejoinRequest};
use engine::acquire::Held;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use crate::auth::minted::Mint;
use crate::config::{Config, Flags};
use crate::dataplane::Kept;
use crate::handover::format::{self, Section, Writer};
use crate::sysdump::member::{Made, Request};

/// Bytes that a member may send: what it asks of this node, and what it answers.
///
/// # Panics
/// Something is not handled soundly.
pub fn from_a_member(input: &[u8]) {
    as_messagepack::<Request>(input);
    as_messagepack::<Made>(input);
    as_messagepack::<ByteBuf>(input);
    as_json::<api::auth::MintRequest>(input);
    as_json::<api::auth::Minted>(input);
}

/// Bytes that may stand on a disk where only this node writes.
///
/// # Panics
/// Something is not handled soundly.
pub fn from_a_disk(input: &[u8]) {
    as_json::<VecDeque<Mint>>(input);
    // Where to knock after a rejoin.
    as_json::<Vec<String>>(input);
    // What data ports had for addresses.
    as_json::<Kept>(input);
}

/// Bytes that a client of the management API may send as a body; what policies are is decoded elsewhere.
///
/// # Panics
/// Something is not handled soundly.
pub fn from_a_client(input: &[u8]) {
    as_json::<TokenLoginRequest>(input);
    as_json::<MintRequest>(input);
    as_json::<ServiceAccountCreateRequest>(input);
    as_json::<ServiceAccountUpdateRequest>(input);
    as_json::<ServiceAccountTokenCreateRequest>(input);
    as_json::<RemoveClusterMemberRequest>(input);
    as_json::<PromoteClusterMemberRequest>(input);
    as_json::<ReplaceClusterVotersRequest>(input);
    as_json::<TransferRequest>(input);
    as_json::<PreflightRequest>(input);
    as_json::<JoinTokenCreateRequest>(input);
    as_json::<JoinSettingsRequest>(input);
    as_json::<BackupRequest>(input);
    as_json::<RejoinRequest>(input);
}

/// Bytes that the process before this one may have left.
///
/// # Panics
/// Something is not handled soundly.
pub fn from_the_process_before(input: &[u8]) {
    let mut sections = Vec::new();
    let read = format::read(input, |section| {
        if let Section::Sound {
            name,
            version,
            payload,
        } = section
        {
            as_json::<Vec<Held>>(payload);
            sections.push((name.to_owned(), version, payload.to_vec()));
        }
    });
    if read.is_err() {
        return;
    }
    let mut again = Writer::new(Vec::new()).expect("memory takes what is written");
    for (name, version, payload) in &sections {
        let written = again.section(name, *version, payload);
        written.expect("memory takes what is written");
    }
    let mut reread = Vec::new();
    let read = format::read(&again.into_inner()[..], |section| match section {
        Section::Sound {
            name,
            version,
            payload,
        } => reread.push((name.to_owned(), version, payload.to_vec())),
        other => panic!("what was written can be read: {other:?}"),
    });
    read.expect("what was written can be read");
    assert_eq!(reread, sections);
}

/// Bytes that an operator may have written into the configuration file.
///
/// # Panics
/// Something is not handled soundly: a refusal without a reason is not, either.
pub fn from_an_operator(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Config::parse(Some(text), &Flags::default()) {
        Ok(config) => assert!(!config.hash().is_empty()),
        Err(invalid) => assert!(!invalid.to_string().trim().is_empty()),
    }
}

fn as_messagepack<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let write = |value: &T| rmp_serde::to_vec_named(value).expect("what was read can be written");
    again(
        input,
        |bytes| rmp_serde::from_slice(bytes).map_err(drop),
        write,
    );
}

fn as_json<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let write = |value: &T| serde_json::to_vec(value).expect("what was read can be written");
    again(
        input,
        |bytes| serde_json::from_slice(bytes).map_err(drop),
        write,
    );
}

fn again<T, E: Debug>(
    input: &[u8],
    read: impl Fn(&[u8]) -> Result<T, E>,
    write: impl Fn(&T) -> Vec<u8>,
) {
    let Ok(value) = read(input) else {
        return;
    };
    let written = write(&value);
    let reread = read(&written).expect("what was written can be read");
    assert_eq!(write(&reread), written);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    include!("../../../fuzz/decode.rs");

    fn sound(input: &[u8]) {
        from_a_member(input);
        from_a_disk(input);
        from_an_operator(input);
        from_a_client(input);
        from_the_process_before(input);
    }

    /// Every kind of input, whole, cut off anywhere, and with each of its bytes changed.
    #[test]
    fn every_input_may_be_cut_and_changed_anywhere() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        let mut replayed = 0;
        for target in [
            "configuration",
            "member_message",
            "disk_record",
            "api_body",
            "handover",
        ] {
            for entry in std::fs::read_dir(corpus.join(target)).expect("is in the repository") {
                let kept = std::fs::read(entry.expect("readable").path()).expect("readable");
                let whole = decode(&kept);
                let step = 1 + whole.len() / 200;
                sound(&whole);
                for at in (0..whole.len()).step_by(step) {
                    sound(&whole[..at]);
                    for change in [0x01, 0x20, 0x80, 0xff] {
                        let mut changed = whole.clone();
                        changed[at] ^= change;
                        sound(&changed);
                    }
                }
                replayed += 1;
            }
        }
        assert!(replayed >= 8, "only {replayed} inputs");
    }
}
