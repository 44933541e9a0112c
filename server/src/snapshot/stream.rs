//! The stream of one backup: the file in parts, then its checksum.
//! Source: etcd, `server/etcdserver/api/v3rpc/maintenance.go`.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use proto::{EtcdError, etcdserverpb::SnapshotResponse};
use sha2::{Digest as _, Sha256};
use storage::{Store, host};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    etcd::{self, WriteError},
    file,
};
use crate::{context::Context, version};

/// Backups that are made or sent at a time: each has a file as large as the store. Others wait.
const AT_A_TIME: usize = 2;
/// Of one part, as in etcd.
const PART_BYTES: usize = 32 << 10;
/// Read from the file at once.
const READ_BYTES: usize = 1 << 20;
const PARTS_IN_FLIGHT: usize = 32;
/// A client that takes no part for so long gives its place to others.
const STALLED_MAX: Duration = Duration::from_secs(60);

pub type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

/// Makes backups.
pub struct Snapshots {
    /// Where files stand while they are sent.
    folder: PathBuf,
    places: Semaphore,
}

impl Snapshots {
    pub fn new(folder: PathBuf) -> Self {
        Snapshots { folder, places: Semaphore::new(AT_A_TIME) }
    }

    /// Begins a backup of the state as it is once there is a place for it.
    pub fn send(ctx: Arc<Context>) -> SnapshotStream {
        let (parts, stream) = mpsc::channel(PARTS_IN_FLIGHT);
        let (ended, end) = oneshot::channel();
        host::spawn(async move {
            let unwanted = CancellationToken::new();
            let _unwanted = unwanted.clone().drop_guard();
            let end = tokio::select! {
                sent = send(&ctx, &parts, unwanted) => sent,
                () = parts.closed() => Err(Status::cancelled("the client has gone")),
                () = ctx.shutdown.cancelled() => Err(EtcdError::Stopped.into()),
            };
            if let Err(status) = &end {
                tracing::warn!(error = status.message(), "failed to send the database snapshot to a client");
            }
            // Nobody listens when the client has gone.
            let _ = ended.send(end);
        });
        // Behind the parts, so that a stream that was cut never looks whole.
        let end = stream::once(end).filter_map(|end| async {
            match end {
                Ok(Ok(())) => None,
                Ok(Err(status)) => Some(Err(status)),
                Err(_) => Some(Err(EtcdError::Stopped.into())),
            }
        });
        ReceiverStream::new(stream).map(Ok).chain(end).boxed()
    }
}

async fn send(
    ctx: &Arc<Context>,
    parts: &mpsc::Sender<SnapshotResponse>,
    unwanted: CancellationToken,
) -> Result<(), Status> {
    let _place = ctx.snapshots.places.acquire().await.map_err(|_| EtcdError::Stopped)?;
    let begin = Instant::now();
    let (store, folder) = (ctx.store.clone(), ctx.snapshots.folder.clone());
    let storage_version = version::storage_text(&store);
    let made = host::blocking(move || make(&store, &folder, unwanted)).await;
    let (file, total) = made.map_err(|_| EtcdError::Stopped)?.map_err(|error| failed(ctx, error))?;
    tracing::info!(total_bytes = total, storage_version, "sending database snapshot to client");
    let part = |blob, remaining_bytes| {
        let part = SnapshotResponse { header: None, remaining_bytes, blob, version: storage_version.clone() };
        async {
            match tokio::time::timeout(STALLED_MAX, parts.send(part)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(Status::cancelled("the client has gone")),
                Err(_) => Err(Status::deadline_exceeded("pintle: the client takes nothing of the snapshot")),
            }
        }
    };
    let mut reader = Reader { file, left: total, sha256: Sha256::new() };
    while reader.left > 0 {
        let read = host::blocking(move || reader.read()).await.map_err(|_| EtcdError::Stopped)?;
        let mut block;
        (reader, block) = read.map_err(|error| failed(ctx, error.into()))?;
        while !block.is_empty() {
            let blob = block.split_to(block.len().min(PART_BYTES));
            part(blob, reader.left + block.len() as u64).await?;
        }
    }
    part(Bytes::copy_from_slice(&reader.sha256.finalize()), 0).await?;
    ctx.metrics.store.backend_snapshots.observe(begin.elapsed().as_secs_f64());
    tracing::info!(
        total_bytes = total,
        took_ms = begin.elapsed().as_millis() as u64,
        "successfully sent database snapshot to client"
    );
    Ok(())
}

/// The file and its length.
fn make(store: &Store, folder: &Path, unwanted: CancellationToken) -> Result<(File, u64), WriteError> {
    let out = file::create(folder, unwanted)?;
    let storage_version = version::backup_text(store);
    let (out, total) = store.export(|state| etcd::write(state, &storage_version, out))?;
    Ok((file::finish(out)?, total))
}

/// A failure to read the store stops the node; one to write a backup is the backup's.
fn failed(ctx: &Context, error: WriteError) -> Status {
    match error {
        WriteError::Storage(error) => ctx.storage_error(error),
        WriteError::Membership(error) => Status::internal(format!("pintle: snapshot: {error}")),
        WriteError::File(error) => {
            let text = format!("pintle: snapshot: {}: {error}", ctx.snapshots.folder.display());
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Status::resource_exhausted(text),
                _ => Status::internal(text),
            }
        }
    }
}

/// What is left of the file, and the checksum of what was read.
struct Reader {
    file: File,
    left: u64,
    sha256: Sha256,
}

impl Reader {
    fn read(mut self) -> io::Result<(Self, Bytes)> {
        let mut block = vec![0; self.left.min(READ_BYTES as u64) as usize];
        self.file.read_exact(&mut block)?;
        self.sha256.update(&block);
        self.left -= block.len() as u64;
        Ok((self, block.into()))
    }
}
