//! Sessions: a lease that is kept alive, and what is held by it. Source: etcd, `client/v3/concurrency/session.go`.

use std::{sync::Arc, time::Duration};

use proto::LeaseId;
use tokio::time::Instant;

use crate::{Client, Error, LeaseKeeper, Result};

/// A lease that is kept alive for as long as its owner lives. Locks and candidacies are held by it, and end with it.
///
/// Cheap to clone. When the last clone is dropped, and with it whatever was held, the lease runs out by itself;
/// [`Session::close`] ends it at once.
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    keeper: Arc<LeaseKeeper>,
}

impl Client {
    /// Begins a session. When this process dies, what the session holds goes after `ttl_seconds`.
    pub async fn session(&self, ttl_seconds: i64) -> Result<Session> {
        let sent = Instant::now();
        let granted = self.lease_grant(ttl_seconds, LeaseId(0)).await?;
        let lasts = Duration::from_secs(granted.ttl.unsigned_abs());
        let keeper = self.keep_alive_until(LeaseId(granted.id), sent + lasts);
        Ok(Session { client: self.clone(), keeper: Arc::new(keeper) })
    }

    /// A session with a lease that is there already.
    pub fn session_of(&self, lease: LeaseId) -> Session {
        Session { client: self.clone(), keeper: Arc::new(self.keep_alive(lease)) }
    }
}

impl Session {
    /// The client it was begun with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its lease. Keys that are put with it go when the session ends.
    pub fn lease(&self) -> LeaseId {
        self.keeper.id()
    }

    /// Whether the session is over, so that others may hold what it held.
    pub fn is_over(&self) -> bool {
        self.keeper.is_gone()
    }

    /// Waits until the session is over: its lease was revoked, or could not be renewed in time. Whoever does something
    /// that only the holder of a lock or a leader may do must stop then.
    pub async fn over(&self) {
        self.keeper.gone().await;
    }

    /// Ends the session, and with it whatever it holds.
    pub async fn close(self) -> Result<()> {
        self.client.lease_revoke(self.lease()).await.map(|_| ())
    }

    /// Does this, unless the session ends first.
    pub(crate) async fn unless_over<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.over() => Err(Error::LeaseGone(self.lease())),
            done = work => done,
        }
    }
}
