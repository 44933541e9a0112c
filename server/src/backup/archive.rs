//! The archived log as it is written: one chain, segment by segment.
//!
//! ```text
//! chain-0000000003/chain.json                      written first
//! chain-0000000003/log-00000000000000000120.log    complete: written to no more
//! chain-0000000003/log-00000000000000000120.json   its manifest, written when it was
//! chain-0000000003/log-00000000000000004711.log    the newest
//! ```
//!
//! A write that failed is cut off before the next try, back to what the last sync brought to the disk. A process that
//! goes on with a chain writes to a segment of its own: it completes the one there is with what of it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    BackupError, Time,
    error::{At as _, sync_dir},
    manifest::{ChainManifest, FORMAT, SegmentManifest, write_file, write_json},
    segment::{self, ChainId, Entry, HEADER_BYTES, header, manifest_path},
};

/// A segment that is larger takes no more.
const SEGMENT_BYTES: u64 = 64 << 20;
/// What is written at once, about.
const WRITE_BYTES: usize = 4 << 20;

pub const CHAIN_MANIFEST: &str = "chain.json";
/// What names begin with.
pub const CHAIN: &str = "chain-";
const SEGMENT: &str = "log-";
pub const BASE: &str = "base-";

pub fn chain_name(number: u64) -> String {
    format!("{CHAIN}{number:010}")
}

/// The newest chain of a member.
pub struct Archive {
    dir: PathBuf,
    number: u64,
    chain: ChainId,
    /// Of the newest entry that is synced; of none: where the chain begins.
    last_index: u64,
    last_time: Time,
    open: Option<Open>,
}

/// The segment that is written to.
struct Open {
    path: PathBuf,
    file: File,
    seed: u32,
    synced: u64,
    checksum: u32,
    manifest: SegmentManifest,
    /// Bytes behind `synced` may be there.
    has_failed: bool,
}

/// Entries are missing in front of the ones that were to be archived.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    pub from: u64,
    pub to: u64,
}

impl Archive {
    /// Begins a chain behind the newest one in the member's folder.
    pub fn begin(member_dir: &Path, manifest: ChainManifest) -> Result<Archive, BackupError> {
        let number = chains(member_dir)?.last().map_or(1, |(number, _)| number + 1);
        let dir = member_dir.join(chain_name(number));
        fs::create_dir(&dir).at(&dir)?;
        sync_dir(member_dir)?;
        let ChainManifest { chain, after_index, began, .. } = manifest;
        write_json(&dir.join(CHAIN_MANIFEST), &manifest)?;
        Ok(Archive { dir, number, chain, last_index: after_index, last_time: began, open: None })
    }

    /// Goes on with a chain that another process has begun.
    pub fn resume(dir: &Path, number: u64, manifest: &ChainManifest) -> Result<Archive, BackupError> {
        let chain = manifest.chain;
        let mut archive = Archive {
            dir: dir.into(),
            number,
            chain,
            last_index: manifest.after_index,
            last_time: manifest.began,
            open: None,
        };
        remove_partial(dir, SEGMENT)?;
        let Some((_, path)) = segments(dir)?.pop() else { return Ok(archive) };
        let newest = segment::read(&path, chain)?;
        let Some(last) = newest.entries.last() else {
            // Nothing was synced behind its header.
            fs::remove_file(&path).at(&path)?;
            sync_dir(dir)?;
            return Archive::resume(dir, number, manifest);
        };
        (archive.last_index, archive.last_time) = (last.index, last.time);
        if !newest.is_complete {
            // What was read may not be on the disk: the process before may have ended between a write and its sync.
            let bytes = fs::read(&path).at(&path)?;
            write_file(&path, &bytes[..newest.bytes as usize])?;
            let manifest = describe(chain, &newest.entries, newest.bytes, newest.checksum);
            write_json(&manifest_path(&path), &manifest)?;
        }
        Ok(archive)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn chain(&self) -> ChainId {
        self.chain
    }

    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    /// Appends those of `entries` that are not there, and syncs them. Entries are in order, without a gap. Returns the
    /// bytes written.
    ///
    /// # Errors
    /// Those of the file system; then the same entries can be given again.
    pub fn append(&mut self, entries: &[Entry]) -> Result<Result<u64, Missing>, BackupError> {
        let is_new = |entry: &&Entry| entry.index > self.last_index;
        let Some(first) = entries.iter().position(|entry| is_new(&entry)) else { return Ok(Ok(0)) };
        let mut entries = &entries[first..];
        if entries[0].index != self.last_index + 1 {
            return Ok(Err(Missing { from: self.last_index + 1, to: entries[0].index - 1 }));
        }
        let mut written = 0;
        while !entries.is_empty() {
            let mut bytes = 0;
            let more = entries.iter().take_while(|entry| {
                let is_first = bytes == 0;
                bytes += entry.bytes();
                is_first || bytes <= WRITE_BYTES
            });
            let (now, later) = entries.split_at(more.count());
            written += self.write(now)?;
            entries = later;
        }
        Ok(Ok(written))
    }

    fn write(&mut self, entries: &[Entry]) -> Result<u64, BackupError> {
        if self.open.as_ref().is_some_and(|open| open.synced >= SEGMENT_BYTES) {
            self.complete()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::create(&self.dir, self.chain, &entries[0])?),
        };
        let (last, written) = open.write(entries, self.last_time)?;
        (self.last_index, self.last_time) = (last.0, last.1);
        Ok(written)
    }

    /// The newest segment is not written to any more.
    pub fn complete(&mut self) -> Result<(), BackupError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.restore()?;
        write_json(&manifest_path(&open.path), &open.manifest)?;
        self.open = None;
        Ok(())
    }
}

impl Open {
    fn create(dir: &Path, chain: ChainId, first: &Entry) -> Result<Open, BackupError> {
        let path = dir.join(segment::file_name(first.index));
        let (header, seed) = header(chain, first.index);
        write_file(&path, &header)?;
        let file = OpenOptions::new().write(true).open(&path).at(&path)?;
        let checksum = crc32c::crc32c(&header);
        let manifest = SegmentManifest { bytes: HEADER_BYTES as u64, ..describe(chain, &[], 0, checksum) };
        Ok(Open { path, file, seed, synced: HEADER_BYTES as u64, checksum, manifest, has_failed: false })
    }

    /// Writes and syncs; returns index and time of the last entry, and the bytes. Time does not go back.
    fn write(&mut self, entries: &[Entry], not_before: Time) -> Result<((u64, Time), u64), BackupError> {
        self.restore()?;
        let mut buffer = Vec::with_capacity(entries.iter().map(Entry::bytes).sum());
        let mut time = not_before;
        for entry in entries {
            time = time.max(entry.time);
            Entry { time, ..entry.clone() }.encode(self.seed, &mut buffer);
        }
        self.has_failed = true;
        self.file.write_all_at(&buffer, self.synced).and_then(|()| self.file.sync_data()).at(&self.path)?;
        self.has_failed = false;
        self.synced += buffer.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, &buffer);
        let (first, last) = (&entries[0], &entries[entries.len() - 1]);
        let manifest = &mut self.manifest;
        if manifest.first_index == 0 {
            (manifest.first_index, manifest.first_revision) = (first.index, first.revision);
            manifest.first_time = first.time.max(not_before);
        }
        (manifest.last_index, manifest.last_time) = (last.index, time);
        manifest.last_revision = manifest.last_revision.max(newest_revision(entries));
        (manifest.bytes, manifest.crc32c) = (self.synced, self.checksum);
        Ok(((last.index, time), buffer.len() as u64))
    }

    /// Cuts off what a failed write may have left, and makes sure that the file is still the one of this name: who
    /// removes the directory does not stop writes into a file that nobody will find.
    fn restore(&mut self) -> Result<(), BackupError> {
        let here = fs::metadata(&self.path).at(&self.path)?;
        let own = self.file.metadata().at(&self.path)?;
        if (here.dev(), here.ino()) != (own.dev(), own.ino()) {
            let replaced = io::Error::new(io::ErrorKind::NotFound, "another file has taken its place");
            return Err(replaced).at(&self.path);
        }
        if self.has_failed {
            self.file.set_len(self.synced).and_then(|()| self.file.sync_data()).at(&self.path)?;
            self.has_failed = false;
        }
        Ok(())
    }
}

/// The manifest of a segment with these entries.
pub fn describe(chain: ChainId, entries: &[Entry], bytes: u64, crc32c: u32) -> SegmentManifest {
    let (first, last) = (entries.first(), entries.last());
    SegmentManifest {
        format: FORMAT,
        chain,
        first_index: first.map_or(0, |entry| entry.index),
        last_index: last.map_or(0, |entry| entry.index),
        first_revision: first.map_or(0, |entry| entry.revision),
        last_revision: newest_revision(entries),
        first_time: first.map_or(Time::default(), |entry| entry.time),
        last_time: last.map_or(Time::default(), |entry| entry.time),
        bytes,
        crc32c,
    }
}

/// Of those that are known.
fn newest_revision(entries: &[Entry]) -> i64 {
    entries.iter().map(|entry| entry.revision).max().unwrap_or(0)
}

/// The chains in a member's folder, in order.
pub fn chains(member_dir: &Path) -> Result<Vec<(u64, PathBuf)>, BackupError> {
    numbered(member_dir, CHAIN, "")
}

/// The segments of a chain, in order, with the index of the first entry of each.
pub fn segments(chain_dir: &Path) -> Result<Vec<(u64, PathBuf)>, BackupError> {
    numbered(chain_dir, SEGMENT, ".log")
}

/// Their manifests, likewise.
pub fn segment_manifests(chain_dir: &Path) -> Result<Vec<(u64, PathBuf)>, BackupError> {
    numbered(chain_dir, SEGMENT, ".json")
}

/// The full backups of a chain, in order.
pub fn bases(chain_dir: &Path) -> Result<Vec<(u64, PathBuf)>, BackupError> {
    numbered(chain_dir, BASE, "")
}

/// Paths in a folder whose names are a number between `prefix` and `suffix`, in order of the numbers.
fn numbered(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<(u64, PathBuf)>, BackupError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok());
        found.extend(number.map(|number: u64| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// Removes what a crash has left half written of what begins with `prefix`.
fn remove_partial(dir: &Path, prefix: &str) -> Result<(), BackupError> {
    partials(dir, prefix)?.iter().try_for_each(|path| fs::remove_file(path).at(path))
}

/// What a crash has left half written, or half removed, of what begins with `prefix`.
pub fn partials(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        let name = entry.file_name();
        let is_one = name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(".partial"));
        found.extend(is_one.then(|| entry.path()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::read_json;

    fn manifest() -> ChainManifest {
        ChainManifest {
            format: FORMAT,
            chain: ChainId([3; 16]),
            cluster: 1,
            member: 2,
            name: "m".into(),
            after_index: 10,
            began: Time { unix_ms: 1000 },
            reason: "first".into(),
        }
    }

    fn entries(indexes: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        let entry = |index: u64| Entry {
            index,
            term: 1,
            revision: index as i64,
            time: Time { unix_ms: 5000 },
            command: Some(vec![1; 100].into()),
        };
        indexes.map(entry).collect()
    }

    fn archived(dir: &Path) -> Vec<u64> {
        let mut indexes = Vec::new();
        for (_, path) in segments(dir).unwrap() {
            indexes.extend(segment::read(&path, ChainId([3; 16])).unwrap().entries.iter().map(|entry| entry.index));
        }
        indexes
    }

    #[test]
    fn what_is_there_already_is_passed_over_and_what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::begin(dir.path(), manifest()).unwrap();
        assert_eq!(archive.append(&entries(8..=10)).unwrap(), Ok(0));
        assert!(archive.append(&entries(9..=12)).unwrap().unwrap() > 200);
        assert_eq!(archive.append(&entries(15..=16)).unwrap(), Err(Missing { from: 13, to: 14 }));
        assert_eq!(archived(archive.dir()), [11, 12]);
    }

    #[test]
    fn another_process_goes_on_behind_the_last_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::begin(dir.path(), manifest()).unwrap();
        archive.append(&entries(11..=20)).unwrap().unwrap();
        let path = archive.open.as_ref().unwrap().path.clone();
        let bytes = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes - 7).unwrap();
        let chain_dir = archive.dir().to_path_buf();
        drop(archive);
        let mut archive = Archive::resume(&chain_dir, 1, &manifest()).unwrap();
        assert_eq!(archive.last_index(), 19);
        archive.append(&entries(20..=30)).unwrap().unwrap();
        archive.complete().unwrap();
        assert_eq!(archived(&chain_dir), (11..=30).collect::<Vec<_>>());
        let manifests: Vec<SegmentManifest> = segments(&chain_dir)
            .unwrap()
            .iter()
            .map(|(_, path)| read_json(&manifest_path(path)).unwrap().unwrap())
            .collect();
        assert_eq!(manifests.iter().map(|m| (m.first_index, m.last_index)).collect::<Vec<_>>(), [(11, 19), (20, 30)]);
        assert_eq!(Archive::begin(dir.path(), manifest()).unwrap().number(), 2);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::begin(dir.path(), manifest()).unwrap();
        archive.append(&entries(11..=12)).unwrap().unwrap();
        let open = archive.open.as_mut().unwrap();
        open.file.write_all_at(&[9; 50], open.synced).unwrap();
        open.has_failed = true;
        archive.append(&entries(13..=14)).unwrap().unwrap();
        assert_eq!(archived(archive.dir()), [11, 12, 13, 14]);
    }

    #[test]
    fn writes_into_a_removed_directory_fail() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::begin(dir.path(), manifest()).unwrap();
        archive.append(&entries(11..=12)).unwrap().unwrap();
        fs::remove_dir_all(archive.dir()).unwrap();
        assert!(matches!(archive.append(&entries(13..=14)), Err(BackupError::Io { .. })));
    }
}
