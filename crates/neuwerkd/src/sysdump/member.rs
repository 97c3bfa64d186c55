//! Archives of other members: each makes its own, and whoever asked fetches it in pieces into a file, so that none is
//! ever in memory as a whole. No leader is needed; a member that cannot be reached is named with the reason.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::transport::{Kind, ServiceError};
use cluster::{MemberStatus, Node, NodeId};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use uuid::Uuid;

use super::archive::{Archive, LeftOut};
use super::{Limits, Source, collect};
use crate::http::App;

/// Bytes of one piece.
const PIECE_BYTES: u64 = 1024 * 1024;

/// How long a member may take to make its archive: the time that it gives itself, and some.
const MAKE_DEADLINE: Duration = Duration::from_secs(45);

/// How long one piece may take.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a member is given in all.
const MEMBER_DEADLINE: Duration = Duration::from_secs(90);

/// Members that are asked at once.
const AT_ONCE: usize = 4;

/// How long an archive that nobody fetches is kept.
const KEPT: Duration = Duration::from_secs(120);

/// What one member asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Make one.
    Make,
    /// A piece of the one that was made.
    Read { id: Uuid, offset: u64 },
}

/// An archive was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    id: Uuid,
    bytes: u64,
}

/// The archive that another member is fetching here; one at a time.
#[derive(Debug, Default)]
struct Shelf(Mutex<Option<(Uuid, Arc<File>)>>);

impl Shelf {
    fn put(&self, archive: Option<(Uuid, Arc<File>)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = archive;
    }

    fn get(&self, id: Uuid) -> Option<Arc<File>> {
        let shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, file) = shelf.as_ref()?;
        (*held == id).then(|| Arc::clone(file))
    }

    fn drop_if(&self, id: Uuid) {
        if self.get(id).is_some() {
            self.put(None);
        }
    }
}

/// Makes archives for other members from now on.
pub fn answer(node: &Node, app: &Arc<App>) {
    let (app, shelf) = (Arc::downgrade(app), Arc::<Shelf>::default());
    let handler = move |from: NodeId, body: Bytes| -> futures::future::BoxFuture<'static, _> {
        let (app, shelf) = (app.upgrade(), Arc::clone(&shelf));
        Box::pin(async move {
            let app = app.ok_or_else(|| ServiceError("the node is stopping".into()))?;
            let request: Request = rmp_serde::from_slice(&body)
                .map_err(|error| ServiceError(format!("unreadable request: {error}")))?;
            match request {
                Request::Make => make(&app, &shelf, from).await,
                Request::Read { id, offset } => read(&shelf, id, offset).await,
            }
        })
    };
    node.set_handler(Kind::Sysdump, Arc::new(handler));
}

async fn make(app: &Arc<App>, shelf: &Arc<Shelf>, from: NodeId) -> Result<Bytes, ServiceError> {
    let failed = |error: io::Error| ServiceError(format!("the archive cannot be made: {error}"));
    let Ok(_turn) = app.archives().try_acquire() else {
        return Err(ServiceError("an archive is being made already".into()));
    };
    tracing::info!(%from, "making a support archive for another member");
    let file = own(app.source()).await.map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let id = Uuid::new_v4();
    shelf.put(Some((id, Arc::new(file))));
    let forgotten = Arc::clone(shelf);
    tokio::spawn(async move {
        tokio::time::sleep(KEPT).await;
        forgotten.drop_if(id);
    });
    let made = rmp_serde::to_vec_named(&Made { id, bytes }).expect("plain data");
    Ok(made.into())
}

async fn read(shelf: &Arc<Shelf>, id: Uuid, offset: u64) -> Result<Bytes, ServiceError> {
    let gone = || ServiceError("this archive is not here any more".into());
    let file = shelf.get(id).ok_or_else(gone)?;
    let piece = tokio::task::spawn_blocking(move || -> io::Result<(Vec<u8>, bool)> {
        let left = file.metadata()?.len().saturating_sub(offset);
        let bytes = left.min(PIECE_BYTES);
        let mut piece = vec![0; usize::try_from(bytes).expect("a piece is small")];
        file.read_exact_at(&mut piece, offset)?;
        Ok((piece, bytes == left))
    });
    let (piece, is_last) = piece
        .await
        .map_err(|_| gone())?
        .map_err(|error| ServiceError(error.to_string()))?;
    if is_last {
        shelf.drop_if(id);
    }
    let piece = rmp_serde::to_vec(&ByteBuf::from(piece)).expect("bytes");
    Ok(piece.into())
}

/// This node's archive, made off the threads that serve requests.
pub async fn own(source: Source) -> io::Result<File> {
    let made = tokio::task::spawn_blocking(move || collect(&source, Limits::default())).await;
    made.unwrap_or_else(|_| Err(io::Error::other("collecting panicked")))
}

/// A member in the whole cluster's archive, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Included {
    /// Its id.
    pub node_id: String,
    /// Its host name.
    pub name: String,
    /// Where it was asked.
    pub address: String,
    /// Whether its part is there.
    pub included: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The first file that somebody reads.
#[derive(Serialize)]
struct Manifest<'a> {
    product: &'static str,
    version: &'static str,
    made_at: String,
    made_by: String,
    /// None: this node's control plane does not run, and it knows no members.
    members: Option<&'a [Included]>,
    left_out: &'a [LeftOut],
}

/// The archive of every member that can be reached, below `nodes/`, and who is in it.
///
/// # Errors
/// A temporary file cannot be made or written.
pub async fn whole_cluster(app: &Arc<App>) -> io::Result<(File, Vec<Included>)> {
    let own_part = own(app.source());
    let Some(node) = app.member() else {
        let parts = vec![("this-node".to_owned(), own_part.await?)];
        return merged(parts, None, "this-node".into()).await;
    };
    let own_id = node.node_id();
    let members = node.members();
    let others = members.iter().filter(|member| member.node_id != own_id);
    let fetching = futures::stream::iter(others.map(|member| member.node_id).collect::<Vec<_>>())
        .map(|member| {
            let node = Arc::clone(&node);
            async move {
                let fetched = tokio::time::timeout(MEMBER_DEADLINE, fetch(&node, member)).await;
                let late = || format!("not complete within {} s", MEMBER_DEADLINE.as_secs());
                (member, fetched.unwrap_or_else(|_| Err(late())))
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>();
    let (own_part, fetched) = tokio::join!(own_part, fetching);

    let mut included = Vec::new();
    let mut parts = Vec::new();
    let own_status = members.iter().find(|member| member.node_id == own_id);
    let mut note = |id: NodeId, member: Option<&MemberStatus>, reason: Option<String>| {
        included.push(Included {
            node_id: id.to_string(),
            name: member.map(|member| member.name.clone()).unwrap_or_default(),
            address: member
                .map(|member| member.address.clone())
                .unwrap_or_default(),
            included: reason.is_none(),
            reason,
        });
    };
    note(own_id, own_status, None);
    parts.push((own_id.to_string(), own_part?));
    for (id, outcome) in fetched {
        let member = members.iter().find(|member| member.node_id == id);
        match outcome {
            Ok(file) => {
                note(id, member, None);
                parts.push((id.to_string(), file));
            }
            Err(reason) => note(id, member, Some(reason)),
        }
    }
    merged(parts, Some(included), own_id.to_string()).await
}

async fn merged(
    parts: Vec<(String, File)>,
    members: Option<Vec<Included>>,
    made_by: String,
) -> io::Result<(File, Vec<Included>)> {
    let merging = tokio::task::spawn_blocking(move || -> io::Result<(File, Vec<Included>)> {
        let each = Limits::default();
        let limits = Limits {
            // Each part has kept to its own limit, but for its manifest.
            bytes: (each.bytes + each.file_bytes).saturating_mul(parts.len() as u64),
            time: Duration::MAX,
            ..each
        };
        let mut archive = Archive::new(tempfile::tempfile()?, limits, Instant::now());
        for (id, file) in parts {
            archive.unpack(&format!("nodes/{id}"), file)?;
        }
        let left_out = archive.left_out().to_vec();
        let manifest = Manifest {
            product: "neuwerk",
            version: env!("CARGO_PKG_VERSION"),
            made_at: crate::http::rfc3339(crate::http::now_s() * 1_000),
            made_by,
            members: members.as_deref(),
            left_out: &left_out,
        };
        archive.last_json("manifest.json", &manifest)?;
        let mut file = archive.finish()?;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, members.unwrap_or_default()))
    });
    merging
        .await
        .unwrap_or_else(|_| Err(io::Error::other("merging panicked")))
}

/// A member's archive, in a file that is at its beginning.
async fn fetch(node: &Node, member: NodeId) -> Result<File, String> {
    let made = ask(node, member, &Request::Make, MAKE_DEADLINE).await?;
    let made: Made = rmp_serde::from_slice(&made).map_err(|error| error.to_string())?;
    let limit = Limits::default();
    if made.bytes > limit.bytes + limit.file_bytes {
        return Err(format!("its archive has {} bytes", made.bytes));
    }
    let on_disk = |error: io::Error| format!("cannot be kept here: {error}");
    let mut file = tempfile::tempfile().map_err(on_disk)?;
    let mut offset = 0;
    while offset < made.bytes {
        let request = Request::Read {
            id: made.id,
            offset,
        };
        let piece = ask(node, member, &request, PIECE_DEADLINE).await?;
        let piece: ByteBuf = rmp_serde::from_slice(&piece).map_err(|error| error.to_string())?;
        if piece.is_empty() || piece.len() as u64 > PIECE_BYTES {
            return Err("its archive ended early".into());
        }
        offset += piece.len() as u64;
        let mut out = file.try_clone().map_err(on_disk)?;
        let written = tokio::task::spawn_blocking(move || out.write_all(&piece)).await;
        written
            .unwrap_or_else(|_| Err(io::Error::other("writing panicked")))
            .map_err(on_disk)?;
    }
    file.seek(SeekFrom::Start(0)).map_err(on_disk)?;
    Ok(file)
}

async fn ask(
    node: &Node,
    member: NodeId,
    request: &Request,
    deadline: Duration,
) -> Result<Bytes, String> {
    let body = rmp_serde::to_vec_named(request).expect("plain data");
    node.ask_member(member, Kind::Sysdump, body.into(), deadline)
        .await
        .map_err(|error| error.to_string())
}
