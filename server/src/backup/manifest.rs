//! The manifests of chains, segments and full backups: JSON that ends with the checksum of what is before it.
//!
//! ```text
//! {
//!   "format": 1,
//!   …
//!   "manifest_crc32c": "1f2e3d4c"
//! }
//! ```

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use proto::{ClusterId, MemberId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    BackupError, Time,
    error::{At as _, sync_dir},
    segment::ChainId,
};

pub const FORMAT: u32 = 1;
/// Of a full backup's files, each piece of this size has a checksum of its own, so that damage has a place.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// `chain.json`: the log from an entry on, without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainManifest {
    pub format: u32,
    pub chain: ChainId,
    #[serde(with = "hexadecimal")]
    pub cluster: u64,
    #[serde(with = "hexadecimal")]
    pub member: u64,
    pub name: String,
    /// Entries behind this index are in the chain.
    pub after_index: u64,
    pub began: Time,
    /// Why there is a chain, and the one before does not go on.
    pub reason: String,
}

/// `log-….json`: of a segment that is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentManifest {
    pub format: u32,
    pub chain: ChainId,
    pub first_index: u64,
    pub last_index: u64,
    pub first_revision: i64,
    pub last_revision: i64,
    pub first_time: Time,
    pub last_time: Time,
    pub bytes: u64,
    #[serde(with = "hexadecimal")]
    pub crc32c: u32,
}

/// `base-…/manifest.json`: a full backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseManifest {
    pub format: u32,
    pub chain: ChainId,
    #[serde(with = "hexadecimal")]
    pub cluster: u64,
    #[serde(with = "hexadecimal")]
    pub member: u64,
    pub name: String,
    pub pintle_version: String,
    pub applied_index: u64,
    pub applied_term: u64,
    pub revision: i64,
    /// -1 when nothing was ever compacted.
    pub compacted_revision: i64,
    /// When the checkpoint was there.
    pub time: Time,
    pub files: Vec<BackupFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// In the checkpoint.
    pub name: String,
    /// It stands among the shared files, under the name of its contents, and not beside the manifest.
    pub is_shared: bool,
    pub bytes: u64,
    pub sha256: String,
    /// CRC-32C of each piece of [`BLOCK_BYTES`], eight digits each.
    pub blocks: String,
    /// What the file was on the member's disk, so that it need not be read again for the next backup.
    pub inode: u64,
    pub modified_ns: i64,
}

impl ChainManifest {
    pub fn is_of(&self, cluster: ClusterId, member: MemberId) -> bool {
        (self.cluster, self.member) == (cluster.0, member.0)
    }
}

impl BaseManifest {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer, N: std::fmt::LowerHex>(number: &N, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>, N: TryFrom<u64>>(deserializer: D) -> Result<N, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u64::from_str_radix(&text, 16).ok().and_then(|number| N::try_from(number).ok());
        number.ok_or_else(|| de::Error::custom(format!("{text:?} is no hexadecimal number")))
    }
}

const CHECKSUM_KEY: &str = ",\n  \"manifest_crc32c\": \"";
const END: &str = "\"\n}\n";
/// Of what stands behind the part that the checksum is of.
const CHECKSUM_BYTES: usize = CHECKSUM_KEY.len() + 8 + END.len();

fn encode<T: Serialize>(manifest: &T) -> Vec<u8> {
    let text = serde_json::to_string_pretty(manifest).expect("a manifest has names for keys");
    let body = text.strip_suffix("\n}").expect("a manifest is an object with fields");
    format!("{body}{CHECKSUM_KEY}{:08x}{END}", crc32c::crc32c(body.as_bytes())).into_bytes()
}

fn decode<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, BackupError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let damaged = |offset, detail: &str| BackupError::damaged(path, offset, detail);
    let end = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or_else(|| damaged(0, "the manifest is cut short"))?;
    let (body, checksum) = bytes.split_at(end);
    let expected = format!("{CHECKSUM_KEY}{:08x}{END}", crc32c::crc32c(body));
    if checksum != expected.as_bytes() {
        // Without its checksum a manifest of another format may be whole.
        if let Ok(Version { format }) = serde_json::from_slice(bytes)
            && format > FORMAT
        {
            return Err(BackupError::Format { path: path.into(), found: format, known: FORMAT });
        }
        return Err(damaged(0, "the manifest's checksum does not match"));
    }
    let version: Version = serde_json::from_slice(bytes).map_err(|error| damaged(0, &error.to_string()))?;
    if version.format != FORMAT {
        return Err(BackupError::Format { path: path.into(), found: version.format, known: FORMAT });
    }
    serde_json::from_slice(bytes).map_err(|error| damaged(0, &error.to_string()))
}

/// None where there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, BackupError> {
    match fs::read(path) {
        Ok(bytes) => decode(path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path),
    }
}

/// Durable when it returns, and never there in part.
pub fn write_json<T: Serialize>(path: &Path, manifest: &T) -> Result<(), BackupError> {
    write_file(path, &encode(manifest))
}

/// The same for any file. What a crash leaves of it ends in `.partial`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let partial = partial_path(path);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        // The failure itself is what is told.
        let _ = fs::remove_file(&partial);
        return Err(error).at(&partial);
    }
    fs::rename(&partial, path).at(path)?;
    sync_dir(path.parent().expect("a file stands in a folder"))
}

/// Where a file stands until it is whole.
pub fn partial_path(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().expect("a file has a name").to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> ChainManifest {
        ChainManifest {
            format: FORMAT,
            chain: ChainId([1; 16]),
            cluster: 0xabc,
            member: u64::MAX,
            name: "a \"b\"".into(),
            after_index: 5,
            began: Time { unix_ms: 1_795_261_915_000 },
            reason: "first".into(),
        }
    }

    #[test]
    fn a_manifest_is_json_and_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chain.json");
        assert_eq!(read_json::<ChainManifest>(&path).unwrap(), None);
        write_json(&path, &chain()).unwrap();
        assert_eq!(read_json(&path).unwrap(), Some(chain()));
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["member"], "ffffffffffffffff");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (path, bytes) = (Path::new("chain.json"), encode(&chain()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(decode::<ChainManifest>(path, &changed).is_err(), "byte {at}");
            assert!(decode::<ChainManifest>(path, &bytes[..at]).is_err(), "cut at {at}");
        }
        let newer = encode(&ChainManifest { format: 2, ..chain() });
        assert!(matches!(decode::<ChainManifest>(path, &newer), Err(BackupError::Format { found: 2, .. })));
    }
}
