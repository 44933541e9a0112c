//! Queues of keys: whoever's key is the oldest is the one. Locks and elections are such queues.
//!
//! ```text
//! prefix/2f01  created at 12   holds the lock, or leads
//! prefix/2f07  created at 15   watches prefix/2f01
//! prefix/2f03  created at 19   watches prefix/2f07
//! ```
//!
//! A key is named after the session's lease, and goes with it. Each waits for the key before its own alone, so that one
//! that goes wakes one. Source: etcd, `client/v3/concurrency/key.go`, with whose clients the queues are shared.

use bytes::Bytes;
use proto::{mvccpb::KeyValue, mvccpb::event::EventType};
use tokio::time::sleep;

use crate::{
    Client, Compare, Comparison, Delete, Error, Get, Op, Put, Result, Session, Txn, Watch,
    pb::{
        range_request::{SortOrder, SortTarget},
        response_op::Response,
    },
    retry::Backoff,
    revision,
};

/// The keys of a queue begin so.
pub(crate) fn prefix(name: &str) -> String {
    format!("{name}/")
}

/// The one who holds the lock or leads.
pub(crate) fn first(name: &str) -> Get {
    Get::prefix(prefix(name)).sort(SortTarget::Create, SortOrder::Ascend).limit(1)
}

/// A place in a queue. Dropping it gives it up, as far as that can be done without waiting.
#[derive(Debug)]
pub(crate) struct Place {
    session: Session,
    name: String,
    pub key: Bytes,
    /// What it was taken with.
    value: Bytes,
    /// The revision at which the key was created.
    pub revision: i64,
    is_left: bool,
}

impl Place {
    /// Takes a place, or finds the one that the session has: then the value is what it has there.
    pub async fn take(session: &Session, name: &str, value: Bytes) -> Result<(Place, Option<KeyValue>)> {
        let key: Bytes = format!("{}{:x}", prefix(name), session.lease().0).into();
        let txn = Txn::new()
            .when(Compare::create_revision(key.clone()).equals(0))
            .then(Op::put(Put::new(key.clone(), value.clone()).lease(session.lease())))
            .otherwise(Op::get(Get::key(key.clone())));
        // Until it is known whether the place was taken: it is given up when nobody waits for the answer any more.
        let mut place =
            Place { session: session.clone(), name: name.to_string(), key, value, revision: 0, is_left: false };
        let answer = session.unless_over(until_answered(&session.client(), &txn)).await?;
        place.revision = revision(&answer.header);
        if answer.succeeded {
            return Ok((place, None));
        }
        let found = match answer.responses.into_iter().next().and_then(|response| response.response) {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let found = found.ok_or(Error::LeaseGone(session.lease()))?;
        place.revision = found.create_revision;
        Ok((place, Some(found)))
    }

    /// Waits until all who came before are gone.
    pub async fn wait(&self) -> Result<()> {
        self.session.unless_over(self.wait_for_turn()).await
    }

    async fn wait_for_turn(&self) -> Result<()> {
        let client = self.session.client();
        let before = Get::prefix(prefix(&self.name))
            .max_create_revision(self.revision - 1)
            .sort(SortTarget::Create, SortOrder::Descend)
            .limit(1);
        loop {
            let answer = patiently(|| client.get(before.clone())).await?;
            let Some(last) = answer.kvs.first() else { break };
            wait_until_deleted(client, last.key.clone(), revision(&answer.header)).await?;
        }
        // The lease may have run out, and the key with it, while nobody has told us.
        let own = patiently(|| client.get(Get::key(self.key.clone()))).await?;
        match own.kvs.first() {
            Some(own) if own.create_revision == self.revision => Ok(()),
            _ => Err(Error::LeaseGone(self.session.lease())),
        }
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Holds as long as the place is held. In a transaction of what only the holder may do, it keeps one who has lost the
    /// place without noticing from doing it.
    pub fn is_held(&self) -> Comparison {
        Compare::create_revision(self.key.clone()).equals(self.revision)
    }

    /// Gives the place up.
    pub async fn leave(mut self) -> Result<()> {
        let txn = self.leaving();
        self.is_left = true;
        // Once more does nothing: the key that would be deleted is not there any more.
        patiently(|| self.session.client().txn(txn.clone())).await.map(|_| ())
    }

    /// The key is another's that has taken it before us.
    pub fn forget(mut self) {
        self.is_left = true;
    }

    fn leaving(&self) -> Txn {
        let own = match self.revision {
            // The answer has not come. The key may be one that the session had before, by another taker.
            0 => Compare::value(self.key.clone()).equals(self.value.clone()),
            _ => self.is_held(),
        };
        Txn::new().when(own).then(Op::delete(Delete::key(self.key.clone())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_left || self.session.is_over() {
            return;
        }
        // Without a runtime the place goes with the lease.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (client, txn) = (self.session.client().clone(), self.leaving());
        runtime.spawn(async move {
            if let Err(error) = client.txn(txn).await {
                tracing::debug!(%error, "a place in a queue could not be given up, and goes with its lease");
            }
        });
    }
}

/// The transaction does the same when it is carried out twice.
async fn until_answered(client: &Client, txn: &Txn) -> Result<crate::pb::TxnResponse> {
    patiently(|| client.txn(txn.clone())).await
}

/// Asks until there is an answer.
///
/// Not `AsyncFn`: what calls it with one could not be spawned.
async fn patiently<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    let mut backoff = Backoff::default();
    loop {
        match ask().await {
            Err(error) if error.is_transient() => sleep(backoff.wait()).await,
            answer => return answer,
        }
    }
}

/// `seen`: the store's revision when the key was there.
async fn wait_until_deleted(client: &Client, key: Bytes, seen: i64) -> Result<()> {
    let mut watcher = match patiently(|| client.watch(Watch::key(key.clone()).from_revision(seen + 1))).await {
        Err(Error::WatchCompacted { .. }) => return Ok(()),
        watcher => watcher?,
    };
    loop {
        match watcher.next().await {
            Ok(response) => {
                if response.events.iter().any(|event| event.r#type() == EventType::Delete) {
                    return Ok(());
                }
            }
            // What has happened is not known any more; the queue is looked at again.
            Err(Error::WatchCompacted { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
