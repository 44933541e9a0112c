//! What the log needs of a disk. [`FileSystem`] is the machine's; a simulation brings one that loses, tears and rots.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};

/// Directories and their files. What is done to a directory lasts once it is synced.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory, and those above it.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// The paths in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// A whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// A file to read and write, as it is; a missing one is made if `create`.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// In bytes.
    fn size(&self) -> io::Result<u64>;
    /// Gives the file `size` bytes at least, zeros where there were none, so that a write within neither grows it nor
    /// fails for lack of space.
    fn allocate(&self, size: u64) -> io::Result<()>;
    /// Fills `bytes`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// What was written lasts when this resolves. It blocks, and may be used where blocking is allowed only.
    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>>;
    /// The same, with the file's size and times.
    fn sync_all(&self) -> io::Result<()>;
}

/// The machine's file system.
pub struct FileSystem;

impl Disk for FileSystem {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        // SAFETY: the descriptor is open while `self` is borrowed.
        match unsafe { libc::posix_fallocate(self.as_raw_fd(), 0, size as libc::off_t) } {
            0 => Ok(()),
            // Not every file system can: there it grows as it is written.
            libc::EOPNOTSUPP | libc::EINVAL => self.set_len(size.max(self.size()?)),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>> {
        async { File::sync_data(self) }.boxed()
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}
