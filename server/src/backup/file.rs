//! A full backup's files, as they are read back.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{
    BackupError,
    base::shared_path,
    error::At as _,
    manifest::{BLOCK_BYTES, BackupFile},
};

/// Where a file of a full backup stands.
pub fn path_of(member_dir: &Path, base_dir: &Path, file: &BackupFile) -> PathBuf {
    match file.is_shared {
        true => shared_path(member_dir, &file.sha256),
        false => base_dir.join(&file.name),
    }
}

/// Reads a file of a backup, and gives its contents to `target`, piece by piece.
///
/// # Errors
/// Where it is not what the manifest says, with the place.
pub fn read_file(
    path: &Path,
    file: &BackupFile,
    mut target: impl FnMut(&[u8]) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let mut open = File::open(path).at(path)?;
    let length = open.metadata().at(path)?.len();
    if length != file.bytes {
        let detail = format!("it has {length} bytes, and {} in the manifest", file.bytes);
        return Err(BackupError::damaged(path, length.min(file.bytes), detail));
    }
    let (mut sha256, mut block, mut offset) = (Sha256::new(), Vec::with_capacity(BLOCK_BYTES as usize), 0);
    while offset < length {
        block.clear();
        (&mut open).take(BLOCK_BYTES).read_to_end(&mut block).at(path)?;
        let number = (offset / BLOCK_BYTES) as usize;
        let expected = file.blocks.get(8 * number..8 * number + 8);
        if block.is_empty() || expected != Some(&format!("{:08x}", crc32c::crc32c(&block))) {
            let end = offset + block.len() as u64;
            return Err(BackupError::damaged(
                path,
                offset,
                format!("the checksum of the bytes up to {end} does not match"),
            ));
        }
        sha256.update(&block);
        target(&block)?;
        offset += block.len() as u64;
    }
    let sha256: String = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match sha256 == file.sha256 {
        true => Ok(()),
        false => Err(BackupError::damaged(path, 0, "the SHA-256 of the whole file does not match")),
    }
}
