//! What is seen of watches.

use serde::{Deserialize, Serialize};

use super::{Blob, KeyValue, Keys, request::is_default};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WatchRequest {
    #[serde(flatten)]
    pub keys: Keys,
    /// 0: from the next revision on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub start_revision: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub prev_kv: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub progress_notify: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub fragment: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_put: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_delete: bool,
}

/// One response of a watch, or what became of its stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
pub enum WatchSeen {
    /// The store has taken the watch, at this revision of it. Each request that is made for a watcher, also to resume
    /// it, leads to one of these.
    Created { request: WatchRequest, revision: i64 },
    Events {
        /// Of the response's header.
        revision: i64,
        /// More of this response follows in the next.
        #[serde(default, skip_serializing_if = "is_default")]
        fragment: bool,
        events: Vec<WatchEvent>,
    },
    /// Nothing at or below this revision is still to come.
    Progress { revision: i64 },
    /// The revision that was asked for is no longer there, and the watch is over.
    Compacted { compact_revision: i64 },
    /// The store has ended the watch.
    Canceled { reason: String },
    /// The stream broke. The watcher may be resumed.
    Broken { error: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Of a delete: key and revision only.
    pub kv: KeyValue,
    #[serde(default, skip_serializing_if = "is_default")]
    pub delete: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_kv: Option<KeyValue>,
}

impl WatchEvent {
    pub fn key(&self) -> &Blob {
        &self.kv.key
    }

    pub fn revision(&self) -> i64 {
        self.kv.mod_revision
    }

    /// As etcd's clients tell it.
    pub fn is_create(&self) -> bool {
        !self.delete && self.kv.create_revision == self.kv.mod_revision
    }
}
