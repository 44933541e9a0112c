//! A full backup: a checkpoint of the store, of which only the files that are not there yet are brought to the directory.
//!
//! ```text
//! files/<sha-256>.sst                         shared by all full backups of the member
//! chain-0000000003/base-00000000000000000119/  behind entry 119
//!   CURRENT, MANIFEST-000005, OPTIONS-000007   of its own
//!   manifest.json                              written last; then the folder gets its name
//! ```
//!
//! RocksDB never changes a file of sorted keys (`.sst`), so such a file is linked where the file system allows, and copied
//! elsewhere.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use storage::{Checkpoint, Store};
use tokio_util::sync::CancellationToken;

use super::{
    BackupError, Time,
    archive::{BASE, bases, chains},
    error::{At as _, sync_dir},
    manifest::{BLOCK_BYTES, BackupFile, BaseManifest, FORMAT, partial_path, read_json, write_json},
    segment::ChainId,
};

pub const MANIFEST: &str = "manifest.json";
pub const SHARED: &str = "files";

/// Whose backup it is.
#[derive(Debug, Clone)]
pub struct Owner {
    pub cluster: u64,
    pub member: u64,
    pub name: String,
}

/// Where a full backup goes.
pub struct Place<'a> {
    /// All of the member's.
    pub member_dir: &'a Path,
    pub chain_dir: &'a Path,
    pub chain: ChainId,
    /// Ends the work before it is done.
    pub stop: &'a CancellationToken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub manifest: BaseManifest,
    /// Of files that were not there before.
    pub new_bytes: u64,
}

pub fn base_name(applied_index: u64) -> String {
    format!("{BASE}{applied_index:020}")
}

pub fn shared_path(member_dir: &Path, sha256: &str) -> PathBuf {
    member_dir.join(SHARED).join(format!("{sha256}.sst"))
}

/// Takes a full backup. `checkpoint` is a path on the store's file system; nothing is left there.
pub fn take(store: &Store, owner: &Owner, place: &Place<'_>, checkpoint: &Path) -> Result<Taken, BackupError> {
    remove(checkpoint)?;
    let state = store.checkpoint(checkpoint)?;
    let taken = keep(state, owner, place, checkpoint);
    remove(checkpoint)?;
    taken
}

fn remove(dir: &Path) -> Result<(), BackupError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(dir),
        _ => Ok(()),
    }
}

fn keep(state: Checkpoint, owner: &Owner, place: &Place<'_>, checkpoint: &Path) -> Result<Taken, BackupError> {
    let time = Time::now();
    let dir = place.chain_dir.join(base_name(state.applied.index));
    if let Some(manifest) = read_json(&dir.join(MANIFEST))? {
        // Nothing has been applied since then.
        return Ok(Taken { manifest, new_bytes: 0 });
    }
    let partial = partial_path(&dir);
    remove(&partial)?;
    let brought = bring(checkpoint, &partial, place).and_then(|(files, new_bytes)| {
        let manifest = BaseManifest {
            format: FORMAT,
            chain: place.chain,
            cluster: owner.cluster,
            member: owner.member,
            name: owner.name.clone(),
            pintle_version: env!("CARGO_PKG_VERSION").into(),
            applied_index: state.applied.index,
            applied_term: state.applied.term,
            revision: state.revision,
            compacted_revision: state.compacted,
            time,
            files,
        };
        write_json(&partial.join(MANIFEST), &manifest)?;
        fs::rename(&partial, &dir).at(&dir)?;
        sync_dir(place.chain_dir)?;
        Ok(Taken { manifest, new_bytes })
    });
    if brought.is_err() {
        // The failure itself is what is told; an empty disk is better than a full one.
        let _ = fs::remove_dir_all(&partial);
    }
    brought
}

/// Brings what is not there yet; returns all files in order of names, and the bytes of those that were not.
fn bring(checkpoint: &Path, to: &Path, place: &Place<'_>) -> Result<(Vec<BackupFile>, u64), BackupError> {
    let shared = place.member_dir.join(SHARED);
    fs::create_dir_all(&shared).at(&shared)?;
    fs::create_dir(to).at(to)?;
    let known = known_files(place.member_dir)?;
    let (mut files, mut new_bytes) = (Vec::new(), 0);
    for entry in fs::read_dir(checkpoint).at(checkpoint)? {
        let from = entry.at(checkpoint)?.path();
        let (file, is_new) = match from.extension().is_some_and(|extension| extension == "sst") {
            true => share(&from, place, &known)?,
            false => (copy(&from, &to.join(name_of(&from)?), place.stop)?, true),
        };
        new_bytes += if is_new { file.bytes } else { 0 };
        files.push(file);
    }
    sync_dir(&shared)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((files, new_bytes))
}

/// What a file is on the member's disk: as long as that stays, so does what is in it.
type Source = (u64, i64, u64);

fn source(path: &Path) -> Result<Source, BackupError> {
    let metadata = fs::metadata(path).at(path)?;
    let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Ok((metadata.ino(), modified_ns, metadata.len()))
}

/// The files of earlier backups. A manifest that cannot be read makes work, and no harm.
fn known_files(member_dir: &Path) -> Result<HashMap<Source, BackupFile>, BackupError> {
    let mut known = HashMap::new();
    for (_, chain_dir) in chains(member_dir)? {
        for (_, base_dir) in bases(&chain_dir)? {
            match read_json::<BaseManifest>(&base_dir.join(MANIFEST)) {
                Ok(manifest) => {
                    let files = manifest.into_iter().flat_map(|manifest| manifest.files);
                    let shared = files.filter(|file| file.is_shared);
                    known.extend(shared.map(|file| ((file.inode, file.modified_ns, file.bytes), file)));
                }
                Err(error) => tracing::warn!(%error, "a full backup is passed over"),
            }
        }
    }
    Ok(known)
}

/// Makes sure that the shared files hold this one, and tells whether they did not before.
fn share(
    from: &Path,
    place: &Place<'_>,
    known: &HashMap<Source, BackupFile>,
) -> Result<(BackupFile, bool), BackupError> {
    let name = name_of(from)?;
    if let Some(file) = known.get(&source(from)?) {
        let to = shared_path(place.member_dir, &file.sha256);
        if fs::metadata(&to).is_ok_and(|metadata| metadata.len() == file.bytes) {
            return Ok((BackupFile { name, ..file.clone() }, false));
        }
    }
    let partial = place.member_dir.join(SHARED).join(format!("{name}.partial"));
    let file = link_or_copy(from, &partial, place.stop)?;
    let to = shared_path(place.member_dir, &file.sha256);
    fs::rename(&partial, &to).at(&to)?;
    Ok((BackupFile { is_shared: true, ..file }, true))
}

fn link_or_copy(from: &Path, to: &Path, stop: &CancellationToken) -> Result<BackupFile, BackupError> {
    if to.exists() {
        fs::remove_file(to).at(to)?;
    }
    if fs::hard_link(from, to).is_err() {
        return copy(from, to, stop);
    }
    let file = digest(from, io::sink(), stop)?;
    File::open(to).and_then(|linked| linked.sync_all()).at(to)?;
    Ok(file)
}

/// Durable when it returns, but for its name.
fn copy(from: &Path, to: &Path, stop: &CancellationToken) -> Result<BackupFile, BackupError> {
    let mut target = File::create(to).at(to)?;
    let copied = digest(from, &mut target, stop).and_then(|file| target.sync_all().at(to).map(|()| file));
    if copied.is_err() {
        // The failure itself is what is told; an empty disk is better than a full one.
        let _ = fs::remove_file(to);
    }
    copied
}

/// Reads a file whole, brings it to `target`, and describes it.
fn digest(from: &Path, mut target: impl io::Write, stop: &CancellationToken) -> Result<BackupFile, BackupError> {
    let (inode, modified_ns, _) = source(from)?;
    let mut file = File::open(from).at(from)?;
    let (mut sha256, mut blocks, mut bytes) = (Sha256::new(), String::new(), 0);
    let mut block = Vec::with_capacity(BLOCK_BYTES as usize);
    loop {
        block.clear();
        (&mut file).take(BLOCK_BYTES).read_to_end(&mut block).at(from)?;
        if block.is_empty() {
            break;
        }
        if stop.is_cancelled() {
            return Err(BackupError::Refused("the member stops before the backup is done".into()));
        }
        sha256.update(&block);
        blocks.push_str(&format!("{:08x}", crc32c::crc32c(&block)));
        bytes += block.len() as u64;
        target.write_all(&block).map_err(|error| io::Error::new(error.kind(), format!("copying: {error}"))).at(from)?;
    }
    target.flush().at(from)?;
    let sha256 = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(BackupFile { name: name_of(from)?, is_shared: false, bytes, sha256, blocks, inode, modified_ns })
}

fn name_of(path: &Path) -> Result<String, BackupError> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(String::from).ok_or_else(|| BackupError::damaged(path, 0, "the file's name is no text"))
}
