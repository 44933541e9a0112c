//! Jepsen's set-full: elements are added, each once, and all are read again and again. What was added must be there
//! from then on.

use jepsen::check::{
    history::{Keys, Put, Range, Request},
    set,
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::test::client::{Client, Context};

const PREFIX: &str = "set/";

pub const SET: Workload = Workload {
    name: "set",
    about: "what was added is read from then on, and once",
    processes: 6,
    rate: 10.0,
    process: |context, index| Box::pin(run(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::new(&context, index);
    while client.goes_on().await {
        // A read gives all that was ever added, so there are few.
        let request = if client.random.random_ratio(1, 10) { read() } else { add(&client) };
        client.call(request).await;
    }
    Ok(())
}

fn add(client: &Client) -> Request {
    let element = client.recorder().value();
    Request::Put(Put {
        key: format!("{PREFIX}{element:08}").into(),
        value: element.to_string().into(),
        ..Put::default()
    })
}

fn read() -> Request {
    Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() })
}

/// All elements once more, from each member.
fn finish(context: Context) -> Body {
    super::ask_each_member(context, vec![read()])
}

fn check(case: &Case) -> Vec<Finding> {
    let judged = set::check(case.history, &Keys::prefix(PREFIX));
    vec![Finding::of("nothing added is lost", judged, case.history)]
}
