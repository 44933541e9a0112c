//! The RPCs of etcd that Pintle does not have yet. They are registered, so that a client is told which one is missing.

use proto::etcdserverpb::{self as pb, auth_server::Auth};
use tonic::{Request, Response, Status};

/// `rpc` as package, service and method.
pub fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!("pintle: {rpc} is not implemented"))
}

pub struct Missing;

macro_rules! missing {
    ($service:literal, $trait:ident, $package:ident, { $($head:tt)* }
     $($method:ident = $name:ident($request:ident) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl $trait for Missing {
            $($head)*
            $(async fn $method(&self, _: Request<$package::$request>) -> Result<Response<$response>, Status> {
                Err(unimplemented(concat!($service, "/", stringify!($name))))
            })*
        }
    };
}

missing! { "etcdserverpb.Auth", Auth, pb, {}
    auth_enable = AuthEnable(AuthEnableRequest) -> pb::AuthEnableResponse;
    auth_disable = AuthDisable(AuthDisableRequest) -> pb::AuthDisableResponse;
    auth_status = AuthStatus(AuthStatusRequest) -> pb::AuthStatusResponse;
    authenticate = Authenticate(AuthenticateRequest) -> pb::AuthenticateResponse;
    user_add = UserAdd(AuthUserAddRequest) -> pb::AuthUserAddResponse;
    user_get = UserGet(AuthUserGetRequest) -> pb::AuthUserGetResponse;
    user_list = UserList(AuthUserListRequest) -> pb::AuthUserListResponse;
    user_delete = UserDelete(AuthUserDeleteRequest) -> pb::AuthUserDeleteResponse;
    user_change_password = UserChangePassword(AuthUserChangePasswordRequest) -> pb::AuthUserChangePasswordResponse;
    user_grant_role = UserGrantRole(AuthUserGrantRoleRequest) -> pb::AuthUserGrantRoleResponse;
    user_revoke_role = UserRevokeRole(AuthUserRevokeRoleRequest) -> pb::AuthUserRevokeRoleResponse;
    role_add = RoleAdd(AuthRoleAddRequest) -> pb::AuthRoleAddResponse;
    role_get = RoleGet(AuthRoleGetRequest) -> pb::AuthRoleGetResponse;
    role_list = RoleList(AuthRoleListRequest) -> pb::AuthRoleListResponse;
    role_delete = RoleDelete(AuthRoleDeleteRequest) -> pb::AuthRoleDeleteResponse;
    role_grant_permission = RoleGrantPermission(AuthRoleGrantPermissionRequest) -> pb::AuthRoleGrantPermissionResponse;
    role_revoke_permission = RoleRevokePermission(AuthRoleRevokePermissionRequest) -> pb::AuthRoleRevokePermissionResponse;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_answer_names_the_rpc() {
        let status = Auth::user_add(&Missing, Request::new(pb::AuthUserAddRequest::default())).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert_eq!(status.message(), "pintle: etcdserverpb.Auth/UserAdd is not implemented");
    }
}
