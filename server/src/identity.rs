//! Who a member is: ids computed as etcd computes them, and the file in the data directory that keeps them.
//!
//! ```text
//! pintle identity
//! format 1
//! member 8e9e05c52164694d
//! cluster cdf818194e3a8c32
//! name default
//! crc32c 1f2e3d4c          of all bytes before this line
//! ```
//! Source of the ids: etcd, `server/etcdserver/api/membership/member.go` (computeMemberID), `cluster.go` (genID).

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use proto::{ClusterId, MemberId};
use sha1::{Digest, Sha1};

use crate::{config::InitialCluster, urls::Url};

const FORMAT: u32 = 1;
const TITLE: &str = "pintle identity";
const LOG_MADE: &str = "log made\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub name: String,
    /// There is a log, which holds what the member has promised.
    pub has_log: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error(
        "{path}: the file is damaged ({detail}); if the rest of the data directory is whole, write it anew by starting this member under another directory with the same flags and copying the file from there"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "{path}: format version {found} is not known here, only {FORMAT}: start the release that wrote it, or a newer one"
    )]
    Format { path: PathBuf, found: u32 },
}

/// Of a member of a new cluster. The URLs are sorted.
pub fn member_id(peer_urls: &[Url], token: &str) -> MemberId {
    let mut hash = Sha1::new();
    for url in peer_urls {
        hash.update(url.as_str());
    }
    hash.update(token);
    MemberId(first_eight(hash))
}

/// Of a member that is added at `unix_seconds` to a running cluster. The URLs are sorted.
pub fn added_member_id(peer_urls: &[Url], unix_seconds: u64) -> MemberId {
    member_id(peer_urls, &unix_seconds.to_string())
}

pub fn cluster_id(members: impl IntoIterator<Item = MemberId>) -> ClusterId {
    let mut ids: Vec<u64> = members.into_iter().map(|id| id.0).collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    ClusterId(first_eight(hash))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("SHA-1 has twenty bytes"))
}

impl Identity {
    /// Of the member `name` of a new cluster.
    pub fn new(name: &str, cluster: &InitialCluster) -> Identity {
        let id = |urls: &Vec<Url>| member_id(urls, &cluster.token);
        Identity {
            member: id(&cluster.members[name]),
            cluster: cluster_id(cluster.members.values().map(id)),
            name: name.into(),
            has_log: false,
        }
    }

    /// None where there is no such file.
    pub fn read(path: &Path) -> Result<Option<Identity>, IdentityError> {
        match fs::read_to_string(path) {
            Ok(text) => Identity::decode(path, &text).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IdentityError::Io { path: path.into(), error }),
        }
    }

    /// Durable when it returns, and never there in part.
    pub fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let write = || {
            let temporary = path.with_extension("tmp");
            let mut file = File::create(&temporary)?;
            file.write_all(self.encode().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            let folder = path.parent().unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| IdentityError::Io { path: path.into(), error })
    }

    fn encode(&self) -> String {
        let Identity { member, cluster, name, has_log } = self;
        let log = if *has_log { LOG_MADE } else { "" };
        let text = format!("{TITLE}\nformat {FORMAT}\nmember {member}\ncluster {cluster}\nname {name}\n{log}");
        format!("{text}crc32c {:08x}\n", crc32c::crc32c(text.as_bytes()))
    }

    fn decode(path: &Path, text: &str) -> Result<Identity, IdentityError> {
        let damaged = |detail: &str| IdentityError::Damaged { path: path.into(), detail: detail.into() };
        // The version first: only its own format is known to have a checksum at the end.
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.ok_or_else(|| damaged(&format!("there is no {name:?}")))
        };
        if text.lines().next() != Some(TITLE) {
            return Err(damaged("it does not begin as one"));
        }
        let found = field("format")?.parse().map_err(|_| damaged("the format is no number"))?;
        if found != FORMAT {
            return Err(IdentityError::Format { path: path.into(), found });
        }
        let end = text.rfind("crc32c ").ok_or_else(|| damaged("there is no checksum"))?;
        let checksum = u32::from_str_radix(text[end..].trim_start_matches("crc32c ").trim_end(), 16);
        if checksum != Ok(crc32c::crc32c(&text.as_bytes()[..end])) {
            return Err(damaged("the checksum does not match"));
        }
        let id = |name: &str| u64::from_str_radix(field(name)?, 16).map_err(|_| damaged("an id is no number"));
        Ok(Identity {
            member: MemberId(id("member")?),
            cluster: ClusterId(id("cluster")?),
            name: field("name")?.into(),
            has_log: text[..end].ends_with(LOG_MADE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{discovery::Source, urls};

    fn cluster(text: &str, token: &str) -> InitialCluster {
        let members = urls::parse_cluster(text).unwrap();
        InitialCluster { members, source: Source::Flags, token: token.into(), is_existing: false, is_given: true }
    }

    /// Figures: etcd 3.5.30 started with these flags.
    #[test]
    fn ids_are_etcds() {
        let single = Identity::new("default", &cluster("default=http://localhost:2380", "etcd-cluster"));
        assert_eq!(single.member.to_string(), "8e9e05c52164694d");
        assert_eq!(single.cluster.to_string(), "cdf818194e3a8c32");
        let three = "b=http://127.0.0.1:25012,a=http://127.0.0.1:25011,c=http://127.0.0.1:25013";
        let [a, b, c] = ["a", "b", "c"].map(|name| Identity::new(name, &cluster(three, "tok")));
        assert_eq!(a.member.to_string(), "c594d2115237c63f");
        assert_eq!(b.member.to_string(), "c3d41f14b00c8db1");
        assert_eq!(c.member.to_string(), "af456c6052c6fc10");
        assert_eq!(a.cluster.to_string(), "4b146ccd253d6cb7");
        assert!(a.cluster == b.cluster && b.cluster == c.cluster);
    }

    /// Figures: etcd 3.5.30, which logged these ids in these seconds.
    #[test]
    fn ids_of_added_members_are_etcds() {
        let id = |url: &str, seconds| added_member_id(&Url::parse_list(url).unwrap(), seconds).to_string();
        assert_eq!(id("http://127.0.0.1:22103", 1_795_261_915), "75ea9d3d41de2f82");
        assert_eq!(id("http://127.0.0.1:22105", 1_795_261_926), "f62286a1943837ce");
    }

    #[test]
    fn the_file_holds_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        assert_eq!(Identity::read(&path).unwrap(), None);
        let identity =
            Identity { member: MemberId(1), cluster: ClusterId(u64::MAX), name: "a b".into(), has_log: false };
        for has_log in [false, true] {
            let identity = Identity { has_log, ..identity.clone() };
            identity.write(&path).unwrap();
            assert_eq!(Identity::read(&path).unwrap(), Some(identity));
        }
    }

    #[test]
    fn a_damaged_file_and_a_newer_format_are_told_apart() {
        let path = Path::new("identity");
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2), name: "n".into(), has_log: true };
        let text = identity.encode();
        let changed = text.replace("member 1", "member 3");
        assert!(matches!(Identity::decode(path, &changed), Err(IdentityError::Damaged { .. })));
        assert!(matches!(Identity::decode(path, &text[..20]), Err(IdentityError::Damaged { .. })));
        let newer = text.replace("format 1", "format 2");
        assert!(matches!(Identity::decode(path, &newer), Err(IdentityError::Format { found: 2, .. })));
    }
}
