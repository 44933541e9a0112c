//! Users, roles and permissions: what is refused, what changes the auth revision, what survives a crash, and that a
//! command is checked again when it is applied.

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::Bench;
use proto::{
    EtcdError,
    authpb::{Permission, UserAddOptions, permission::Type},
    command::{AuthDone, AuthInfo, Authenticate, command::Op, outcome},
    etcdserverpb::{
        AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
        AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
        CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
        RangeRequest, RequestOp, TxnRequest, request_op::Request,
    },
};
use storage::{AuthChange, Right};

fn user_add(name: &str) -> Op {
    Op::UserAdd(AuthUserAddRequest {
        name: name.into(),
        hashed_password: STANDARD.encode(format!("hash of {name}")),
        ..Default::default()
    })
}

fn role_add(name: &str) -> Op {
    Op::RoleAdd(AuthRoleAddRequest { name: name.into() })
}

fn grant_role(user: &str, role: &str) -> Op {
    Op::UserGrantRole(AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

fn grant(role: &str, kind: Type, key: &'static str, range_end: &'static str) -> Op {
    let perm = Permission { perm_type: kind as i32, key: key.into(), range_end: range_end.into() };
    Op::RoleGrantPermission(AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) })
}

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

struct World(Bench);

impl World {
    fn new() -> World {
        World(Bench::new())
    }

    /// Root, and a user `u` that reads [r, s) and writes `w`, with authentication on.
    fn enabled() -> World {
        let mut world = World::new();
        for op in [user_add("root"), grant_role("root", "root"), user_add("u"), role_add("of u")] {
            world.done(op);
        }
        world.done(grant("of u", Type::Read, "r", "s"));
        world.done(grant("of u", Type::Write, "w", ""));
        world.done(grant_role("u", "of u"));
        world.done(Op::AuthEnable(AuthEnableRequest {}));
        world
    }

    fn by(&mut self, auth: Option<AuthInfo>, op: Op) -> Result<outcome::Result, String> {
        match self.0.apply_by(auth, op).result.unwrap() {
            outcome::Result::Failure(failure) => Err(failure.message),
            result => Ok(result),
        }
    }

    /// As `user`, checked at the auth revision that is current.
    fn as_user(&mut self, user: &str, op: Op) -> Result<(), EtcdError> {
        let auth = AuthInfo { username: user.into(), revision: self.0.store.auth().revision() };
        self.by(Some(auth), op).map(|_| ()).map_err(|message| EtcdError::from_message(&message).unwrap())
    }

    fn done(&mut self, op: Op) -> AuthDone {
        let root = AuthInfo { username: "root".into(), revision: 1 };
        match self.by(Some(root), op) {
            Ok(outcome::Result::AuthDone(done)) => done,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&mut self, op: Op) -> EtcdError {
        self.as_user("root", op).unwrap_err()
    }
}

#[test]
fn what_does_not_exist_or_exists_already_is_refused() {
    let mut world = World::new();
    use EtcdError::*;
    let remove_user = |name: &str| Op::UserDelete(AuthUserDeleteRequest { name: name.into() });
    let remove_role = |role: &str| Op::RoleDelete(AuthRoleDeleteRequest { role: role.into() });
    let enable = || Op::AuthEnable(AuthEnableRequest {});
    let revoke =
        |user: &str, role: &str| Op::UserRevokeRole(AuthUserRevokeRoleRequest { name: user.into(), role: role.into() });
    let revoke_key = |role: &str, key: &'static str| {
        let (role, key) = (role.into(), key.into());
        Op::RoleRevokePermission(AuthRoleRevokePermissionRequest { role, key, range_end: "".into() })
    };
    assert_eq!(world.refusal(enable()), RootUserNotExist);
    world.done(user_add("root"));
    assert_eq!(world.refusal(enable()), RootRoleNotExist);
    assert_eq!(world.refusal(user_add("")), UserEmpty);
    assert_eq!(world.refusal(user_add("root")), UserAlreadyExist);
    assert_eq!(world.refusal(remove_user("x")), UserNotFound);
    assert_eq!(world.refusal(grant_role("x", "root")), UserNotFound);
    assert_eq!(world.refusal(grant_role("root", "x")), RoleNotFound);
    assert_eq!(world.refusal(revoke("root", "x")), RoleNotGranted);
    assert_eq!(world.refusal(role_add("")), RoleEmpty);
    world.done(role_add("r"));
    assert_eq!(world.refusal(role_add("r")), RoleAlreadyExist);
    assert_eq!(world.refusal(remove_role("x")), RoleNotFound);
    assert_eq!(world.refusal(grant("x", Type::Read, "a", "")), RoleNotFound);
    for (key, end) in [("", ""), ("b", "a"), ("b", "b")] {
        assert_eq!(world.refusal(grant("r", Type::Read, key, end)), InvalidAuthMgmt);
    }
    let nothing = AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    assert_eq!(world.refusal(Op::RoleGrantPermission(nothing)), PermissionNotGiven);
    assert_eq!(world.refusal(revoke_key("r", "a")), PermissionNotGranted);
    assert_eq!(world.refusal(revoke_key("x", "a")), RoleNotFound);
    let authenticate = || Op::Authenticate(Authenticate { name: "root".into(), simple_token: "t".into() });
    assert_eq!(world.refusal(authenticate()), AuthNotEnabled);

    world.done(grant_role("root", "root"));
    world.done(role_add("root"));
    world.done(enable());
    for op in [remove_user("root"), remove_role("root"), revoke("root", "root")] {
        assert_eq!(world.refusal(op), InvalidAuthMgmt);
    }
}

#[test]
fn every_change_and_only_a_change_makes_a_revision() {
    let mut world = World::new();
    assert_eq!(world.0.store.auth().revision(), 1);
    assert_eq!(world.done(user_add("root")).auth_revision, 2);
    assert_eq!(world.done(grant_role("root", "root")).auth_revision, 3);
    assert_eq!(world.done(grant_role("root", "root")).auth_revision, 3);
    world.refusal(role_add(""));
    let enable = || Op::AuthEnable(AuthEnableRequest {});
    let disable = || Op::AuthDisable(AuthDisableRequest {});
    assert_eq!(world.done(enable()).auth_revision, 3);
    assert_eq!(world.done(enable()).auth_revision, 3);
    assert_eq!(world.done(disable()).auth_revision, 4);
    assert_eq!(world.done(disable()).auth_revision, 4);
}

#[test]
fn a_role_that_is_deleted_is_taken_from_its_users() {
    let mut world = World::enabled();
    world.done(Op::RoleDelete(AuthRoleDeleteRequest { role: "of u".into() }));
    assert!(world.0.store.auth().user("u").unwrap().roles.is_empty());
    assert_eq!(world.as_user("u", Op::Put(put("w"))), Err(EtcdError::PermissionDenied));
}

#[test]
fn users_and_roles_outlive_a_crash() {
    let mut world = World::enabled();
    world.done(role_add("gone"));
    world.done(Op::RoleDelete(AuthRoleDeleteRequest { role: "gone".into() }));
    for flushed in [true, false] {
        if flushed {
            world.0.reopen()
        } else {
            world.0.crash()
        }
        let auth = world.0.store.auth();
        assert!(auth.is_enabled());
        assert_eq!((auth.user_names(), auth.role_names()), (vec!["root".into(), "u".into()], vec!["of u".into()]));
        assert_eq!(auth.user("u").unwrap().password, "hash of u");
        let reader = AuthInfo { username: "u".into(), revision: auth.revision() };
        assert_eq!(auth.check_keys(Some(&reader), b"r1", b"", Right::Read), Ok(()));
        assert_eq!(auth.revision(), 10);
    }
}

#[test]
fn a_command_is_checked_when_it_is_applied() {
    let mut world = World::enabled();
    let (ok, denied) = (Ok(()), Err(EtcdError::PermissionDenied));
    assert_eq!(world.as_user("u", Op::Put(put("w"))), ok);
    assert_eq!(world.as_user("u", Op::Put(put("r"))), denied);
    assert_eq!(world.as_user("u", Op::Put(PutRequest { prev_kv: true, ..put("w") })), denied);
    let delete = |key: &'static str, end: &'static str, prev_kv| {
        Op::DeleteRange(DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv })
    };
    assert_eq!(world.as_user("u", delete("w", "", false)), ok);
    assert_eq!(world.as_user("u", delete("w", "", true)), denied);
    assert_eq!(world.as_user("u", delete("w", "x", false)), denied);
    assert_eq!(world.as_user("nobody", Op::Put(put("w"))), denied);
    assert_eq!(world.as_user("root", Op::Put(PutRequest { prev_kv: true, ..put("other") })), ok);
    assert_eq!(world.as_user("u", user_add("v")), denied);
    assert_eq!(world.as_user("nobody", user_add("v")), Err(EtcdError::UserNotFound));

    // Members' own commands come without a name.
    let unnamed = |world: &mut World, op| world.by(None, op).map(|_| ());
    assert_eq!(unnamed(&mut world, Op::Put(put("w"))), Err("etcdserver: user name is empty".into()));
    assert_eq!(unnamed(&mut world, Op::Compact(CompactionRequest { revision: 2, physical: false })), Ok(()));
}

#[test]
fn every_part_of_a_transaction_needs_its_right() {
    let mut world = World::enabled();
    let op = |request| RequestOp { request: Some(request) };
    let read = |key: &'static str| op(Request::RequestRange(RangeRequest { key: key.into(), ..Default::default() }));
    let write = |key: &'static str| op(Request::RequestPut(put(key)));
    let txn = |compare: &'static str, success: Vec<RequestOp>, failure: Vec<RequestOp>| TxnRequest {
        compare: vec![Compare { key: compare.into(), ..Default::default() }],
        success,
        failure,
    };
    let nested = |inner: TxnRequest| op(Request::RequestTxn(inner));
    let mut check = |request: TxnRequest| world.as_user("u", Op::Txn(request));
    let denied = Err(EtcdError::PermissionDenied);
    assert_eq!(check(txn("r", vec![read("r1"), write("w")], vec![])), Ok(()));
    assert_eq!(check(txn("w", vec![write("w")], vec![])), denied);
    assert_eq!(check(txn("r", vec![write("w"), read("w")], vec![])), denied);
    // The branch that is not taken counts, too.
    assert_eq!(check(txn("r", vec![write("w")], vec![write("r")])), denied);
    assert_eq!(check(txn("r", vec![write("r")], vec![write("w")])), denied);
    assert_eq!(check(txn("r", vec![nested(txn("r", vec![write("w")], vec![]))], vec![])), Ok(()));
    assert_eq!(check(txn("r", vec![nested(txn("w", vec![], vec![]))], vec![])), denied);
    assert_eq!(check(txn("r", vec![write("w"), nested(txn("r", vec![], vec![write("r")]))], vec![])), denied);
}

#[test]
fn who_may_not_write_a_lease_s_keys_may_neither_revoke_nor_use_it() {
    let mut world = World::enabled();
    world.as_user("root", Op::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 60 })).unwrap();
    assert_eq!(world.as_user("u", Op::Put(PutRequest { lease: 7, ..put("w") })), Ok(()));
    world.as_user("root", Op::Put(PutRequest { lease: 7, ..put("r1") })).unwrap();
    let denied = Err(EtcdError::PermissionDenied);
    assert_eq!(world.as_user("u", Op::Put(PutRequest { lease: 7, ..put("w") })), denied);
    assert_eq!(world.as_user("u", Op::LeaseRevoke(LeaseRevokeRequest { id: 7 })), denied);
    assert_eq!(world.as_user("root", Op::LeaseRevoke(LeaseRevokeRequest { id: 7 })), Ok(()));
}

#[test]
fn what_was_checked_at_an_older_revision_is_refused() {
    let mut world = World::enabled();
    let stale = AuthInfo { username: "u".into(), revision: world.0.store.auth().revision() };
    world.done(role_add("another"));
    let refusal = world.by(Some(stale), Op::Put(put("w"))).unwrap_err();
    assert_eq!(refusal, "etcdserver: revision of auth store is old");
}

#[test]
fn tokens_are_told_to_the_observer() {
    let mut world = World::enabled();
    let done = world.done(Op::Authenticate(Authenticate { name: "u".into(), simple_token: "abc".into() }));
    let at = world.0.store.applied().index;
    assert_eq!(done.token, format!("abc.{at}"));
    let change = AuthUserChangePasswordRequest { name: "u".into(), ..Default::default() };
    world.done(Op::UserChangePassword(change));
    world.done(Op::AuthDisable(AuthDisableRequest {}));
    let told: Vec<AuthChange> = world.0.told.0.lock().iter().flat_map(|change| change.auth.clone()).collect();
    let expected = [
        AuthChange::Enabled,
        AuthChange::TokenAssigned { name: "u".into(), token: done.token },
        AuthChange::UserInvalidated { name: "u".into() },
        AuthChange::Disabled,
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_user_without_password_gets_no_token() {
    let mut world = World::enabled();
    let options = Some(UserAddOptions { no_password: true });
    world.done(Op::UserAdd(AuthUserAddRequest { name: "cn".into(), options, ..Default::default() }));
    let authenticate = Authenticate { name: "cn".into(), simple_token: "abc".into() };
    assert_eq!(world.refusal(Op::Authenticate(authenticate)), EtcdError::AuthFailed);
}
