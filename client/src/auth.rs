//! Users, roles, and whether they count.

use bytes::Bytes;
use proto::{
    authpb::{Permission, UserAddOptions, permission::Type},
    etcdserverpb::{self as pb, auth_client::AuthClient},
};

use crate::{Client, Keys, Result, identity::Connection, retry::Repeat};

fn auth(connection: Connection) -> AuthClient<Connection> {
    AuthClient::new(connection).max_decoding_message_size(crate::connection::ANSWER_BYTES_MAX)
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> $answer:ident,
       $repeat:ident $rpc:ident $request:expr;)*) => {
        impl Client {$(
            $(#[$doc])*
            pub async fn $name(&self, $($argument: $type),*) -> Result<pb::$answer> {
                self.call(Repeat::$repeat, $request, async |connection, request| auth(connection).$rpc(request).await).await
            }
        )*}
    };
}

calls! {
    /// From now on requests need a user who may make them. The user `root` must be there, with the role `root`.
    auth_enable() -> AuthEnableResponse, IfNotProposed auth_enable pb::AuthEnableRequest {};

    /// From now on everybody may do everything.
    auth_disable() -> AuthDisableResponse, IfNotProposed auth_disable pb::AuthDisableRequest {};

    /// Whether users and roles count, and the revision of all that is said about them.
    auth_status() -> AuthStatusResponse, Always auth_status pb::AuthStatusRequest {};

    /// The token for a user's password. A client with [`crate::Credentials`] does this by itself.
    authenticate(user: &str, password: &str) -> AuthenticateResponse,
        Always authenticate pb::AuthenticateRequest { name: user.to_string(), password: password.to_string() };

    /// Adds a user. Without a password it can only be one who shows a certificate with this common name.
    user_add(user: &str, password: Option<&str>) -> AuthUserAddResponse, IfNotProposed user_add pb::AuthUserAddRequest {
        name: user.to_string(),
        password: password.unwrap_or_default().to_string(),
        options: Some(UserAddOptions { no_password: password.is_none() }),
        ..Default::default()
    };

    /// The roles of a user.
    user_get(user: &str) -> AuthUserGetResponse, Always user_get pb::AuthUserGetRequest { name: user.to_string() };

    /// All users.
    user_list() -> AuthUserListResponse, Always user_list pb::AuthUserListRequest {};

    /// Deletes a user.
    user_delete(user: &str) -> AuthUserDeleteResponse,
        IfNotProposed user_delete pb::AuthUserDeleteRequest { name: user.to_string() };

    /// Gives a user another password.
    user_change_password(user: &str, password: &str) -> AuthUserChangePasswordResponse,
        IfNotProposed user_change_password pb::AuthUserChangePasswordRequest {
            name: user.to_string(),
            password: password.to_string(),
            ..Default::default()
        };

    /// Gives a user a role.
    user_grant_role(user: &str, role: &str) -> AuthUserGrantRoleResponse,
        IfNotProposed user_grant_role pb::AuthUserGrantRoleRequest { user: user.to_string(), role: role.to_string() };

    /// Takes a role from a user.
    user_revoke_role(user: &str, role: &str) -> AuthUserRevokeRoleResponse,
        IfNotProposed user_revoke_role pb::AuthUserRevokeRoleRequest { name: user.to_string(), role: role.to_string() };

    /// Adds a role, which may nothing yet.
    role_add(role: &str) -> AuthRoleAddResponse, IfNotProposed role_add pb::AuthRoleAddRequest { name: role.to_string() };

    /// What a role may do.
    role_get(role: &str) -> AuthRoleGetResponse, Always role_get pb::AuthRoleGetRequest { role: role.to_string() };

    /// All roles.
    role_list() -> AuthRoleListResponse, Always role_list pb::AuthRoleListRequest {};

    /// Deletes a role, and takes it from all who have it.
    role_delete(role: &str) -> AuthRoleDeleteResponse,
        IfNotProposed role_delete pb::AuthRoleDeleteRequest { role: role.to_string() };

    /// Lets a role read, write, or both, the keys.
    role_grant_permission(role: &str, permission: Type, keys: Keys) -> AuthRoleGrantPermissionResponse,
        IfNotProposed role_grant_permission pb::AuthRoleGrantPermissionRequest {
            name: role.to_string(),
            perm: Some(granted(permission, keys)),
        };

    /// Takes back what was granted for exactly these keys.
    role_revoke_permission(role: &str, keys: Keys) -> AuthRoleRevokePermissionResponse,
        IfNotProposed role_revoke_permission pb::AuthRoleRevokePermissionRequest {
            role: role.to_string(),
            key: keys.key,
            range_end: keys.range_end,
        };
}

fn granted(permission: Type, keys: Keys) -> Permission {
    let Keys { key, range_end } = keys;
    let range_end: Bytes = range_end;
    Permission { perm_type: permission.into(), key, range_end }
}
