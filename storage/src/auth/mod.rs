//! Users, roles and permissions, as the log has made them. (etcd: `server/auth/store.go`.)
//!
//! ```text
//! AuthState            one state: shared by readers, copied by the few commands that change it    mod.rs
//!   ├─ commands        what each command refuses and changes                                      commands.rs
//!   ├─ Permissions     the keys that a user's roles let it read and write                         permissions.rs
//!   └─ check_command   whether a command may be applied on behalf of a user                       check.rs
//! ```
//!
//! The auth revision grows with every change, so that a request that was checked before the change can be told from one
//! that was checked after it. Passwords are bcrypt hashes here; they are compared elsewhere.

mod check;
mod commands;
mod permissions;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use proto::{
    EtcdError,
    authpb::{Permission, Role, User, permission},
    command::AuthInfo,
};
use rocksdb::WriteBatch;

pub(crate) use check::check_command;
use permissions::Permissions;
pub use permissions::Right;

use crate::{
    db::{AUTH, Db},
    error::StorageError,
};

/// The user, and the role, that may do everything.
pub const ROOT: &str = "root";

/// The auth revision of a store without any user.
const FIRST_REVISION: u64 = 1;

/// Keys of the column family `auth`.
const ENABLED: &[u8] = b"enabled";
const REVISION: &[u8] = b"revision";
const USER: &[u8] = b"user/";
const ROLE: &[u8] = b"role/";

/// A change that whoever hands out tokens has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthChange {
    Enabled,
    /// No token is valid any more.
    Disabled,
    /// The user is gone, or has another password: its tokens are not valid any more.
    UserInvalidated {
        name: String,
    },
    /// A simple token, valid from now on.
    TokenAssigned {
        name: String,
        token: String,
    },
}

/// Users, roles and permissions at one point of the log.
#[derive(Debug, Clone)]
pub struct AuthState {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
    /// By user; made anew with each change, since changes are few and checks are many.
    permissions: Arc<HashMap<String, Permissions>>,
}

impl Default for AuthState {
    fn default() -> Self {
        AuthState {
            enabled: false,
            revision: FIRST_REVISION,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            permissions: Arc::default(),
        }
    }
}

impl AuthState {
    /// Users and roles that were kept elsewhere.
    ///
    /// # Errors
    /// A name that is no text.
    pub(crate) fn of(enabled: bool, revision: u64, users: Vec<User>, roles: Vec<Role>) -> Result<AuthState, String> {
        let text = |name: &Bytes| {
            let name = std::str::from_utf8(name).map_err(|_| format!("the name {name:?} is not UTF-8"));
            name.map(String::from)
        };
        let users = users.into_iter().map(|user| Ok((text(&user.name)?, user))).collect::<Result<_, String>>()?;
        let roles = roles.into_iter().map(|role| Ok((text(&role.name)?, role))).collect::<Result<_, String>>()?;
        let mut state = AuthState { enabled, revision, users, roles, permissions: Arc::default() };
        state.refresh();
        Ok(state)
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// In order.
    pub fn user_names(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    /// As they are kept, in order of names.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    /// As they are kept, in order of names.
    pub fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.values()
    }

    /// What a role permits; everything for the role root.
    pub fn role_permissions(&self, name: &str) -> Option<Vec<Permission>> {
        let role = self.roles.get(name)?;
        if name != ROOT {
            return Some(role.key_permission.clone());
        }
        let perm_type = permission::Type::Readwrite as i32;
        Some(vec![Permission { perm_type, key: Bytes::new(), range_end: Bytes::from_static(b"\0") }])
    }

    /// In order.
    pub fn role_names(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|user| user.roles.iter().any(|granted| granted == role))
    }

    /// Whether a request is made by a user with the role root. Everyone is one while authentication is off.
    pub fn check_admin(&self, auth: Option<&AuthInfo>) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        let Some(auth) = auth.filter(|auth| !auth.username.is_empty()) else { return Err(EtcdError::UserEmpty) };
        match self.users.contains_key(&auth.username) {
            false => Err(EtcdError::UserNotFound),
            true if self.has_role(&auth.username, ROOT) => Ok(()),
            true => Err(EtcdError::PermissionDenied),
        }
    }

    /// Whether a request may read or write `key`, or the keys in `key..range_end` when there is a range end.
    pub fn check_keys(
        &self,
        auth: Option<&AuthInfo>,
        key: &[u8],
        range_end: &[u8],
        right: Right,
    ) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        let Some(auth) = auth.filter(|auth| auth.revision != 0) else { return Err(EtcdError::UserEmpty) };
        if auth.revision < self.revision {
            return Err(EtcdError::AuthOldRevision);
        }
        let permits = |permissions: &Permissions| permissions.permit(key, range_end, right);
        let is_permitted = self.users.contains_key(&auth.username)
            && (self.has_role(&auth.username, ROOT) || self.permissions.get(&auth.username).is_some_and(permits));
        is_permitted.then_some(()).ok_or(EtcdError::PermissionDenied)
    }

    /// Whether a request may do to a lease what writes all of its keys.
    pub fn check_lease_keys(
        &self,
        auth: Option<&AuthInfo>,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
        right: Right,
    ) -> Result<(), EtcdError> {
        if self.check_admin(auth).is_ok() {
            return Ok(());
        }
        keys.into_iter().try_for_each(|key| self.check_keys(auth, key.as_ref(), b"", right))
    }

    /// Reads the column family.
    pub(crate) fn load(db: &Db) -> Result<AuthState, StorageError> {
        AuthState::decode(db, db.all(AUTH)?)
    }

    /// The same as it was at `point`.
    pub(crate) fn load_at<'a>(db: &'a Db, point: &rocksdb::Snapshot<'a>) -> Result<AuthState, StorageError> {
        AuthState::decode(db, db.all_at(AUTH, Some(point))?)
    }

    fn decode(db: &Db, items: Vec<(Bytes, Bytes)>) -> Result<AuthState, StorageError> {
        let mut state = AuthState::default();
        for (key, value) in items {
            let name = |prefix: &[u8]| key.strip_prefix(prefix).and_then(|name| std::str::from_utf8(name).ok());
            let damaged = |detail: &dyn std::fmt::Display| db.damaged(AUTH, &key, detail);
            if key == ENABLED {
                state.enabled = value.as_ref() == [1];
            } else if key == REVISION {
                let bytes = value.as_ref().try_into().map_err(|_| damaged(&"not a number"))?;
                state.revision = u64::from_be_bytes(bytes);
            } else if let Some(name) = name(USER) {
                state.users.insert(name.into(), User::decode(value.clone()).map_err(|error| damaged(&error))?);
            } else if let Some(name) = name(ROLE) {
                state.roles.insert(name.into(), Role::decode(value.clone()).map_err(|error| damaged(&error))?);
            } else {
                return Err(damaged(&"a key that is not known here"));
            }
        }
        state.refresh();
        Ok(state)
    }

    /// Writes the differences between two states.
    pub(crate) fn write_changes(&self, before: &AuthState, db: &Db, writes: &mut WriteBatch) {
        let family = db.cf(AUTH);
        if self.enabled != before.enabled {
            writes.put_cf(family, ENABLED, [u8::from(self.enabled)]);
        }
        if self.revision != before.revision {
            writes.put_cf(family, REVISION, self.revision.to_be_bytes());
        }
        let at = |prefix: &[u8], name: &str| [prefix, name.as_bytes()].concat();
        for (name, user) in self.users.iter().filter(|(name, user)| before.users.get(*name) != Some(user)) {
            writes.put_cf(family, at(USER, name), user.encode_to_vec());
        }
        for (name, role) in self.roles.iter().filter(|(name, role)| before.roles.get(*name) != Some(role)) {
            writes.put_cf(family, at(ROLE, name), role.encode_to_vec());
        }
        for name in before.users.keys().filter(|name| !self.users.contains_key(*name)) {
            writes.delete_cf(family, at(USER, name));
        }
        for name in before.roles.keys().filter(|name| !self.roles.contains_key(*name)) {
            writes.delete_cf(family, at(ROLE, name));
        }
    }

    /// Works out anew what each user may do.
    fn refresh(&mut self) {
        let of = |user: &User| {
            let roles = user.roles.iter().filter_map(|role| self.roles.get(role));
            Permissions::merge(roles.flat_map(|role| &role.key_permission))
        };
        self.permissions = Arc::new(self.users.iter().map(|(name, user)| (name.clone(), of(user))).collect());
    }
}
