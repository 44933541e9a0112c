//! The differential tester: one sequence of random requests goes to etcd and to Pintle, and every answer is compared.
//!
//! ```text
//!   generate ── Request ──┬──► etcd   ── Answer ──┐
//!      ▲                  └──► Pintle ── Answer ──┴─ normal ── same? ── known? ──► a difference, or coverage
//!      └────────────── learn ◄────────────────────┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `generate` | requests from a seed, aimed at the borders of what has been answered so far |
//! | `request` | every call as a value |
//! | `json` | calls through the JSON gateway |
//! | `peer` | one server: its process, connections and own ids |
//! | `normal` | what may differ in any two servers: ids, clocks, sizes, unordered sets |
//! | `known` | where Pintle differs from a version of etcd on purpose, with reasons |
//! | `watch`, `history` | the same watches on both, compared when both have delivered all that is due |
//! | `session` | the sequence itself |
//! | `coverage`, `area` | what was reached, what every run has to reach, and what can be left out |
//!
//! Invariant: the requests depend on the seed and on the reference's answers only, never on time. Requests that change
//! something are sent one after the other, to both servers at once; reads between two of them are sent together.

mod area;
mod coverage;
mod generate;
mod history;
mod json;
mod known;
mod normal;
mod peer;
mod request;
mod session;
mod version;
mod watch;

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, ensure};

use area::Area;
use peer::Peer;
use session::Session;

#[derive(clap::Args)]
pub struct Arguments {
    /// The etcd to compare with
    #[arg(long)]
    etcd: PathBuf,
    /// The server to be tested; it takes etcd's flags
    #[arg(long)]
    pintle: PathBuf,
    /// How many requests to send; some 5000 are needed to reach all that a run must reach
    #[arg(long, default_value_t = 20_000)]
    requests: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to leave out because the tested server does not have it
    #[arg(long, value_delimiter = ',')]
    without: Vec<Area>,
    /// How many differences to print before giving up
    #[arg(long, default_value_t = 20)]
    max_differences: usize,
}

/// So that neither server spends the run in waiting for the disk.
const FLAGS: [&str; 1] = ["--unsafe-no-fsync"];
/// Nor in hashing passwords.
const AUTH_FLAGS: [&str; 2] = ["--bcrypt-cost", "4"];

/// Fails if there is any difference that is not known, or if the run has reached too little.
pub async fn run(arguments: Arguments) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let auth_flags: &[&str] = if arguments.without.contains(&Area::Auth) { &[] } else { &AUTH_FLAGS };
    let flags: Vec<String> = FLAGS.iter().chain(auth_flags).map(|flag| (*flag).to_owned()).collect();
    let (etcd_dir, pintle_dir) = (dir.path().join("etcd"), dir.path().join("pintle"));
    let (etcd, pintle) = tokio::try_join!(
        Peer::start(&arguments.etcd, &etcd_dir, &flags),
        Peer::start(&arguments.pintle, &pintle_dir, &flags)
    )?;
    println!("seed {}: etcd {} against {}", arguments.seed, etcd.version, pintle.version);

    let started = Instant::now();
    let mut session = Session::new(etcd, pintle, &arguments).await?;
    let outcome = session.run(arguments.requests).await;
    let seconds = started.elapsed().as_secs_f64();
    print!("{}", session.coverage());
    println!("{} requests in {seconds:.1} s, {} differences", session.sent(), session.differences());
    if let Err(error) = outcome {
        println!("{}", session.log_tails());
        return Err(error);
    }
    ensure!(session.differences() == 0, "{} differences (seed {})", session.differences(), arguments.seed);
    let missing = session.coverage().missing(&arguments.without);
    ensure!(missing.is_empty(), "the run has reached too little (seed {}): {}", arguments.seed, missing.join("; "));
    Ok(())
}
