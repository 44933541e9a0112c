//! Rights that are given and taken while users try to use them.
//!
//! The user `root` changes what the role `worker` may do, and takes the role from users and gives it back; `alice` and
//! `bob` write and read all the while. From the moment that a change is acknowledged nobody may act by the older rights.

use anyhow::Result;
use jepsen::check::{
    history::{AuthChange, Keys, Permission, Put, Range, Request},
    rights,
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::{
    root::ROOT,
    test::client::{Choice, Client, Context},
};

const PREFIX: &str = "auth/";
const USERS: [&str; 2] = ["alice", "bob"];
const ROLE: &str = "worker";

pub const AUTH: Workload = Workload {
    name: "auth",
    about: "nobody does what the rights of the time forbid",
    processes: 7,
    rate: 15.0,
    // It closes the store for all who show no token.
    shares: false,
    flags: &["--bcrypt-cost=4"],
    process: |context, index| Box::pin(run(context, index)),
    // The witness has no token.
    is_witnessed: false,
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> Result<()> {
    match index {
        0 => administer(Client::choosing(&context, index, Choice::AfterFailure)).await,
        _ => work(Client::new(&context, index), USERS[index as usize % USERS.len()]).await,
    }
}

/// A change by the administrator.
pub fn change(change: AuthChange) -> Request {
    Request::As { user: ROOT.to_owned(), request: Box::new(Request::Auth(change)) }
}

fn grant(permission: Permission) -> AuthChange {
    AuthChange::RoleGrantPermission { role: ROLE.to_owned(), keys: Keys::prefix(PREFIX), permission }
}

fn grant_role(user: &str) -> AuthChange {
    AuthChange::UserGrantRole { user: user.to_owned(), role: ROLE.to_owned() }
}

/// The administrator, then these users, roles and rights; then authentication is enabled. What was done by an attempt
/// without an answer is refused as there already, and then it is there.
pub async fn set_up(client: &mut Client, changes: &[AuthChange]) {
    let administrator = [
        AuthChange::UserAdd { user: ROOT.to_owned() },
        AuthChange::RoleAdd { role: ROOT.to_owned() },
        AuthChange::UserGrantRole { user: ROOT.to_owned(), role: ROOT.to_owned() },
    ];
    for change in administrator.iter().chain(changes).chain(&[AuthChange::Enable]) {
        while client.call(Request::Auth(change.clone())).await.is_none() && client.is_unsure() {}
    }
}

/// Lets everybody in again: what comes after the run has no token.
pub async fn open(client: &mut Client) {
    while client.call_as(ROOT, change(AuthChange::Disable)).await.is_none() {}
}

async fn administer(mut client: Client) -> Result<()> {
    let mut changes = vec![AuthChange::RoleAdd { role: ROLE.to_owned() }, grant(Permission::ReadWrite)];
    for user in USERS {
        changes.extend([AuthChange::UserAdd { user: user.to_owned() }, grant_role(user)]);
    }
    set_up(&mut client, &changes).await;
    while client.goes_on().await {
        let user = USERS[client.random.random_range(0..USERS.len())].to_owned();
        let next = match client.random.random_range(0..8) {
            0 => grant(Permission::Read),
            1 => grant(Permission::Write),
            2 => grant(Permission::ReadWrite),
            3 => AuthChange::RoleRevokePermission { role: ROLE.to_owned(), keys: Keys::prefix(PREFIX) },
            4 => AuthChange::UserRevokeRole { user, role: ROLE.to_owned() },
            5 => AuthChange::UserChangePassword { user },
            _ => grant_role(&user),
        };
        client.call_as(ROOT, change(next)).await;
    }
    open(&mut client).await;
    Ok(())
}

async fn work(mut client: Client, user: &str) -> Result<()> {
    while client.goes_on().await {
        let key = format!("{PREFIX}{}", client.random.random_range(0..4));
        let request = match client.random.random_range(0..4) {
            0 | 1 => {
                let value = client.recorder().value().to_string();
                Request::Put(Put { key: key.into(), value: value.into(), ..Put::default() })
            }
            2 => Request::Range(Range { keys: Keys::one(key), ..Range::default() }),
            _ => Request::Range(Range { keys: Keys::one(key), serializable: true, ..Range::default() }),
        };
        client.call_as(user, Request::As { user: user.to_owned(), request: Box::new(request) }).await;
    }
    Ok(())
}

fn finish(context: Context) -> Body {
    let all = Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() });
    super::ask_each_member(context, vec![all])
}

fn check(case: &Case) -> Vec<Finding> {
    vec![Finding::of("nobody acts without the right", rights::check(case.history), case.history)]
}
