//! Software transactional memory: a function that reads and writes keys, carried out as if nobody else did anything
//! meanwhile, and again when somebody has. Source: etcd, `client/v3/concurrency/stm.go`.
//!
//! Reads are remembered, writes are collected. At the end one transaction writes all, on the condition that what was read
//! is unchanged ([`Isolation`] says what exactly).

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{EtcdError, LeaseId, mvccpb::KeyValue};
use tokio::time::sleep;

use crate::{
    Client, Compare, Comparison, Delete, Error, Get, Op, Put, Result, Txn,
    pb::{TxnResponse, response_op::Response},
    retry::Backoff,
    revision,
};

/// What a transaction may see of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// All reads are of one revision, and nothing that was read or is written has changed since.
    #[default]
    SerializableSnapshot,
    /// All reads are of one revision, and nothing that was read has changed since.
    Serializable,
    /// What was read has not changed, but each key may have been read at another revision.
    RepeatableReads,
    /// What was read was committed some time; it may have changed since.
    ReadCommitted,
}

/// What a transaction's function reads and writes with. Clones are the same transaction.
#[derive(Debug, Clone)]
pub struct Stm {
    client: Client,
    isolation: Isolation,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    reads: BTreeMap<Bytes, Read>,
    writes: BTreeMap<Bytes, Write>,
    /// What a failed attempt has found: the next one reads it without asking.
    found: BTreeMap<Bytes, Read>,
    /// The revision of the first read, where all are to be of one.
    base: Option<i64>,
    /// A read could not be of the revision it was to be of: compacted.
    is_lost: bool,
}

#[derive(Debug, Clone)]
struct Read {
    kv: Option<KeyValue>,
    /// The store's revision when it was read.
    revision: i64,
}

#[derive(Debug, Clone)]
enum Write {
    Put(Bytes, LeaseId),
    Delete,
}

impl Client {
    /// Carries out `body` as one transaction, as often as it takes. Gives what the last run of `body` gave.
    ///
    /// `body` must do nothing that cannot be done again. An error of it ends the transaction without writing anything.
    ///
    /// ```no_run
    /// # async fn example(client: &client::Client) -> client::Result<()> {
    /// use client::Isolation;
    ///
    /// let count = client
    ///     .stm(Isolation::default(), |tx| async move {
    ///         let count = tx.get("count").await?.map_or(0, |text| String::from_utf8_lossy(&text).parse().unwrap_or(0));
    ///         tx.put("count", (count + 1).to_string());
    ///         Ok::<u64, client::Error>(count + 1)
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When [`Error::may_have_happened`], the last attempt may have been committed.
    pub async fn stm<T, E, F>(&self, isolation: Isolation, mut body: impl FnMut(Stm) -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let mut found = BTreeMap::new();
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(100));
        loop {
            let state = State { found: std::mem::take(&mut found), ..State::default() };
            let stm = Stm { client: self.clone(), isolation, state: Arc::new(Mutex::new(state)) };
            let done = body(stm.clone()).await;
            if !stm.state.lock().is_lost {
                let value = done?;
                match stm.commit().await? {
                    None => return Ok(value),
                    Some(fresh) => found = fresh,
                }
            }
            sleep(backoff.wait()).await;
        }
    }
}

impl Stm {
    /// The value of a key, as the transaction itself has left it. None: there is none.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = key.into();
        match self.state.lock().writes.get(&key) {
            Some(Write::Put(value, _)) => return Ok(Some(value.clone())),
            Some(Write::Delete) => return Ok(None),
            None => {}
        }
        Ok(self.read(key).await?.kv.map(|kv| kv.value))
    }

    /// The mod revision of a key as it was read; 0 where there is none. What the transaction writes does not count.
    pub async fn revision(&self, key: impl Into<Bytes>) -> Result<i64> {
        Ok(self.read(key.into()).await?.kv.map_or(0, |kv| kv.mod_revision))
    }

    /// Writes a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.put_with_lease(key, value, LeaseId(0));
    }

    /// Writes a key that goes when the lease does.
    pub fn put_with_lease(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, lease: LeaseId) {
        self.state.lock().writes.insert(key.into(), Write::Put(value.into(), lease));
    }

    /// Deletes a key.
    pub fn delete(&self, key: impl Into<Bytes>) {
        self.state.lock().writes.insert(key.into(), Write::Delete);
    }

    async fn read(&self, key: Bytes) -> Result<Read> {
        let base = {
            let mut state = self.state.lock();
            if let Some(read) = state.reads.get(&key) {
                return Ok(read.clone());
            }
            if let Some(read) = state.found.remove(&key) {
                state.remember(key, read.clone(), self.isolation);
                return Ok(read);
            }
            state.base
        };
        let get = match (self.isolation, base) {
            (Isolation::SerializableSnapshot | Isolation::Serializable, None) => Get::key(key.clone()),
            (Isolation::SerializableSnapshot | Isolation::Serializable, Some(base)) => {
                Get::key(key.clone()).revision(base)
            }
            // What is not current any more fails at the end, or does not matter.
            (Isolation::RepeatableReads | Isolation::ReadCommitted, _) => Get::key(key.clone()).serializable(),
        };
        let answer = match self.client.get(get).await {
            Err(error @ Error::Etcd(EtcdError::Compacted)) => {
                self.state.lock().is_lost = true;
                return Err(error);
            }
            answer => answer?,
        };
        let read = Read { revision: base.unwrap_or(revision(&answer.header)), kv: answer.kvs.into_iter().next() };
        self.state.lock().remember(key, read.clone(), self.isolation);
        Ok(read)
    }

    /// None: committed. Else what the keys are now that were read.
    async fn commit(&self) -> Result<Option<BTreeMap<Bytes, Read>>> {
        let (txn, keys) = {
            let state = self.state.lock();
            if state.writes.is_empty() && state.reads.is_empty() {
                return Ok(None);
            }
            (state.transaction(self.isolation), state.reads.keys().cloned().collect::<Vec<_>>())
        };
        let answer = self.client.txn(txn).await?;
        Ok(if answer.succeeded { None } else { Some(found(keys, answer)) })
    }
}

fn found(keys: Vec<Bytes>, answer: TxnResponse) -> BTreeMap<Bytes, Read> {
    let revision = revision(&answer.header);
    let kvs = answer.responses.into_iter().map(|response| match response.response {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    });
    keys.into_iter().zip(kvs.map(|kv| Read { kv, revision })).collect()
}

impl State {
    fn remember(&mut self, key: Bytes, read: Read, isolation: Isolation) {
        if matches!(isolation, Isolation::SerializableSnapshot | Isolation::Serializable) {
            self.base.get_or_insert(read.revision);
        }
        self.reads.insert(key, read);
    }

    fn transaction(&self, isolation: Isolation) -> Txn {
        let writes = self.writes.iter().map(|(key, write)| match write {
            Write::Put(value, lease) => Op::put(Put::new(key.clone(), value.clone()).lease(*lease)),
            Write::Delete => Op::delete(Delete::key(key.clone())),
        });
        let txn = self.conditions(isolation).into_iter().fold(Txn::all_of(writes.collect()), Txn::when);
        self.reads.keys().fold(txn, |txn, key| txn.otherwise(Op::get(Get::key(key.clone()))))
    }

    fn conditions(&self, isolation: Isolation) -> Vec<Comparison> {
        let unchanged = self.reads.iter().map(|(key, read)| {
            let mod_revision = read.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            Compare::mod_revision(key.clone()).equals(mod_revision)
        });
        // What is written without having been read, too, must be older than what was read.
        let overwritten = self
            .base
            .into_iter()
            .flat_map(|base| self.writes.keys().map(move |key| Compare::mod_revision(key.clone()).less_than(base + 1)));
        match isolation {
            Isolation::SerializableSnapshot => unchanged.chain(overwritten).collect(),
            Isolation::Serializable | Isolation::RepeatableReads => unchanged.collect(),
            Isolation::ReadCommitted => Vec::new(),
        }
    }
}
