//! Where the data comes from: a snapshot file with its checksum, or a data directory that nobody uses.
//!
//! A snapshot ends with the SHA-256 of all before it, which is seen by its length: pages are multiples of 512 bytes.
//! (etcd: `etcdutl/snapshot/v3_snapshot.go`.)

use std::{
    fs::File,
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use storage::Loader;

use super::{
    ImportError, Options, Progress,
    database::{self, Described, Loaded},
    replay, tail,
};
use crate::bbolt::{BboltError, Item, ReadBucket, Reader};

const HASH_BYTES: u64 = 32;
const SECTOR_BYTES: u64 = 512;
const READ_BYTES: usize = 1 << 20;

/// What is to be imported, opened and, where it can be told beforehand, found whole.
pub enum Source {
    Snapshot(Reader),
    DataDir { snap: PathBuf, wal: PathBuf, database: Reader },
}

/// A store was filled.
pub struct Filled {
    pub loaded: Loaded,
    /// Entries of the log that were applied.
    pub replayed: u64,
    pub warnings: Vec<String>,
}

impl Source {
    pub fn open(options: &Options, progress: &Progress) -> Result<Source, ImportError> {
        let path = &options.source;
        let kind = std::fs::metadata(path).map_err(|error| ImportError::io(path, error))?;
        if !kind.is_dir() {
            return open_snapshot(path, options.skip_hash_check, progress).map(Source::Snapshot);
        }
        let member = path.join("member");
        if member.join("identity").exists() {
            return Err(ImportError::Pintles(path.clone()));
        }
        let snap = member.join("snap");
        if !snap.join("db").exists() {
            return Err(ImportError::NoDatabase(path.clone()));
        }
        let wal = options.source_wal_dir.clone().unwrap_or_else(|| member.join("wal"));
        let database = open_database(&snap.join("db"))?;
        Ok(Source::DataDir { snap, wal, database })
    }

    /// Makes a store in `dir`.
    pub fn fill(&self, dir: &Path, progress: &Progress) -> Result<Filled, ImportError> {
        match self {
            Source::Snapshot(reader) => {
                let loaded = fill(reader, dir, &database::describe(reader)?, progress)?;
                Ok(Filled { loaded, replayed: 0, warnings: Vec::new() })
            }
            Source::DataDir { snap, wal, database } => fill_from_data_dir(snap, wal, database, dir, progress),
        }
    }
}

fn fill(reader: &Reader, dir: &Path, described: &Described, progress: &Progress) -> Result<Loaded, ImportError> {
    let mut loader = Loader::create(dir)?;
    progress.begin("reading etcd's file", reader.bytes());
    let loaded = database::load(reader, &mut loader, progress)?;
    progress.begin("ordering by revision", reader.bytes());
    let mut done = 0;
    loader.finish(described.compaction, |bytes| {
        done += bytes;
        progress.at(done)
    })?;
    Ok(loaded)
}

fn fill_from_data_dir(
    snap: &Path,
    wal: &Path,
    database: &Reader,
    dir: &Path,
    progress: &Progress,
) -> Result<Filled, ImportError> {
    let (mut from, received) = (database, &mut None);
    let mut described = database::describe(from)?;
    let mut tail = tail::read(wal, &described, progress)?;
    // A snapshot came from the leader, and etcd ended before it had put it in the database's place.
    if let Some(snapshot) = tail.snapshot.filter(|snapshot| *snapshot > described.index) {
        let path = snap.join(format!("{snapshot:016x}.snap.db"));
        if !path.exists() {
            let detail = format!(
                "the log goes on from a snapshot at entry {snapshot}, but the database ends at {} and there is no {}",
                described.index,
                path.display()
            );
            return Err(ImportError::WalDir { path: wal.into(), detail });
        }
        from = received.insert(open_database(&path)?);
        described = database::describe(from)?;
        tail = tail::read(wal, &described, progress)?;
    }
    if let Some(error) = tail.gap.take() {
        return Err(error);
    }
    let loaded = fill(from, dir, &described, progress)?;
    let mut warnings = std::mem::take(&mut tail.warnings);
    let replayed = replay::replay(&tail, dir, &mut warnings, progress)?;
    Ok(Filled { loaded, replayed, warnings })
}

/// The database of a data directory, which stays locked as long as it is read.
fn open_database(path: &Path) -> Result<Reader, ImportError> {
    let io = |error| ImportError::io(path, error);
    let file = File::open(path).map_err(io)?;
    // SAFETY: the descriptor belongs to `file`, which outlives the call. bbolt holds this lock while it uses a file.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } != 0 {
        return Err(match io::Error::last_os_error() {
            taken if taken.kind() == io::ErrorKind::WouldBlock => ImportError::Running(path.into()),
            error => io(error),
        });
    }
    let length = file.metadata().map_err(io)?.len();
    Ok(Reader::open(file, path, length)?)
}

fn open_snapshot(path: &Path, skip_hash_check: bool, progress: &Progress) -> Result<Reader, ImportError> {
    let io = |error| ImportError::io(path, error);
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let has_hash = bytes % SECTOR_BYTES == HASH_BYTES;
    let length = if has_hash { bytes - HASH_BYTES } else { bytes };
    if skip_hash_check {
        return Ok(Reader::open(file, path, length)?);
    }
    if !has_hash {
        // What is missing is named, where that can be seen.
        Reader::open(file, path, length)?;
        return Err(ImportError::NoHash { path: path.into(), bytes, at: bytes.saturating_sub(HASH_BYTES) });
    }
    let mut expected = [0; HASH_BYTES as usize];
    file.read_exact_at(&mut expected, length).map_err(io)?;
    let got = sha256(&file, path, length, progress)?;
    if expected == got {
        return Ok(Reader::open(file, path, length)?);
    }
    let place = match Reader::open(file, path, length).and_then(|reader| walk(&reader.root())) {
        Ok(()) => {
            format!("the pages are in order: one of the keys and values in bytes 0 to {length} is not what it was")
        }
        Err(error) => error.to_string(),
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(ImportError::Hash { path: path.into(), at: length, expected: hex(&expected), got: hex(&got), place })
}

fn sha256(mut file: &File, path: &Path, length: u64, progress: &Progress) -> Result<[u8; 32], ImportError> {
    progress.begin("checking the hash", length);
    let (mut hash, mut done) = (Sha256::new(), 0);
    let mut block = vec![0; READ_BYTES];
    while done < length {
        let wanted = (length - done).min(READ_BYTES as u64) as usize;
        file.read_exact(&mut block[..wanted]).map_err(|error| ImportError::io(path, error))?;
        hash.update(&block[..wanted]);
        done += wanted as u64;
        progress.at(done)?;
    }
    Ok(hash.finalize().into())
}

/// Reads all there is.
fn walk(bucket: &ReadBucket<'_>) -> Result<(), BboltError> {
    bucket.each(|_, _, item| match item {
        Item::Value(_) => Ok(()),
        Item::Bucket(bucket) => walk(&bucket),
    })
}
