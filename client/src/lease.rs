//! Leases, and a task that keeps one alive.

use std::time::Duration;

use proto::{
    EtcdError, LeaseId,
    etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
        LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
        lease_client::LeaseClient,
    },
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Response, Status};

use crate::{
    Client, Error, Result,
    identity::Connection,
    retry::{Backoff, Repeat},
};

impl Client {
    /// Grants a lease for `ttl_seconds`. `id` 0 lets the server choose.
    pub async fn lease_grant(&self, ttl_seconds: i64, id: LeaseId) -> Result<LeaseGrantResponse> {
        // A second lease by the server's choice expires unused; a second one by ours is refused, which would be taken for
        // a failure.
        let repeat = if id.0 == 0 { Repeat::Always } else { Repeat::IfNotProposed };
        let request = LeaseGrantRequest { ttl: ttl_seconds, id: id.0 };
        self.call(repeat, request, async |connection, request| LeaseClient::new(connection).lease_grant(request).await)
            .await
    }

    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<LeaseRevokeResponse> {
        let request = LeaseRevokeRequest { id: id.0 };
        self.call(Repeat::IfNotProposed, request, async |connection, request| {
            LeaseClient::new(connection).lease_revoke(request).await
        })
        .await
    }

    /// How long a lease has left, and its keys where `keys` asks for them. A TTL of -1: there is no such lease.
    pub async fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Result<LeaseTimeToLiveResponse> {
        let request = LeaseTimeToLiveRequest { id: id.0, keys };
        self.call(Repeat::Always, request, async |connection, request| {
            LeaseClient::new(connection).lease_time_to_live(request).await
        })
        .await
    }

    /// All leases.
    pub async fn leases(&self) -> Result<LeaseLeasesResponse> {
        self.call(Repeat::Always, LeaseLeasesRequest {}, async |connection, request| {
            LeaseClient::new(connection).lease_leases(request).await
        })
        .await
    }

    /// Renews a lease once.
    pub async fn lease_keep_alive_once(&self, id: LeaseId) -> Result<LeaseKeepAliveResponse> {
        let answer = self.call(Repeat::Always, id, renew).await?;
        if answer.ttl <= 0 { Err(Error::Etcd(EtcdError::LeaseNotFound)) } else { Ok(answer) }
    }

    /// Keeps a lease alive from now on, until the keeper is dropped or the lease is gone.
    pub fn keep_alive(&self, id: LeaseId) -> LeaseKeeper {
        let (state, renewals) = watch::channel(State::Unknown);
        LeaseKeeper { id, renewals, task: tokio::spawn(keep(self.clone(), id, state)) }
    }
}

/// One renewal. The stream is the API's; we need one exchange of it, so a failure is that of an ordinary request.
async fn renew(connection: Connection, id: LeaseId) -> Result<Response<LeaseKeepAliveResponse>, Status> {
    let request = tokio_stream::once(LeaseKeepAliveRequest { id: id.0 });
    let mut answers = LeaseClient::new(connection).lease_keep_alive(request).await?.into_inner();
    match answers.message().await? {
        Some(answer) => Ok(Response::new(answer)),
        None => Err(Status::unavailable("the keep-alive stream was closed")),
    }
}

#[derive(Debug, Clone)]
enum State {
    /// Not renewed yet.
    Unknown,
    Renewed(LeaseKeepAliveResponse),
    Gone,
}

/// Renews a lease whenever a third of its time is over. Dropping it ends the renewals, not the lease.
#[derive(Debug)]
pub struct LeaseKeeper {
    id: LeaseId,
    renewals: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl LeaseKeeper {
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Whether the lease is gone, as [`LeaseKeeper::next`] would say.
    pub fn is_gone(&self) -> bool {
        matches!(*self.renewals.borrow(), State::Gone)
    }

    /// Waits for the next renewal. Of several since the last call it gives the newest.
    ///
    /// [`Error::LeaseGone`] when the server says that there is no such lease, or when nobody could be asked for as long
    /// as the lease lasts: whoever relies on the lease must then let go of what it stands for.
    pub async fn next(&mut self) -> Result<LeaseKeepAliveResponse> {
        loop {
            if let State::Gone = *self.renewals.borrow_and_update() {
                return Err(Error::LeaseGone(self.id));
            }
            // The task ends only after it has reported that the lease is gone.
            self.renewals.changed().await.map_err(|_| Error::LeaseGone(self.id))?;
            if let State::Renewed(answer) = &*self.renewals.borrow_and_update() {
                return Ok(*answer);
            }
        }
    }

    /// Waits until the lease is gone.
    pub async fn gone(&mut self) {
        // Fails only when the task has ended, and then the lease is gone, too.
        let _ = self.renewals.wait_for(|state| matches!(state, State::Gone)).await;
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(client: Client, id: LeaseId, state: watch::Sender<State>) {
    let mut backoff = Backoff::default();
    // Until the first answer we do not know how long the lease lasts, and keep asking.
    let mut expires: Option<Instant> = None;
    loop {
        let target = client.route().target();
        let sent = Instant::now();
        let left = expires.map_or(client.request_timeout(), |expires| expires.saturating_duration_since(sent));
        if left.is_zero() {
            break;
        }
        // A member that hangs must leave time to ask another.
        let within = left.min(client.request_timeout()) / 2;
        let answer = timeout(within, async {
            let token =
                client.route().token(sent + within).await.map_err(|error| Status::unknown(error.to_string()))?;
            renew(token.connection(target.channel.clone()), id).await
        });
        let answer = answer.await;
        match answer {
            Ok(Ok(answer)) if answer.get_ref().ttl <= 0 => break,
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let ttl = Duration::from_secs(answer.ttl.unsigned_abs());
                // Counted from the sending: the server's clock for it started later.
                expires = Some(sent + ttl);
                state.send_replace(State::Renewed(answer));
                backoff.reset();
                sleep_until(sent + ttl / 3).await;
            }
            Ok(Err(status)) => {
                tracing::debug!(lease = %id, %status, "lease could not be renewed");
                client.route().give_up(&target);
                sleep(backoff.wait()).await;
            }
            Err(_elapsed) => {
                tracing::debug!(lease = %id, "lease could not be renewed in time");
                client.route().give_up(&target);
            }
        }
    }
    state.send_replace(State::Gone);
}
