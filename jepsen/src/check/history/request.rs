//! What processes ask for: etcd's requests, and steps of workloads that are made of several of them.

use serde::{Deserialize, Serialize};

use super::{Blob, WatchRequest};

/// Tagged with Jepsen's `f`, the function of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "snake_case")]
pub enum Request {
    Put(Put),
    Range(Range),
    DeleteRange(DeleteRange),
    Txn(Txn),
    Compact {
        revision: i64,
    },
    LeaseGrant {
        /// 0: the store chooses.
        lease: i64,
        ttl_s: i64,
    },
    LeaseRevoke {
        lease: i64,
    },
    LeaseKeepAlive {
        lease: i64,
    },
    LeaseTimeToLive {
        lease: i64,
        keys: bool,
    },
    Lock {
        name: Blob,
        lease: i64,
    },
    Unlock {
        /// What [`super::Answer::Lock`] gave.
        key: Blob,
    },
    Campaign {
        name: Blob,
        lease: i64,
        value: Blob,
    },
    /// As the leader that [`super::Answer::Campaign`] tells of.
    Proclaim {
        leader: Blob,
        create_revision: i64,
        value: Blob,
    },
    Leader {
        name: Blob,
    },
    Resign {
        leader: Blob,
        create_revision: i64,
    },
    HashKv {
        /// 0: the newest.
        revision: i64,
    },
    Defragment,
    Snapshot,
    /// Asks for a watcher. What it sees follows as [`super::WatchNote`]s.
    Watch {
        watcher: u64,
        #[serde(flatten)]
        watch: WatchRequest,
    },
    Auth(AuthChange),
    /// A request made as a user, when others are made as others.
    As {
        user: String,
        request: Box<Request>,
    },
    /// A transaction of Elle's list-append, however it was made of requests. Keys are those of the workload.
    Append {
        ops: Vec<ListOp>,
    },
    /// A transaction of Elle's rw-register.
    Registers {
        ops: Vec<RegisterOp>,
    },
}

/// Keys as etcd's requests name them: one, if `range_end` is empty; from `key` on, if it is a zero byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keys {
    pub key: Blob,
    #[serde(default, skip_serializing_if = "is_default")]
    pub range_end: Blob,
}

impl Keys {
    pub fn one(key: impl Into<Blob>) -> Keys {
        Keys { key: key.into(), range_end: Blob::default() }
    }

    pub fn prefix(prefix: impl Into<Blob>) -> Keys {
        let key = prefix.into();
        let mut end = key.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Keys { key, range_end: end.into() };
            }
        }
        Keys { key: if key.is_empty() { "\0".into() } else { key }, range_end: "\0".into() }
    }

    pub fn all() -> Keys {
        Keys::prefix("")
    }

    pub fn is_one(&self) -> bool {
        self.range_end.is_empty()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &*self.range_end {
            b"" => key == &*self.key,
            b"\0" => key >= &*self.key,
            end => key >= &*self.key && key < end,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Put {
    pub key: Blob,
    pub value: Blob,
    #[serde(default, skip_serializing_if = "is_default")]
    pub lease: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub prev_kv: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub ignore_value: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub ignore_lease: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    #[serde(flatten)]
    pub keys: Keys,
    /// 0: the newest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revision: i64,
    /// 0: none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limit: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub serializable: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub keys_only: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub count_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeleteRange {
    #[serde(flatten)]
    pub keys: Keys,
    #[serde(default, skip_serializing_if = "is_default")]
    pub prev_kv: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TxnOp {
    Put(Put),
    Range(Range),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    #[serde(flatten)]
    pub keys: Keys,
    pub result: CompareResult,
    pub target: CompareTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompareResult {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompareTarget {
    Value(Blob),
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
    Lease(i64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum AuthChange {
    Enable,
    Disable,
    UserAdd { user: String },
    UserDelete { user: String },
    UserChangePassword { user: String },
    UserGrantRole { user: String, role: String },
    UserRevokeRole { user: String, role: String },
    RoleAdd { role: String },
    RoleDelete { role: String },
    RoleGrantPermission { role: String, keys: Keys, permission: Permission },
    RoleRevokePermission { role: String, keys: Keys },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    Read,
    Write,
    ReadWrite,
}

impl Permission {
    pub fn reads(self) -> bool {
        self != Permission::Write
    }

    pub fn writes(self) -> bool {
        self != Permission::Read
    }
}

/// Values of list-append are numbers, each appended at most once to a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListOp {
    Append {
        key: u64,
        value: u64,
    },
    Read {
        key: u64,
        /// What was there; unknown in an invocation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        list: Option<Vec<u64>>,
    },
}

/// Values of rw-register are numbers, each written at most once to a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegisterOp {
    Write {
        key: u64,
        value: u64,
    },
    Read {
        key: u64,
        /// What was there, `Some(None)` being nothing; unknown in an invocation.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "unknown_or")]
        value: Option<Option<u64>>,
    },
}

/// Keeps "nothing was there" (`null`) apart from "not known yet" (absent).
mod unknown_or {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Option<u64>>, serializer: S) -> Result<S::Ok, S::Error> {
        value.flatten().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
        Option::deserialize(deserializer).map(Some)
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
