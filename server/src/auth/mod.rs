//! Authentication: who makes a request, and what it may do.
//!
//! ```text
//! request ──> Caller              the token, or the name on the certificate          caller.rs
//!              │  Auth::info      whose token it is: simple or JWT                   tokens.rs, simple.rs, jwt.rs
//!              v
//!            AuthInfo             user and auth revision; None while it is off
//!              │
//!              ├─> reads, leases, watches, maintenance: checked here, against the store's users and roles
//!              └─> writes: go into the log with it, and are checked when they are applied (storage/src/auth/)
//! ```
//! The service, with its passwords, is in service.rs and passwords.rs.
//!
//! Sources: etcd, `server/auth/store.go` (AuthInfoFromCtx, AuthInfoFromTLS), `server/etcdserver/v3_server.go`.

mod caller;
mod ecdsa_p521;
mod jwt;
mod passwords;
mod service;
mod simple;
mod tokens;

use std::{sync::Arc, time::Duration};

use proto::{EtcdError, LeaseId, command::AuthInfo};
use storage::{AuthState, Right, Store};
use tonic::{Request, Status};

pub use caller::Caller;
pub use passwords::Passwords;
pub use service::AuthService;
pub use tokens::{TokenOptions, Tokens};

/// How long a token is waited for that this member has not seen assigned yet.
const TOKEN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Answers whether a request may do what it asks for.
pub struct Auth {
    store: Store,
    node: raft::Node,
    tokens: Arc<Tokens>,
    passwords: Passwords,
    /// Whether the name on a client's certificate is that of a user.
    trusts_certificates: bool,
}

impl Auth {
    pub fn new(
        store: Store,
        node: raft::Node,
        tokens: Arc<Tokens>,
        passwords: Passwords,
        trusts_certificates: bool,
    ) -> Self {
        Auth { store, node, tokens, passwords, trusts_certificates }
    }

    pub fn is_enabled(&self) -> bool {
        self.store.is_auth_enabled()
    }

    /// Users and roles as they are now.
    pub fn state(&self) -> Arc<AuthState> {
        self.store.auth()
    }

    /// What a request shows of who makes it: nothing while that does not matter.
    pub fn caller<T>(&self, request: &Request<T>) -> Caller {
        if self.is_enabled() { Caller::of(request) } else { Caller::default() }
    }

    /// Who calls. None while authentication is off, and for a caller that shows nothing.
    ///
    /// # Errors
    /// `InvalidAuthToken`.
    pub async fn info(&self, caller: &Caller) -> Result<Option<AuthInfo>, EtcdError> {
        if !self.is_enabled() {
            return Ok(None);
        }
        if let Some(token) = &caller.token {
            return match self.of_token(token).await {
                Some(info) => Ok(Some(info)),
                None => {
                    tracing::warn!(token_fingerprint = tokens::fingerprint(token), "invalid auth token");
                    Err(EtcdError::InvalidAuthToken)
                }
            };
        }
        let name = caller.common_name.as_ref().filter(|_| self.trusts_certificates);
        Ok(name.map(|name| AuthInfo { username: name.clone(), revision: self.state().revision() }))
    }

    async fn of_token(&self, token: &str) -> Option<AuthInfo> {
        // Another member may have assigned it at an entry that is not applied here yet.
        if let Some(index) = self.tokens.assigned_at(token) {
            tokio::time::timeout(TOKEN_WAIT_MAX, self.node.wait_until_applied(index)).await.ok()?.ok()?;
        }
        self.tokens.info(token, self.state().revision())
    }

    /// For what only root may do.
    pub async fn require_admin(&self, caller: &Caller) -> Result<(), Status> {
        let info = self.info(caller).await?;
        Ok(self.state().check_admin(info.as_ref())?)
    }

    /// For what every user may do, and nobody else.
    pub async fn require_user(&self, caller: &Caller) -> Result<(), Status> {
        if self.is_enabled() && self.info(caller).await?.is_none() {
            return Err(EtcdError::UserEmpty.into());
        }
        Ok(())
    }

    /// Whether the caller may read a range. Returns the auth revision that was looked at.
    pub async fn require_range(&self, caller: &Caller, key: &[u8], range_end: &[u8]) -> Result<u64, EtcdError> {
        let info = self.info(caller).await?;
        let state = self.state();
        state.check_keys(info.as_ref(), key, range_end, Right::Read)?;
        Ok(state.revision())
    }

    /// Whether the caller may do to a lease what takes `right` on each of its keys. Returns the auth revision that was
    /// looked at.
    pub async fn require_lease(&self, caller: &Caller, id: LeaseId, right: Right) -> Result<u64, Status> {
        let state = self.state();
        if !state.is_enabled() {
            return Ok(state.revision());
        }
        let info = self.info(caller).await?.ok_or(EtcdError::UserEmpty)?;
        self.state().check_lease_keys(Some(&info), self.store.lease_keys(id), right)?;
        Ok(state.revision())
    }

    /// Whether the caller may know of these leases: who may read all of their keys may.
    pub async fn require_leases(&self, caller: &Caller, ids: &[LeaseId]) -> Result<(), Status> {
        let mut revision = self.state().revision();
        for &id in ids {
            self.require_unchanged(revision)?;
            revision = self.require_lease(caller, id, Right::Read).await?;
        }
        if ids.is_empty() { self.require_user(caller).await } else { Ok(self.require_unchanged(revision)?) }
    }

    /// Whether nothing about users and roles has changed since `revision` was looked at.
    pub fn require_unchanged(&self, revision: u64) -> Result<(), EtcdError> {
        let state = self.state();
        let is_same = !state.is_enabled() || state.revision() == revision;
        is_same.then_some(()).ok_or(EtcdError::AuthOldRevision)
    }
}
