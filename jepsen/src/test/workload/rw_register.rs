//! Elle's rw-register: transactions write registers and read them. Each value is written once, so a read tells which
//! write it saw.
//!
//! Half of the transactions are one request, whose operations the store does in their order. The other half read first
//! and write if nothing has changed, as a client does that computes what it writes.

use std::collections::{BTreeMap, BTreeSet};

use jepsen::check::{
    cycles,
    history::{Answer, RegisterOp, Request, Response, Txn, TxnOp},
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload, transaction};
use crate::test::{
    client::{Choice, Client, Context, REQUEST_LIMIT, Unanswered},
    wire::Caller,
};

const PREFIX: &str = "rw-register";

pub const RW_REGISTER: Workload = Workload {
    name: "rw-register",
    about: "transactions that write registers and read them are strictly serializable",
    processes: 8,
    rate: 25.0,
    process: |context, index| Box::pin(run(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::new(&context, index);
    while client.goes_on().await {
        let ops = choose(&mut client);
        let caller = client.caller();
        let guarded = client.random.random();
        transact(&mut client, caller, ops, guarded).await;
    }
    Ok(())
}

async fn transact(client: &mut Client, caller: Caller, ops: Vec<RegisterOp>, guarded: bool) {
    let request = Request::Registers { ops: ops.clone() };
    match guarded {
        true => client.attempt(REQUEST_LIMIT, request, read_then_write(caller, ops)).await,
        false => client.attempt(REQUEST_LIMIT, request, at_once(caller, ops)).await,
    };
}

/// etcd refuses a transaction that puts a key twice.
fn choose(client: &mut Client) -> Vec<RegisterOp> {
    let now = client.recorder().elapsed_ns();
    let mut written = BTreeSet::new();
    let count = client.random.random_range(1..=4);
    (0..count)
        .map(|_| {
            let key = transaction::key_at(now, client.random.random());
            if client.random.random() && written.insert(key) {
                RegisterOp::Write { key, value: client.recorder().value() }
            } else {
                RegisterOp::Read { key, value: None }
            }
        })
        .collect()
}

async fn at_once(caller: Caller, mut ops: Vec<RegisterOp>) -> Result<Response, Unanswered> {
    let success: Vec<TxnOp> = ops
        .iter()
        .map(|op| match op {
            RegisterOp::Write { key, value } => transaction::put(PREFIX, *key, value.to_string()),
            RegisterOp::Read { key, .. } => transaction::range(PREFIX, *key),
        })
        .collect();
    let (header, _, results) = transaction::send(&caller, Txn { success, ..Txn::default() }).await?;
    for (op, result) in ops.iter_mut().zip(results) {
        if let RegisterOp::Read { value, .. } = op {
            *value = Some(transaction::first_kv(result).map(|kv| parse(&kv.value)).transpose()?);
        }
    }
    Ok(Response { header, answer: Answer::Registers { ops } })
}

async fn read_then_write(caller: Caller, mut ops: Vec<RegisterOp>) -> Result<Response, Unanswered> {
    let keys: BTreeSet<u64> = ops.iter().map(key_of).collect();
    let view = transaction::read(&caller, PREFIX, &keys).await?;
    let mut registers = BTreeMap::new();
    for key in &keys {
        if let Some(value) = view.value(*key) {
            registers.insert(*key, parse(value)?);
        }
    }
    let mut written = BTreeMap::new();
    for op in &mut ops {
        match op {
            RegisterOp::Write { key, value } => {
                registers.insert(*key, *value);
                written.insert(*key, value.to_string());
            }
            RegisterOp::Read { key, value } => *value = Some(registers.get(key).copied()),
        }
    }
    let header = match written.is_empty() {
        true => view.header,
        false => transaction::write_if_unchanged(&caller, PREFIX, &view, &keys, written).await?,
    };
    Ok(Response { header, answer: Answer::Registers { ops } })
}

fn key_of(op: &RegisterOp) -> u64 {
    match op {
        RegisterOp::Write { key, .. } | RegisterOp::Read { key, .. } => *key,
    }
}

/// What is no number was written by nobody. It is unknown then whether the transaction was done.
fn parse(text: &[u8]) -> Result<u64, Unanswered> {
    let value = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    value.ok_or_else(|| Unanswered { error: format!("{} is no register", text.escape_ascii()), certain: false })
}

/// Every register that there ever was.
fn finish(context: Context) -> Body {
    Box::pin(async move {
        let mut client = Client::choosing(&context, 0, Choice::AfterFailure);
        for keys in transaction::generations_until(context.recorder.elapsed_ns()) {
            let caller = client.caller();
            let ops = keys.map(|key| RegisterOp::Read { key, value: None }).collect();
            transact(&mut client, caller, ops, false).await;
        }
        Ok(())
    })
}

fn check(case: &Case) -> Vec<Finding> {
    vec![Finding::of("no circle of dependencies", cycles::check_registers(case.history), case.history)]
}
