//! A client for Pintle, and for anything else that speaks etcd's v3 API.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`](Client) | [`Client`], [`Options`]; how a request is sent, and sent again |
//! | [`endpoint`](EndpointHealth), [`endpoints`](Balance) | addresses and connections; which one the next request goes to |
//! | [`tls`](Tls), [`identity`](Credentials) | whom to trust; who the client is, and its token |
//! | [`retry`] | which failed requests may be sent again, and how long to wait before |
//! | [`keys`](Keys), [`kv`](Get), [`txn`](Txn) | reads, writes, transactions |
//! | [`watch`](Watch) | watches that survive failures without a gap and without repeating an event |
//! | [`lease`](LeaseKeeper) | leases, and a task that keeps one alive |
//! | [`namespace`](Client::namespaced) | keys with a prefix that the caller does not see |
//! | [`session`](Session), [`lock`](Lock), [`election`](Leadership), [`stm`](Stm) | what several processes agree on |
//! | [`mirror`] | a store kept in step with another |
//! | [`maintenance`](Client::status), [`cluster`](Client::member_list), [`auth`](Client::auth_enable) | members, users and roles |
//!
//! ```no_run
//! use client::{Client, Compare, Get, Op, Put, Txn, Watch};
//!
//! # async fn example() -> Result<(), client::Error> {
//! let client = Client::connect(["http://127.0.0.1:2379", "http://127.0.0.1:22379"])?;
//! let put = client.put(Put::new("greeting", "hello")).await?;
//! let answer = client.get(Get::prefix("greet").limit(10)).await?;
//! assert_eq!(answer.kvs[0].value, "hello");
//!
//! // Create a key unless it is there, else read it.
//! let txn = Txn::new()
//!     .when(Compare::create_revision("lock").equals(0))
//!     .then(Op::put(Put::new("lock", "mine")))
//!     .otherwise(Op::get(Get::key("lock")));
//! println!("taken: {}", client.txn(txn).await?.succeeded);
//!
//! // Everything from that put on, whatever happens to connections and members meanwhile.
//! let from = put.header.map_or(0, |header| header.revision);
//! let mut watcher = client.watch(Watch::prefix("greet").from_revision(from)).await?;
//! loop {
//!     for event in watcher.next().await?.events {
//!         println!("{event:?}");
//!     }
//! }
//! # }
//! ```
//!
//! Invariants:
//! - A write is sent twice only where the first sending certainly did not reach the log ([`retry`]).
//! - Answers are the wire's own messages ([`proto::etcdserverpb`]), so nothing a server says is lost on the way.
//! - Every request ends within [`Options::request_timeout`]; only what waits for others ([`Watcher::next`],
//!   [`Session::lock`], [`Session::campaign`], [`Observer::next`]) waits for as long as it takes.
//! - Nothing that is dropped while it waits loses anything: it can be waited for beside other things.
//!
//! `examples/` has a program for each: `put_get`, `watch`, `lease`, `lock`, `election`, `stm`, `namespace`, `secure`,
//! `migration`.

#![warn(missing_docs)]

mod auth;
mod cluster;
mod connection;
mod election;
mod endpoint;
mod endpoints;
mod error;
mod identity;
mod keys;
mod kv;
mod lease;
mod lock;
mod maintenance;
pub mod mirror;
mod namespace;
mod queue;
pub mod retry;
mod session;
mod stm;
mod tls;
mod txn;
mod watch;

/// The store's revision that an answer tells; 0 where it tells none.
pub(crate) fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

pub use connection::{Client, EndpointHealth, Options};
pub use election::{Leadership, Observer};
pub use endpoints::Balance;
pub use error::{Error, Result};
pub use identity::{Connection, Credentials, WithToken};
pub use keys::Keys;
pub use kv::{Delete, Get, Put};
pub use lease::LeaseKeeper;
pub use lock::Lock;
pub use proto::{EtcdError, LeaseId, MemberId, authpb, etcdserverpb as pb, mvccpb};
pub use session::Session;
pub use stm::{Isolation, Stm};
pub use tls::Tls;
pub use txn::{Compare, Comparison, Op, Txn};
pub use watch::{Watch, Watcher};
