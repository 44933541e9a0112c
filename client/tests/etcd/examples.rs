//! The examples, each against a Pintle.

#![allow(dead_code, reason = "their `main` is not called")]

use std::time::Duration;

use client::{Client, Get, Put};
use tokio::time::timeout;

use crate::server::{Etcd, Store};

#[path = "../../examples/election.rs"]
mod election;
#[path = "../../examples/lease.rs"]
mod lease;
#[path = "../../examples/lock.rs"]
mod lock;
#[path = "../../examples/migration.rs"]
mod migration;
#[path = "../../examples/namespace.rs"]
mod namespace;
#[path = "../../examples/put_get.rs"]
mod put_get;
#[path = "../../examples/secure.rs"]
mod secure;
#[path = "../../examples/stm.rs"]
mod stm;
#[path = "../../examples/watch.rs"]
mod watch;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn examples_do_what_they_say() {
    let pintle = Etcd::of(Store::Pintle, 1).await;
    let client = pintle.client();
    let all = async {
        put_get::run(client.clone()).await.unwrap();
        watch::run(client.clone()).await.unwrap();
        lease::run(client.clone()).await.unwrap();
        lock::run(client.clone()).await.unwrap();
        election::run(client.clone()).await.unwrap();
        stm::run(client.clone()).await.unwrap();
        namespace::run(client.clone()).await.unwrap();
        secure::run(client.clone()).await.unwrap();
    };
    timeout(SOON, all).await.unwrap();
    let value = async |key: &'static str| client.get(Get::key(key)).await.unwrap().kvs[0].value.clone();
    assert_eq!((value("account/ann").await, value("account/bob").await), ("50".into(), "150".into()));
    assert_eq!(value("printed").await, "a page");
    assert_eq!(value("blog/title").await, "On hinges");
    assert_eq!(client.get(Get::prefix("service/")).await.unwrap().count, 0);

    let destination = Etcd::of(Store::Pintle, 1).await;
    timeout(SOON, migration::run(pintle.client(), destination.client())).await.unwrap().unwrap();
    let keys = async |client: Client| {
        let all = client.get(Get::all()).await.unwrap().kvs;
        all.into_iter().map(|kv| (kv.key, kv.value)).collect::<Vec<_>>()
    };
    assert_eq!(keys(pintle.client()).await, keys(destination.client()).await);
    // What is moved is used from then on.
    destination.client().put(Put::new("moved", "v")).await.unwrap();
}
