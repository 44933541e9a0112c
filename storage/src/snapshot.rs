//! Checkpoints of the whole store, and replacing the store by one.
//!
//! ```text
//! store/generation     "2": the file that says which folder is the store
//! store/1              left behind by a crash: removed at the next start
//! store/2              a RocksDB
//! ```
//!
//! The pointer file is replaced by a rename, so a crash leaves the old store or the new one.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    db::{Db, LEASE},
    error::StorageError,
    planted,
    stats::Going,
    store::{Applied, Loaded, Meta, Store},
};

const POINTER: &str = "generation";

/// Which state of the store a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub applied: Applied,
    pub revision: i64,
    /// -1 when the store was never compacted.
    pub compacted: i64,
}

impl Store {
    /// Writes a consistent copy of the store to `dir`, which must not exist, by hard links where the file system
    /// allows. All that was applied before is in it.
    pub fn checkpoint(&self, dir: &Path) -> Result<Checkpoint, StorageError> {
        let view = self.inner.view();
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(view.db.raw()).map_err(|e| view.db.error(e))?;
        checkpoint.create_checkpoint(dir).map_err(|e| view.db.error(e))?;
        let Meta { applied, revision, compacted, .. } = Meta::read(&Db::open_read_only(dir)?)?;
        Ok(Checkpoint { applied, revision, compacted })
    }

    /// Replaces the whole state by the checkpoint in `dir`, which is moved into the store: it must be on the same file
    /// system. Nothing may be applied meanwhile; readers see the old state or the new one.
    pub fn install_checkpoint(&self, dir: &Path) -> Result<Applied, StorageError> {
        let inner = &self.inner;
        let _going = Going::on(&inner.counters.installing);
        let mut state = inner.state.lock();
        let old = state.db.clone();
        let generation = generation_of(old.path())? + 1;
        let new = inner.dir.join(generation.to_string());
        fs::rename(dir, &new).map_err(|e| StorageError::io(dir, e))?;
        sync_dir(&inner.dir)?;
        let db = Arc::new(Db::open(&new, inner.options.cache_bytes)?);
        if planted!(SnapshotMissesFamily) {
            db.clear(LEASE)?;
        }
        let loaded = Loaded::from(db)?;
        point_to(&inner.dir, generation)?;

        *state = loaded.state;
        inner.compactor.replace(&state.db, loaded.compaction_finished, state.compacted);
        *inner.leases.write() = loaded.leases;
        *inner.members.write() = loaded.members;
        *inner.alarms.write() = loaded.alarms;
        *inner.applied.write() = loaded.applied.clone();
        *inner.view.write() = Arc::new(state.view());
        let (revision, compacted) = (state.revision, state.compacted);
        drop(state);
        // Readers may hold it open.
        old.give_up();
        drop(old);
        inner.options.observer.restored(revision, compacted);
        Ok(loaded.applied)
    }
}

/// The folder of the RocksDB that is the store; makes the first one in an empty `dir`.
pub(crate) fn current(dir: &Path) -> Result<PathBuf, StorageError> {
    fs::create_dir_all(dir).map_err(|e| StorageError::io(dir, e))?;
    let pointer = dir.join(POINTER);
    let mut folders = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| StorageError::io(dir, e))? {
        let path = entry.map_err(|e| StorageError::io(dir, e))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    let generation = match fs::read_to_string(&pointer) {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| StorageError::damaged(&pointer, "not a number"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && folders.iter().all(|folder| is_empty(folder)) => {
            let first = dir.join("1");
            fs::create_dir_all(&first).map_err(|e| StorageError::io(&first, e))?;
            // The folder before the name of it.
            sync_dir(dir)?;
            point_to(dir, 1)?;
            1
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StorageError::damaged(
                &pointer,
                "the file is missing, so it is unknown which folder is the store",
            ));
        }
        Err(error) => return Err(StorageError::io(&pointer, error)),
    };
    let current = dir.join(generation.to_string());
    if !current.is_dir() {
        return Err(StorageError::damaged(&current, "the folder that the store stands in is missing"));
    }
    for folder in folders.into_iter().filter(|folder| *folder != current) {
        fs::remove_dir_all(&folder).map_err(|e| StorageError::io(&folder, e))?;
    }
    Ok(current)
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn generation_of(folder: &Path) -> Result<u64, StorageError> {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok())
        .ok_or_else(|| StorageError::damaged(folder, "the folder's name is not a number"))
}

fn point_to(dir: &Path, generation: u64) -> Result<(), StorageError> {
    let (pointer, new) = (dir.join(POINTER), dir.join("generation.new"));
    let mut file = fs::File::create(&new).map_err(|e| StorageError::io(&new, e))?;
    file.write_all(generation.to_string().as_bytes()).map_err(|e| StorageError::io(&new, e))?;
    file.sync_all().map_err(|e| StorageError::io(&new, e))?;
    fs::rename(&new, &pointer).map_err(|e| StorageError::io(&pointer, e))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| StorageError::io(dir, e))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{Options, hash::tests::Nobody};

    #[test]
    fn an_old_store_has_its_folder_as_long_as_it_is_open() {
        let dir = TempDir::new().unwrap();
        let options = Options { observer: Arc::new(Nobody), cache_bytes: 1 << 20 };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        let checkpoint = dir.path().join("checkpoint");
        store.checkpoint(&checkpoint).unwrap();
        let reader = store.inner.view();
        let old = reader.db.path().to_path_buf();
        store.install_checkpoint(&checkpoint).unwrap();
        assert_ne!(store.inner.view().db.path(), old);
        assert!(old.is_dir());
        drop(reader);
        assert!(!old.exists());
    }
}
