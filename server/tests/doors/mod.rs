//! The doors, and how one knocks at them.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use proto::{
    authpb::{Permission, permission::Type},
    etcdserverpb::{self as pb, compare::CompareResult, request_op::Request as Op, watch_request::RequestUnion},
    v3electionpb as election, v3lockpb as lock,
};
use tonic::{Request, Status, transport::Channel};

use crate::member::post;

pub const CALLERS: [&str; 7] = ["nobody", "forged", "gone", "idle", "reader", "writer", "root"];

/// How long a door may take that answers at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// An RPC, and what is asked of it; in this order, since some of what root does stays done.
pub const DOORS: &[&str] = &[
    "KV/Range r/1",
    "KV/Range r/1 serializable",
    "KV/Range r/..r0",
    "KV/Range r/..s",
    "KV/Range w/1",
    "KV/Range all",
    "KV/RangeStream r/..r0",
    "KV/RangeStream w/1",
    "KV/Put w/1",
    "KV/Put w/1 prev",
    "KV/Put r/1",
    "KV/Put w/1 lease of r",
    "KV/Put w/1 lease of w",
    "KV/DeleteRange w/9",
    "KV/DeleteRange w/9 prev",
    "KV/DeleteRange v..w/0",
    "KV/DeleteRange r/9",
    "KV/Txn read r",
    "KV/Txn read r serializable",
    "KV/Txn read w",
    "KV/Txn compare r",
    "KV/Txn compare w",
    "KV/Txn write w",
    "KV/Txn write w prev",
    "KV/Txn compare r write w",
    "KV/Txn write w else r",
    "KV/Txn nested read r",
    "KV/Txn nested read w",
    "KV/Txn nested write w",
    "KV/Txn nested write r",
    "KV/Txn delete w",
    "KV/Txn delete w prev",
    "KV/Compact",
    "Watch/Watch r/1",
    "Watch/Watch r/..r0",
    "Watch/Watch w/1",
    "Watch/Watch all",
    "Lease/LeaseGrant",
    "Lease/LeaseKeepAlive without keys",
    "Lease/LeaseKeepAlive of r",
    "Lease/LeaseKeepAlive of w",
    "Lease/LeaseTimeToLive of r",
    "Lease/LeaseTimeToLive of r keys",
    "Lease/LeaseTimeToLive of w keys",
    "Lease/LeaseLeases",
    "Lease/LeaseRevoke none",
    "Lease/LeaseRevoke of r",
    "Lease/LeaseRevoke of w",
    "Cluster/MemberList",
    "Cluster/MemberAdd",
    "Cluster/MemberAdd no URL",
    "Cluster/MemberRemove",
    "Cluster/MemberUpdate",
    "Cluster/MemberPromote",
    "Maintenance/Alarm get",
    "Maintenance/Alarm deactivate",
    "Maintenance/Status",
    "Maintenance/Defragment",
    "Maintenance/Hash",
    "Maintenance/HashKV",
    "Maintenance/Snapshot",
    "Maintenance/MoveLeader",
    "Maintenance/Downgrade",
    "Election/Campaign",
    "Election/Leader",
    "Election/Observe",
    "Election/Proclaim",
    "Election/Resign",
    "Lock/Lock",
    "Lock/Unlock",
    "Auth/AuthStatus",
    "Auth/Authenticate",
    "Auth/UserList",
    "Auth/UserGet idle",
    "Auth/UserGet reader",
    "Auth/RoleList",
    "Auth/RoleGet reads",
    "Auth/UserAdd",
    "Auth/UserDelete",
    "Auth/UserChangePassword",
    "Auth/UserGrantRole",
    "Auth/UserRevokeRole",
    "Auth/RoleAdd",
    "Auth/RoleDelete",
    "Auth/RoleGrantPermission",
    "Auth/RoleRevokePermission",
    "Auth/AuthEnable",
    "POST /v3/kv/range {\"key\":\"ci8x\"}",
    "POST /v3/kv/put {\"key\":\"dy8x\",\"value\":\"dg==\"}",
    "POST /v3/kv/deleterange {\"key\":\"dy85\"}",
    "POST /v3/kv/txn {\"success\":[{\"requestRange\":{\"key\":\"ci8x\"}}]}",
    "POST /v3/kv/compaction {\"revision\":\"1\"}",
    "POST /v3/lease/leases {}",
    "POST /v3/cluster/member/list {}",
    "POST /v3/maintenance/status {}",
    "POST /v3/maintenance/hash {}",
    "POST /v3/auth/user/list {}",
    // Last: after it everyone may do everything.
    "Auth/AuthDisable",
];

/// Leases without keys, with a key in `r/`, with one in `w/`.
const LEASE_EMPTY: i64 = 101;
const LEASE_R: i64 = 102;
const LEASE_W: i64 = 103;

pub struct World {
    port: u16,
    channel: Channel,
    tokens: Vec<Option<String>>,
    /// The member's own.
    peer_url: String,
}

impl World {
    pub async fn new(port: u16) -> World {
        let channel = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap();
        let mut world = World { port, channel, tokens: vec![None; CALLERS.len()], peer_url: String::new() };
        world.furnish().await;
        world
    }

    /// Keys, leases, users and roles; authentication on; everyone's token.
    async fn furnish(&mut self) {
        for (id, key) in [(LEASE_EMPTY, None), (LEASE_R, Some("r/leased")), (LEASE_W, Some("w/leased"))] {
            self.lease().lease_grant(pb::LeaseGrantRequest { id, ttl: 3600 }).await.unwrap();
            if let Some(key) = key {
                self.kv().put(pb::PutRequest { lease: id, ..put(key) }).await.unwrap();
            }
        }
        for key in ["r/1", "w/1"] {
            self.kv().put(put(key)).await.unwrap();
        }
        let mut cluster = pb::cluster_client::ClusterClient::new(self.channel.clone());
        let mut members = cluster.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner().members;
        self.peer_url = members.remove(0).peer_ur_ls.remove(0);
        let mut auth = self.auth();
        for (role, kind, key, range_end) in
            [("root", Type::Readwrite, "", ""), ("reads", Type::Read, "r/", "r0"), ("writes", Type::Write, "w/", "w0")]
        {
            auth.role_add(pb::AuthRoleAddRequest { name: role.into() }).await.unwrap();
            if !key.is_empty() {
                let perm = Some(Permission { perm_type: kind as i32, key: key.into(), range_end: range_end.into() });
                let grant = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm };
                auth.role_grant_permission(grant).await.unwrap();
            }
        }
        for (user, role) in [
            ("gone", None),
            ("idle", None),
            ("reader", Some("reads")),
            ("writer", Some("writes")),
            ("root", Some("root")),
        ] {
            let add = pb::AuthUserAddRequest { name: user.into(), password: user.into(), ..Default::default() };
            auth.user_add(add).await.unwrap();
            if let Some(role) = role {
                let grant = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
                auth.user_grant_role(grant).await.unwrap();
            }
        }
        auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        for (at, user) in CALLERS.iter().enumerate() {
            self.tokens[at] = match *user {
                "nobody" => None,
                "forged" => Some("abcdefghijklmnop.1".into()),
                user => {
                    let login = pb::AuthenticateRequest { name: user.into(), password: user.into() };
                    Some(auth.authenticate(login).await.unwrap().into_inner().token)
                }
            };
        }
        let root = self.tokens.last().unwrap().clone();
        auth.user_delete(with(&root, pb::AuthUserDeleteRequest { name: "gone".into() })).await.unwrap();
    }

    /// A line for each door, with the answer that each caller gets.
    pub async fn table(&self) -> String {
        let mut table = format!("door | {}\n", CALLERS.join(" | "));
        for door in DOORS {
            let mut cells = vec![door.to_string()];
            for (user, token) in CALLERS.iter().zip(&self.tokens) {
                let answer = tokio::time::timeout(PATIENCE, self.knock(door, user, token));
                cells.push(match answer.await.unwrap_or_else(|_| panic!("{door} does not answer {user}")) {
                    Ok(()) => "ok".into(),
                    Err(status) => status.message().trim_start_matches("etcdserver: ").to_string(),
                });
            }
            table += &format!("{}\n", cells.join(" | "));
        }
        table
    }

    fn kv(&self) -> pb::kv_client::KvClient<Channel> {
        pb::kv_client::KvClient::new(self.channel.clone())
    }

    fn lease(&self) -> pb::lease_client::LeaseClient<Channel> {
        pb::lease_client::LeaseClient::new(self.channel.clone())
    }

    fn auth(&self) -> pb::auth_client::AuthClient<Channel> {
        pb::auth_client::AuthClient::new(self.channel.clone())
    }

    async fn knock(&self, door: &str, user: &str, token: &Option<String>) -> Result<(), Status> {
        let (rpc, what) = door.split_once(' ').unwrap_or((door, ""));
        match rpc.split_once('/').unwrap_or((rpc, "")) {
            ("KV", rpc) => self.knock_kv(rpc, what, token).await,
            ("Watch", _) => self.knock_watch(what, token).await,
            ("Lease", rpc) => self.knock_lease(rpc, what, token).await,
            ("Cluster", rpc) => self.knock_cluster(rpc, what, token).await,
            ("Maintenance", rpc) => self.knock_maintenance(rpc, what, token).await,
            ("Election", rpc) => self.knock_election(rpc, token).await,
            ("Lock", rpc) => self.knock_lock(rpc, user, token).await,
            ("Auth", rpc) => self.knock_auth(rpc, what, token).await,
            ("POST", _) => self.knock_gateway(what, token),
            _ => panic!("there is no door {door}"),
        }
    }

    async fn knock_kv(&self, rpc: &str, what: &str, token: &Option<String>) -> Result<(), Status> {
        let mut kv = self.kv();
        match rpc {
            "Range" => done(kv.range(with(token, range(what)))).await,
            "RangeStream" => {
                let mut parts = kv.range_stream(with(token, range(what))).await?.into_inner();
                while parts.message().await?.is_some() {}
                Ok(())
            }
            "Put" => {
                let mut words = what.split(' ');
                let mut request = put(words.next().unwrap());
                request.prev_kv = what.ends_with(" prev");
                request.lease = match what {
                    _ if what.ends_with("of r") => LEASE_R,
                    _ if what.ends_with("of w") => LEASE_W,
                    _ => 0,
                };
                done(kv.put(with(token, request))).await
            }
            "DeleteRange" => done(kv.delete_range(with(token, delete(what)))).await,
            "Txn" => done(kv.txn(with(token, txn(what)))).await,
            "Compact" => done(kv.compact(with(token, pb::CompactionRequest { revision: 2, physical: false }))).await,
            _ => panic!("{rpc}"),
        }
    }

    async fn knock_watch(&self, what: &str, token: &Option<String>) -> Result<(), Status> {
        let pb::RangeRequest { key, range_end, .. } = range(what);
        let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
        let requests =
            futures::stream::iter([pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }]);
        let mut client = pb::watch_client::WatchClient::new(self.channel.clone());
        let mut responses = client.watch(with(token, requests)).await?.into_inner();
        let first = responses.message().await?.expect("a watch is answered");
        if first.canceled { Err(Status::unknown(first.cancel_reason)) } else { Ok(()) }
    }

    async fn knock_lease(&self, rpc: &str, what: &str, token: &Option<String>) -> Result<(), Status> {
        let mut lease = self.lease();
        let id = match what {
            "none" => 999,
            _ if what.starts_with("of r") => LEASE_R,
            _ if what.starts_with("of w") => LEASE_W,
            _ => LEASE_EMPTY,
        };
        match rpc {
            "LeaseGrant" => done(lease.lease_grant(with(token, pb::LeaseGrantRequest { id: 0, ttl: 3600 }))).await,
            "LeaseRevoke" => done(lease.lease_revoke(with(token, pb::LeaseRevokeRequest { id }))).await,
            "LeaseLeases" => done(lease.lease_leases(with(token, pb::LeaseLeasesRequest {}))).await,
            "LeaseTimeToLive" => {
                let request = pb::LeaseTimeToLiveRequest { id, keys: what.ends_with("keys") };
                done(lease.lease_time_to_live(with(token, request))).await
            }
            "LeaseKeepAlive" => {
                let requests = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
                let mut answers = lease.lease_keep_alive(with(token, requests)).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            _ => panic!("{rpc}"),
        }
    }

    async fn knock_cluster(&self, rpc: &str, what: &str, token: &Option<String>) -> Result<(), Status> {
        let mut cluster = pb::cluster_client::ClusterClient::new(self.channel.clone());
        let id = 999;
        match rpc {
            "MemberList" => done(cluster.member_list(with(token, pb::MemberListRequest { linearizable: true }))).await,
            // Of a URL that the member has itself, so that root does not add it either.
            "MemberAdd" => {
                let peer_ur_ls = vec![if what.is_empty() { self.peer_url.clone() } else { "x".into() }];
                let request = pb::MemberAddRequest { peer_ur_ls, is_learner: true };
                done(cluster.member_add(with(token, request))).await
            }
            "MemberRemove" => done(cluster.member_remove(with(token, pb::MemberRemoveRequest { id }))).await,
            "MemberUpdate" => {
                let request = pb::MemberUpdateRequest { id, peer_ur_ls: vec!["http://127.0.0.1:1".into()] };
                done(cluster.member_update(with(token, request))).await
            }
            "MemberPromote" => done(cluster.member_promote(with(token, pb::MemberPromoteRequest { id }))).await,
            _ => panic!("{rpc}"),
        }
    }

    async fn knock_maintenance(&self, rpc: &str, what: &str, token: &Option<String>) -> Result<(), Status> {
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.channel.clone());
        match rpc {
            "Alarm" => {
                let action = if what == "get" { 0 } else { 2 };
                done(client.alarm(with(token, pb::AlarmRequest { action, ..Default::default() }))).await
            }
            "Status" => done(client.status(with(token, pb::StatusRequest {}))).await,
            "Defragment" => done(client.defragment(with(token, pb::DefragmentRequest {}))).await,
            "Hash" => done(client.hash(with(token, pb::HashRequest {}))).await,
            "HashKV" => done(client.hash_kv(with(token, pb::HashKvRequest { revision: 0 }))).await,
            "Snapshot" => {
                let mut parts = client.snapshot(with(token, pb::SnapshotRequest {})).await?.into_inner();
                parts.message().await.map(|_| ())
            }
            "MoveLeader" => done(client.move_leader(with(token, pb::MoveLeaderRequest { target_id: 999 }))).await,
            "Downgrade" => {
                let request = pb::DowngradeRequest { action: 0, version: "x".into() };
                done(client.downgrade(with(token, request))).await
            }
            _ => panic!("{rpc}"),
        }
    }

    async fn knock_election(&self, rpc: &str, token: &Option<String>) -> Result<(), Status> {
        let mut client = election::election_client::ElectionClient::new(self.channel.clone());
        let (name, value) = (Bytes::from("e"), Bytes::from("v"));
        let leader = Some(election::LeaderKey { name: name.clone(), key: "e/65".into(), rev: 1, lease: LEASE_EMPTY });
        match rpc {
            "Campaign" => {
                let request = election::CampaignRequest { name, lease: LEASE_EMPTY, value };
                done(client.campaign(with(token, request))).await
            }
            "Leader" => done(client.leader(with(token, election::LeaderRequest { name }))).await,
            "Observe" => {
                let mut leaders = client.observe(with(token, election::LeaderRequest { name })).await?.into_inner();
                // As in etcd who may not see them is told nothing.
                leaders.message().await?.map(|_| ()).ok_or_else(|| Status::unknown("the stream ends"))
            }
            "Proclaim" => done(client.proclaim(with(token, election::ProclaimRequest { leader, value }))).await,
            "Resign" => done(client.resign(with(token, election::ResignRequest { leader }))).await,
            _ => panic!("{rpc}"),
        }
    }

    async fn knock_lock(&self, rpc: &str, user: &str, token: &Option<String>) -> Result<(), Status> {
        let mut client = lock::lock_client::LockClient::new(self.channel.clone());
        match rpc {
            "Lock" => {
                let request = lock::LockRequest { name: format!("lock of {user}").into(), lease: LEASE_EMPTY };
                done(client.lock(with(token, request))).await
            }
            "Unlock" => done(client.unlock(with(token, lock::UnlockRequest { key: "lock".into() }))).await,
            _ => panic!("{rpc}"),
        }
    }

    /// What is changed does not exist, but for the last.
    async fn knock_auth(&self, rpc: &str, what: &str, token: &Option<String>) -> Result<(), Status> {
        let mut auth = self.auth();
        let none = || "none".to_string();
        match rpc {
            "AuthStatus" => done(auth.auth_status(with(token, pb::AuthStatusRequest {}))).await,
            "Authenticate" => {
                let request = pb::AuthenticateRequest { name: "idle".into(), password: "idle".into() };
                done(auth.authenticate(with(token, request))).await
            }
            "UserList" => done(auth.user_list(with(token, pb::AuthUserListRequest {}))).await,
            "UserGet" => done(auth.user_get(with(token, pb::AuthUserGetRequest { name: what.into() }))).await,
            "RoleList" => done(auth.role_list(with(token, pb::AuthRoleListRequest {}))).await,
            "RoleGet" => done(auth.role_get(with(token, pb::AuthRoleGetRequest { role: what.into() }))).await,
            "UserAdd" => {
                let request = pb::AuthUserAddRequest { name: "idle".into(), ..Default::default() };
                done(auth.user_add(with(token, request))).await
            }
            "UserDelete" => done(auth.user_delete(with(token, pb::AuthUserDeleteRequest { name: none() }))).await,
            "UserChangePassword" => {
                let request =
                    pb::AuthUserChangePasswordRequest { name: none(), password: "x".into(), ..Default::default() };
                done(auth.user_change_password(with(token, request))).await
            }
            "UserGrantRole" => {
                let request = pb::AuthUserGrantRoleRequest { user: none(), role: "reads".into() };
                done(auth.user_grant_role(with(token, request))).await
            }
            "UserRevokeRole" => {
                let request = pb::AuthUserRevokeRoleRequest { name: none(), role: "reads".into() };
                done(auth.user_revoke_role(with(token, request))).await
            }
            "RoleAdd" => done(auth.role_add(with(token, pb::AuthRoleAddRequest { name: "reads".into() }))).await,
            "RoleDelete" => done(auth.role_delete(with(token, pb::AuthRoleDeleteRequest { role: none() }))).await,
            "RoleGrantPermission" => {
                let perm = Some(Permission { key: "k".into(), ..Default::default() });
                let request = pb::AuthRoleGrantPermissionRequest { name: none(), perm };
                done(auth.role_grant_permission(with(token, request))).await
            }
            "RoleRevokePermission" => {
                let request = pb::AuthRoleRevokePermissionRequest { role: none(), ..Default::default() };
                done(auth.role_revoke_permission(with(token, request))).await
            }
            "AuthEnable" => done(auth.auth_enable(with(token, pb::AuthEnableRequest {}))).await,
            "AuthDisable" => done(auth.auth_disable(with(token, pb::AuthDisableRequest {}))).await,
            _ => panic!("{rpc}"),
        }
    }

    fn knock_gateway(&self, what: &str, token: &Option<String>) -> Result<(), Status> {
        let (path, body) = what.split_once(' ').unwrap();
        let headers: Vec<String> = token.iter().map(|token| format!("Authorization: {token}")).collect();
        let (code, answer) = post(self.port, path, &headers, body);
        if code == 200 {
            return Ok(());
        }
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        Err(Status::unknown(answer["message"].as_str().unwrap()))
    }
}

async fn done<T>(call: impl Future<Output = Result<T, Status>>) -> Result<(), Status> {
    call.await.map(|_| ())
}

fn with<T>(token: &Option<String>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    request
}

/// `a`, `a..b`, or `all`.
fn range(what: &str) -> pb::RangeRequest {
    let serializable = what.ends_with("serializable");
    let (key, range_end) = match what.split(' ').next().unwrap() {
        "all" => ("\0", "\0"),
        keys => keys.split_once("..").unwrap_or((keys, "")),
    };
    let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    pb::RangeRequest { key: owned(key), range_end: owned(range_end), serializable, ..Default::default() }
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value: "v".into(), ..Default::default() }
}

fn delete(what: &str) -> pb::DeleteRangeRequest {
    let pb::RangeRequest { key, range_end, .. } = range(what);
    pb::DeleteRangeRequest { key, range_end, prev_kv: what.ends_with(" prev") }
}

fn txn(what: &str) -> pb::TxnRequest {
    let op = |request| vec![pb::RequestOp { request: Some(request) }];
    let of = |key: &str| format!("{key}/1");
    let read = |key: &str| {
        op(Op::RequestRange(pb::RangeRequest { serializable: what.ends_with("serializable"), ..range(&of(key)) }))
    };
    let write = |key: &str, prev_kv| op(Op::RequestPut(pb::PutRequest { prev_kv, ..put(&of(key)) }));
    let remove = |prev_kv| op(Op::RequestDeleteRange(pb::DeleteRangeRequest { prev_kv, ..delete("w/9") }));
    let nest = |success| op(Op::RequestTxn(pb::TxnRequest { success, ..Default::default() }));
    let compare = |key: &str| {
        let key = of(key).into();
        vec![pb::Compare { key, result: CompareResult::Greater as i32, ..Default::default() }]
    };
    let (compare, success, failure) = match what {
        "read r" | "read r serializable" => (vec![], read("r"), vec![]),
        "read w" => (vec![], read("w"), vec![]),
        "compare r" => (compare("r"), vec![], vec![]),
        "compare w" => (compare("w"), vec![], vec![]),
        "write w" => (vec![], write("w", false), vec![]),
        "write w prev" => (vec![], write("w", true), vec![]),
        "compare r write w" => (compare("r"), write("w", false), vec![]),
        "write w else r" => (vec![], write("w", false), write("r", false)),
        "nested read r" => (vec![], nest(read("r")), vec![]),
        "nested read w" => (vec![], nest(read("w")), vec![]),
        "nested write w" => (vec![], nest(write("w", false)), vec![]),
        "nested write r" => (vec![], nest(write("r", false)), vec![]),
        "delete w" => (vec![], remove(false), vec![]),
        "delete w prev" => (vec![], remove(true), vec![]),
        _ => panic!("{what}"),
    };
    pb::TxnRequest { compare, success, failure }
}
