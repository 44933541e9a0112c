//! What was done to the files of a run, in order, with what was promised meanwhile.
//!
//! ```text
//! 17  write   wal/0000000000000001.log  4096..4711
//! 18  sync    wal/0000000000000001.log  (covers what stands before 18)
//! 19  mark    write 3 is acknowledged
//! ```
//!
//! An operation stands where it had come to its end; a sync names where it began. So what happened before something
//! else in the program stands before it here.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::RawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use raft::recovered::{Ballot, EntryId};

/// A file or directory, whatever its names.
pub type Inode = usize;

/// The directory that is recorded.
pub const ROOT: Inode = 0;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub dir: Inode,
    pub name: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    MakeDir {
        slot: Slot,
        dir: Inode,
    },
    Create {
        slot: Slot,
        file: Inode,
    },
    Rename {
        from: Slot,
        to: Slot,
        moved: Inode,
    },
    Link {
        slot: Slot,
        file: Inode,
    },
    Remove {
        slot: Slot,
        node: Inode,
    },
    Write {
        file: Inode,
        offset: u64,
        data: Arc<[u8]>,
        extends: bool,
    },
    /// `ftruncate`, and `fallocate` where that makes a file longer.
    SetLen {
        file: Inode,
        len: u64,
    },
    /// A file or directory; what stands before `began` is durable.
    Sync {
        node: Inode,
        began: usize,
    },
    /// `sync_file_range`: no promise.
    SyncRange,
    Mark(Mark),
}

/// What was asked for and what was promised. Members count from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// A client is about to ask for this write.
    Issued(u64),
    /// A client was told that it is done, at this revision.
    Acknowledged { write: u64, revision: i64 },
    /// A member is about to take entries from a leader of this term.
    Follows { member: usize, term: u64 },
    /// A member has told a leader of this term that its log is on disk up to there.
    Matches { member: usize, leader_term: u64, last: EntryId },
    /// A member has told others whom it has promised itself to.
    Voted { member: usize, ballot: Ballot },
    /// What the run does next.
    Step(String),
}

#[derive(Debug, Default)]
pub struct Trace {
    pub ops: Vec<Op>,
    /// Of the files that were there at the beginning: their names and what they held.
    pub found: Vec<Found>,
}

/// What was there when the recording began: all of it durable.
#[derive(Debug)]
pub enum Found {
    Dir { slot: Slot, dir: Inode },
    File { slot: Slot, file: Inode, data: Arc<[u8]> },
}

static IS_RECORDING: AtomicBool = AtomicBool::new(false);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

/// The recording that goes on.
pub struct Recorder {
    root: PathBuf,
    trace: Trace,
    /// Directories by what they hold.
    dirs: BTreeMap<Inode, BTreeMap<Arc<str>, Inode>>,
    /// Lengths of files.
    lens: HashMap<Inode, u64>,
    open: HashMap<RawFd, Inode>,
    next: Inode,
}

/// Begins to record what is done below `root`, which is an absolute path without links.
pub fn start(root: &Path) -> anyhow::Result<()> {
    let mut recorder = Recorder::new(root);
    recorder.find(root, ROOT)?;
    let mut current = RECORDER.lock();
    anyhow::ensure!(current.is_none(), "only one recording at a time");
    *current = Some(recorder);
    IS_RECORDING.store(true, Ordering::SeqCst);
    Ok(())
}

/// Ends the recording, after a look at whether it has seen everything.
pub fn stop() -> anyhow::Result<Trace> {
    IS_RECORDING.store(false, Ordering::SeqCst);
    let recorder = RECORDER.lock().take();
    let recorder = recorder.ok_or_else(|| anyhow::anyhow!("nothing was recorded"))?;
    super::disk::check_complete(&recorder.trace, &recorder.root)?;
    Ok(recorder.trace)
}

/// Calls `tell` when there is a recording.
pub fn with(tell: impl FnOnce(&mut Recorder)) {
    if IS_RECORDING.load(Ordering::Relaxed)
        && let Some(recorder) = RECORDER.lock().as_mut()
    {
        tell(recorder);
    }
}

/// Operations recorded so far.
pub fn len() -> usize {
    let mut len = 0;
    with(|recorder| len = recorder.trace.ops.len());
    len
}

/// Whether the log has begun to write to a segment again that it had let go of.
pub fn has_reused_segment() -> bool {
    let mut has = false;
    with(|recorder| has = recorder.trace.ops.iter().any(Op::reuses_segment));
    has
}

pub fn mark(mark: Mark) {
    with(|recorder| recorder.trace.ops.push(Op::Mark(mark)));
}

/// RocksDB's texts for people: nothing reads them.
pub fn is_ignored(name: &str) -> bool {
    name == "LOG" || name.starts_with("LOG.old.")
}

impl Op {
    pub fn reuses_segment(&self) -> bool {
        matches!(self, Op::Rename { from, .. } if from.name.starts_with("recycled-"))
    }
}

impl Recorder {
    fn new(root: &Path) -> Recorder {
        Recorder {
            root: root.into(),
            trace: Trace::default(),
            dirs: BTreeMap::from([(ROOT, BTreeMap::new())]),
            lens: HashMap::new(),
            open: HashMap::new(),
            next: ROOT + 1,
        }
    }

    fn find(&mut self, path: &Path, dir: Inode) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_ignored(&name) {
                continue;
            }
            let slot = Slot { dir, name: name.into() };
            let node = self.new_node(&slot);
            if entry.file_type()?.is_dir() {
                self.dirs.insert(node, BTreeMap::new());
                self.trace.found.push(Found::Dir { slot, dir: node });
                self.find(&entry.path(), node)?;
            } else {
                let data = std::fs::read(entry.path())?;
                self.lens.insert(node, data.len() as u64);
                self.trace.found.push(Found::File { slot, file: node, data: data.into() });
            }
        }
        Ok(())
    }

    fn new_node(&mut self, slot: &Slot) -> Inode {
        let node = self.next;
        self.next += 1;
        self.dirs.get_mut(&slot.dir).expect("a slot is in a directory").insert(slot.name.clone(), node);
        node
    }

    /// The name that a path ends with, in a directory below the root.
    fn slot(&self, path: &Path) -> Option<Slot> {
        let below = path.strip_prefix(&self.root).ok()?;
        let name = below.file_name()?.to_str()?;
        let mut dir = ROOT;
        for part in below.parent()?.components() {
            let node = self.dirs.get(&dir)?.get(part.as_os_str().to_str()?)?;
            dir = *node;
        }
        (self.dirs.contains_key(&dir) && !is_ignored(name)).then(|| Slot { dir, name: name.into() })
    }

    fn node(&self, slot: &Slot) -> Option<Inode> {
        self.dirs.get(&slot.dir)?.get(&slot.name).copied()
    }

    /// Where an open directory is; for calls whose path begins there.
    pub fn path_of_dir(&self, fd: RawFd) -> Option<PathBuf> {
        let mut node = *self.open.get(&fd)?;
        let mut names = Vec::new();
        while node != ROOT {
            let (parent, name) = self.dirs.iter().find_map(|(parent, entries)| {
                entries.iter().find(|(_, of)| **of == node).map(|(name, _)| (*parent, name.clone()))
            })?;
            names.push(name);
            node = parent;
        }
        Some(names.iter().rev().fold(self.root.clone(), |path, name| path.join(&**name)))
    }

    pub fn opened(&mut self, fd: RawFd, path: &Path, flags: libc::c_int) {
        self.open.remove(&fd);
        if path == self.root {
            self.open.insert(fd, ROOT);
            return;
        }
        let Some(slot) = self.slot(path) else { return };
        let node = match self.node(&slot) {
            Some(node) => node,
            None => {
                let file = self.new_node(&slot);
                self.lens.insert(file, 0);
                self.trace.ops.push(Op::Create { slot, file });
                file
            }
        };
        self.open.insert(fd, node);
        if flags & libc::O_TRUNC != 0 {
            self.set_len(fd, 0);
        }
    }

    pub fn closed(&mut self, fd: RawFd) {
        self.open.remove(&fd);
    }

    /// A write where the last one ended.
    pub fn appended(&mut self, fd: RawFd, parts: &[&[u8]]) {
        if self.file(fd).is_none() {
            return;
        }
        let data = parts.concat();
        // SAFETY: the descriptor is open.
        let end = unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) };
        let Ok(end) = u64::try_from(end) else {
            // A socket, with the number of a file that was closed unseen. What is not seen of a file is found at the end.
            self.open.remove(&fd);
            return;
        };
        self.wrote(fd, end - data.len() as u64, &data);
    }

    pub fn wrote(&mut self, fd: RawFd, offset: u64, data: &[u8]) {
        let Some(file) = self.file(fd).filter(|_| !data.is_empty()) else { return };
        let (len, end) = (self.lens.entry(file).or_default(), offset + data.len() as u64);
        let extends = end > *len;
        *len = end.max(*len);
        self.trace.ops.push(Op::Write { file, offset, data: data.into(), extends });
    }

    pub fn set_len(&mut self, fd: RawFd, len: u64) {
        let Some(file) = self.file(fd) else { return };
        // RocksDB cuts each file to the length that it has.
        if self.lens.insert(file, len) != Some(len) {
            self.trace.ops.push(Op::SetLen { file, len });
        }
    }

    pub fn allocated(&mut self, fd: RawFd, mode: libc::c_int, offset: u64, len: u64) {
        let Some(file) = self.file(fd) else { return };
        let is_longer = self.lens.get(&file).is_none_or(|old| offset + len > *old);
        if mode == 0 && is_longer {
            self.set_len(fd, offset + len);
        }
        // Of the other ones only those that change no content are used: FALLOC_FL_KEEP_SIZE, and a hole behind the end.
    }

    pub fn synced(&mut self, fd: RawFd, began: usize) {
        if let Some(node) = self.open.get(&fd) {
            self.trace.ops.push(Op::Sync { node: *node, began });
        }
    }

    pub fn range_synced(&mut self, fd: RawFd) {
        if self.open.contains_key(&fd) {
            self.trace.ops.push(Op::SyncRange);
        }
    }

    pub fn renamed(&mut self, from: &Path, to: &Path) {
        let (Some(from), Some(to)) = (self.slot(from), self.slot(to)) else { return };
        let Some(moved) = self.dirs.get_mut(&from.dir).and_then(|entries| entries.remove(&from.name)) else { return };
        self.dirs.get_mut(&to.dir).expect("a slot is in a directory").insert(to.name.clone(), moved);
        self.trace.ops.push(Op::Rename { from, to, moved });
    }

    pub fn linked(&mut self, from: &Path, to: &Path) {
        let (Some(from), Some(slot)) = (self.slot(from), self.slot(to)) else { return };
        let Some(file) = self.node(&from) else { return };
        self.dirs.get_mut(&slot.dir).expect("a slot is in a directory").insert(slot.name.clone(), file);
        self.trace.ops.push(Op::Link { slot, file });
    }

    pub fn removed(&mut self, path: &Path) {
        let Some(slot) = self.slot(path) else { return };
        let Some(node) = self.dirs.get_mut(&slot.dir).and_then(|entries| entries.remove(&slot.name)) else { return };
        if self.dirs.remove(&node).is_some() {
            // The C library closes directories within itself: the number may be anything's by now.
            self.open.retain(|_, open| *open != node);
        }
        self.trace.ops.push(Op::Remove { slot, node });
    }

    pub fn made_dir(&mut self, path: &Path) {
        let Some(slot) = self.slot(path) else { return };
        let dir = self.new_node(&slot);
        self.dirs.insert(dir, BTreeMap::new());
        self.trace.ops.push(Op::MakeDir { slot, dir });
    }

    fn file(&self, fd: RawFd) -> Option<Inode> {
        self.open.get(&fd).copied().filter(|node| !self.dirs.contains_key(node))
    }
}
