//! One node's files, and another member that answers over loopback with real TLS.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use cluster::ca::{Ca, Csr, Purpose};
use cluster::identity::Layout;
use cluster::join::EnrolGrant;
use cluster::tls::Pins;
use cluster::transport::{Service, ServiceError};
use cluster::{ClusterId, Digest, Lineage};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;

use super::*;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const LINEAGE: Lineage = Lineage(8);
const ASKING: NodeId = NodeId(1);
const ANSWERING: NodeId = NodeId(2);

fn member(node_id: NodeId, address: &str, spki: Digest) -> KnownMember {
    KnownMember {
        node_id,
        cluster_address: address.into(),
        join_address: String::new(),
        spki,
    }
}

#[track_caller]
fn check(address: &str, expected: Result<u64, &str>) {
    let spki = Digest([0; 32]);
    let members = [
        member(NodeId(1), "10.0.0.1:9600", spki),
        member(NodeId(2), "[fd00::2]:9600", spki),
        member(NodeId(3), "node3:9600", spki),
    ];
    let found = find(members.iter(), NodeId(1), address);
    let found = found
        .map(|peer| peer.node_id.0)
        .map_err(|error| error.to_string());
    match (&found, expected) {
        (Ok(found), Ok(expected)) => assert_eq!(*found, expected),
        (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
        _ => panic!("{found:?}, not {expected:?}"),
    }
}

#[test]
fn members_are_found_by_the_address_of_their_cluster_listener() {
    check("[fd00:0::2]:9600", Ok(2));
    check("NODE3:9600", Ok(3));
    check("10.0.0.1:9600", Err("is this node"));
    check(
        "10.0.0.1:9601",
        Err("knows (10.0.0.1:9600, [fd00::2]:9600, node3:9600)"),
    );
    check("10.0.0.1", Err("no member"));
}

#[test]
fn a_directory_without_an_identity_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = identity(dir.path()).unwrap_err().to_string();
    assert!(error.contains("node.key"), "{error}");
}

/// A member that mints for whom it knows; everything else it refuses.
struct Minting;

impl Service for Minting {
    fn handle(
        &self,
        from: NodeId,
        kind: Kind,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>> {
        let answer = match (kind, serde_json::from_slice::<MintRequest>(&body)) {
            (Kind::Mint, Ok(request)) if request.sub == "ops" => {
                let token = format!("for {} from {from}", request.sub);
                Ok(
                    serde_json::json!({"token": token, "kid": "k", "jti": "j", "exp": 1})
                        .to_string()
                        .into(),
                )
            }
            _ => Err(ServiceError("not like this".into())),
        };
        Box::pin(std::future::ready(answer))
    }

    fn handle_append(
        &self,
        _: NodeId,
        _: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, ServiceError>> {
        stream::empty().boxed()
    }

    fn handle_snapshot(
        &self,
        _: NodeId,
        _: BoxStream<'static, Result<Bytes, TransportError>>,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>> {
        Box::pin(std::future::ready(Err(ServiceError("none here".into()))))
    }
}

#[tokio::test]
async fn a_member_is_asked_with_what_is_on_disk() {
    let now = SystemTime::now();
    let ca = Ca::create(Purpose::Members, CLUSTER, now).unwrap();
    let issue = |node_id, key: NodeKey| {
        let request = Csr::parse(key.request()).unwrap();
        let issued = ca
            .issue_node(CLUSTER, node_id, "127.0.0.1", &request, now)
            .unwrap();
        Identity::issued(key, issued.der.into(), vec![ca.certificate().clone()]).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("cluster");
    let layout = Layout {
        data_dir: data_dir.clone(),
        node_id_path: dir.path().join("node_id"),
    };
    let asking = issue(ASKING, NodeKey::load_or_create(&layout).unwrap());
    asking.store(&layout).unwrap();
    let answering = issue(ANSWERING, NodeKey::create().unwrap());

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let grant = EnrolGrant {
        cluster_id: CLUSTER,
        lineage: LINEAGE,
        node_id: ASKING,
        certificate: asking.certificate.to_vec(),
        authorities: vec![ca.certificate().to_vec().into()],
        members: vec![member(ANSWERING, &address, answering.key.spki())],
    };
    Peers::granted(&data_dir, &grant).unwrap();
    let pins = Pins {
        cluster_id: CLUSTER,
        lineage: LINEAGE,
        members: [
            (ASKING, asking.key.spki()),
            (ANSWERING, answering.key.spki()),
        ]
        .into(),
        removed: [].into(),
        authorities: vec![ca.certificate().clone()],
    };
    let trust = Trust::new(&answering, pins).unwrap();
    let server = GrpcTransport::new(trust);
    tokio::spawn(server.serve(listener, Arc::new(Minting), CancellationToken::new()));

    let limit = Duration::from_secs(20);
    let request = |sub: &str| MintRequest {
        sub: sub.into(),
        roles: vec!["admin".into()],
        ttl: None,
        kid: None,
    };
    let tls_dir = layout.tls_dir();
    let minted = mint(&tls_dir, &address, &request("ops"), limit)
        .await
        .unwrap();
    assert_eq!(minted.token, format!("for ops from {ASKING}"));
    let refused = mint(&tls_dir, &address, &request("nobody"), limit)
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("{address}: refused: not like this")
    );
}
