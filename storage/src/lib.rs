//! The state machine: a multi-version key-value store with etcd's rules, on RocksDB.
//!
//! ```text
//! Applier::apply(log entries)                                 apply.rs, txn.rs
//!    │  evaluates each command against the key index          index.rs
//!    │  one write: data, events, lease, …, applied index      db.rs, keys.rs, record.rs
//!    ├─> readers see the new state                            store.rs, range.rs, stream.rs, hash.rs
//!    ├─> Observer::applied(events, lease changes)             event.rs
//!    └─> outcomes
//!    users, roles, and who may do what                        auth/
//!    what is counted and timed                             stats.rs
//! beside: compaction in small steps                           compact.rs
//!         the versions of a key                               history.rs
//!         bugs planted to try the tests                       planted.rs
//!         the whole state, for backups                        export.rs
//!         a store made of what was elsewhere               load.rs
//!         checkpoints, and replacing the store by one         snapshot.rs
//!         what tasks, threads and clocks are had from          host.rs
//! ```
//!
//! Invariants:
//! - `apply` is a function of state and command: no clock, no randomness, no network, no async.
//! - Revisions are dense, strictly increasing, and equal on all members for equal commands; so is [`Store::hash_kv`].
//! - The applied index and the data it produced are one write. RocksDB's own log is off and its column families are
//!   flushed together, so a crash leaves the state at some applied index, and the Raft log leads on from there.
//! - Readers never wait for the applier, nor it for them.
//! - Refused requests ([`proto::EtcdError`]) and failures of this node ([`StorageError`]) are different types. What is
//!   missing or does not match its checksum is a failure, never "not found".

mod alarm;
mod apply;
mod auth;
mod compact;
pub mod cost;
mod db;
mod error;
mod event;
mod export;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hash;
mod history;
pub mod host;
mod index;
mod keys;
mod lease;
mod load;
pub mod planted;
mod range;
mod record;
mod snapshot;
mod stats;
mod store;
mod stream;
mod table;
mod txn;

pub use apply::{Applier, LogEntry, Payload, Prepared};
pub use auth::{AuthChange, AuthState, ROOT, Right};
pub use compact::Pace;
pub use error::{ReadError, StorageError};
pub use event::{Change, Event, LeaseChange, Observer};
pub use export::Export;
pub use hash::HashKv;
pub use history::Version;
pub use lease::LeaseInfo;
pub use load::{Compaction, Loader, Settled, settle};
pub use range::is_plain;
pub use record::Kind;
pub use snapshot::Checkpoint;
pub use stats::{Engine, Stats, Work, name_of};
pub use store::{Applied, Options, Size, Store, Versions};
pub use stream::RangeCursor;
