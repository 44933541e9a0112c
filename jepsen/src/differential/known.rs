//! Where Pintle is known to differ from some version of etcd, and why. Nothing else is forgiven.

use proto::etcdserverpb as pb;

use super::{
    request::{Answer, Reply, Request},
    version::Version,
};

struct Known {
    /// Of the peer that Pintle is compared with: from the first version up to, and without, the second.
    versions: (Version, Version),
    reason: &'static str,
    /// Takes the peer's answer and Pintle's.
    applies: fn(&Request, &Answer, &Answer) -> bool,
}

const FIRST: Version = Version::new(3, 0, 0);
const NO_VERSION_YET: Version = Version::new(99, 0, 0);

/// Range requests are checked for unknown enum values since then.
const SORT_OPTIONS_CHECKED: Version = Version::new(3, 6, 0);

/// A Txn is checked in one walk over its operations since then.
const TXN_CHECKED_IN_ORDER: Version = Version::new(3, 6, 0);

/// Some permissions are checked otherwise in 3.7 (`api/v3rpc/{maintenance,watch}.go`, `apply/auth.go`, `auth/store.go`).
const PERMISSIONS_CHANGED: Version = Version::new(3, 7, 0);

const NESTED_TXN_COUNTED: Version = Version::new(3, 7, 0);

const PERMISSION_DENIED: &str = "etcdserver: permission denied";
const USER_EMPTY: &str = "etcdserver: user name is empty";
const KEY_NOT_FOUND: &str = "etcdserver: key not found";
const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE_REVISION: &str = "etcdserver: mvcc: required revision is a future revision";

const KNOWN: &[Known] = &[
    Known {
        versions: (FIRST, NO_VERSION_YET),
        reason: "HashKV at the revision of one of its last ten compactions: etcd keeps the hash from before it",
        applies: |request, etcd, pintle| match (request, etcd) {
            (Request::HashKv(request), Ok(Reply::HashKv(etcd))) if etcd.compact_revision < request.revision => {
                match pintle {
                    Ok(Reply::HashKv(pintle)) => pintle.compact_revision == request.revision,
                    Ok(_) => false,
                    Err(failure) => failure.message == COMPACTED,
                }
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, Version::new(3, 6, 0)),
        reason: "HashKV has a hash_revision since 3.6",
        applies: |_, etcd, pintle| match (etcd, pintle) {
            (Ok(Reply::HashKv(etcd)), Ok(Reply::HashKv(pintle))) => {
                etcd.hash_revision == 0 && pb::HashKvResponse { hash_revision: 0, ..*pintle } == *etcd
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, Version::new(3, 6, 0)),
        reason: "Status has a storage version, a quota and downgrade information since 3.6",
        applies: |_, etcd, pintle| match (etcd, pintle) {
            (Ok(Reply::Status(etcd)), Ok(Reply::Status(pintle))) => {
                let without_the_new = pb::StatusResponse {
                    storage_version: String::new(),
                    db_size_quota: 0,
                    downgrade_info: None,
                    ..pintle.clone()
                };
                without_the_new == *etcd
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, Version::new(3, 6, 0)),
        reason: "cancelling a downgrade where there is none was refused before 3.6",
        applies: |request, etcd, pintle| {
            matches!((request, etcd, pintle), (Request::Downgrade(_), Err(etcd), Ok(_))
                if etcd.message == "etcdserver: no inflight downgrade job")
        },
    },
    Known {
        versions: (FIRST, Version::new(3, 6, 0)),
        reason: "a Snapshot names the storage version since 3.6",
        applies: |_, etcd, pintle| match (etcd, pintle) {
            (Ok(Reply::Snapshot(etcd)), Ok(Reply::Snapshot(pintle))) => {
                etcd.version.is_empty() && pb::SnapshotResponse { version: String::new(), ..pintle.clone() } == *etcd
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, SORT_OPTIONS_CHECKED),
        reason: "a Range with an unknown sort order is refused since 3.6, and was answered unsorted before",
        applies: |request, _, pintle| match (request, pintle) {
            (Request::Range(request), Err(refusal)) => {
                pb::range_request::SortOrder::try_from(request.sort_order).is_err()
                    && refusal.message == "etcdserver: invalid sort option"
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, TXN_CHECKED_IN_ORDER),
        reason: "of several reasons to refuse a Txn, the first in its order counts since 3.6, and that of a put before",
        applies: |request, etcd, pintle| {
            let of_a_put = [KEY_NOT_FOUND, LEASE_NOT_FOUND];
            let of_a_range = [COMPACTED, FUTURE_REVISION];
            matches!((request, etcd, pintle), (Request::Txn(_), Err(etcd), Err(pintle))
                if of_a_put.contains(&etcd.message.as_str()) && of_a_range.contains(&pintle.message.as_str()))
        },
    },
    Known {
        versions: (FIRST, TXN_CHECKED_IN_ORDER),
        reason: "of a put in a Txn the lease is looked up before the key since 3.6, and after it before",
        applies: |request, etcd, pintle| {
            matches!((request, etcd, pintle), (Request::Txn(_), Err(etcd), Err(pintle))
                if etcd.message == KEY_NOT_FOUND && pintle.message == LEASE_NOT_FOUND)
        },
    },
    Known {
        versions: (FIRST, PERMISSIONS_CHANGED),
        reason: "Status and a list of alarms are for any user in 3.7, and AuthStatus for anyone; in 3.5 for root",
        applies: |request, etcd, pintle| {
            let refusal = etcd.as_ref().err().map(|failure| failure.message.as_str());
            match (request, pintle) {
                (Request::Status(_), Ok(Reply::Status(_))) => refusal == Some(PERMISSION_DENIED),
                (Request::Alarm(request), Ok(Reply::Alarm(_))) => {
                    request.action == 0 && refusal == Some(PERMISSION_DENIED)
                }
                (Request::AuthStatus(_), Ok(Reply::AuthStatus(_))) => {
                    [Some(PERMISSION_DENIED), Some(USER_EMPTY)].contains(&refusal)
                }
                _ => false,
            }
        },
    },
    Known {
        versions: (FIRST, PERMISSIONS_CHANGED),
        reason: "refusals of maintenance calls for want of a permission have gRPC's codes in 3.7, and are Unknown in 3.5",
        applies: |request, etcd, pintle| {
            let kinds = ["Alarm", "Defragment", "Downgrade", "Hash", "HashKv", "MoveLeader", "Snapshot", "Status"];
            match (etcd, pintle) {
                (Err(etcd), Err(pintle)) if kinds.contains(&request.kind()) => {
                    let (etcd_says, pintle_says) = (etcd.message.strip_prefix("auth: "), &pintle.message);
                    etcd.code == "Unknown"
                        && etcd_says.is_some()
                        && etcd_says == pintle_says.strip_prefix("etcdserver: ")
                }
                _ => false,
            }
        },
    },
    Known {
        versions: (FIRST, PERMISSIONS_CHANGED),
        reason: "a watch without an end needs permission for all its keys in 3.7, and for its first key in 3.5",
        applies: |request, etcd, pintle| match (request, etcd, pintle) {
            (Request::Watch(request), Ok(Reply::Watch(etcd)), Ok(Reply::Watch(pintle))) => {
                let Some(pb::watch_request::RequestUnion::CreateRequest(create)) = &request.request_union else {
                    return false;
                };
                create.range_end == b"\0".as_slice()
                    && !etcd.canceled
                    && pintle.cancel_reason.ends_with(PERMISSION_DENIED)
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, PERMISSIONS_CHANGED),
        reason: "the role root is shown with all permissions in 3.7, and with those granted to it in 3.5",
        applies: |request, etcd, pintle| match (request, etcd, pintle) {
            (Request::RoleGet(request), Ok(Reply::RoleGet(_)), Ok(Reply::RoleGet(pintle))) => {
                request.role == "root" && pintle.perm.len() == 1 && pintle.perm[0].range_end == b"\0".as_slice()
            }
            _ => false,
        },
    },
    Known {
        versions: (FIRST, Version::new(3, 7, 0)),
        reason: "a learner whose URLs are updated stays one in 3.7; 3.5 takes it for a voter (`membership/cluster.go`)",
        applies: |_, etcd, pintle| {
            let learners_as_voters = |members: &[pb::Member]| {
                let voter = |member: &pb::Member| pb::Member { is_learner: false, ..member.clone() };
                members.iter().map(voter).collect::<Vec<_>>()
            };
            match (etcd, pintle) {
                (Ok(Reply::MemberUpdate(etcd)), Ok(Reply::MemberUpdate(pintle))) => {
                    etcd.header == pintle.header && etcd.members == learners_as_voters(&pintle.members)
                }
                (Ok(Reply::MemberList(etcd)), Ok(Reply::MemberList(pintle))) => {
                    etcd.header == pintle.header && etcd.members == learners_as_voters(&pintle.members)
                }
                _ => false,
            }
        },
    },
];

/// The reason why a difference is known, if it is.
pub fn reason(etcd_version: Version, request: &Request, etcd: &Answer, pintle: &Answer) -> Option<&'static str> {
    let concerns = |known: &&Known| known.versions.0 <= etcd_version && etcd_version < known.versions.1;
    KNOWN.iter().filter(concerns).find(|known| (known.applies)(request, etcd, pintle)).map(|known| known.reason)
}

/// What must not be asked, for some version of etcd dies of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shunned {
    /// An unknown sort target kills a server that does not check it. An unknown sort order inside a transaction would be
    /// executed by the one and refused by the other, and the two stores would differ from there on.
    pub unknown_sort_options: bool,
    /// While the space is exceeded, 3.5 executes a transaction that puts only in a nested one; 3.7 counts what nested
    /// ones need (`storage/quota.go`).
    pub nested_txn_without_space: bool,
}

pub fn shunned(etcd_version: Version) -> Shunned {
    Shunned {
        unknown_sort_options: etcd_version < SORT_OPTIONS_CHECKED,
        nested_txn_without_space: etcd_version < NESTED_TXN_COUNTED,
    }
}
