//! What can go wrong with a backup.

use std::{
    io,
    path::{Path, PathBuf},
};

use storage::StorageError;

use crate::import::ImportError;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system refused.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// What stands in a file is not what was written there.
    #[error("{path}: damaged at offset {offset}: {detail}")]
    Damaged { path: PathBuf, offset: u64, detail: String },
    #[error(
        "{path}: format version {found} is not known here, only {known}: use the release that wrote it, or a newer one"
    )]
    Format { path: PathBuf, found: u32, known: u32 },
    /// What is asked for cannot be had from this backup.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StorageError),
    /// The data directory could not be made, or is not wanted any more.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl BackupError {
    pub fn damaged(path: &Path, offset: u64, detail: impl Into<String>) -> BackupError {
        BackupError::Damaged { path: path.into(), offset, detail: detail.into() }
    }
}

/// Names the file in an error of the file system.
pub(super) trait At<T> {
    fn at(self, path: &Path) -> Result<T, BackupError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, BackupError> {
        self.map_err(|error| BackupError::Io { path: path.into(), error })
    }
}

pub(super) fn sync_dir(path: &Path) -> Result<(), BackupError> {
    std::fs::File::open(path).and_then(|dir| dir.sync_all()).at(path)
}
