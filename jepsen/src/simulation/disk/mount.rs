//! The disk as a host sees it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};
use raft::disk::{Disk, DiskFile};
use rand::Rng as _;

use super::{SimDisk, State, inode::Inode};

/// From one start of the host's process to its end.
#[derive(Debug, Clone)]
pub struct Mount {
    pub(super) disk: Arc<SimDisk>,
    pub(super) number: u64,
}

impl Mount {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        match state.mounts == self.number {
            true => act(&mut state),
            false => Err(io::Error::other("who had this disk mounted has ended")),
        }
    }
}

impl Disk for Mount {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.with(|state| {
            state.need_space()?;
            state.names.make_dir(dir)
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.with(|state| state.names.list(dir))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.with(|state| {
            let number = state.names.file(path)?;
            let cached = &state.inode(number).cached;
            Ok(cached.read_vec(0..cached.len()))
        })
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.with(|state| {
            let number = match state.names.file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && create => state.create(path)?,
                found => found?,
            };
            state.inode(number).open += 1;
            Ok(Arc::new(File { mount: self.clone(), inode: number, path: path.into() }) as Arc<dyn DiskFile>)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|state| {
            let replaced = state.names.file(to).ok();
            state.names.rename(from, to)?;
            replaced.into_iter().for_each(|number| state.drop_if_unused(number));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            let number = state.names.file(path)?;
            state.names.remove(path)?;
            state.drop_if_unused(number);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.with(|state| {
            state.counts.syncs += 1;
            if state.omits_syncs {
                state.counts.syncs_omitted += 1;
                return Ok(());
            }
            state.names.sync_dir(dir)?;
            state.drop_unused();
            Ok(())
        })
    }
}

impl State {
    fn create(&mut self, path: &Path) -> io::Result<u64> {
        self.need_space()?;
        let number = self.next_inode;
        self.names.create(path, number)?;
        self.inodes.insert(number, Inode::default());
        self.next_inode += 1;
        Ok(number)
    }
}

struct File {
    mount: Mount,
    inode: u64,
    path: PathBuf,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("File").field(&self.path).finish()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // When the process has ended there is nothing to close.
        let _ = self.mount.with(|state| {
            state.inode(self.inode).open -= 1;
            state.drop_if_unused(self.inode);
            Ok(())
        });
    }
}

/// Counts as waiting until it is dropped.
struct Syncing<'a>(&'a File);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        // The end of the process has counted it as cut off.
        let _ = self.0.mount.with(|state| {
            state.syncing -= 1;
            Ok(())
        });
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        self.mount.with(|state| Ok(state.inode(self.inode).cached.len()))
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.mount.with(|state| {
            if state.inode(self.inode).cached.len() < size {
                state.need_space()?;
            }
            state.inode(self.inode).allocate(size);
            Ok(())
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.mount.with(|state| {
            let cached = &state.inode(self.inode).cached;
            if offset + bytes.len() as u64 > cached.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            cached.read(bytes, offset);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.mount.with(|state| state.write(self.inode, bytes, offset))
    }

    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>> {
        async move {
            // What is written while this waits is not promised.
            let (end, time) = self.mount.with(|state| {
                let time = state.sync_time.clone();
                let time = if time.end().is_zero() { *time.end() } else { state.rng.random_range(time) };
                Ok((state.inode(self.inode).written(), time))
            })?;
            if !time.is_zero() {
                self.mount.with(|state| {
                    state.syncing += 1;
                    Ok(())
                })?;
                let _syncing = Syncing(self);
                // A delay, of simulated time: it is what the sync takes.
                tokio::time::sleep(time).await;
            }
            self.mount.with(|state| state.sync(self.inode, end))
        }
        .boxed()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.mount.with(|state| {
            let end = state.inode(self.inode).written();
            state.sync(self.inode, end)
        })
    }
}
