//! The cluster's version, and downgrades.
//! Source: etcd, `server/etcdserver/version`, `v3_server.go` (Downgrade), `server.go` (monitorClusterVersions).
//!
//! The cluster version is the lowest of its members' releases, major and minor, replicated. The leader raises it when
//! all members run a higher release. A downgrade that is enabled lowers it by one minor version, so that members of the
//! release before may join; it is over, and taken back, when all members run that release.
//!
//! Pintle writes one format whatever the cluster version is. What it reports as the storage version follows the cluster
//! version, as an etcd that had migrated its file would report it.
//!
//! ```text
//! decide.rs      the next cluster version, and whether a downgrade is over, given what is known
//! monitor.rs     asks the members for their releases, and proposes
//! downgrade.rs   the RPC, and /downgrade/enabled on the peer port
//! ```

mod decide;
mod downgrade;
mod monitor;

use std::fmt;

use proto::etcdserverpb::DowngradeInfo;
use storage::Store;

use crate::ETCD_STORAGE_VERSION;

pub use downgrade::{ENABLED_PATH, downgrade, is_enabled};
pub use monitor::start;

/// What a cluster has while not all of its members' releases are known. (etcd: `api/version`, MinClusterVersion.)
const MIN: Version = Version { major: 3, minor: 0 };
/// The first release that starts from a backup as it is; those after it take it over as they start.
const BACKUP: Version = Version { major: 3, minor: 6 };
/// What an endpoint tells before there is a cluster version.
const NOT_DECIDED: &str = "not_decided";

/// A release without its patch number: what clusters have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
}

impl Version {
    /// Reads `3.7.1`, with or without what semantic versioning allows behind it.
    fn parse(text: &str) -> Option<Version> {
        let text = text.split('+').next()?;
        let (numbers, _) = text.split_once('-').unwrap_or((text, ""));
        let mut numbers = numbers.split('.').map(|number| number.parse::<u64>().ok());
        let version = Version { major: numbers.next()??, minor: numbers.next()?? };
        numbers.next()??;
        numbers.next().is_none().then_some(version)
    }

    /// As a client may give it: `3.6`, too.
    fn parse_target(text: &str) -> Option<Version> {
        Version::parse(text).or_else(|| Version::parse(&format!("{text}.0")))
    }

    /// This member's own.
    fn own() -> Version {
        Version::parse(crate::ETCD_VERSION).expect("the release is a version")
    }

    /// The one that a cluster of this version can be downgraded to.
    fn before(self) -> Option<Version> {
        Some(Version { minor: self.minor.checked_sub(1)?, ..self })
    }

    /// With the patch number that versions of clusters have.
    fn full(self) -> String {
        format!("{self}.0")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// None before the first leader has decided on one.
pub fn of_cluster(store: &Store) -> Option<Version> {
    store.versions().cluster.as_deref().and_then(Version::parse)
}

/// For `/version`.
pub fn cluster_text(store: &Store) -> String {
    of_cluster(store).map_or_else(|| NOT_DECIDED.into(), Version::full)
}

/// What is reported as the version of the format.
pub fn storage_text(store: &Store) -> String {
    of_cluster(store).filter(|version| *version > MIN).map_or_else(|| ETCD_STORAGE_VERSION.into(), Version::full)
}

/// What a backup tells of its format. 3.7 changed nothing in 3.6's, and 3.6 refuses to start from a newer one.
/// (etcd: `storage/schema/schema.go`, schemaChanges.)
pub fn backup_text(store: &Store) -> String {
    of_cluster(store).filter(|version| *version > MIN).map_or(BACKUP, |version| version.min(BACKUP)).full()
}

/// For Status.
pub fn downgrade_info(store: &Store) -> DowngradeInfo {
    let target_version = store.versions().downgrade_target.clone();
    DowngradeInfo { enabled: target_version.is_some(), target_version: target_version.unwrap_or_default() }
}

/// The version that the cluster is being downgraded to.
fn downgrade_target(store: &Store) -> Option<Version> {
    store.versions().downgrade_target.as_deref().and_then(Version::parse)
}

/// For `crate::fuzzing`.
#[cfg(fuzzing)]
pub fn fuzzing(text: &str) {
    if let Some(version) = Version::parse_target(text) {
        assert_eq!(Version::parse(&version.full()), Some(version));
        let _ = version.before();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_etcd_reads_them() {
        let version = |major, minor| Some(Version { major, minor });
        assert_eq!(Version::parse("3.7.1"), version(3, 7));
        assert_eq!(Version::parse("3.7.0-rc.1+git.2"), version(3, 7));
        for text in ["3.7", "3", "", "v3.7.0", "3.x.0", "3.7.0.1"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert_eq!(Version::parse_target("3.6"), version(3, 6));
        assert_eq!(Version::parse_target("3.6.9"), version(3, 6));
        for text in ["3", "3.6.", "", "three"] {
            assert_eq!(Version::parse_target(text), None, "{text}");
        }
        assert!(version(3, 10) > version(3, 9));
        assert_eq!(Version { major: 3, minor: 7 }.full(), "3.7.0");
    }
}
