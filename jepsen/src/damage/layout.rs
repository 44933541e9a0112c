//! Where Pintle keeps what, as far as damage must be aimed: `docs/format.md` says more.
//!
//! A segment of the log is a header of 4096 bytes and records: length u32, crc32 u32, batch u64, kind u8, last u8, all
//! big-endian, and as many bytes as the length says.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

const SEGMENT_HEADER_BYTES: u64 = 4096;
const RECORD_PREFIX_BYTES: u64 = 18;

/// The files of a stopped member, by what they are; paths within the data directory.
#[derive(Debug)]
pub struct Layout {
    /// In order; the last one is the one that was written to.
    pub segments: Vec<PathBuf>,
    /// Other files of the log that it cannot do without.
    pub log_files: Vec<PathBuf>,
    /// The largest first.
    pub tables: Vec<PathBuf>,
    pub manifest: PathBuf,
    pub current: PathBuf,
    pub generation: PathBuf,
    pub identity: PathBuf,
}

impl Layout {
    pub fn read(data_dir: &Path) -> Result<Layout> {
        let member = Path::new("member");
        let log: Vec<PathBuf> = list(data_dir, &member.join("wal"))?;
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let (segments, log_files): (Vec<PathBuf>, Vec<PathBuf>) = log.into_iter().partition(is_segment);
        let log_files = log_files.into_iter().filter(|path| !name(path).starts_with("recycled")).collect();

        let store = folder_with(data_dir, member, "generation")?;
        let database = folder_with(data_dir, &store, "CURRENT")?;
        let files = list(data_dir, &database)?;
        let mut tables: Vec<PathBuf> = files.iter().filter(|path| name(path).ends_with(".sst")).cloned().collect();
        tables.sort_by_key(|path| {
            std::cmp::Reverse(fs::metadata(data_dir.join(path)).map_or(0, |metadata| metadata.len()))
        });
        let manifest = files.iter().rfind(|path| name(path).starts_with("MANIFEST-")).context("no MANIFEST")?;
        Ok(Layout {
            segments,
            log_files,
            tables,
            manifest: manifest.clone(),
            current: database.join("CURRENT"),
            generation: store.join("generation"),
            identity: member.join("identity"),
        })
    }
}

pub fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The folder within a folder that holds a file of this name.
fn folder_with(data_dir: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(data_dir.join(folder))? {
        let entry = entry?;
        if entry.path().join(name).is_file() {
            return Ok(folder.join(entry.file_name()));
        }
    }
    bail!("no folder of {} holds a file {name}", folder.display())
}

/// The files of a folder in the order of their names.
fn list(data_dir: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let path = data_dir.join(folder);
    let entries = fs::read_dir(&path).with_context(|| format!("no folder {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(folder.join(entry.file_name()));
        }
    }
    files.sort();
    Ok(files)
}

/// Where the records of a segment begin, and at last where they end.
pub fn records(segment: &Path) -> Result<Vec<u64>> {
    let mut file = File::open(segment)?;
    let size = file.metadata()?.len();
    let mut starts = vec![SEGMENT_HEADER_BYTES];
    let mut last_batch = 0;
    let mut start = SEGMENT_HEADER_BYTES;
    while start + RECORD_PREFIX_BYTES <= size {
        file.seek(SeekFrom::Start(start))?;
        let mut prefix = [0; RECORD_PREFIX_BYTES as usize];
        file.read_exact(&mut prefix)?;
        let length = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
        let batch = u64::from_be_bytes([
            prefix[8], prefix[9], prefix[10], prefix[11], prefix[12], prefix[13], prefix[14], prefix[15],
        ]);
        // Behind the end stand zeros, or what the file held before it was recycled: earlier batches.
        if prefix.iter().all(|byte| *byte == 0) || batch < last_batch {
            break;
        }
        last_batch = batch;
        start += RECORD_PREFIX_BYTES + u64::from(length);
        starts.push(start);
    }
    ensure!(starts.len() > 2 && start <= size, "{} is not a segment of the known format", segment.display());
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_of_a_segment_are_found() {
        let mut segment = vec![0; SEGMENT_HEADER_BYTES as usize];
        for (length, batch) in [(5_u32, 7_u64), (0, 7), (9, 8)] {
            segment.extend_from_slice(&length.to_be_bytes());
            segment.extend_from_slice(&[1; 4]);
            segment.extend_from_slice(&batch.to_be_bytes());
            segment.extend_from_slice(&[1, 1]);
            segment.extend(std::iter::repeat_n(3, length as usize));
        }
        segment.extend_from_slice(&[0; 100]);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), segment).unwrap();
        assert_eq!(records(file.path()).unwrap(), [4096, 4119, 4137, 4164]);
    }
}
