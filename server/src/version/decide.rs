//! The next cluster version, and whether a downgrade is over, given what is known.
//! Source: etcd, `server/etcdserver/version/monitor.go`, `downgrade.go`.

use super::{MIN, Version};

/// The cluster can be brought to the target neither from its own version nor from its members'.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid downgrade target")]
pub struct InvalidTarget;

/// What the cluster version is to become; None where it stays. `lowest` is the lowest release among the members, None
/// while one is unknown.
pub fn next(
    cluster: Option<Version>,
    lowest: Option<Version>,
    downgrade: Option<Version>,
) -> Result<Option<Version>, InvalidTarget> {
    let Some(cluster) = cluster else { return Ok(Some(lowest.unwrap_or(MIN))) };
    let Some(lowest) = lowest else { return Ok(None) };
    match downgrade {
        Some(target) if target == cluster => Ok(None),
        Some(target) if cluster.before() == Some(target) && lowest.before() == Some(target) => Ok(Some(target)),
        Some(_) => Err(InvalidTarget),
        None => Ok(Some(lowest).filter(|lowest| cluster < *lowest && cluster.major == lowest.major)),
    }
}

/// Of all members, None for one whose release is not known.
pub fn lowest(members: &[Option<Version>]) -> Option<Version> {
    members.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Whether all members run the release that the cluster is being downgraded to.
pub fn is_over(target: Version, members: &[Option<Version>]) -> bool {
    members.iter().all(|member| *member == Some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V35: Version = Version { major: 3, minor: 5 };
    const V36: Version = Version { major: 3, minor: 6 };
    const V37: Version = Version { major: 3, minor: 7 };

    #[test]
    fn the_version_is_that_of_the_oldest_member_and_only_grows() {
        assert_eq!(next(None, None, None), Ok(Some(MIN)));
        assert_eq!(next(None, Some(V37), None), Ok(Some(V37)));
        assert_eq!(next(Some(MIN), Some(V37), None), Ok(Some(V37)));
        assert_eq!(next(Some(MIN), None, None), Ok(None));
        assert_eq!(next(Some(V37), Some(V37), None), Ok(None));
        assert_eq!(next(Some(V37), Some(V36), None), Ok(None));
        assert_eq!(lowest(&[Some(V37), Some(V36)]), Some(V36));
        assert_eq!(lowest(&[Some(V37), None]), None);
    }

    #[test]
    fn a_downgrade_lowers_it_by_one_minor_version() {
        assert_eq!(next(Some(V37), Some(V37), Some(V36)), Ok(Some(V36)));
        assert_eq!(next(Some(V36), Some(V37), Some(V36)), Ok(None));
        assert_eq!(next(Some(V37), Some(V37), Some(V35)), Err(InvalidTarget));
        assert_eq!(next(Some(V37), Some(V36), Some(V36)), Err(InvalidTarget));
        // Once it is cancelled.
        assert_eq!(next(Some(V36), Some(V37), None), Ok(Some(V37)));
        assert!(is_over(V36, &[Some(V36), Some(V36)]));
        assert!(!is_over(V36, &[Some(V36), Some(V37)]));
        assert!(!is_over(V36, &[Some(V36), None]));
    }
}
