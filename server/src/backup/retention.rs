//! What is too old goes: full backups but the newest, the log before the oldest that stays, and files that no full
//! backup names any more.
//!
//! Names go before contents, so that a crash leaves files without a backup, which the next time removes, and never a
//! backup without files.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    BackupError,
    archive::{BASE, bases, chains, remove_partial, segments},
    base::{MANIFEST, SHARED, shared_path},
    error::{At as _, sync_dir},
    manifest::{BaseManifest, SegmentManifest, partial_path, read_json},
    segment::manifest_path,
};

/// Removes what goes when the newest `keep` full backups stay. The chain `current` stays in any case.
///
/// # Errors
/// When a manifest cannot be read: then nothing is removed, since it is not known what is needed.
pub fn prune(member_dir: &Path, keep: usize, current: u64) -> Result<(), BackupError> {
    let mut all: Vec<(u64, BaseManifest, PathBuf)> = Vec::new();
    let chains = chains(member_dir)?;
    for (number, chain_dir) in &chains {
        for (_, path) in bases(chain_dir)? {
            let manifest = read_json(&path.join(MANIFEST))?;
            let manifest = manifest.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).at(&path.join(MANIFEST))?;
            all.push((*number, manifest, path));
        }
    }
    all.sort_by_key(|(chain, manifest, _)| (*chain, manifest.applied_index));
    let kept = all.split_off(all.len().saturating_sub(keep.max(1)));
    for (_, _, path) in &all {
        remove_base(path)?;
    }
    for (number, chain_dir) in &chains {
        remove_partial(chain_dir, BASE)?;
        let oldest = kept.iter().find(|(chain, _, _)| chain == number);
        match oldest {
            Some((_, oldest, _)) => remove_log_before(chain_dir, oldest.applied_index)?,
            None if number < &current && kept.first().is_some_and(|(first, _, _)| number < first) => {
                fs::remove_dir_all(chain_dir).at(chain_dir)?;
            }
            None => {}
        }
    }
    sync_dir(member_dir)?;
    remove_unnamed_files(member_dir, kept.iter().map(|(_, manifest, _)| manifest))
}

/// The manifest first.
fn remove_base(dir: &Path) -> Result<(), BackupError> {
    let partial = partial_path(dir);
    fs::rename(dir, &partial).at(dir)?;
    sync_dir(dir.parent().expect("a backup is in a chain"))?;
    fs::remove_dir_all(&partial).at(&partial)
}

/// Segments of which no entry is behind `index`.
fn remove_log_before(chain_dir: &Path, index: u64) -> Result<(), BackupError> {
    for path in segments(chain_dir)? {
        match read_json::<SegmentManifest>(&manifest_path(&path))? {
            Some(manifest) if manifest.last_index <= index => fs::remove_file(&path).at(&path)?,
            _ => break,
        }
    }
    for path in manifests_left(chain_dir)? {
        fs::remove_file(&path).at(&path)?;
    }
    sync_dir(chain_dir)
}

/// Manifests of segments that are gone.
fn manifests_left(chain_dir: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let paths: Result<Vec<PathBuf>, io::Error> =
        fs::read_dir(chain_dir).at(chain_dir)?.map(|entry| Ok(entry?.path())).collect();
    let is_left = |path: &PathBuf| {
        let is_segments = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("log-"));
        is_segments && path.extension().is_some_and(|end| end == "json") && !path.with_extension("log").exists()
    };
    Ok(paths.at(chain_dir)?.into_iter().filter(is_left).collect())
}

fn remove_unnamed_files<'a>(
    member_dir: &Path,
    kept: impl Iterator<Item = &'a BaseManifest>,
) -> Result<(), BackupError> {
    let shared = member_dir.join(SHARED);
    let named: HashSet<OsString> = kept
        .flat_map(|manifest| manifest.files.iter().filter(|file| file.is_shared))
        .filter_map(|file| shared_path(member_dir, &file.sha256).file_name().map(OsString::from))
        .collect();
    for entry in fs::read_dir(&shared).at(&shared)? {
        let entry = entry.at(&shared)?;
        if !named.contains(&entry.file_name()) {
            fs::remove_file(entry.path()).at(&entry.path())?;
        }
    }
    Ok(())
}
