//! Leases, and a task that keeps one alive.

mod keeper;

use proto::{
    EtcdError, LeaseId,
    etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
        LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
        lease_client::LeaseClient,
    },
};
use tokio::time::Instant;
use tonic::{Response, Status};

pub(crate) use self::keeper::Hub;
pub use self::keeper::LeaseKeeper;
use crate::{Client, Error, Result, identity::Connection, retry::Repeat};

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
        let send = async |connection, request| LeaseClient::new(connection).lease_time_to_live(request).await;
        Ok(self.left(self.call(Repeat::Always, request, send).await?))
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

    /// Keeps a lease alive from now on, until the keeper is dropped or the lease is gone. All leases that a client keeps
    /// alive share a stream.
    pub fn keep_alive(&self, id: LeaseId) -> LeaseKeeper {
        self.keepers().keep(self.route(), id, None)
    }

    /// [`Client::keep_alive`] of a lease that is known to last until `expires`, as long as it is not renewed.
    pub(crate) fn keep_alive_until(&self, id: LeaseId, expires: Instant) -> LeaseKeeper {
        self.keepers().keep(self.route(), id, Some(expires))
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
