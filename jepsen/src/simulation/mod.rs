//! A whole cluster in one thread, under simulated time, network and disk.
//!
//! ```text
//! run.rs        a seed: the clients' load, faults, times of rest, the verdict
//!  ├ cluster.rs, member.rs   the real server, storage and Raft, without listeners
//!  ├ clients.rs, oracle.rs   what clients ask, and whether what they are told can be true
//!  ├ faults.rs               what goes wrong, and when
//!  ├ world.rs                time, trace, markers, the first violation
//!  ├ host.rs                 what a member runs on: tasks that end with it, clocks
//!  ├ network.rs, disk.rs     what lies between members, and under each
//!  └ entropy.rs              randomness from the seed
//! ```
//!
//! Everything runs on one thread of a tokio runtime whose time is paused: time passes when nobody has anything to do.
//! So a run follows from its seed, and a failing one can be looked at as often as it takes. (The method is that of
//! FoundationDB's and TigerBeetle's simulators.) RocksDB alone has threads, and is waited for whenever they work for
//! somebody.

mod clients;
mod cluster;
pub mod disk;
mod entropy;
mod faults;
mod host;
mod member;
pub mod network;
mod oracle;
pub mod run;
mod world;
