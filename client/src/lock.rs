//! Locks. Source: etcd, `client/v3/concurrency/mutex.go`, with whose locks these are shared.

use bytes::Bytes;

use crate::{
    Comparison, Error, Result, Session,
    queue::{self, Place},
};

/// A lock that is held. Dropping it unlocks it a little later; [`Lock::unlock`] tells when that is done.
///
/// A lock is as good as its lease: a process that does not run for longer than the session's TTL loses it without
/// noticing. What must not happen then belongs into a transaction with [`Lock::is_held`].
#[derive(Debug)]
pub struct Lock {
    place: Place,
}

impl Session {
    /// Waits for a lock. When the returned future is dropped, the place in the queue is given up.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] when the session ends meanwhile; [`Error::HeldAlready`] when the session has the lock.
    pub async fn lock(&self, name: &str) -> Result<Lock> {
        let place = self.place(name).await?;
        place.wait().await?;
        Ok(Lock { place })
    }

    /// Takes a lock if nobody has it.
    pub async fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let place = self.place(name).await?;
        let first = self.client().get(queue::first(name)).await?;
        if first.kvs.first().is_some_and(|first| first.key == place.key) {
            return Ok(Some(Lock { place }));
        }
        place.leave().await?;
        Ok(None)
    }

    async fn place(&self, name: &str) -> Result<Place> {
        // By the value two takers within one session are told apart, whose key is the same.
        let taker: Bytes = format!("{:016x}", rand::random::<u64>()).into();
        let (place, found) = Place::take(self, name, taker.clone()).await?;
        if found.is_none_or(|found| found.value == taker) {
            return Ok(place);
        }
        place.forget();
        Err(Error::HeldAlready(name.to_string()))
    }
}

impl Lock {
    /// The key that stands for it. It is there as long as the lock is held.
    pub fn key(&self) -> &Bytes {
        &self.place.key
    }

    /// The revision at which the key was created. It grows from holder to holder: a number that a resource can be guarded
    /// with, by refusing whoever comes with a lesser one than the last.
    pub fn revision(&self) -> i64 {
        self.place.revision
    }

    /// Holds as long as the lock is held: for transactions that only the holder may make.
    pub fn is_held(&self) -> Comparison {
        self.place.is_held()
    }

    /// Waits until the lock is lost, because the session is over.
    pub async fn lost(&self) {
        self.place.session().over().await;
    }

    /// Gives the lock to the next.
    pub async fn unlock(self) -> Result<()> {
        self.place.leave().await
    }
}
