//! Clusters of real processes under a workload and a nemesis, in the manner of Jepsen: processes do operations, the
//! nemesis makes faults, and afterwards checkers look for what cannot have happened.
//!
//! | module | holds |
//! |---|---|
//! | [`nodes`], [`nemesis`] | the cluster, each member on a machine of its own, and what is done to it |
//! | [`workload`] | what processes do, and which checkers judge it |
//! | [`client`], [`wire`], [`recorder`] | one process: its requests, and how they are taken down |
//! | [`library`] | a process that asks through the crate `client` |
//! | [`run`] | one run from begin to verdict |
//! | [`judge`], [`again`] | the verdict on a history, of a run that ends or of one that was kept |
//! | [`convergence`] | all members hold the same in the end |
//! | [`report`] | the page about a run |
//! | [`rounds`], [`rejoin`] | one fault after another, and the figures of each |

pub mod again;
pub mod client;
pub mod convergence;
pub mod judge;
pub mod library;
pub mod matrix;
#[allow(dead_code, reason = "most nemeses are yet to come")]
pub mod nemesis;
#[allow(dead_code, reason = "most nemeses are yet to come")]
pub mod nodes;
pub mod recorder;
pub mod rejoin;
pub mod report;
pub mod rounds;
pub mod run;
pub mod storm;
pub mod watching;
pub mod wire;
pub mod workload;

pub use matrix::{Arguments, run};
