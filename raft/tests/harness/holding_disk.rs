//! A disk whose syncs can be slow, held, and made to fail.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use raft::disk::{Disk, DiskFile, FileSystem};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syncs {
    Done,
    /// Take this much longer.
    Slow(Duration),
    Held,
    Failed,
}

/// The machine's file system but for its files' syncs. Clones share what becomes of those.
#[derive(Clone)]
pub struct HoldingDisk(pub Arc<watch::Sender<Syncs>>);

impl HoldingDisk {
    pub fn new() -> Self {
        HoldingDisk(Arc::new(watch::Sender::new(Syncs::Done)))
    }
}

#[derive(Debug)]
struct HoldingFile(Arc<dyn DiskFile>, watch::Receiver<Syncs>);

impl Disk for HoldingDisk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        FileSystem.make_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        FileSystem.list(dir)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        FileSystem.read(path)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HoldingFile(FileSystem.open(path, create)?, self.0.subscribe())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        FileSystem.sync_dir(dir)
    }
}

impl DiskFile for HoldingFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.0.allocate(size)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset)
    }

    /// What is not synced is not written either: a power cut would have it so.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match *self.1.borrow() {
            Syncs::Done | Syncs::Slow(_) => self.0.write_at(bytes, offset),
            Syncs::Held | Syncs::Failed => Ok(()),
        }
    }

    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>> {
        async {
            let mut syncs = self.1.clone();
            let syncs = *syncs.wait_for(|syncs| *syncs != Syncs::Held).await.map_err(io::Error::other)?;
            match syncs {
                Syncs::Failed => return Err(io::Error::other("the disk is gone")),
                // A delay: a slow disk is what this is. It is the log's own thread, which runs nothing else.
                Syncs::Slow(by) => std::thread::sleep(by),
                Syncs::Done | Syncs::Held => {}
            }
            self.0.sync_data().await
        }
        .boxed()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}
