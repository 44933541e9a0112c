//! The crate `client`, as programs use it: puts and transactions by its retry rules, a counter, leases that its keeper
//! keeps, locks and leaderships held by its sessions, watches that it resumes. With and without authentication; with it,
//! tokens expire, go with the members that gave them, and are out of date whenever users change.
//!
//! Every value is written by one request, so a request that the library did twice is seen, also where nobody knows what
//! became of it.

use std::time::Duration;

use anyhow::Result;
use client::{Comparison, Error, LeaseId, Session, Txn};
use jepsen::check::{
    counter,
    history::{
        self, Answer, AuthChange, Compare, CompareResult, CompareTarget, Event, Header, History, Keys, Permission, Put,
        Range, Request, Response, TxnOp, WatchRequest, WatchSeen,
    },
    keeper, ledger, lock,
    store::Store,
    tokens, watch,
};
use rand::Rng as _;
use tokio::time::timeout;

use super::{Body, Case, Finding, Workload, auth, lock::LOCK_LIMIT};
use crate::root::ROOT;
use crate::test::{
    client::{Choice, Client, Context, REQUEST_LIMIT},
    library::{self, Manner, Process, to_op},
};

const PREFIX: &str = "client/";
const COUNTER: &str = "client/counter";
const LOCK: &str = "client/lock";
const ELECTION: &str = "client/election";
const KEYS: u32 = 8;
const WATCHERS: u64 = 5;
/// The watches must not only show what is new.
const COMPACTION_LAG: i64 = 100;
/// Of a lease that is kept: a third of it is longer than most elections.
const KEPT_TTL_S: i64 = 6;
const SESSION_TTL_S: i64 = 4;

pub const CLIENT: Workload = Workload {
    name: "client",
    about: "the client library does nothing twice, keeps leases and locks, and resumes watches without gap or duplicate",
    processes: 10,
    rate: 20.0,
    process: |context, index| Box::pin(run(context, index)),
    observers: WATCHERS,
    observe: |context, kind| Box::pin(observe(context, kind, None)),
    finish,
    check,
    ..Workload::PLAIN
};

pub const CLIENT_AUTH: Workload = Workload {
    name: "client-auth",
    about: "the same with authentication: the library renews its tokens, and nobody notices",
    // It closes the store for all who show no token.
    shares: false,
    flags: &["--bcrypt-cost=4", "--auth-token-ttl=2"],
    process: |context, index| Box::pin(run_with_auth(context, index)),
    observe: |context, kind| Box::pin(observe(context, kind, Some(USER))),
    // The witness has no token; the first observer is one.
    is_witnessed: false,
    check: check_with_auth,
    ..CLIENT
};

const USER: &str = "carol";
const ROLE: &str = "everything";
const USER_CHANGE_MS: std::ops::Range<u64> = 500..3_000;

async fn run(context: Context, index: u64) -> Result<()> {
    match index {
        0 => super::compact(Client::choosing(&context, index, Choice::AfterFailure), COMPACTION_LAG).await,
        _ => work(Process::new(&context, index, None)?).await,
    }
}

async fn run_with_auth(context: Context, index: u64) -> Result<()> {
    match index {
        0 => administer(Client::choosing(&context, index, Choice::AfterFailure)).await,
        _ => work(Process::new(&context, index, Some(USER))?).await,
    }
}

/// Changes users now and then, so that tokens are out of date.
async fn administer(mut client: Client) -> Result<()> {
    let grant =
        AuthChange::RoleGrantPermission { role: ROLE.to_owned(), keys: Keys::all(), permission: Permission::ReadWrite };
    let changes = [
        AuthChange::RoleAdd { role: ROLE.to_owned() },
        grant,
        AuthChange::UserAdd { user: USER.to_owned() },
        AuthChange::UserGrantRole { user: USER.to_owned(), role: ROLE.to_owned() },
    ];
    auth::set_up(&mut client, &changes).await;
    loop {
        let pause = client.random_ms(USER_CHANGE_MS);
        if !client.wait(pause).await {
            break;
        }
        // To the same password.
        client.call_as(ROOT, auth::change(AuthChange::UserChangePassword { user: USER.to_owned() })).await;
    }
    auth::open(&mut client).await;
    Ok(())
}

async fn work(mut process: Process) -> Result<()> {
    while process.goes_on().await {
        match process.random.random_range(0..40) {
            0..16 => put(&mut process).await?,
            16..22 => transact(&mut process).await?,
            22..36 => count(&mut process).await?,
            36..38 => keep_a_lease(&mut process).await?,
            _ => hold(&mut process).await?,
        }
    }
    Ok(())
}

fn fresh_put(process: &mut Process) -> Put {
    let key = format!("{PREFIX}key/{}", process.random.random_range(0..KEYS));
    Put { key: key.into(), value: process.recorder().value().to_string().into(), ..Put::default() }
}

async fn put(process: &mut Process) -> Result<()> {
    let put = fresh_put(process);
    process.put(put).await.map(drop)
}

/// Two keys at one revision, if a third is as it was read.
async fn transact(process: &mut Process) -> Result<()> {
    let guard = fresh_put(process).key;
    let (first, otherwise) = (fresh_put(process), fresh_put(process));
    let second = Put { key: format!("{PREFIX}other").into(), ..fresh_put(process) };
    let Some(read) = get(process, &guard).await? else { return Ok(()) };
    let modified = read.kvs.first().map_or(0, |kv| kv.mod_revision);
    let compare = Compare {
        keys: Keys { key: guard.clone(), ..Keys::default() },
        result: CompareResult::Equal,
        target: CompareTarget::ModRevision(modified),
    };
    let txn = Txn::new()
        .when(client::Compare::mod_revision(guard.0).equals(modified))
        .then(to_op(&first))
        .then(to_op(&second))
        .otherwise(to_op(&otherwise));
    let request = history::Txn {
        compares: vec![compare],
        success: vec![TxnOp::Put(first), TxnOp::Put(second)],
        failure: vec![TxnOp::Put(otherwise)],
    };
    send_txn(process, request, txn).await.map(drop)
}

/// Whether it succeeded, if that is known.
async fn send_txn(process: &mut Process, request: history::Txn, txn: Txn) -> Result<Option<bool>> {
    let client = process.client.clone();
    let answer = |answer: &client::pb::TxnResponse| {
        Response::try_from(answer).expect("a transaction of puts is answered with what a history can hold")
    };
    let answer = process.ask(Request::Txn(request), client.txn(txn), answer).await?;
    Ok(answer.map(|answer| answer.succeeded))
}

async fn get(process: &mut Process, key: &history::Blob) -> Result<Option<client::pb::RangeResponse>> {
    let keys = Keys { key: key.clone(), ..Keys::default() };
    let get = client::Get::new(library::to_keys(&keys));
    let client = process.client.clone();
    process.ask(Request::Range(Range { keys, ..Range::default() }), client.get(get), |answer| answer.into()).await
}

async fn count(process: &mut Process) -> Result<()> {
    if process.random.random_ratio(1, 3) {
        return get(process, &COUNTER.into()).await.map(drop);
    }
    let put = Put { key: COUNTER.into(), prev_kv: process.random.random(), ..fresh_put(process) };
    process.put(put).await.map(drop)
}

/// From grant to revocation: it must not end in between.
async fn keep_a_lease(process: &mut Process) -> Result<()> {
    let lease = process.recorder().lease();
    let client = process.client.clone();
    let granting = client.lease_grant(KEPT_TTL_S, LeaseId(lease));
    let request = Request::LeaseGrant { lease, ttl_s: KEPT_TTL_S };
    let answer = |granted: &client::pb::LeaseGrantResponse| Response {
        header: granted.header.as_ref().into(),
        answer: Answer::LeaseGrant { lease: granted.id, ttl_s: granted.ttl },
    };
    if process.ask(request, granting, answer).await?.is_none() {
        return Ok(());
    }
    let renewals = process.note_renewals(client.keep_alive(LeaseId(lease)));
    let key = format!("{PREFIX}kept/{lease}");
    let value = process.recorder().value().to_string();
    process.put(Put { key: key.into(), value: value.into(), lease, ..Put::default() }).await?;
    let life = Duration::from_millis(process.random.random_range(2_000..15_000));
    process.wait(life).await;
    revoke(process, lease).await?;
    drop(renewals);
    Ok(())
}

async fn revoke(process: &mut Process, lease: i64) -> Result<()> {
    let client = process.client.clone();
    let answer = |revoked: &client::pb::LeaseRevokeResponse| Response {
        header: revoked.header.as_ref().into(),
        answer: Answer::LeaseRevoke,
    };
    process.ask(Request::LeaseRevoke { lease }, client.lease_revoke(LeaseId(lease)), answer).await.map(drop)
}

/// Waits for the lock or for the leadership, and does what only its holder may do.
async fn hold(process: &mut Process) -> Result<()> {
    let client = process.client.clone();
    let granted = |session: &Session| Response {
        header: Header::default(),
        answer: Answer::LeaseGrant { lease: session.lease().0, ttl_s: SESSION_TTL_S },
    };
    let request = Request::LeaseGrant { lease: 0, ttl_s: SESSION_TTL_S };
    let Some(session) = process.ask(request, client.session(SESSION_TTL_S), granted).await? else { return Ok(()) };
    let lease = session.lease().0;
    // A second keeper of the same lease: what it is told the session is told.
    let renewals = process.note_renewals(client.keep_alive(session.lease()));
    let is_lock = process.random.random();
    let request = Request::Campaign { name: if is_lock { LOCK } else { ELECTION }.into(), lease, value: "".into() };
    let held = |held: &Held| Response {
        header: Header::default(),
        answer: Answer::Campaign { leader: held.key().into(), create_revision: held.revision() },
    };
    let waiting = async {
        let held = timeout(LOCK_LIMIT, Held::wait(&session, is_lock)).await;
        held.unwrap_or(Err(Error::Timeout))
    };
    if let Some(held) = process.ask_within(LOCK_LIMIT + REQUEST_LIMIT, request, waiting, held).await? {
        effects(process, &held).await?;
        if process.random.random_ratio(4, 5) {
            leave(process, held).await?;
        }
    }
    revoke(process, lease).await?;
    drop(renewals);
    Ok(())
}

async fn leave(process: &mut Process, held: Held) -> Result<()> {
    let request = Request::Resign { leader: held.key().into(), create_revision: held.revision() };
    let answer = |_: &()| Response { header: Header::default(), answer: Answer::Resign };
    let leaving = async { timeout(REQUEST_LIMIT, held.leave()).await.unwrap_or(Err(Error::Timeout)) };
    process.ask(request, leaving, answer).await.map(drop)
}

/// What is held by a session.
enum Held {
    Lock(client::Lock),
    Leadership(client::Leadership),
}

impl Held {
    async fn wait(session: &Session, is_lock: bool) -> client::Result<Held> {
        match is_lock {
            true => session.lock(LOCK).await.map(Held::Lock),
            false => session.campaign(ELECTION, "").await.map(Held::Leadership),
        }
    }

    fn key(&self) -> bytes::Bytes {
        match self {
            Held::Lock(lock) => lock.key().clone(),
            Held::Leadership(leadership) => leadership.key().clone(),
        }
    }

    fn revision(&self) -> i64 {
        match self {
            Held::Lock(lock) => lock.revision(),
            Held::Leadership(leadership) => leadership.revision(),
        }
    }

    fn is_held(&self) -> Comparison {
        match self {
            Held::Lock(lock) => lock.is_held(),
            Held::Leadership(leadership) => leadership.is_leader(),
        }
    }

    async fn leave(self) -> client::Result<()> {
        match self {
            Held::Lock(lock) => lock.unlock().await,
            Held::Leadership(leadership) => leadership.resign().await,
        }
    }
}

/// Does a few things that only the holder may do. Sometimes it takes longer than its lease would last.
async fn effects(process: &mut Process, held: &Held) -> Result<()> {
    for _ in 0..process.random.random_range(1..5) {
        let pause = match process.random.random_ratio(1, 20) {
            true => Duration::from_secs(SESSION_TTL_S as u64 + 2),
            false => Duration::from_millis(process.random.random_range(5..80)),
        };
        if !process.wait(pause).await {
            return Ok(());
        }
        let effect = Put { key: format!("{PREFIX}effect").into(), ..fresh_put(process) };
        let compare = Compare {
            keys: Keys { key: held.key().into(), ..Keys::default() },
            result: CompareResult::Equal,
            target: CompareTarget::CreateRevision(held.revision()),
        };
        let txn = Txn::new().when(held.is_held()).then(to_op(&effect));
        let request = history::Txn { compares: vec![compare], success: vec![TxnOp::Put(effect)], failure: Vec::new() };
        if send_txn(process, request, txn).await? == Some(false) {
            return Ok(());
        }
    }
    Ok(())
}

/// The first sees everything from the first revision on; each other one has a kind of watch of its own, and begins new
/// ones, some of them in the past.
async fn observe(context: Context, kind: u64, user: Option<&'static str>) -> Result<()> {
    let mut process = Process::new(&context, kind, user)?;
    if kind == 0 {
        let all = WatchRequest { keys: Keys::all(), start_revision: 2, ..WatchRequest::default() };
        return library::watch(&mut process, all, Manner::default(), None).await;
    }
    while !process.is_stopped() {
        let (request, manner) = kind_of_watch(&mut process, kind);
        let life = Duration::from_millis(process.random.random_range(4_000..15_000));
        library::watch(&mut process, request, manner, Some(life)).await?;
    }
    Ok(())
}

fn kind_of_watch(process: &mut Process, kind: u64) -> (WatchRequest, Manner) {
    let newest = process.recorder().revision();
    let start_revision = match process.random.random_range(0..3) {
        0 => 0,
        1 => newest + 1,
        // Perhaps compacted already.
        _ => (newest - process.random.random_range(0..2 * COMPACTION_LAG)).max(1),
    };
    let all = WatchRequest { keys: Keys::prefix(PREFIX), start_revision, ..WatchRequest::default() };
    let manner = Manner::default();
    match kind {
        1 => (WatchRequest { prev_kv: true, ..all }, manner),
        2 => (WatchRequest { keys: Keys::one(COUNTER), ..all }, manner),
        3 => (all, Manner { alone: true, ..manner }),
        _ => (all, Manner { pause_max: Duration::from_millis(400), ..manner }),
    }
}

fn finish(context: Context) -> Body {
    let all = Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() });
    let counter = Request::Range(Range { keys: Keys::one(COUNTER), ..Range::default() });
    super::ask_each_member(context, vec![all, counter])
}

fn check(case: &Case) -> Vec<Finding> {
    judge(case, case.truth)
}

/// The first observer saw everything, or nothing can be judged.
fn check_with_auth(case: &Case) -> Vec<Finding> {
    let truth = observed(case.history);
    let mut findings = judge(case, &truth);
    // The administrator does not ask through the library, but a member of its own, whose name is told.
    let mut asked = History::default();
    case.history.entries().iter().filter(|entry| entry.node.is_none()).for_each(|entry| asked.push(entry.clone()));
    findings.push(Finding::of("nobody is refused for a token", Ok(tokens::check(&asked)), &asked));
    findings
}

fn judge(case: &Case, truth: &Result<Store, String>) -> Vec<Finding> {
    let history = case.history;
    let case = Case { truth, ..*case };
    vec![
        case.against_truth("each write is done once, where it was told", |truth| ledger::check(history, truth)),
        Finding::of("each put counts once", counter::check(history, &COUNTER.into()), history),
        case.against_truth("watches", |truth| Ok(watch::check(history, truth, case.quiet_at))),
        case.against_truth("guarded effects exclude each other", |truth| lock::check(history, truth)),
        Finding::of("kept leases last", keeper::check(history), history),
    ]
}

/// What the watcher saw that asked for everything.
fn observed(history: &History) -> Result<Store, String> {
    let watcher = history.entries().iter().find_map(|entry| match &entry.event {
        Event::Watch(note) => match &note.seen {
            WatchSeen::Created { request, .. } if request.keys == Keys::all() && request.start_revision == 2 => {
                Some(note.watcher)
            }
            _ => None,
        },
        _ => None,
    });
    let watcher = watcher.ok_or("nobody saw everything")?;
    watch::truth_of(history, watcher, Store::default()).map_err(|error| format!("{error:#}"))
}
