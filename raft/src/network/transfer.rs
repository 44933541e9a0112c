//! Snapshots on the wire: the files of a checkpoint, one after the other, in checksummed chunks.
//!
//! ```text
//! Begin(leader, last, membership)  File(CURRENT, 16)  Chunk  File(000012.sst, 41 MiB)  Chunk Chunk …  End(files)
//! ```
//!
//! What arrives otherwise than it was sent is refused: each part has a checksum, and `End` is one by itself.
//! Both sides hold a few chunks in memory, whatever the size. What was received is synced before it is installed; a
//! transfer that was cut begins anew, and its folder is removed, at the latest by the next start.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use proto::{
    MemberId,
    peer::{
        self,
        snapshot_part::{Begin, Part},
    },
};
use storage::{Store, host};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    Meter, PeerEvent,
    convert::{id_to_wire, stored_to_wire, vote_to_wire},
    state_machine::meta_of,
    types::Vote,
};

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;

/// Where checkpoints stand while they are sent, and while they are received. On the file system of the store.
pub struct Folder {
    path: PathBuf,
    store: Store,
    meter: Arc<dyn Meter>,
    next: AtomicU64,
}

/// A checkpoint that is removed when it is dropped.
pub struct Checkpoint(pub PathBuf);

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a checkpoint cannot be removed");
        }
    }
}

/// A snapshot as it was received. Unless it has been moved into the store, it is removed with this.
pub struct Received {
    pub begin: Begin,
    pub checkpoint: Checkpoint,
}

impl Folder {
    /// Uses `path`, and removes what was left there.
    pub fn open(path: PathBuf, store: Store, meter: Arc<dyn Meter>) -> io::Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Folder { path, store, meter, next: AtomicU64::new(1) })
    }

    fn new_path(&self) -> PathBuf {
        self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Makes a checkpoint and sends it. When that fails the parts end without the last one.
    pub fn send(self: &Arc<Self>, leader: Vote) -> ReceiverStream<peer::SnapshotPart> {
        let (parts, stream) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let folder = self.clone();
        host::spawn(async move {
            if let Err(error) = folder.send_parts(leader, &parts).await {
                tracing::warn!(%error, "a snapshot was not sent");
            }
        });
        ReceiverStream::new(stream)
    }

    async fn send_parts(&self, leader: Vote, parts: &mpsc::Sender<peer::SnapshotPart>) -> io::Result<()> {
        let send = async |part| {
            let part = peer::SnapshotPart { part: Some(part) };
            parts.send(part).await.map_err(|_| io::Error::other("the other side has gone"))
        };
        let checkpoint = Checkpoint(self.new_path());
        let (store, path) = (self.store.clone(), checkpoint.0.clone());
        let applied = host::blocking(move || store.checkpoint(&path)).await.map_err(io::Error::other)?;
        let applied = applied.map_err(io::Error::other)?.applied;
        let meta = meta_of(&applied)?;
        let begin = Begin {
            leader: Some(vote_to_wire(&leader)),
            last: meta.last_log_id.as_ref().map(id_to_wire),
            membership: Some(stored_to_wire(&meta.last_membership)),
            crc32: 0,
        };
        send(Part::Begin(begin.sealed())).await?;
        let mut files = 0;
        for entry in fs::read_dir(&checkpoint.0)? {
            let entry = entry?;
            let path = entry.file_name().into_string().map_err(|_| io::Error::other("a file name is not UTF-8"))?;
            let (mut file, mut left) = (File::open(entry.path())?, entry.metadata()?.len());
            send(Part::File(peer::snapshot_part::File { path, size: left, crc32: 0 }.sealed())).await?;
            while left > 0 {
                let mut data = vec![0; left.min(CHUNK_BYTES as u64) as usize];
                host::in_place(|| file.read_exact(&mut data))?;
                left -= data.len() as u64;
                let (crc32, data) = (crc32fast::hash(&data), Bytes::from(data));
                send(Part::Chunk(peer::snapshot_part::Chunk { data, crc32 })).await?;
            }
            files += 1;
        }
        send(Part::End(peer::snapshot_part::End { files })).await
    }

    /// Receives a whole snapshot. What was received of one that is cut is removed.
    pub async fn receive(&self, from: MemberId, parts: &mut Streaming<peer::SnapshotPart>) -> Result<Received, Status> {
        let began = Instant::now();
        self.meter.peer(from, PeerEvent::SnapshotReceives);
        let received = self.receive_parts(parts).await;
        let (took, is_done) = (began.elapsed(), received.is_ok());
        self.meter.peer(from, PeerEvent::SnapshotReceived { took, is_done });
        received
    }

    async fn receive_parts(&self, parts: &mut Streaming<peer::SnapshotPart>) -> Result<Received, Status> {
        let checkpoint = Checkpoint(self.new_path());
        let mut receiver = Receiver::new(&checkpoint.0)?;
        while let Some(part) = parts.message().await? {
            let part = part.part.ok_or_else(|| Status::invalid_argument("a snapshot part without content"))?;
            // A chunk is a megabyte: writing it blocks shortly.
            if host::in_place(|| receiver.take(part))? {
                let begin = receiver.begin.ok_or_else(|| Status::invalid_argument("a snapshot without beginning"))?;
                return Ok(Received { begin, checkpoint });
            }
        }
        Err(Status::data_loss("the snapshot was cut"))
    }
}

struct Receiver {
    dir: PathBuf,
    begin: Option<Begin>,
    /// The file that is being written, and the bytes it still lacks.
    file: Option<(File, u64)>,
    files: u64,
}

impl Receiver {
    fn new(dir: &Path) -> Result<Self, Status> {
        fs::create_dir(dir).map_err(|e| failed(dir, e))?;
        Ok(Receiver { dir: dir.into(), begin: None, file: None, files: 0 })
    }

    /// Takes a part in; true when it was the last one.
    fn take(&mut self, part: Part) -> Result<bool, Status> {
        match part {
            Part::Begin(begin) => {
                begin.check()?;
                self.begin = Some(begin);
            }
            Part::File(file) => {
                file.check()?;
                self.finish_file()?;
                let is_plain = Path::new(&file.path).file_name().is_some_and(|name| name == file.path.as_str());
                if !is_plain {
                    return Err(Status::invalid_argument(format!("{:?} is no name of a snapshot's file", file.path)));
                }
                let path = self.dir.join(&file.path);
                self.file = Some((File::create_new(&path).map_err(|e| failed(&path, e))?, file.size));
                self.files += 1;
            }
            Part::Chunk(chunk) => {
                let Some((file, left)) = &mut self.file else {
                    return Err(Status::invalid_argument("a chunk of no file"));
                };
                if crc32fast::hash(&chunk.data) != chunk.crc32 {
                    return Err(Status::data_loss("a chunk's checksum does not match"));
                }
                *left = left
                    .checked_sub(chunk.data.len() as u64)
                    .ok_or_else(|| Status::data_loss("a file is longer than announced"))?;
                file.write_all(&chunk.data).map_err(|e| failed(&self.dir, e))?;
            }
            Part::End(end) => {
                self.finish_file()?;
                if end.files != self.files {
                    return Err(Status::data_loss(format!("{} of {} files have come", self.files, end.files)));
                }
                File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| failed(&self.dir, e))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn finish_file(&mut self) -> Result<(), Status> {
        match self.file.take() {
            Some((file, 0)) => file.sync_all().map_err(|e| failed(&self.dir, e)),
            Some(_) => Err(Status::data_loss("a file is shorter than announced")),
            None => Ok(()),
        }
    }
}

/// What is said of a snapshot and its files.
trait Sealed: prost::Message + Clone {
    fn crc32(&mut self) -> &mut u32;

    fn sealed(mut self) -> Self {
        *self.crc32() = 0;
        *self.crc32() = crc32fast::hash(&self.encode_to_vec());
        self
    }

    fn check(&self) -> Result<(), Status> {
        let told = *self.clone().crc32();
        let is_right = told == 0 || told == *self.clone().sealed().crc32();
        is_right
            .then_some(())
            .ok_or_else(|| Status::data_loss("a checksum of what is said of a snapshot does not match"))
    }
}

impl Sealed for Begin {
    fn crc32(&mut self) -> &mut u32 {
        &mut self.crc32
    }
}

impl Sealed for peer::snapshot_part::File {
    fn crc32(&mut self) -> &mut u32 {
        &mut self.crc32
    }
}

fn failed(path: &Path, error: io::Error) -> Status {
    Status::internal(format!("{}: {error}", path.display()))
}

/// For `crate::fuzzing`: takes parts until one is refused or was the last.
#[cfg(fuzzing)]
pub fn fuzzing(dir: &Path, parts: Vec<peer::SnapshotPart>) {
    let checkpoint = Checkpoint(dir.into());
    let Ok(mut receiver) = Receiver::new(&checkpoint.0) else { return };
    for part in parts.into_iter().filter_map(|part| part.part) {
        if !matches!(receiver.take(part), Ok(false)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use proto::peer::{
        Ballot, LogId, SnapshotPart,
        snapshot_part::{Chunk, End, File},
    };

    use super::*;

    fn parts() -> Vec<SnapshotPart> {
        let begin = Begin {
            leader: Some(Ballot { term: 3, member: 7, committed: true }),
            last: Some(LogId { index: 300, ..LogId::default() }),
            membership: Some(peer::StoredMembership::default()),
            crc32: 0,
        };
        let data = Bytes::from_static(b"MANIFEST-000005\n");
        let file = File { path: "CURRENT".to_owned(), size: data.len() as u64, crc32: 0 };
        let chunk = Chunk { crc32: crc32fast::hash(&data), data };
        [Part::Begin(begin.sealed()), Part::File(file.sealed()), Part::Chunk(chunk), Part::End(End { files: 1 })]
            .map(|part| SnapshotPart { part: Some(part) })
            .into()
    }

    /// What was received: what was said of it, and its files.
    type Taken = (Option<Begin>, Vec<(PathBuf, Vec<u8>)>);

    /// `None`: it was refused, or its end has not come.
    fn receive(parts: &[SnapshotPart]) -> Option<Taken> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received");
        let mut receiver = Receiver::new(&path).unwrap();
        for part in parts {
            if receiver.take(part.part.clone()?).ok()? {
                let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
                let files = files.map(|file| (file.file_name().unwrap().into(), fs::read(file).unwrap()));
                return Some((receiver.begin, files.collect()));
            }
        }
        None
    }

    /// Without the checksum, in which a flipped bit does no harm when it is not known as one any more.
    fn content((begin, files): Taken) -> Taken {
        (begin.map(|begin| Begin { crc32: 0, ..begin }), files)
    }

    #[test]
    fn whatever_bit_is_flipped_on_the_way_nothing_else_is_received() {
        let sent = parts();
        let sound = content(receive(&sent).unwrap());
        let mut refused = 0;
        for changed in 0..sent.len() {
            let encoded = sent[changed].encode_to_vec();
            for bit in 0..encoded.len() * 8 {
                let mut bytes = encoded.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let Ok(part) = SnapshotPart::decode(bytes.as_slice()) else { continue };
                let mut arrived = sent.clone();
                arrived[changed] = part;
                match receive(&arrived) {
                    Some(taken) => assert_eq!(content(taken), sound, "bit {bit} of part {changed}"),
                    None => refused += 1,
                }
            }
        }
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn a_part_that_is_missing_is_noticed() {
        let sent = parts();
        for missing in 0..sent.len() {
            let mut arrived = sent.clone();
            arrived.remove(missing);
            let taken = receive(&arrived);
            assert!(taken.is_none_or(|(begin, _)| begin.is_none()), "part {missing}");
        }
    }

    #[test]
    fn what_a_version_without_checksums_says_is_taken() {
        let mut sent = parts();
        for part in &mut sent {
            match &mut part.part {
                Some(Part::Begin(begin)) => begin.crc32 = 0,
                Some(Part::File(file)) => file.crc32 = 0,
                _ => {}
            }
        }
        assert!(receive(&sent).is_some());
    }
}
