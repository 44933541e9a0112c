//! What processes are told.

use serde::{Deserialize, Serialize};

use super::{Blob, ListOp, RegisterOp, request::is_default};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    pub header: Header,
    #[serde(flatten)]
    pub answer: Answer,
}

/// The header of an answer. Of an answer that was put together from several, the last one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// 0: not told.
    pub revision: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub member: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub term: u64,
}

/// Named as the request that it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "snake_case")]
pub enum Answer {
    Put {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prev_kv: Option<KeyValue>,
    },
    Range {
        kvs: Vec<KeyValue>,
        count: i64,
        #[serde(default, skip_serializing_if = "is_default")]
        more: bool,
    },
    DeleteRange {
        deleted: i64,
        #[serde(default, skip_serializing_if = "is_default")]
        prev_kvs: Vec<KeyValue>,
    },
    Txn {
        succeeded: bool,
        results: Vec<TxnResult>,
    },
    Compact,
    LeaseGrant {
        lease: i64,
        ttl_s: i64,
    },
    LeaseRevoke,
    LeaseKeepAlive {
        lease: i64,
        /// 0: there is no such lease.
        ttl_s: i64,
    },
    LeaseTimeToLive {
        lease: i64,
        /// -1: there is no such lease.
        ttl_s: i64,
        granted_ttl_s: i64,
        keys: Vec<Blob>,
    },
    Lock {
        key: Blob,
    },
    Unlock,
    Campaign {
        /// The leader's key.
        leader: Blob,
        /// Revision at which that was created.
        create_revision: i64,
    },
    Proclaim,
    Leader {
        kv: Option<KeyValue>,
    },
    Resign,
    HashKv {
        hash: u32,
        hash_revision: i64,
        compact_revision: i64,
    },
    Defragment,
    Snapshot {
        bytes: u64,
    },
    Watch,
    Auth,
    Append {
        ops: Vec<ListOp>,
    },
    Registers {
        ops: Vec<RegisterOp>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TxnResult {
    Put { prev_kv: Option<KeyValue> },
    Range { kvs: Vec<KeyValue>, count: i64, more: bool },
    DeleteRange { deleted: i64, prev_kvs: Vec<KeyValue> },
    Txn { succeeded: bool, results: Vec<TxnResult> },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: Blob,
    pub value: Blob,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub lease: i64,
}
