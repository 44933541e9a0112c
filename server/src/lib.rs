//! One member of an etcd-compatible cluster. `main.rs` makes the command `pintle` of it.
//!
//! ```text
//! flags.rs, config_file.rs, gates.rs,
//! duration.rs, urls.rs, config.rs              what the command line means
//! tuning.rs                                    flags that change how, and not what
//! logging/, metrics/, rpc_count.rs,
//! tracing_export.rs                            what the process tells
//! bootstrap.rs, identity.rs                    the data directory, and whose it is
//! discovery/, join.rs                          who the other members are: of a new cluster, of one that runs
//! member.rs                                    store, Raft node and services put together
//! start.rs, systemd.rs                         a member's life as a process; the end in order
//! workers.rs                                   how many of the process's threads work
//! listen.rs, tls/, guard/                      ports, Unix sockets, TLS, and clients that do harm
//! serve.rs, grpc.rs, too_large.rs, http.rs     listeners, gRPC and HTTP on one port
//! admit.rs, checks.rs, quota.rs, context.rs    before a request; what all services share
//! auth/                                        who makes a request, and what it may do; the Auth service
//! kv.rs, watch/, lease/, maintenance.rs,
//! cluster.rs, concurrency/                     the services
//! gateway/, access.rs, debug_vars.rs           the services in JSON; who may use HTTP; the process's variables
//! console/                                     a web page about the cluster
//! snapshot/                                    backups as files of etcd's
//! backup/                                      backups in a directory, and back to any revision
//! import/                                      a data directory made of a backup, or of etcd's
//! bbolt/, etcd_schema.rs                       the format of etcd's files, and what stands where in them
//! observer.rs                                  what the store tells watch, lease and auth
//! peer_http.rs                                 questions to other members outside Raft
//! compactor.rs                                 compaction that goes by itself
//! version/                                     the cluster's version, downgrades
//! corruption/                                  whether all members hold the same data
//! ```
//!
//! Invariants: a refusal is an answer, a failure of this node's disk stops the process; nothing here knows RocksDB or
//! openraft.

// Futures of futures: what a call may wait for is deep.
#![recursion_limit = "256"]

mod access;
mod admit;
mod auth;
pub mod backup;
mod bbolt;
pub mod bootstrap;
mod checks;
mod cluster;
mod compactor;
mod concurrency;
pub mod config;
pub mod config_file;
mod console;
pub mod context;
mod corruption;
mod debug_vars;
pub mod discovery;
mod duration;
mod etcd_schema;
pub mod flags;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gates;
mod gateway;
mod grpc;
mod guard;
mod http;
mod http2;
pub mod identity;
pub mod import;
mod join;
mod kv;
mod lease;
mod listen;
pub mod logging;
mod maintenance;
pub mod member;
mod metrics;
mod observer;
mod peer_http;
mod quota;
mod rpc_count;
mod serve;
mod snapshot;
pub mod start;
mod streaming;
mod systemd;
mod tls;
mod too_large;
mod tracing_export;
mod tuning;
mod unary;
mod urls;
mod version;
mod watch;
pub mod workers;

/// The release of etcd whose behaviour this is.
pub const ETCD_VERSION: &str = "3.7.1";
pub const ETCD_STORAGE_VERSION: &str = "3.7.0";
