//! One key that is put again and again. Its version counts the puts: none may be lost, and none done twice.

use jepsen::check::{
    counter,
    history::{Keys, Put, Range, Request},
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::test::client::{Client, Context};

const KEY: &str = "counter";

pub const COUNTER: Workload = Workload {
    name: "counter",
    about: "a key's version counts each put once",
    processes: 8,
    rate: 30.0,
    process: |context, index| Box::pin(run(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::new(&context, index);
    while client.goes_on().await {
        let request = if client.random.random_ratio(1, 3) { read() } else { increment(&mut client) };
        client.call(request).await;
    }
    Ok(())
}

fn increment(client: &mut Client) -> Request {
    let value = client.recorder().value().to_string();
    Request::Put(Put { key: KEY.into(), value: value.into(), prev_kv: client.random.random(), ..Put::default() })
}

fn read() -> Request {
    Request::Range(Range { keys: Keys::one(KEY), ..Range::default() })
}

fn finish(context: Context) -> Body {
    super::ask_each_member(context, vec![read()])
}

fn check(case: &Case) -> Vec<Finding> {
    vec![Finding::of("each put counts once", counter::check(case.history, &KEY.into()), case.history)]
}
