//! `pintle`: one member of an etcd-compatible cluster.
//!
//! ```text
//! flags.rs, config_file.rs, gates.rs,
//! duration.rs, urls.rs, config.rs              what the command line means
//! tuning.rs                                    flags that change how, and not what
//! logging/, metrics/, rpc_count.rs,
//! tracing_export.rs                            what the process tells
//! bootstrap.rs, identity.rs                    the data directory, and whose it is
//! discovery/, join.rs                          who the other members are: of a new cluster, of one that runs
//! start.rs                                     store, Raft node and services put together; the end in order
//! listen.rs, tls/, guard/                      ports, Unix sockets, TLS, and clients that do harm
//! serve.rs, too_large.rs, http.rs              listeners, gRPC and HTTP on one port
//! admit.rs, checks.rs, quota.rs, context.rs    before a request; what all services share
//! auth/                                        who makes a request, and what it may do; the Auth service
//! kv.rs, watch/, lease/, maintenance.rs,
//! cluster.rs, concurrency/                     the services
//! gateway/, access.rs, debug_vars.rs           the services in JSON; who may use HTTP; the process's variables
//! snapshot/                                    backups as files of etcd's
//! observer.rs                                  what the store tells watch, lease and auth
//! peer_http.rs                                 questions to other members outside Raft
//! compactor.rs                                 compaction that goes by itself
//! version/                                     the cluster's version, downgrades
//! corruption/                                  whether all members hold the same data
//! ```
//!
//! Invariants: a refusal is an answer, a failure of this node's disk stops the process; nothing here knows RocksDB or
//! openraft.

mod access;
mod admit;
mod auth;
mod bootstrap;
mod checks;
mod cluster;
mod compactor;
mod concurrency;
mod config;
mod config_file;
mod context;
mod corruption;
mod debug_vars;
mod discovery;
mod duration;
mod flags;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gates;
mod gateway;
mod guard;
mod http;
mod identity;
mod join;
mod kv;
mod lease;
mod listen;
mod logging;
mod maintenance;
mod metrics;
mod observer;
mod peer_http;
mod quota;
mod rpc_count;
mod serve;
mod snapshot;
mod start;
mod tls;
mod too_large;
mod tracing_export;
mod tuning;
mod urls;
mod version;
mod watch;

use std::{process::ExitCode, time::Duration};

use config::Config;
use flags::{FlagError, Flags};

/// The release of etcd whose behaviour this is.
pub const ETCD_VERSION: &str = "3.7.1";
pub const ETCD_STORAGE_VERSION: &str = "3.7.0";

/// Most of what a request allocates is small and freed on another thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What tasks get to end in once all is stopped.
const CLOSE_MAX: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    #[cfg(feature = "planted")]
    storage::planted::announce();
    let environment =
        std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
    let flags = match Flags::read(std::env::args().skip(1), environment) {
        Ok(flags) => flags,
        Err(FlagError::Help) => {
            print!("{}", flags::help());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("pintle: {error}");
            return ExitCode::from(2);
        }
    };
    if flags.is_true("version") {
        print_version();
        return ExitCode::SUCCESS;
    }
    let (flags, file) = match flags.get("config-file") {
        "" => (flags, None),
        path => match config_file::read(path) {
            Ok(read) => (read, Some(path.to_string())),
            Err(error) => return refuse(&error),
        },
    };
    let logging = match config::logging(&flags) {
        Ok(logging) => logging,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = logging.start() {
        return refuse(&error);
    }
    if let Some(path) = file {
        tracing::info!(
            path,
            "loaded server configuration, other configuration command line flags and environment variables will be \
             ignored if provided"
        );
    }
    for warning in &flags.warnings {
        tracing::warn!("{warning}");
    }
    let config = match Config::from_flags(&flags) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(target: logging::FATAL, "{error}");
            return ExitCode::FAILURE;
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: logging::FATAL, "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(start::run(config));
    // So that the store is closed before the process ends; a read that still blocks then has nobody to answer.
    runtime.shutdown_timeout(CLOSE_MAX);
    ended
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("pintle: {error}");
    ExitCode::FAILURE
}

fn print_version() {
    println!("etcd Version: {ETCD_VERSION}");
    println!("Pintle Version: {}", env!("CARGO_PKG_VERSION"));
    println!("OS/Arch: {}/{}", std::env::consts::OS, std::env::consts::ARCH);
}
