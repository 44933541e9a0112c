//! Elle's list-append (Kingsbury and Alvaro, 2020): transactions append to lists and read them. A list tells in which
//! order it was appended to, so dependencies between transactions can be read off.
//!
//! A list is the value of one key, `1,2,3`.

use std::collections::{BTreeMap, BTreeSet};

use jepsen::check::{
    cycles,
    history::{Answer, ListOp, Request, Response},
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload, transaction};
use crate::test::{
    client::{Choice, Client, Context, REQUEST_LIMIT, Unanswered},
    wire::Caller,
};

const PREFIX: &str = "append";

pub const APPEND: Workload = Workload {
    name: "append",
    about: "transactions that append to lists and read them are strictly serializable",
    processes: 8,
    rate: 20.0,
    process: |context, index| Box::pin(run(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::new(&context, index);
    while client.goes_on().await {
        let ops = choose(&mut client);
        transact(&mut client, ops).await;
    }
    Ok(())
}

fn choose(client: &mut Client) -> Vec<ListOp> {
    let now = client.recorder().elapsed_ns();
    let count = client.random.random_range(1..=4);
    (0..count)
        .map(|_| {
            let key = transaction::key_at(now, client.random.random());
            if client.random.random() {
                ListOp::Append { key, value: client.recorder().value() }
            } else {
                ListOp::Read { key, list: None }
            }
        })
        .collect()
}

async fn transact(client: &mut Client, ops: Vec<ListOp>) {
    let doing = carry_out(client.caller(), ops.clone());
    client.attempt(REQUEST_LIMIT, Request::Append { ops }, doing).await;
}

async fn carry_out(caller: Caller, mut ops: Vec<ListOp>) -> Result<Response, Unanswered> {
    let keys: BTreeSet<u64> = ops.iter().map(key_of).collect();
    let view = transaction::read(&caller, PREFIX, &keys).await?;
    let mut lists = BTreeMap::new();
    for key in &keys {
        lists.insert(*key, view.value(*key).map_or(Ok(Vec::new()), parse)?);
    }
    let mut written = BTreeSet::new();
    for op in &mut ops {
        match op {
            ListOp::Append { key, value } => {
                lists.entry(*key).or_default().push(*value);
                written.insert(*key);
            }
            ListOp::Read { key, list } => *list = lists.get(key).cloned(),
        }
    }
    let values: BTreeMap<u64, String> = written.iter().map(|key| (*key, print(&lists[key]))).collect();
    let header = match values.is_empty() {
        true => view.header,
        false => transaction::write_if_unchanged(&caller, PREFIX, &view, &keys, values).await?,
    };
    Ok(Response { header, answer: Answer::Append { ops } })
}

fn key_of(op: &ListOp) -> u64 {
    match op {
        ListOp::Append { key, .. } | ListOp::Read { key, .. } => *key,
    }
}

fn parse(text: &[u8]) -> Result<Vec<u64>, Unanswered> {
    let list: Option<Vec<u64>> =
        std::str::from_utf8(text).ok().and_then(|text| text.split(',').map(|value| value.parse().ok()).collect());
    list.ok_or_else(|| Unanswered { error: format!("{} is no list", text.escape_ascii()), certain: true })
}

fn print(list: &[u64]) -> String {
    list.iter().map(u64::to_string).collect::<Vec<String>>().join(",")
}

/// Every list that there ever was.
fn finish(context: Context) -> Body {
    Box::pin(async move {
        let mut client = Client::choosing(&context, 0, Choice::AfterFailure);
        for keys in transaction::generations_until(context.recorder.elapsed_ns()) {
            transact(&mut client, keys.map(|key| ListOp::Read { key, list: None }).collect()).await;
        }
        Ok(())
    })
}

fn check(case: &Case) -> Vec<Finding> {
    vec![Finding::of("no circle of dependencies", cycles::check_lists(case.history), case.history)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_as_they_were_written() {
        assert_eq!(parse(print(&[3, 1, 2]).as_bytes()).ok(), Some(vec![3, 1, 2]));
        assert!(parse(b"1,x").is_err_and(|unanswered| unanswered.error == "1,x is no list"));
    }
}
