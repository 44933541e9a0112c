//! Segment files: names, creation, recycling.
//!
//! ```text
//! wal/0000000000000003.log    a segment; the number counts up without gaps
//! wal/0000000000000004.log    the newest: the only one that is written to
//! wal/newest                  "4": a newest segment that is missing is noticed
//! wal/recycled-2              purged; becomes the next segment
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{LogError, record};

const NEWEST: &str = "newest";
const RECYCLED_MAX: usize = 2;

/// An open segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<File>,
    pub size: u64,
    /// The highest index of an entry in it.
    pub last_index: Option<u64>,
}

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

pub(super) fn newest_path(dir: &Path) -> PathBuf {
    dir.join(NEWEST)
}

/// The numbers of the segments in `dir`, in order.
pub(super) fn numbers(dir: &Path) -> Result<Vec<u64>, LogError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| LogError::io(dir, e))? {
        let name = entry.map_err(|e| LogError::io(dir, e))?.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".log")) else { continue };
        let number = u64::from_str_radix(stem, 16).ok().filter(|_| stem.len() == 16);
        numbers
            .push(number.ok_or_else(|| LogError::damaged(&dir.join(&name), 0, "the name is not that of a segment"))?);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number that [`mark_newest`] wrote last.
pub(super) fn newest(dir: &Path) -> Result<Option<u64>, LogError> {
    let path = newest_path(dir);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(LogError::damaged(&path, 0, "not a number")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LogError::io(&path, error)),
    }
}

fn mark_newest(dir: &Path, number: u64) -> Result<(), LogError> {
    let (path, new) = (newest_path(dir), dir.join("newest.new"));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(number.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| LogError::io(&path, e))
}

/// Makes the segment `number` of at least `size` bytes, from a recycled file if there is one. When this returns, the
/// file with its header is on the disk under its name.
pub(super) fn create(dir: &Path, number: u64, size: u64) -> Result<Segment, LogError> {
    let (path, new) = (path_of(dir, number), dir.join("new"));
    let error = |e| LogError::io(&path, e);
    if let Some(recycled) = recycled(dir)?.pop() {
        fs::rename(recycled, &new).map_err(error)?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&new).map_err(error)?;
    allocate(&file, size).map_err(error)?;
    let size = file.metadata().map_err(error)?.len();
    file.write_all_at(&record::header(number, size), 0).map_err(error)?;
    file.sync_all().map_err(error)?;
    fs::rename(&new, &path).map_err(error)?;
    sync_dir(dir)?;
    mark_newest(dir, number)?;
    Ok(Segment { number, path, file: Arc::new(file), size, last_index: None })
}

/// Takes a purged segment away: kept for [`create`] when it is as large as the next one will be, or removed.
pub(super) fn recycle(dir: &Path, segment: &Segment, usual_bytes: u64) -> Result<(), LogError> {
    let is_kept = segment.size == usual_bytes && recycled(dir)?.len() < RECYCLED_MAX;
    let result = match is_kept {
        true => fs::rename(&segment.path, dir.join(format!("recycled-{}", segment.number))),
        false => fs::remove_file(&segment.path),
    };
    result.map_err(|e| LogError::io(&segment.path, e))
}

fn recycled(dir: &Path) -> Result<Vec<PathBuf>, LogError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| LogError::io(dir, e))? {
        let entry = entry.map_err(|e| LogError::io(dir, e))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with("recycled-")) {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

/// Gives the file its blocks, so that an append neither grows it nor fails for lack of space.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size as libc::off_t) } {
        0 => Ok(()),
        // Not every file system can: there it grows as it is written.
        libc::EOPNOTSUPP | libc::EINVAL => file.set_len(size.max(file.metadata()?.len())),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| LogError::io(dir, e))
}
