//! What each command about users and roles refuses, and what it changes. (etcd: `server/auth/store.go`.)

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use proto::{
    EtcdError,
    authpb::{Permission, Role, User, UserAddOptions},
    command::{Authenticate, command::Op},
    etcdserverpb::{
        AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
        AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
        AuthUserRevokeRoleRequest,
    },
};

use super::{AuthChange, AuthState, ROOT};

impl AuthState {
    /// Carries out a command; None when `op` is about something else. `index` is its place in the log.
    pub(crate) fn execute(&mut self, op: &Op, index: u64) -> Option<Result<Option<AuthChange>, EtcdError>> {
        Some(match op {
            Op::AuthEnable(_) => self.enable(),
            Op::AuthDisable(_) => Ok(self.disable()),
            Op::UserAdd(add) => self.user_add(add).map(|()| None),
            Op::UserDelete(delete) => self.user_delete(delete).map(Some),
            Op::UserChangePassword(change) => self.user_change_password(change).map(Some),
            Op::UserGrantRole(grant) => self.user_grant_role(grant).map(|()| None),
            Op::UserRevokeRole(revoke) => self.user_revoke_role(revoke).map(|()| None),
            Op::RoleAdd(add) => self.role_add(add).map(|()| None),
            Op::RoleDelete(delete) => self.role_delete(delete).map(|()| None),
            Op::RoleGrantPermission(grant) => self.role_grant_permission(grant).map(|()| None),
            Op::RoleRevokePermission(revoke) => self.role_revoke_permission(revoke).map(|()| None),
            Op::Authenticate(authenticate) => self.authenticate(authenticate, index),
            _ => return None,
        })
    }

    fn changed(&mut self) {
        self.revision += 1;
        self.refresh();
    }

    /// Without effect, and without a new revision, when it is on already.
    fn enable(&mut self) -> Result<Option<AuthChange>, EtcdError> {
        if self.enabled {
            return Ok(None);
        }
        if !self.users.contains_key(ROOT) {
            return Err(EtcdError::RootUserNotExist);
        }
        if !self.has_role(ROOT, ROOT) {
            return Err(EtcdError::RootRoleNotExist);
        }
        self.enabled = true;
        Ok(Some(AuthChange::Enabled))
    }

    fn disable(&mut self) -> Option<AuthChange> {
        if !self.enabled {
            return None;
        }
        self.enabled = false;
        self.changed();
        Some(AuthChange::Disabled)
    }

    fn user_add(&mut self, add: &AuthUserAddRequest) -> Result<(), EtcdError> {
        if add.name.is_empty() {
            return Err(EtcdError::UserEmpty);
        }
        if self.users.contains_key(&add.name) {
            return Err(EtcdError::UserAlreadyExist);
        }
        let options = add.options.unwrap_or_default();
        let password = if options.no_password { Bytes::new() } else { decode_hash(&add.hashed_password)? };
        let user = User { name: add.name.clone().into(), password, roles: Vec::new(), options: Some(options) };
        self.users.insert(add.name.clone(), user);
        self.changed();
        Ok(())
    }

    fn user_delete(&mut self, delete: &AuthUserDeleteRequest) -> Result<AuthChange, EtcdError> {
        if self.enabled && delete.name == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        self.users.remove(&delete.name).ok_or(EtcdError::UserNotFound)?;
        self.changed();
        Ok(AuthChange::UserInvalidated { name: delete.name.clone() })
    }

    fn user_change_password(&mut self, change: &AuthUserChangePasswordRequest) -> Result<AuthChange, EtcdError> {
        let user = self.users.get_mut(&change.name).ok_or(EtcdError::UserNotFound)?;
        let has_password = !is_without_password(user);
        user.password = if has_password { decode_hash(&change.hashed_password)? } else { Bytes::new() };
        self.changed();
        Ok(AuthChange::UserInvalidated { name: change.name.clone() })
    }

    /// Without a new revision when the user has the role already.
    fn user_grant_role(&mut self, grant: &AuthUserGrantRoleRequest) -> Result<(), EtcdError> {
        let user = self.users.get_mut(&grant.user).ok_or(EtcdError::UserNotFound)?;
        if grant.role != ROOT && !self.roles.contains_key(&grant.role) {
            return Err(EtcdError::RoleNotFound);
        }
        if let Err(at) = user.roles.binary_search(&grant.role) {
            user.roles.insert(at, grant.role.clone());
            self.changed();
        }
        Ok(())
    }

    fn user_revoke_role(&mut self, revoke: &AuthUserRevokeRoleRequest) -> Result<(), EtcdError> {
        if self.enabled && revoke.name == ROOT && revoke.role == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        let user = self.users.get_mut(&revoke.name).ok_or(EtcdError::UserNotFound)?;
        let at = user.roles.binary_search(&revoke.role).map_err(|_| EtcdError::RoleNotGranted)?;
        user.roles.remove(at);
        self.changed();
        Ok(())
    }

    fn role_add(&mut self, add: &AuthRoleAddRequest) -> Result<(), EtcdError> {
        if add.name.is_empty() {
            return Err(EtcdError::RoleEmpty);
        }
        if self.roles.contains_key(&add.name) {
            return Err(EtcdError::RoleAlreadyExist);
        }
        let role = Role { name: add.name.clone().into(), key_permission: Vec::new() };
        self.roles.insert(add.name.clone(), role);
        self.changed();
        Ok(())
    }

    /// Takes it from every user, too.
    fn role_delete(&mut self, delete: &AuthRoleDeleteRequest) -> Result<(), EtcdError> {
        if self.enabled && delete.role == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        self.roles.remove(&delete.role).ok_or(EtcdError::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.retain(|role| *role != delete.role);
        }
        self.changed();
        Ok(())
    }

    fn role_grant_permission(&mut self, grant: &AuthRoleGrantPermissionRequest) -> Result<(), EtcdError> {
        let granted = grant.perm.as_ref().ok_or(EtcdError::PermissionNotGiven)?;
        if !is_valid_range(&granted.key, &granted.range_end) {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        let role = self.roles.get_mut(&grant.name).ok_or(EtcdError::RoleNotFound)?;
        let permissions = &mut role.key_permission;
        let at = permissions.partition_point(|permission| permission.key < granted.key);
        // As in etcd, only the first of several ranges from one key is replaced.
        let is_same =
            |permission: &&mut Permission| permission.key == granted.key && permission.range_end == granted.range_end;
        match permissions.get_mut(at).filter(is_same) {
            Some(permission) => permission.perm_type = granted.perm_type,
            None => {
                let after = permissions.partition_point(|permission| permission.key <= granted.key);
                permissions.insert(after, granted.clone());
            }
        }
        self.changed();
        Ok(())
    }

    fn role_revoke_permission(&mut self, revoke: &AuthRoleRevokePermissionRequest) -> Result<(), EtcdError> {
        let role = self.roles.get_mut(&revoke.role).ok_or(EtcdError::RoleNotFound)?;
        let before = role.key_permission.len();
        role.key_permission
            .retain(|permission| permission.key != revoke.key || permission.range_end != revoke.range_end);
        if role.key_permission.len() == before {
            return Err(EtcdError::PermissionNotGranted);
        }
        self.changed();
        Ok(())
    }

    /// The password was checked before the command was proposed.
    fn authenticate(&self, authenticate: &Authenticate, index: u64) -> Result<Option<AuthChange>, EtcdError> {
        if !self.enabled {
            return Err(EtcdError::AuthNotEnabled);
        }
        let user = self.users.get(&authenticate.name).ok_or(EtcdError::AuthFailed)?;
        if is_without_password(user) {
            return Err(EtcdError::AuthFailed);
        }
        let token = || format!("{}.{index}", authenticate.simple_token);
        let assigned = || AuthChange::TokenAssigned { name: authenticate.name.clone(), token: token() };
        Ok((!authenticate.simple_token.is_empty()).then(assigned))
    }
}

fn is_without_password(user: &User) -> bool {
    matches!(user.options, Some(UserAddOptions { no_password: true }))
}

fn decode_hash(hash: &str) -> Result<Bytes, EtcdError> {
    STANDARD.decode(hash).map(Bytes::from).map_err(|_| EtcdError::NoPasswordUser)
}

/// A key, the keys from one up to below a greater one, or all from one on.
fn is_valid_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == b"\0" || key < range_end)
}
