//! What a member asks of its disk.

use std::{
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::BoxFuture;

pub trait Disk: Send + Sync + 'static {
    /// Makes the directory, and those that it is in.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// The whole file; `NotFound` when there is none.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// For reading and writing. Never truncates.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

pub trait DiskFile: Debug + Send + Sync {
    fn len(&self) -> io::Result<u64>;
    /// Makes the file at least that long; what is new reads as zeros.
    fn allocate(&self, size: u64) -> io::Result<()>;
    /// Fills `bytes`, or fails.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`, or fails.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>>;
    fn sync_all(&self) -> io::Result<()>;
}
