//! What a disk holds, as a function of the operations that have reached it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use anyhow::{Context as _, Result, ensure};

use super::trace::{Found, Inode, Op, ROOT, Trace, is_ignored};

/// What a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// What has become of an operation in a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Lost,
    Done,
    /// Of a write: only these sectors, as byte ranges of the file. The file ends no later than the last one.
    Torn(Vec<Range<u64>>),
    /// Of a write: the file has grown, but not by what was written.
    Zeros,
}

/// A file's bytes. Shared between the images that have it alike.
#[derive(Debug, Default)]
pub struct Content {
    pub bytes: Vec<u8>,
    hash: OnceLock<u64>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Arc<Content> {
        Arc::new(Content { bytes, hash: OnceLock::new() })
    }

    fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            self.bytes.hash(&mut hasher);
            hasher.finish()
        })
    }
}

/// Names and contents. Directories know what they hold even when they have no name themselves.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    dirs: BTreeMap<Inode, BTreeMap<Arc<str>, Inode>>,
    files: HashMap<Inode, Arc<Content>>,
}

/// A directory tree, as a crash leaves it.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub dirs: Vec<String>,
    pub files: Vec<(String, Arc<Content>)>,
}

impl Disk {
    /// With what was there when the recording began.
    pub fn new(trace: &Trace) -> Disk {
        let mut disk = Disk::default();
        disk.dirs.insert(ROOT, BTreeMap::new());
        for found in &trace.found {
            let (slot, node) = match found {
                Found::Dir { slot, dir } => {
                    disk.dirs.entry(*dir).or_default();
                    (slot, *dir)
                }
                Found::File { slot, file, data } => {
                    disk.files.insert(*file, Content::new(data.to_vec()));
                    (slot, *file)
                }
            };
            disk.dirs.entry(slot.dir).or_default().insert(slot.name.clone(), node);
        }
        disk
    }

    /// Operations in their order, each with its fate. What a write brings to the disk are whole sectors of the page
    /// cache, which holds all writes before it, whatever became of those.
    pub fn apply<'a>(&mut self, ops: impl IntoIterator<Item = (&'a Op, &'a Fate)>) {
        let mut cache: HashMap<Inode, Vec<u8>> = HashMap::new();
        let mut disk: HashMap<Inode, Vec<u8>> = HashMap::new();
        for (op, fate) in ops {
            match op {
                Op::Write { file, .. } | Op::SetLen { file, .. } => {
                    let on_disk = || self.files.get(file).map(|content| content.bytes.clone()).unwrap_or_default();
                    let cached = cache.entry(*file).or_insert_with(on_disk);
                    let stored = disk.entry(*file).or_insert_with(on_disk);
                    change(op, fate, cached, stored);
                }
                op if *fate == Fate::Done => self.rename(op),
                _ => {}
            }
        }
        self.files.extend(disk.into_iter().map(|(file, bytes)| (file, Content::new(bytes))));
    }

    fn rename(&mut self, op: &Op) {
        match op {
            Op::MakeDir { slot, dir: node } | Op::Create { slot, file: node } | Op::Link { slot, file: node } => {
                if matches!(op, Op::MakeDir { .. }) {
                    self.dirs.entry(*node).or_default();
                }
                self.dirs.entry(slot.dir).or_default().insert(slot.name.clone(), *node);
            }
            Op::Rename { from, to, moved } => {
                self.remove(from, *moved);
                self.dirs.entry(to.dir).or_default().insert(to.name.clone(), *moved);
            }
            Op::Remove { slot, node } => self.remove(slot, *node),
            Op::Write { .. } | Op::SetLen { .. } | Op::Sync { .. } | Op::SyncRange | Op::Mark(_) => {}
        }
    }

    fn remove(&mut self, slot: &super::trace::Slot, node: Inode) {
        if let Some(entries) = self.dirs.get_mut(&slot.dir)
            && entries.get(&slot.name) == Some(&node)
        {
            entries.remove(&slot.name);
        }
    }

    /// What can be reached from `dir`.
    pub fn image(&self, dir: Inode) -> Image {
        let mut image = Image::default();
        self.gather(dir, "", &mut image);
        image
    }

    fn gather(&self, dir: Inode, prefix: &str, image: &mut Image) {
        for (name, node) in self.dirs.get(&dir).into_iter().flatten() {
            let path = format!("{prefix}{name}");
            if self.dirs.contains_key(node) {
                self.gather(*node, &format!("{path}/"), image);
                image.dirs.push(path);
            } else {
                image.files.push((path, self.files.get(node).cloned().unwrap_or_default()));
            }
        }
    }
}

fn change(op: &Op, fate: &Fate, cached: &mut Vec<u8>, stored: &mut Vec<u8>) {
    match op {
        Op::SetLen { len, .. } => {
            cached.resize(*len as usize, 0);
            if *fate == Fate::Done {
                stored.resize(*len as usize, 0);
            }
        }
        Op::Write { offset, data, .. } => {
            let end = offset + data.len() as u64;
            if (cached.len() as u64) < end {
                cached.resize(end as usize, 0);
            }
            cached[*offset as usize..end as usize].copy_from_slice(data);
            match fate {
                Fate::Lost => {}
                Fate::Done => store(*offset..end, cached, stored),
                Fate::Torn(kept) => kept.iter().for_each(|range| store(range.clone(), cached, stored)),
                Fate::Zeros if (stored.len() as u64) < end => stored.resize(end as usize, 0),
                Fate::Zeros => {}
            }
        }
        _ => {}
    }
}

/// Brings the sectors that a byte range touches from the cache to the disk.
fn store(range: Range<u64>, cached: &[u8], stored: &mut Vec<u8>) {
    let begin = (range.start / SECTOR * SECTOR) as usize;
    let end = (range.end.div_ceil(SECTOR) * SECTOR).min(cached.len() as u64) as usize;
    if (stored.len() as u64) < range.end {
        stored.resize(range.end as usize, 0);
    }
    let end = end.min(stored.len());
    stored[begin..end].copy_from_slice(&cached[begin..end]);
}

impl Image {
    /// Two images with the same hash are taken to be the same.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.dirs.hash(&mut hasher);
        for (path, content) in &self.files {
            (path, content.hash()).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Makes it a directory that can be opened. There is nothing at `path` yet.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path)?;
        // A directory comes behind what it holds.
        for dir in self.dirs.iter().rev() {
            fs::create_dir_all(path.join(dir))?;
        }
        for (name, content) in &self.files {
            fs::write(path.join(name), &content.bytes).with_context(|| format!("{name} of an image"))?;
        }
        Ok(())
    }
}

/// Whether all operations together lead to what stands in the directory: nothing has been done behind the recorder.
pub fn check_complete(trace: &Trace, root: &Path) -> Result<()> {
    let mut disk = Disk::new(trace);
    disk.apply(trace.ops.iter().map(|op| (op, &Fate::Done)));
    let image = disk.image(ROOT);
    let mut expected: BTreeMap<&str, &[u8]> = BTreeMap::new();
    expected.extend(image.files.iter().map(|(path, content)| (path.as_str(), content.bytes.as_slice())));
    let mut found = BTreeMap::new();
    read_files(root, "", &mut found)?;
    for (path, bytes) in &expected {
        let actual =
            found.get(*path).with_context(|| format!("the recorder believes in {path}, which is not there"))?;
        ensure!(actual == bytes, "the recorder missed a change of {path}");
    }
    let missed = found.keys().find(|path| !expected.contains_key(path.as_str()));
    ensure!(missed.is_none(), "the recorder missed {missed:?}");
    Ok(())
}

fn read_files(path: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            read_files(&entry.path(), &format!("{prefix}{name}/"), found)?;
        } else if !is_ignored(&name) {
            found.insert(format!("{prefix}{name}"), fs::read(entry.path())?);
        }
    }
    Ok(())
}
