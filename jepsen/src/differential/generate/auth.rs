//! Users, roles and permissions, and what may be done by whom once auth is enabled.

use bytes::Bytes;
use proto::{
    authpb, etcdserverpb as pb,
    v3electionpb::{LeaderKey, LeaderRequest, ProclaimRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};
use rand::Rng as _;

use super::{
    Generator, KEYS, Request, Step,
    txn::{BEHIND_ALL, NO_END},
};
use crate::differential::{
    area::Area,
    request::{Call, Caller, Door},
};

/// Users of [`Generator::enforcement`] besides root, with the role that each has at first.
const USERS: [(&str, &str); 3] = [("v1", "e1"), ("v2", "e2"), ("v3", "root")];
const ROLES: [&str; 2] = ["e1", "e2"];
const PERMISSIONS_PER_ROLE: usize = 3;
/// Requests between enabling and disabling.
const GUARDED_REQUESTS: usize = 90;
/// No lease has it: what is refused for it was allowed.
const NO_LEASE: i64 = 4_242_424;

impl Generator {
    /// Users and roles; none of them is named root, so that auth is not enabled by chance.
    pub(super) fn auth_request(&mut self) -> Request {
        let user = |generator: &mut Generator| generator.pick(&["u1", "u2", "u3", ""]).to_owned();
        let role = |generator: &mut Generator| generator.pick(&["r1", "r2", "root", ""]).to_owned();
        match self.rng.random_range(0..14) {
            0 => Request::UserAdd(pb::AuthUserAddRequest {
                name: user(self),
                password: self.pick(&["p", ""]).to_owned(),
                options: self.chance(0.5).then(|| authpb::UserAddOptions { no_password: self.chance(0.5) }),
                ..Default::default()
            }),
            1 => Request::UserGet(pb::AuthUserGetRequest { name: user(self) }),
            2 => Request::UserList(pb::AuthUserListRequest {}),
            3 => Request::UserDelete(pb::AuthUserDeleteRequest { name: user(self) }),
            4 => Request::UserChangePassword(pb::AuthUserChangePasswordRequest {
                name: user(self),
                password: self.pick(&["p", "q", ""]).to_owned(),
                ..Default::default()
            }),
            5 | 6 => Request::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user(self), role: role(self) }),
            7 => Request::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: user(self), role: role(self) }),
            8 => Request::RoleAdd(pb::AuthRoleAddRequest { name: role(self) }),
            9 => Request::RoleGet(pb::AuthRoleGetRequest { role: role(self) }),
            10 => match self.rng.random_range(0..3) {
                0 => Request::RoleList(pb::AuthRoleListRequest {}),
                1 => Request::AuthStatus(pb::AuthStatusRequest {}),
                _ => Request::RoleDelete(pb::AuthRoleDeleteRequest { role: role(self) }),
            },
            11 | 12 => Request::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
                name: role(self),
                perm: self.chance(0.97).then(|| authpb::Permission {
                    perm_type: self.within(0..=2) as i32,
                    key: self.key(),
                    range_end: self.range_end(),
                }),
            }),
            _ => Request::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
                role: role(self),
                key: self.key(),
                range_end: self.range_end(),
            }),
        }
    }

    /// Enables auth, sends requests of all kinds by all sorts of callers, and disables it again.
    pub(super) fn enforcement(&mut self) {
        let root = Caller::User("root");
        let mut calls: Vec<Call> = self.users_to_guard().into_iter().map(Call::from).collect();
        calls.push(Request::AuthEnable(pb::AuthEnableRequest {}).into());
        calls.push(Request::AuthEnable(pb::AuthEnableRequest {}).into());
        for (name, password) in [("root", "p"), ("v1", "p"), ("v2", "p"), ("v3", "p"), ("v1", "wrong"), ("nobody", "p")]
        {
            calls.push(authenticate(name, password));
        }
        for _ in 0..GUARDED_REQUESTS {
            let call = self.guarded();
            // Changing a user takes away its tokens.
            let renewed = match &call.request {
                Request::UserChangePassword(_) | Request::UserGrantRole(_) | Request::UserRevokeRole(_) => true,
                Request::RoleGrantPermission(_) | Request::RoleRevokePermission(_) => self.chance(0.5),
                _ => false,
            };
            calls.push(call);
            if renewed {
                calls.push(authenticate("v1", "p"));
                calls.push(authenticate("v2", "p"));
            }
        }
        calls.push(call(Request::AuthDisable(pb::AuthDisableRequest {}), Caller::User("v1")));
        calls.push(call(Request::AuthStatus(pb::AuthStatusRequest {}), root));
        // What the random requests did to root is not known.
        calls.push(authenticate("root", "p"));
        calls.push(call(Request::AuthDisable(pb::AuthDisableRequest {}), root));
        calls.push(Request::AuthDisable(pb::AuthDisableRequest {}).into());
        for name in ["root", "v1", "v2", "v3"] {
            calls.push(Request::UserDelete(pb::AuthUserDeleteRequest { name: name.into() }).into());
        }
        for role in ROLES {
            calls.push(Request::RoleDelete(pb::AuthRoleDeleteRequest { role: role.into() }).into());
        }
        for call in calls {
            let call = self.through_some_door(call);
            self.script.push_back(Step::Call(call));
        }
    }

    fn users_to_guard(&mut self) -> Vec<Request> {
        let grant = |user: &str, role: &str| {
            Request::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
        };
        let mut requests = vec![user_add("root"), Request::AuthEnable(pb::AuthEnableRequest {}), grant("root", "root")];
        for role in ROLES {
            requests.push(Request::RoleAdd(pb::AuthRoleAddRequest { name: role.into() }));
            for _ in 0..PERMISSIONS_PER_ROLE {
                requests.push(self.grant_permission(role));
            }
        }
        for (user, role) in USERS {
            requests.push(user_add(user));
            requests.push(grant(user, role));
        }
        requests
    }

    fn grant_permission(&mut self, role: &str) -> Request {
        let perm = authpb::Permission {
            perm_type: self.within(0..=2) as i32,
            key: self.written_key(),
            range_end: self.range_end(),
        };
        Request::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) })
    }

    /// Any request, by anyone.
    fn guarded(&mut self) -> Call {
        let caller = match self.rng.random_range(0..20) {
            0 => Caller::Nobody,
            1 => Caller::Forger,
            2..5 => Caller::User("root"),
            5 => Caller::User("v3"),
            6..13 => Caller::User("v1"),
            _ => Caller::User("v2"),
        };
        let request = self.guarded_request();
        // Before a compaction by nobody the session would wait for watches that nobody may make now.
        let is_unwatched = matches!(request, Request::Compact(_)) && caller == Caller::Nobody;
        call(request, if is_unwatched { Caller::Forger } else { caller })
    }

    fn guarded_request(&mut self) -> Request {
        let mut request = self.any_guarded_request();
        hold_some_key(&mut request);
        request
    }

    fn any_guarded_request(&mut self) -> Request {
        match self.rng.random_range(0..100) {
            0..20 => Request::Range(self.lone_range()),
            20..32 => Request::Put(self.put()),
            32..40 => Request::DeleteRange(self.delete()),
            40..55 => Request::Txn(self.txn()),
            // Refused or not, it changes nothing.
            55..57 => Request::Compact(pb::CompactionRequest { revision: self.compacted, physical: true }),
            57..60 => self.lease_grant(),
            60..63 => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: self.lease_id() }),
            63..66 => {
                Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id: self.lease_id(), keys: self.chance(0.7) })
            }
            66..68 => Request::KeepAlive(pb::LeaseKeepAliveRequest { id: self.lease_id() }),
            68 => Request::LeaseLeases(pb::LeaseLeasesRequest {}),
            69..76 => self.watch_once(),
            76..79 => self.guarded_election(),
            79..87 => self.guarded_operation(),
            _ => self.guarded_auth(),
        }
    }

    fn watch_once(&mut self) -> Request {
        let create = pb::WatchCreateRequest { key: self.key(), range_end: self.range_end(), ..Default::default() };
        let union = pb::watch_request::RequestUnion::CreateRequest(create);
        Request::Watch(pb::WatchRequest { request_union: Some(union) })
    }

    /// None that could wait for something.
    fn guarded_election(&mut self) -> Request {
        if !self.has(Area::Elections) {
            return Request::Put(self.put());
        }
        let (name, key) = (self.written_key(), self.written_key());
        match self.rng.random_range(0..4) {
            0 => Request::Leader(LeaderRequest { name }),
            1 => Request::Proclaim(ProclaimRequest {
                leader: Some(LeaderKey { name, key, rev: 1, lease: NO_LEASE }),
                value: self.value(),
            }),
            2 => Request::Lock(LockRequest { name, lease: NO_LEASE }),
            _ => Request::Unlock(UnlockRequest { key }),
        }
    }

    fn guarded_operation(&mut self) -> Request {
        use pb::alarm_request::AlarmAction::{Deactivate, Get};
        let alarm = |action: pb::alarm_request::AlarmAction| {
            Request::Alarm(pb::AlarmRequest { action: action as i32, ..Default::default() })
        };
        let member = 12345;
        match self.rng.random_range(0..14) {
            0 if self.has(Area::Alarms) => alarm(Get),
            1 if self.has(Area::Alarms) => alarm(Deactivate),
            2 => Request::Status(pb::StatusRequest {}),
            3 => Request::Hash(pb::HashRequest {}),
            4 => Request::HashKv(pb::HashKvRequest { revision: 0 }),
            5 | 6 => Request::MemberList(pb::MemberListRequest { linearizable: self.chance(0.5) }),
            7 if self.has(Area::Members) => Request::MemberRemove(pb::MemberRemoveRequest { id: member }),
            8 if self.has(Area::Members) => Request::MemberPromote(pb::MemberPromoteRequest { id: member }),
            9 if self.has(Area::Members) => Request::MoveLeader(pb::MoveLeaderRequest { target_id: member }),
            10 if self.has(Area::Maintenance) => Request::Defragment(pb::DefragmentRequest {}),
            11 if self.has(Area::Maintenance) => Request::Snapshot(pb::SnapshotRequest {}),
            12 if self.has(Area::Maintenance) => Request::Downgrade(pb::DowngradeRequest {
                action: pb::downgrade_request::DowngradeAction::Validate as i32,
                version: "1.0.0".into(),
            }),
            _ => Request::Status(pb::StatusRequest {}),
        }
    }

    /// What concerns users and roles, of those of the guarded time.
    fn guarded_auth(&mut self) -> Request {
        let (user, _) = self.pick(&USERS);
        let role = self.pick(&ROLES);
        match self.rng.random_range(0..12) {
            0 => Request::AuthStatus(pb::AuthStatusRequest {}),
            1 => Request::UserGet(pb::AuthUserGetRequest { name: user.into() }),
            2 => Request::UserList(pb::AuthUserListRequest {}),
            3 => Request::RoleGet(pb::AuthRoleGetRequest { role: role.into() }),
            4 => Request::RoleList(pb::AuthRoleListRequest {}),
            5 => Request::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }),
            6 => Request::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: user.into(), role: role.into() }),
            7 | 8 => self.grant_permission(role),
            9 => Request::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
                role: role.into(),
                key: self.written_key(),
                range_end: self.range_end(),
            }),
            10 => Request::UserChangePassword(pb::AuthUserChangePasswordRequest {
                name: user.into(),
                password: "p".into(),
                ..Default::default()
            }),
            // Refused to all: root stays what it is as long as auth is enabled.
            _ => match self.chance(0.5) {
                true => Request::UserDelete(pb::AuthUserDeleteRequest { name: "root".into() }),
                false => {
                    Request::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() })
                }
            },
        }
    }
}

/// Gives ranges that end before they begin, and so hold no key, another end: whether etcd permits such a range depends
/// on how its tree of permissions has grown.
fn hold_some_key(request: &mut Request) {
    let mend = |key: &Bytes, range_end: &mut Bytes| {
        if *range_end <= *key && !range_end.is_empty() && range_end.as_ref() != NO_END {
            *range_end = BEHIND_ALL;
        }
    };
    match request {
        Request::Range(range) => mend(&range.key, &mut range.range_end),
        Request::DeleteRange(range) => mend(&range.key, &mut range.range_end),
        Request::Txn(txn) => for_each_range(txn, &mend),
        Request::Watch(pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        }) => mend(&create.key, &mut create.range_end),
        _ => {}
    }
}

/// Compares, too, are of ranges.
fn for_each_range(txn: &mut pb::TxnRequest, change: &impl Fn(&Bytes, &mut Bytes)) {
    for compare in &mut txn.compare {
        change(&compare.key, &mut compare.range_end);
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(pb::request_op::Request::RequestRange(range)) => change(&range.key, &mut range.range_end),
            Some(pb::request_op::Request::RequestDeleteRange(delete)) => change(&delete.key, &mut delete.range_end),
            Some(pb::request_op::Request::RequestTxn(nested)) => for_each_range(nested, change),
            Some(pb::request_op::Request::RequestPut(_)) | None => {}
        }
    }
}

fn call(request: Request, caller: Caller) -> Call {
    Call { request, caller, door: Door::Grpc }
}

fn authenticate(name: &str, password: &str) -> Call {
    Request::Authenticate(pb::AuthenticateRequest { name: name.into(), password: password.into() }).into()
}

fn user_add(name: &str) -> Request {
    Request::UserAdd(pb::AuthUserAddRequest { name: name.into(), password: "p".into(), ..Default::default() })
}

/// Users and roles while auth is not enabled.
pub(super) fn requests() -> Vec<Request> {
    let grant = |user: &str, role: &str| pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
    let revoke = |name: &str, role: &str| pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() };
    vec![
        Request::AuthStatus(pb::AuthStatusRequest {}),
        Request::AuthEnable(pb::AuthEnableRequest {}),
        Request::AuthDisable(pb::AuthDisableRequest {}),
        Request::Authenticate(pb::AuthenticateRequest { name: "u1".into(), password: "p".into() }),
        Request::UserAdd(pb::AuthUserAddRequest { name: String::new(), ..Default::default() }),
        Request::RoleAdd(pb::AuthRoleAddRequest { name: String::new() }),
        Request::RoleAdd(pb::AuthRoleAddRequest { name: "r1".into() }),
        Request::RoleAdd(pb::AuthRoleAddRequest { name: "r1".into() }),
        Request::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
            name: "r1".into(),
            perm: Some(authpb::Permission { key: Bytes::from_static(KEYS[1]), ..Default::default() }),
        }),
        Request::RoleGet(pb::AuthRoleGetRequest { role: "r1".into() }),
        Request::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
            role: "r1".into(),
            key: Bytes::from_static(KEYS[1]),
            ..Default::default()
        }),
        Request::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
            role: "r1".into(),
            key: Bytes::from_static(KEYS[1]),
            ..Default::default()
        }),
        Request::RoleGet(pb::AuthRoleGetRequest { role: "r1".into() }),
        Request::UserAdd(pb::AuthUserAddRequest { name: "u1".into(), password: "p".into(), ..Default::default() }),
        Request::UserAdd(pb::AuthUserAddRequest { name: "u1".into(), password: "p".into(), ..Default::default() }),
        Request::UserChangePassword(pb::AuthUserChangePasswordRequest {
            name: "u1".into(),
            password: "q".into(),
            ..Default::default()
        }),
        Request::UserGrantRole(grant("u1", "r1")),
        Request::UserGrantRole(grant("u1", "r1")),
        Request::UserGet(pb::AuthUserGetRequest { name: "u1".into() }),
        Request::UserRevokeRole(revoke("u1", "r1")),
        Request::UserRevokeRole(revoke("u1", "r1")),
        Request::UserGet(pb::AuthUserGetRequest { name: "u1".into() }),
        Request::RoleDelete(pb::AuthRoleDeleteRequest { role: "r1".into() }),
        Request::UserDelete(pb::AuthUserDeleteRequest { name: "u1".into() }),
        Request::UserList(pb::AuthUserListRequest {}),
        Request::RoleList(pb::AuthRoleListRequest {}),
        Request::AuthStatus(pb::AuthStatusRequest {}),
    ]
}
