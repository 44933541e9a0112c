//! What the Kubernetes API server does (etcd's robustness tests have it as their Kubernetes traffic): objects are
//! created if they are not there, updated and deleted if they are as they were read, all by `mod_revision`; caches are
//! filled by a list and kept by a watch from its revision on. Every cache must be what the store held.

use std::collections::{BTreeMap, HashSet};

use jepsen::check::{
    history::{
        Answer, Blob, Compare, CompareResult, CompareTarget, DeleteRange, Event, History, KeyValue, Keys, Put, Range,
        Request, Response, Txn, TxnOp, TxnResult, WatchRequest,
    },
    linearizability,
    store::Store,
    watch,
};
use rand::{Rng as _, seq::IteratorRandom as _};

use super::{Body, Case, Finding, Workload};
use crate::test::{
    client::{Choice, Client, Context},
    watching,
};

const PREFIX: &str = "registry/pods/";
const OBJECTS: u32 = 15;
const CACHES: u64 = 3;
const PAGE: i64 = 5;
const COMPACTION_LAG: i64 = 200;

pub const KUBERNETES: Workload = Workload {
    name: "kubernetes",
    about: "objects are changed by revision only, and caches by list and watch agree with the store",
    processes: 5,
    rate: 20.0,
    process: |context, index| Box::pin(run(context, index)),
    observers: CACHES,
    observe: |context, index| Box::pin(cache(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let client = Client::choosing(&context, index, Choice::AfterFailure);
    match index {
        0 => super::compact(client, COMPACTION_LAG).await,
        _ => change(client).await,
    }
}

/// Lists and watches, as an informer does; begins anew now and then.
async fn cache(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::choosing(&context, index, Choice::AfterFailure);
    while client.goes_on().await {
        let Some((revision, _)) = list(&mut client).await else { continue };
        let request = WatchRequest {
            keys: Keys::prefix(PREFIX),
            start_revision: revision + 1,
            prev_kv: true,
            progress_notify: true,
            ..WatchRequest::default()
        };
        let life = client.random_ms(5_000..20_000);
        watching::watch(&mut client, request, Some(life)).await;
    }
    Ok(())
}

/// All objects page by page, as of the first page's revision.
async fn list(client: &mut Client) -> Option<(i64, Vec<KeyValue>)> {
    let mut revision = 0;
    let mut keys = Keys::prefix(PREFIX);
    let mut all = Vec::new();
    loop {
        let range = Range { keys: keys.clone(), limit: PAGE, revision, ..Range::default() };
        let Response { header, answer: Answer::Range { kvs, more, .. } } = client.call(Request::Range(range)).await?
        else {
            return None;
        };
        if revision == 0 {
            revision = header.revision;
        }
        let last = kvs.last().map(|kv| kv.key.clone());
        all.extend(kvs);
        match last {
            Some(last) if more => keys.key = [&*last, b"\0"].concat().into(),
            _ => return Some((revision, all)),
        }
    }
}

/// A controller with what it knows of the objects, which may be old.
async fn change(mut client: Client) -> anyhow::Result<()> {
    let mut known: BTreeMap<Blob, KeyValue> = BTreeMap::new();
    while client.goes_on().await {
        if known.is_empty() || client.random.random_ratio(1, 20) {
            let Some((_, kvs)) = list(&mut client).await else { continue };
            known = kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        }
        match client.random.random_range(0..10) {
            0..3 => create(&mut client, &mut known).await,
            3..8 => update(&mut client, &mut known).await,
            _ => delete(&mut client, &mut known).await,
        }
    }
    Ok(())
}

async fn create(client: &mut Client, known: &mut BTreeMap<Blob, KeyValue>) {
    let key = Blob::from(format!("{PREFIX}{:02}", client.random.random_range(0..OBJECTS)));
    write(client, known, key, 0).await;
}

async fn update(client: &mut Client, known: &mut BTreeMap<Blob, KeyValue>) {
    let Some((key, kv)) = known.iter().choose(&mut client.random) else { return };
    let (key, mod_revision) = (key.clone(), kv.mod_revision);
    write(client, known, key, mod_revision).await;
}

/// Writes an object if it is as of this revision (0: not there), else learns what it is.
async fn write(client: &mut Client, known: &mut BTreeMap<Blob, KeyValue>, key: Blob, mod_revision: i64) {
    let value: Blob = client.recorder().value().to_string().into();
    let put = Put { key: key.clone(), value: value.clone(), ..Put::default() };
    let answer = client.call(if_unchanged(&key, mod_revision, TxnOp::Put(put))).await;
    learn(known, key, answer, Some(value));
}

async fn delete(client: &mut Client, known: &mut BTreeMap<Blob, KeyValue>) {
    let Some((key, kv)) = known.iter().choose(&mut client.random) else { return };
    let (key, mod_revision) = (key.clone(), kv.mod_revision);
    let keys = Keys { key: key.clone(), ..Keys::default() };
    let op = TxnOp::DeleteRange(DeleteRange { keys, prev_kv: false });
    let answer = client.call(if_unchanged(&key, mod_revision, op)).await;
    learn(known, key, answer, None);
}

fn if_unchanged(key: &Blob, mod_revision: i64, op: TxnOp) -> Request {
    let keys = Keys { key: key.clone(), ..Keys::default() };
    let target = CompareTarget::ModRevision(mod_revision);
    let compare = Compare { keys: keys.clone(), result: CompareResult::Equal, target };
    let failure = vec![TxnOp::Range(Range { keys, ..Range::default() })];
    Request::Txn(Txn { compares: vec![compare], success: vec![op], failure })
}

/// What the answer tells about the object. What is not answered is looked up with the next list.
fn learn(known: &mut BTreeMap<Blob, KeyValue>, key: Blob, answer: Option<Response>, written: Option<Blob>) {
    known.remove(&key);
    let Some(Response { header, answer: Answer::Txn { succeeded, results } }) = answer else { return };
    let now = match (succeeded, written) {
        // Of an object that is only to be changed again, no more than its revision is needed.
        (true, Some(value)) => {
            Some(KeyValue { key: key.clone(), value, mod_revision: header.revision, ..KeyValue::default() })
        }
        (true, None) => None,
        (false, _) => results.into_iter().next().and_then(|result| match result {
            TxnResult::Range { kvs, .. } => kvs.into_iter().next(),
            _ => None,
        }),
    };
    known.extend(now.map(|kv| (key, kv)));
}

fn finish(context: Context) -> Body {
    let all = Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() });
    super::ask_each_member(context, vec![all])
}

/// A cache is what its watch told since its list; each object's changes follow each other.
fn check(case: &Case) -> Vec<Finding> {
    let caches = |truth: &Store| Ok(watch::check(case.history, truth, case.quiet_at));
    let objects = changes_of(case.history);
    let changes = linearizability::check_keys_within(&objects, case.history, &Store::default());
    vec![
        case.against_truth("caches agree with the store", caches),
        Finding::of("changes by revision", changes, &objects),
    ]
}

/// The history without lists and compactions, which are about many keys.
fn changes_of(history: &History) -> History {
    let mut changes = History::default();
    let mut left_out = HashSet::new();
    for entry in history.entries() {
        match &entry.event {
            Event::Invoke(Request::Range(_) | Request::Compact { .. } | Request::Watch { .. }) => {
                left_out.insert(entry.process);
            }
            Event::Ok(_) | Event::Fail(_) | Event::Info(_) if left_out.remove(&entry.process) => (),
            _ => changes.push(entry.clone()),
        }
    }
    changes
}
