//! Makes a data directory out of what etcd has left: a snapshot, or the data directory of a member that is stopped.
//! Snapshots of Pintle are files of etcd's, too, so this is also how they are restored.
//!
//! ```text
//! snapshot file ──────────────> database.rs: buckets ─> a store ────────────────────┐
//! data directory ─> db ───────┘                              │                      ├─> target.rs: a member
//!                └> wal.rs: log ─> tail.rs: what db lacks ───┴─> replay.rs: applied ┘   of a new cluster
//! ```
//!
//! Keys, revisions, leases, users, roles, alarms and compactions stay as they are; members and ids are those of a new
//! cluster, as `etcdutl snapshot restore` makes it. Nothing is left behind by an import that fails.

mod command_line;
mod database;
mod progress;
mod replay;
mod source;
mod status;
mod tail;
mod target;
mod wal;

use std::{
    io,
    path::{Path, PathBuf},
};

use storage::{Settled, StorageError};

use self::source::Source;
pub use self::{
    command_line::{import_on_terminal, run as run_command},
    progress::Progress,
    status::{Status, status},
    target::{Membership, Target},
};
use crate::{bbolt::BboltError, config::ConfigError, identity::IdentityError};

/// What is to be imported, and where to.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A snapshot file, or etcd's data directory.
    pub source: PathBuf,
    /// Where etcd's log is, if not in its data directory.
    pub source_wal_dir: Option<PathBuf>,
    pub membership: Membership,
    /// The revision grows by so much.
    pub bump_revision: u64,
    /// All revisions before are compacted; goes with `bump_revision` only.
    pub mark_compacted: bool,
    /// A snapshot file need not end with its checksum.
    pub skip_hash_check: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Imported {
    pub data_dir: PathBuf,
    pub member: proto::MemberId,
    pub cluster: proto::ClusterId,
    pub settled: Settled,
    /// Read from the database, not all of them are living keys.
    pub versions: u64,
    pub leases: u64,
    /// Entries of etcd's log that its database lacked, and which were applied.
    pub replayed: u64,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Bbolt(#[from] BboltError),
    #[error("{path}: this file is not etcd's: it has no bucket {missing:?}")]
    NotEtcds { path: PathBuf, missing: &'static str },
    #[error("{path}: bucket \"authUsers\" or \"authRoles\": {detail}")]
    Auth { path: PathBuf, detail: String },
    #[error(
        "{path}: snapshot missing hash but --skip-hash-check=false: the file has {bytes} bytes and does not end with \
         a SHA-256 at byte {at}; it was cut short, or copied from a data directory (then give --skip-hash-check)"
    )]
    NoHash { path: PathBuf, bytes: u64, at: u64 },
    #[error("{path}: expected sha256 {expected}, which stands at byte {at}, got {got} of the bytes before it; {place}")]
    Hash { path: PathBuf, at: u64, expected: String, got: String, place: String },
    #[error("{0}: etcd is running on this data directory; stop it first, or take a snapshot of it with etcdctl")]
    Running(PathBuf),
    #[error("{0}: this is neither a snapshot file nor etcd's data directory: there is no member/snap/db in it")]
    NoDatabase(PathBuf),
    #[error("{0}: this is a data directory of Pintle's; copy it, or take a snapshot of the running member")]
    Pintles(PathBuf),
    #[error("{path}: damaged at byte {offset}: {detail}")]
    Wal { path: PathBuf, offset: u64, detail: String },
    #[error("{path}: {detail}")]
    WalDir { path: PathBuf, detail: String },
    #[error("{0}")]
    Flags(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("data-dir {0:?} not empty or could not be read")]
    DataDir(PathBuf),
    #[error("wal-dir {0:?} exists")]
    TargetWalDir(PathBuf),
    #[error("{0}: another process makes a data directory here")]
    Busy(PathBuf),
    #[error("--mark-compacted required if --revision-bump > 0")]
    BumpWithoutCompaction,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Raft(#[from] raft::StartError),
    #[error("interrupted; nothing was made")]
    Interrupted,
}

impl ImportError {
    fn io(path: &Path, error: io::Error) -> Self {
        ImportError::Io { path: path.into(), error }
    }
}

/// Imports; when it fails, nothing is left behind.
pub fn import(options: &Options, progress: &Progress) -> Result<Imported, ImportError> {
    if options.mark_compacted != (options.bump_revision > 0) {
        return Err(ImportError::BumpWithoutCompaction);
    }
    let bump = match options.bump_revision {
        0 => None,
        bump => Some(i64::try_from(bump).map_err(|_| ImportError::Flags("--bump-revision is too large".into()))?),
    };
    let target = Target::new(&options.membership)?;
    let source = Source::open(options, progress)?;
    let mut imported = None;
    let settled = target.build(bump, |store| {
        imported = Some(source.fill(store, progress)?);
        Ok::<_, ImportError>(())
    })?;
    let source::Filled { loaded, replayed, warnings } = imported.expect("a store that was built was filled");
    Ok(Imported {
        data_dir: target.data_dir.clone(),
        member: target.identity.member,
        cluster: target.identity.cluster,
        settled,
        versions: loaded.versions,
        leases: loaded.leases,
        replayed,
        warnings,
    })
}
