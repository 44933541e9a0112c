//! What can go wrong: an answer that etcd's rules demand, or a failure of this node.

use std::path::{Path, PathBuf};

use proto::EtcdError;

/// A failure of this node: its disk or its files. Never an answer to a client; the node stops.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// What stands on disk is not what was written there.
    #[error("{path}: damaged: {detail}; restore the member from a snapshot, or remove it and let a new one catch up")]
    Damaged { path: PathBuf, detail: String },
    /// The file system refused.
    #[error("{path}: {detail}")]
    Io { path: PathBuf, detail: String },
    /// Written by a release this one does not know.
    #[error(
        "{path}: format version {found} is not known here, only {known}: start the release that wrote it, or a newer one"
    )]
    Format { path: PathBuf, found: u32, known: u32 },
}

impl StorageError {
    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        StorageError::Io { path: path.into(), detail: error.to_string() }
    }

    pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        StorageError::Damaged { path: path.into(), detail: detail.into() }
    }

    /// RocksDB names the file and the offset in its text.
    pub(crate) fn rocksdb(path: &Path, error: rocksdb::Error) -> Self {
        let (path, detail) = (path.into(), error.to_string());
        match error.kind() {
            rocksdb::ErrorKind::Corruption => StorageError::Damaged { path, detail },
            _ => StorageError::Io { path, detail },
        }
    }
}

/// Why a read has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The request asks for what etcd's rules refuse.
    #[error("{0}")]
    Request(EtcdError),
    /// This node cannot read its files.
    #[error(transparent)]
    Local(#[from] StorageError),
}

impl From<EtcdError> for ReadError {
    fn from(error: EtcdError) -> Self {
        ReadError::Request(error)
    }
}
