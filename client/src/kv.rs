//! Reads and writes of keys.

use bytes::Bytes;
use prost::Message;
use proto::{
    LeaseId,
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse,
        kv_client::KvClient,
        range_request::{SortOrder, SortTarget},
    },
};

use crate::{Client, Error, Keys, Options, Result, identity::Connection, retry::Repeat};

/// A read. Linearizable unless [`Get::serializable`].
#[derive(Debug, Clone)]
pub struct Get(pub(crate) RangeRequest);

impl Get {
    /// Reads these keys.
    pub fn new(keys: Keys) -> Get {
        Get(RangeRequest { key: keys.key, range_end: keys.range_end, ..Default::default() })
    }

    /// Reads one key.
    pub fn key(key: impl Into<Bytes>) -> Get {
        Get::new(Keys::one(key))
    }

    /// Reads all keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Get {
        Get::new(Keys::prefix(prefix))
    }

    /// All keys.
    pub fn all() -> Get {
        Get::new(Keys::all())
    }

    /// At most this many keys; `more` in the answer says whether some were left out. 0: all.
    pub fn limit(mut self, limit: i64) -> Get {
        self.0.limit = limit;
        self
    }

    /// As it was at this revision. 0: the newest.
    pub fn revision(mut self, revision: i64) -> Get {
        self.0.revision = revision;
        self
    }

    /// In this order. Without it: by key.
    pub fn sort(mut self, target: SortTarget, order: SortOrder) -> Get {
        self.0.set_sort_target(target);
        self.0.set_sort_order(order);
        self
    }

    /// From the member's own state, which may be behind: no leader is needed.
    pub fn serializable(mut self) -> Get {
        self.0.serializable = true;
        self
    }

    /// Without values.
    pub fn keys_only(mut self) -> Get {
        self.0.keys_only = true;
        self
    }

    /// Only how many keys there are.
    pub fn count_only(mut self) -> Get {
        self.0.count_only = true;
        self
    }

    /// Only keys last changed at this revision or later.
    pub fn min_mod_revision(mut self, revision: i64) -> Get {
        self.0.min_mod_revision = revision;
        self
    }

    /// Only keys last changed at this revision or earlier.
    pub fn max_mod_revision(mut self, revision: i64) -> Get {
        self.0.max_mod_revision = revision;
        self
    }

    /// Only keys created at this revision or later.
    pub fn min_create_revision(mut self, revision: i64) -> Get {
        self.0.min_create_revision = revision;
        self
    }

    /// Only keys created at this revision or earlier.
    pub fn max_create_revision(mut self, revision: i64) -> Get {
        self.0.max_create_revision = revision;
        self
    }
}

impl From<Get> for RangeRequest {
    /// The message, for a service of one's own or a call that this library does not have.
    fn from(get: Get) -> RangeRequest {
        get.0
    }
}

/// A write of one key.
#[derive(Debug, Clone)]
pub struct Put(pub(crate) PutRequest);

impl Put {
    /// Puts this value under this key.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        Put(PutRequest { key: key.into(), value: value.into(), ..Default::default() })
    }

    /// The key goes when the lease does.
    pub fn lease(mut self, lease: LeaseId) -> Put {
        self.0.lease = lease.0;
        self
    }

    /// Answer with what was there before.
    pub fn prev_kv(mut self) -> Put {
        self.0.prev_kv = true;
        self
    }

    /// Keep the key's value (and give it another lease). The value given must be empty.
    pub fn ignore_value(mut self) -> Put {
        self.0.ignore_value = true;
        self
    }

    /// Keep the key's lease. None may be given.
    pub fn ignore_lease(mut self) -> Put {
        self.0.ignore_lease = true;
        self
    }
}

/// A delete.
#[derive(Debug, Clone)]
pub struct Delete(pub(crate) DeleteRangeRequest);

impl Delete {
    /// Deletes these keys.
    pub fn new(keys: Keys) -> Delete {
        Delete(DeleteRangeRequest { key: keys.key, range_end: keys.range_end, prev_kv: false })
    }

    /// Deletes one key.
    pub fn key(key: impl Into<Bytes>) -> Delete {
        Delete::new(Keys::one(key))
    }

    /// Deletes all keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Delete {
        Delete::new(Keys::prefix(prefix))
    }

    /// Answer with what was there before.
    pub fn prev_kv(mut self) -> Delete {
        self.0.prev_kv = true;
        self
    }
}

pub(crate) fn kv(connection: Connection, options: &Options) -> KvClient<Connection> {
    KvClient::new(connection).max_decoding_message_size(options.answer_bytes_max)
}

/// The request, unless it is larger than what may be sent.
pub(crate) fn fitting<R: Message>(request: R, options: &Options) -> Result<R> {
    let (bytes, max) = (request.encoded_len(), options.request_bytes_max);
    if bytes > max { Err(Error::TooLarge { bytes, max }) } else { Ok(request) }
}

impl Client {
    /// Reads keys.
    pub async fn get(&self, get: Get) -> Result<RangeResponse> {
        let send = async |connection, request| kv(connection, self.options()).range(request).await;
        Ok(self.left(self.call(Repeat::Always, fitting(self.entered(get.0)?, self.options())?, send).await?))
    }

    /// Writes a key.
    pub async fn put(&self, put: Put) -> Result<PutResponse> {
        let send = async |connection, request| kv(connection, self.options()).put(request).await;
        Ok(self.left(self.call(Repeat::IfNotProposed, fitting(self.entered(put.0)?, self.options())?, send).await?))
    }

    /// Deletes keys.
    pub async fn delete(&self, delete: Delete) -> Result<DeleteRangeResponse> {
        let send = async |connection, request| kv(connection, self.options()).delete_range(request).await;
        Ok(self.left(self.call(Repeat::IfNotProposed, fitting(self.entered(delete.0)?, self.options())?, send).await?))
    }

    /// Forgets what only revisions below `revision` can see. `physical` waits until it is gone from the store.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<CompactionResponse> {
        let request = CompactionRequest { revision, physical };
        self.call(Repeat::IfNotProposed, request, async |connection, request| {
            kv(connection, self.options()).compact(request).await
        })
        .await
    }
}
