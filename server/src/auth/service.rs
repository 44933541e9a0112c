//! etcd's Auth service. (etcd: `server/etcdserver/v3_server.go`, `server/etcdserver/apply/auth.go`.)

use std::sync::Arc;

use proto::{
    EtcdError,
    command::{AuthDone, AuthInfo, Authenticate, command::Op, outcome::Result as Outcome},
    etcdserverpb::{
        AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
        AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest, AuthRoleGetResponse,
        AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
        AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse,
        AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
        AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse,
        AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse,
        AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
        ResponseHeader, auth_server::Auth,
    },
};
use storage::AuthState;
use tonic::{Request, Response, Status};

use super::Caller;
use crate::{
    admit::{Learner, admit},
    context::Context,
};

pub struct AuthService {
    ctx: Arc<Context>,
}

impl AuthService {
    pub fn new(ctx: Arc<Context>) -> Self {
        AuthService { ctx }
    }

    fn admit<T>(&self, request: Request<T>) -> Result<(Caller, T), Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        Ok((Caller::of(&request), request.into_inner()))
    }

    /// Replicates a request as it is.
    async fn change<T>(&self, request: Request<T>, op: impl FnOnce(T) -> Op) -> Result<Option<ResponseHeader>, Status> {
        let (caller, request) = self.admit(request)?;
        self.change_by(&caller, op(request)).await
    }

    /// Replicates a command on behalf of the caller.
    async fn change_by(&self, caller: &Caller, op: Op) -> Result<Option<ResponseHeader>, Status> {
        let outcome = self.ctx.propose_by(caller, op).await?;
        Ok(self.header(self.done(outcome)?.revision))
    }

    fn done(&self, outcome: Outcome) -> Result<AuthDone, Status> {
        match outcome {
            Outcome::AuthDone(done) => Ok(done),
            other => Err(self.ctx.wrong_outcome("command about users and roles", &other)),
        }
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(self.ctx.header(revision))
    }

    /// Users and roles as all that was committed has made them, and who asks for them.
    async fn read(&self, caller: &Caller) -> Result<(Arc<AuthState>, Option<AuthInfo>), Status> {
        let info = self.ctx.auth.info(caller).await?;
        self.ctx.read_barrier().await?;
        Ok((self.ctx.auth.state(), info))
    }

    fn current_header(&self) -> Option<ResponseHeader> {
        self.header(self.ctx.store.revision())
    }

    /// The auth revision at which the password was right.
    async fn check_password(&self, request: &AuthenticateRequest) -> Result<u64, Status> {
        let state = self.ctx.auth.state();
        if !state.is_enabled() {
            return Err(EtcdError::AuthNotEnabled.into());
        }
        let user = state.user(&request.name).ok_or(EtcdError::AuthFailed)?;
        if user.options.is_some_and(|options| options.no_password) {
            return Err(EtcdError::NoPasswordUser.into());
        }
        let passwords = &self.ctx.auth.passwords;
        match passwords.verify(request.password.clone(), user.password.to_vec()).await? {
            true => Ok(state.revision()),
            false => Err(EtcdError::AuthFailed.into()),
        }
    }

    /// The hash that stands for a password in the log. Who may not change passwords shall not keep the member busy.
    async fn hash(&self, caller: &Caller, password: String) -> Result<String, Status> {
        self.ctx.auth.require_admin(caller).await?;
        let hash = self.ctx.auth.passwords.hash(password).await?;
        Ok(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, hash))
    }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(&self, request: Request<AuthEnableRequest>) -> Result<Response<AuthEnableResponse>, Status> {
        let header = self.change(request, Op::AuthEnable).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self.change(request, Op::AuthDisable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let header = self.change(request, Op::UserDelete).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let header = self.change(request, Op::UserGrantRole).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let header = self.change(request, Op::UserRevokeRole).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Result<Response<AuthRoleAddResponse>, Status> {
        let header = self.change(request, Op::RoleAdd).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let header = self.change(request, Op::RoleDelete).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let header = self.change(request, Op::RoleGrantPermission).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let header = self.change(request, Op::RoleRevokePermission).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }

    async fn user_add(&self, request: Request<AuthUserAddRequest>) -> Result<Response<AuthUserAddResponse>, Status> {
        let (caller, mut request) = self.admit(request)?;
        let password = std::mem::take(&mut request.password);
        request.hashed_password = match request.options {
            Some(options) if options.no_password => String::new(),
            _ => self.hash(&caller, password).await?,
        };
        let header = self.change_by(&caller, Op::UserAdd(request)).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let (caller, mut request) = self.admit(request)?;
        let password = std::mem::take(&mut request.password);
        // As in etcd an empty password takes the user's away, unless a hash comes in its place.
        if !password.is_empty() {
            request.hashed_password = self.hash(&caller, password).await?;
        }
        let header = self.change_by(&caller, Op::UserChangePassword(request)).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let (_, request) = self.admit(request)?;
        self.ctx.read_barrier().await?;
        loop {
            let checked = self.check_password(&request).await.inspect_err(|error| {
                tracing::warn!(user = request.name, error = error.message(), "invalid authentication was requested");
            })?;
            let tokens = &self.ctx.auth.tokens;
            let authenticate = Authenticate { name: request.name.clone(), simple_token: tokens.prefix() };
            let done = self.done(self.ctx.propose(Op::Authenticate(authenticate)).await?)?;
            // The password may have been changed since it was compared.
            if self.ctx.auth.state().revision() == checked {
                let token = tokens.issue(&request.name, done.auth_revision, done.token)?;
                return Ok(Response::new(AuthenticateResponse { header: self.header(done.revision), token }));
            }
            tracing::info!("revision when password checked became stale; retrying");
        }
    }

    async fn auth_status(&self, request: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let (caller, _) = self.admit(request)?;
        let (state, _) = self.read(&caller).await?;
        let (enabled, auth_revision) = (state.is_enabled(), state.revision());
        Ok(Response::new(AuthStatusResponse { header: self.current_header(), enabled, auth_revision }))
    }

    /// For root, and for the user itself.
    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Result<Response<AuthUserGetResponse>, Status> {
        let (caller, request) = self.admit(request)?;
        let (state, info) = self.read(&caller).await?;
        if name(&info) != request.name {
            state.check_admin(info.as_ref())?;
        }
        let user = state.user(&request.name).ok_or(EtcdError::UserNotFound)?;
        Ok(Response::new(AuthUserGetResponse { header: self.current_header(), roles: user.roles.clone() }))
    }

    async fn user_list(&self, request: Request<AuthUserListRequest>) -> Result<Response<AuthUserListResponse>, Status> {
        let (caller, _) = self.admit(request)?;
        let (state, info) = self.read(&caller).await?;
        state.check_admin(info.as_ref())?;
        Ok(Response::new(AuthUserListResponse { header: self.current_header(), users: state.user_names() }))
    }

    /// For root, and for those who have the role.
    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Result<Response<AuthRoleGetResponse>, Status> {
        let (caller, request) = self.admit(request)?;
        let (state, info) = self.read(&caller).await?;
        if !state.has_role(name(&info), &request.role) {
            state.check_admin(info.as_ref())?;
        }
        let perm = state.role_permissions(&request.role).ok_or(EtcdError::RoleNotFound)?;
        Ok(Response::new(AuthRoleGetResponse { header: self.current_header(), perm }))
    }

    async fn role_list(&self, request: Request<AuthRoleListRequest>) -> Result<Response<AuthRoleListResponse>, Status> {
        let (caller, _) = self.admit(request)?;
        let (state, info) = self.read(&caller).await?;
        state.check_admin(info.as_ref())?;
        Ok(Response::new(AuthRoleListResponse { header: self.current_header(), roles: state.role_names() }))
    }
}

fn name(info: &Option<AuthInfo>) -> &str {
    info.as_ref().map_or("", |info| &info.username)
}
