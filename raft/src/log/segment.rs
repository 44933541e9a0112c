//! Segment files: names, creation, recycling.
//!
//! ```text
//! wal/0000000000000003.log    a segment; the number counts up without gaps
//! wal/0000000000000004.log    the newest: the only one that is written to
//! wal/newest                  "4": a newest segment that is missing is noticed
//! wal/recycled-2              purged; becomes the next segment
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use storage::planted;

use super::{LogError, record};
use crate::disk::{Disk, DiskFile};

const NEWEST: &str = "newest";
const RECYCLED_MAX: usize = 2;

/// An open segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    pub size: u64,
    /// The highest index of an entry in it.
    pub last_index: Option<u64>,
}

/// The directory of the segments.
#[derive(Clone)]
pub(crate) struct Folder {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
    /// Of a new segment, unless a batch is longer.
    pub segment_bytes: u64,
}

impl Folder {
    /// On the machine's file system.
    pub fn of(path: &Path) -> Folder {
        Folder { disk: Arc::new(crate::disk::FileSystem), path: path.into(), segment_bytes: crate::SEGMENT_BYTES }
    }

    /// Makes the folder, with those above it, if it is not there. When this returns, its name is on the disk.
    pub fn make(&self) -> Result<(), LogError> {
        let above =
            || self.path.ancestors().skip(1).map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
        let is_missing = |dir: &&Path| self.disk.list(dir).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let missing = above().take_while(is_missing).count();
        self.disk.make_dir(&self.path).map_err(|e| LogError::io(&self.path, e))?;
        // That in which its own name stands is always synced: whoever made it may have ended before.
        for dir in above().take(missing + 1) {
            match self.disk.sync_dir(dir) {
                // Who may write there but not read cannot sync, and has to trust the file system.
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(LogError::io(dir, error)),
                _ => {}
            }
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<(), LogError> {
        self.disk.sync_dir(&self.path).map_err(|e| LogError::io(&self.path, e))
    }

    pub fn path_of(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:016x}.log"))
    }

    pub fn newest_path(&self) -> PathBuf {
        self.path.join(NEWEST)
    }

    /// The numbers of the segments, in order.
    pub fn numbers(&self) -> Result<Vec<u64>, LogError> {
        let mut numbers = Vec::new();
        for path in self.list()? {
            let Some(stem) = name_of(&path).and_then(|name| name.strip_suffix(".log")) else { continue };
            let number = u64::from_str_radix(stem, 16).ok().filter(|_| stem.len() == 16);
            numbers.push(number.ok_or_else(|| LogError::damaged(&path, 0, "the name is not that of a segment"))?);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The number that [`Folder::mark_newest`] wrote last.
    pub fn newest(&self) -> Result<Option<u64>, LogError> {
        let path = self.newest_path();
        let damaged = || LogError::damaged(&path, 0, "not a number");
        match self.disk.read(&path) {
            Ok(bytes) => {
                let text = str::from_utf8(&bytes).map_err(|_| damaged())?;
                text.trim().parse().map(Some).map_err(|_| damaged())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io(&path, error)),
        }
    }

    /// Writes that this is the newest segment, and syncs the folder.
    pub(super) fn mark_newest(&self, number: u64) -> Result<(), LogError> {
        let (path, new) = (self.newest_path(), self.path.join("newest.new"));
        let write = || {
            // One that a crash left may be longer.
            if let Err(error) = self.disk.remove(&new)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let file = self.disk.open(&new, true)?;
            file.write_at(number.to_string().as_bytes(), 0)?;
            file.sync_all()?;
            self.disk.rename(&new, &path)?;
            self.sync_names()
        };
        write().map_err(|e| LogError::io(&path, e))
    }

    /// Makes the segment `number` of at least `size` bytes, from a recycled file if there is one. When this returns,
    /// the file with its header is on the disk under its name.
    pub(super) fn create(&self, number: u64, size: u64) -> Result<Segment, LogError> {
        let (path, new) = (self.path_of(number), self.path.join("new"));
        let recycled = self.recycled()?.pop();
        let create = || {
            if let Some(recycled) = recycled {
                self.disk.rename(&recycled, &new)?;
            }
            let file = self.disk.open(&new, true)?;
            file.allocate(size)?;
            let size = file.size()?;
            file.write_at(&record::header(number, size), 0)?;
            file.sync_all()?;
            self.disk.rename(&new, &path)?;
            self.sync_names()?;
            Ok((file, size))
        };
        let (file, size) = create().map_err(|e| LogError::io(&path, e))?;
        self.mark_newest(number)?;
        Ok(Segment { number, path, file, size, last_index: None })
    }

    /// Takes a purged segment away: kept for [`Folder::create`], or removed. Its name is gone when this returns: segments
    /// go in their order, so that a crash leaves no gap, and none is written over while it may still have its old name.
    pub(super) fn recycle(&self, segment: &Segment) -> Result<(), LogError> {
        let is_kept = segment.size == self.segment_bytes && self.recycled()?.len() < RECYCLED_MAX;
        let result = match is_kept {
            true => self.disk.rename(&segment.path, &self.path.join(format!("recycled-{}", segment.number))),
            false => self.disk.remove(&segment.path),
        };
        result.and_then(|()| self.disk.sync_dir(&self.path)).map_err(|e| LogError::io(&segment.path, e))
    }

    fn sync_names(&self) -> io::Result<()> {
        if planted!(SegmentNameNotSynced) { Ok(()) } else { self.disk.sync_dir(&self.path) }
    }

    fn recycled(&self) -> Result<Vec<PathBuf>, LogError> {
        let mut paths = self.list()?;
        paths.retain(|path| name_of(path).is_some_and(|name| name.starts_with("recycled-")));
        Ok(paths)
    }

    fn list(&self) -> Result<Vec<PathBuf>, LogError> {
        self.disk.list(&self.path).map_err(|e| LogError::io(&self.path, e))
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
