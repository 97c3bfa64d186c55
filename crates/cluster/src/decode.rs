//! All that this crate decodes from other members and from disks, in one place: for the fuzz targets, and for the tests that
//! replay what these have found.
//!
//! What only the daemon reads is in its own `decode`.
//!
//! Whatever the bytes, nothing panics; and what is understood is written as something that is understood the same.

use std::path::Path;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::command::{Command, Stamped};
use crate::event::Event;
use crate::forward::{HttpRequest, HttpResponse};
use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::join::{EnrolGrant, EnrolRefusal, EnrolRequest, secret};
use crate::meta::Meta;
use crate::node::Tokio;
use crate::node::amnesia::{Question, Recollection};
use crate::node::divergence::{Ask, Fingerprint};
use crate::node::finder::{Found, Lost};
use crate::node::report::{LeaderView, Report};
use crate::raft::image::{Coverage, Image};
use crate::raft::network::SnapshotHead;
use crate::raft::{Entry, Membership, Types, Vote};
use crate::store::disk::{checked, entry_record, open_entry};
use crate::store::witness;
use crate::tls::Pins;
use crate::{aside, backup, ca, lkg, peers, voucher};

/// Bytes that a member may send: every message, and the certificates of its handshake.
///
/// # Panics
/// Something is not handled soundly.
pub fn from_a_member(input: &[u8]) {
    type T = Types<Tokio>;
    again::<VoteRequest<T>>(input);
    again::<VoteResponse<T>>(input);
    again::<AppendEntriesRequest<T>>(input);
    again::<AppendEntriesResponse<T>>(input);
    again::<SnapshotHead>(input);
    again::<SnapshotResponse<T>>(input);
    again::<TransferLeaderRequest<T>>(input);
    again::<TransferLeaderResponse<T>>(input);
    again::<Question>(input);
    again::<Recollection>(input);
    again::<Ask>(input);
    again::<Report>(input);
    again::<LeaderView>(input);
    again::<Lost>(input);
    again::<Found>(input);
    again::<Event>(input);
    again::<EnrolRequest>(input);
    again::<EnrolGrant>(input);
    again::<EnrolRefusal>(input);
    again::<HttpRequest>(input);
    again::<HttpResponse>(input);
    again::<Command>(input);
    again::<Fingerprint>(input);
    if let Ok(stamped) = Stamped::decode(input) {
        let written = stamped.encode();
        let read = Stamped::decode(&written).expect("what was written can be read");
        assert_eq!(read.encode(), written);
    }
    // As a certificate, and as a voucher behind itself.
    let shown = [CertificateDer::from(input.to_vec())];
    let named = ca::member_of(input);
    let cluster_id = named.map_or(ClusterId([0; 16]), |(cluster_id, _)| cluster_id);
    let node_id = named.map_or(NodeId(0), |(_, node_id)| node_id);
    let pins = Pins {
        cluster_id,
        lineage: Lineage(0),
        members: [(NodeId(1), Digest([1; 32]))].into(),
        removed: [].into(),
        authorities: Vec::new(),
    };
    let by = voucher::vouched_for(&pins, node_id, Digest([0; 32]), &shown);
    assert_eq!(by, None, "vouched for by nobody");
}

/// Bytes that may stand on a disk: as they are, where nothing is believed without its checksum, and behind a right one.
///
/// # Panics
/// Something is not handled soundly.
pub fn from_a_disk(input: &[u8]) {
    again::<Entry>(input);
    again::<Vote>(input);
    again::<Membership>(input);
    again::<Coverage>(input);
    let index = input.first().map_or(0, |byte| u64::from(*byte));
    assert!(open_entry(index, input).is_err(), "no checksum");
    if let Ok(entry) = open_entry(index, &checked(index, input)) {
        let read = open_entry(index, &entry_record(&entry)).expect("what was written can be read");
        assert_eq!(read, entry);
    }
    let decoded = Image::decode(input);
    assert!(decoded.is_err(), "no checksum");
    if let Ok((coverage, state)) = Image::decode(&Image::checked(input)) {
        let image = Image::encode_at_once(&coverage, &state);
        let written = image.joined().expect("it is in memory");
        let (_, read) = Image::decode(&written).expect("what was written can be read");
        assert_eq!(read.fingerprint(), state.fingerprint());
    }
    assert!(lkg::decode(input).is_none(), "no checksum");
    if let Some(target) = lkg::decode(&lkg::checked(input)) {
        let written = lkg::encode(&target);
        assert_eq!(lkg::decode(&written), Some(target));
    }
    again::<witness::Record>(input);
    again::<backup::Inner>(input);
    again_as_json::<backup::Description>(input);
    again_as_json::<peers::Content>(input);
    again_as_json::<Meta>(input);
    again_as_json::<aside::Note>(input);
    // Either with its reason.
    let _ = secret::parse(Path::new("bootstrap-token"), input);
    let _ = backup::inspect(input);
    let _ = backup::inspect(&backup::checked(input));
}

fn again<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let Ok(value) = rmp_serde::from_slice::<T>(input) else {
        return;
    };
    let written = rmp_serde::to_vec_named(&value).expect("what was read can be written");
    let read: T = rmp_serde::from_slice(&written).expect("what was written can be read");
    assert_eq!(
        rmp_serde::to_vec_named(&read).expect("what was read can be written"),
        written
    );
}

fn again_as_json<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(input) else {
        return;
    };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let read: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(
        serde_json::to_vec(&read).expect("what was read can be written"),
        written
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    include!("../../../fuzz/decode.rs");

    fn sound(input: &[u8]) {
        from_a_member(input);
        from_a_disk(input);
    }

    /// Every encoding that there is, whole, cut off anywhere, and with each of its bytes changed.
    #[test]
    fn every_encoding_may_be_cut_and_changed_anywhere() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut replayed = 0;
        for entry in std::fs::read_dir(golden).expect("is in the repository") {
            let text = std::fs::read_to_string(entry.expect("readable").path()).expect("text");
            let whole = crate::golden::from_hex(&text);
            sound(&whole);
            let step = 1 + whole.len() / 300;
            for at in (0..whole.len()).step_by(step) {
                sound(&whole[..at]);
                for change in [0x01, 0x80, 0xff] {
                    let mut changed = whole.clone();
                    changed[at] ^= change;
                    sound(&changed);
                }
            }
            replayed += 1;
        }
        assert!(replayed > 50, "only {replayed} encodings");
    }

    #[test]
    fn what_fuzzing_has_found_stays_found() {
        for target in ["member_message", "disk_record"] {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../fuzz/corpus")
                .join(target);
            let mut replayed = 0;
            for entry in std::fs::read_dir(corpus).expect("is in the repository") {
                let kept = std::fs::read(entry.expect("readable").path()).expect("readable");
                sound(&decode(&kept));
                replayed += 1;
            }
            assert!(replayed > 0, "{target} has no input");
        }
    }
}
