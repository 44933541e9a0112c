//! Applies entries of etcd's log to a store, as etcd would have: what etcd's rules refuse is refused here, too.
//!
//! | in etcd's log | here |
//! |---|---|
//! | a request of keys, leases, alarms, users, roles | the command of the same meaning |
//! | a read, a check of a password | nothing: they change nothing |
//! | members, the cluster's version, a downgrade | nothing: the store begins in a new cluster |
//! | a request of API 2 | members and versions: nothing; anything else is told as a warning |
//!
//! Source: etcd, `api/etcdserverpb/raft_internal.proto`, `server/etcdserver/server.go` (applyEntryNormal).

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use prost::Message;
use proto::{
    command::{AuthInfo, Command, LeaseCheckpoint, command::Op, lease_checkpoint},
    etcdserverpb::{
        AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
        AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, TxnRequest,
    },
};
use storage::{Change, LogEntry, Observer, Payload, Store};

use super::{
    ImportError, Progress,
    tail::{Entry, Tail},
};

/// Applied at once.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ENTRIES: usize = 512;
const CACHE_BYTES: usize = 8 << 20;
/// Seconds: what etcd raises a lease's TTL to, with its default election timeout. (etcd: `server/etcdserver/server.go`,
/// minTTL.)
const LEASE_TTL_MIN: i64 = 2;
/// etcd's default. Entries of releases that hash a password when they apply it do not say with which cost.
const BCRYPT_COST: u32 = 10;

/// etcd's `InternalRaftRequest`, as far as it changes what is imported.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "100")]
    header: Option<Header>,
    #[prost(message, optional, tag = "4")]
    put: Option<PutRequest>,
    #[prost(message, optional, tag = "5")]
    delete_range: Option<DeleteRangeRequest>,
    #[prost(message, optional, tag = "6")]
    txn: Option<TxnRequest>,
    #[prost(message, optional, tag = "7")]
    compaction: Option<CompactionRequest>,
    #[prost(message, optional, tag = "8")]
    lease_grant: Option<LeaseGrantRequest>,
    #[prost(message, optional, tag = "9")]
    lease_revoke: Option<LeaseRevokeRequest>,
    #[prost(message, optional, tag = "10")]
    alarm: Option<AlarmRequest>,
    #[prost(message, optional, tag = "11")]
    lease_checkpoint: Option<LeaseCheckpointRequest>,
    #[prost(message, optional, tag = "1000")]
    auth_enable: Option<AuthEnableRequest>,
    #[prost(message, optional, tag = "1011")]
    auth_disable: Option<AuthDisableRequest>,
    #[prost(message, optional, tag = "1100")]
    user_add: Option<AuthUserAddRequest>,
    #[prost(message, optional, tag = "1101")]
    user_delete: Option<AuthUserDeleteRequest>,
    #[prost(message, optional, tag = "1103")]
    user_change_password: Option<AuthUserChangePasswordRequest>,
    #[prost(message, optional, tag = "1104")]
    user_grant_role: Option<AuthUserGrantRoleRequest>,
    #[prost(message, optional, tag = "1105")]
    user_revoke_role: Option<AuthUserRevokeRoleRequest>,
    #[prost(message, optional, tag = "1200")]
    role_add: Option<AuthRoleAddRequest>,
    #[prost(message, optional, tag = "1201")]
    role_delete: Option<AuthRoleDeleteRequest>,
    #[prost(message, optional, tag = "1203")]
    role_grant_permission: Option<AuthRoleGrantPermissionRequest>,
    #[prost(message, optional, tag = "1204")]
    role_revoke_permission: Option<AuthRoleRevokePermissionRequest>,
}

/// Who asks.
#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "2")]
    username: String,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseCheckpointRequest {
    #[prost(message, repeated, tag = "1")]
    checkpoints: Vec<RemainingTtl>,
}

#[derive(Clone, PartialEq, Message)]
struct RemainingTtl {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    remaining_ttl: i64,
}

/// A request of API 2, told from the others by its method, which stands where they have nothing any more.
#[derive(Clone, PartialEq, Message)]
struct OldRequest {
    #[prost(bytes = "bytes", tag = "2")]
    method: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    path: Bytes,
}

const OLD_METHODS: [&[u8]; 6] = [b"GET", b"PUT", b"POST", b"DELETE", b"QGET", b"HEAD"];
/// Says the time, to expire keys of API 2.
const OLD_SYNC: &[u8] = b"SYNC";
/// Where etcd keeps members and versions by API 2.
const OLD_OWN_PREFIX: &[u8] = b"/0/";

/// Nobody watches a store that is being made.
struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _change: Change) {}
    fn restored(&self, _revision: i64, _compacted: i64) {}
}

/// Applies the tail to the store in `dir`; returns how many entries it had.
pub fn replay(tail: &Tail, dir: &Path, warnings: &mut Vec<String>, progress: &Progress) -> Result<u64, ImportError> {
    if tail.is_empty() {
        return Ok(0);
    }
    let store = Store::open(dir, storage::Options { observer: Arc::new(Nobody), cache_bytes: CACHE_BYTES })?;
    let mut applier = store.applier();
    let (mut batch, mut bytes, mut replayed, mut old) = (Vec::new(), 0, 0, 0);
    for entry in tail.entries() {
        let entry = entry?;
        progress.check()?;
        replayed += 1;
        match command(&entry)? {
            Translated::Command(command) => {
                let payload = Payload::Command(command.encode_to_vec().into());
                bytes += entry.encoded_len();
                batch.push(LogEntry { index: entry.index(), term: entry.term(), payload });
            }
            Translated::Nothing => {}
            Translated::OldData => old += 1,
        }
        if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
            applier.apply(&std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        applier.apply(&batch)?;
    }
    if old > 0 {
        warnings.push(format!("{old} changes of keys of API 2 are left out: Pintle has no API 2"));
    }
    store.flush()?;
    Ok(replayed)
}

enum Translated {
    Command(Command),
    Nothing,
    OldData,
}

fn command(entry: &Entry) -> Result<Translated, ImportError> {
    let Some(data) = entry.request() else { return Ok(Translated::Nothing) };
    if let Ok(OldRequest { method, path }) = OldRequest::decode(data.clone()) {
        if method == OLD_SYNC {
            return Ok(Translated::Nothing);
        }
        if OLD_METHODS.contains(&method.as_ref()) {
            let reads = method.ends_with(b"GET") || method == b"HEAD"[..];
            let is_own = reads || path.starts_with(OLD_OWN_PREFIX);
            return Ok(if is_own { Translated::Nothing } else { Translated::OldData });
        }
    }
    let undecodable = |error| ImportError::Flags(format!("entry {} of etcd's log: {error}", entry.index()));
    let request = Request::decode(data.clone()).map_err(undecodable)?;
    let header = request.header.clone().unwrap_or_default();
    let auth = AuthInfo { username: header.username, revision: header.auth_revision };
    let auth = (!auth.username.is_empty()).then_some(auth);
    Ok(match op(request, entry.term()) {
        Some(op) => Translated::Command(Command { op: Some(op), auth }),
        None => Translated::Nothing,
    })
}

/// One of the fields is set.
fn op(request: Request, term: u64) -> Option<Op> {
    let Request {
        header: _,
        put,
        delete_range,
        txn,
        compaction,
        lease_grant,
        lease_revoke,
        alarm,
        lease_checkpoint,
        auth_enable,
        auth_disable,
        user_add,
        user_delete,
        user_change_password,
        user_grant_role,
        user_revoke_role,
        role_add,
        role_delete,
        role_grant_permission,
        role_revoke_permission,
    } = request;
    put.map(Op::Put)
        .or(delete_range.map(Op::DeleteRange))
        .or(txn.map(Op::Txn))
        .or(compaction.map(Op::Compact))
        .or(lease_grant.map(|grant| Op::LeaseGrant(LeaseGrantRequest { ttl: grant.ttl.max(LEASE_TTL_MIN), ..grant })))
        .or(lease_revoke.map(Op::LeaseRevoke))
        .or(alarm.map(Op::Alarm))
        .or(lease_checkpoint.map(|request| {
            let entry = |RemainingTtl { id, remaining_ttl }| lease_checkpoint::Entry { id, remaining_ttl };
            let checkpoints = request.checkpoints.into_iter().map(entry).collect();
            Op::LeaseCheckpoint(LeaseCheckpoint { checkpoints, term })
        }))
        .or(auth_enable.map(Op::AuthEnable))
        .or(auth_disable.map(Op::AuthDisable))
        .or(user_add.map(|mut add| {
            let has_password = !add.options.as_ref().is_some_and(|options| options.no_password);
            hash_password(&mut add.password, &mut add.hashed_password, has_password);
            Op::UserAdd(add)
        }))
        .or(user_delete.map(Op::UserDelete))
        .or(user_change_password.map(|mut change| {
            let has_password = !change.password.is_empty();
            hash_password(&mut change.password, &mut change.hashed_password, has_password);
            Op::UserChangePassword(change)
        }))
        .or(user_grant_role.map(Op::UserGrantRole))
        .or(user_revoke_role.map(Op::UserRevokeRole))
        .or(role_add.map(Op::RoleAdd))
        .or(role_delete.map(Op::RoleDelete))
        .or(role_grant_permission.map(Op::RoleGrantPermission))
        .or(role_revoke_permission.map(Op::RoleRevokePermission))
}

/// Releases before 3.5 have the password itself in the log, and each member hashes it.
fn hash_password(password: &mut String, hashed: &mut String, has_password: bool) {
    let password = std::mem::take(password);
    if hashed.is_empty() && has_password {
        // A password that bcrypt does not take was refused by etcd, as an empty hash is here.
        *hashed = bcrypt::hash(password, BCRYPT_COST).map(|hash| STANDARD.encode(hash)).unwrap_or_default();
    }
}
