//! How many instructions a put, a get, a transaction and a delivered event take, from the socket to the disk and back,
//! against what is recorded in `recorded.txt`. Counted by callgrind in a member on one thread, so that two runs differ
//! by next to nothing. More than a tenth above the record fails. With `PINTLE_REWRITE=1` the record is written anew.
//!
//! This program is both: the test, and, under valgrind, what is counted.

mod counts;
mod http2;
mod member;
mod workloads;

use std::{env, path::Path, process::ExitCode};

use counts::Counts;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set to a directory for the process that is counted.
const COUNTED_IN: &str = "PINTLE_INSTRUCTIONS_IN";
const TEST: &str = "a_request_takes_no_more_instructions_than_recorded";
/// A tenth.
const TOLERANCE_PERCENT: u64 = 10;
const HEAD: &str = "\
# Instructions per operation; tests/instructions compares with them. Written anew by
# PINTLE_REWRITE=1 cargo test --release --workspace --test instructions
";

fn main() -> ExitCode {
    let done = match env::var_os(COUNTED_IN) {
        Some(dir) => workloads::run(Path::new(&dir)),
        None if !is_asked_for() => Ok(()),
        None => check(),
    };
    if let Err(error) = done {
        eprintln!("{TEST}: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Cargo passes on which tests to run.
fn is_asked_for() -> bool {
    let mut names = env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    names.peek().is_none() || names.any(|name| TEST.contains(&name))
}

fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!cfg!(debug_assertions), "what is recorded is of the release profile: cargo test --release");
    let recorded_in = Path::new("tests/instructions/recorded.txt");
    let profiles = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    let dir = tempfile::tempdir()?;
    let found = counts::count((COUNTED_IN, dir.path()), &profiles)?;
    println!("{TEST}: profiles for callgrind_annotate are in {}", profiles.display());
    if env::var_os("PINTLE_REWRITE").is_some() {
        return counts::write(&recorded_in, HEAD, &found);
    }
    let (report, is_worse) = compare(&counts::read(&recorded_in)?, &found)?;
    anyhow::ensure!(!is_worse, "more than {TOLERANCE_PERCENT} % above what is recorded:\n{report}");
    print!("{report}");
    Ok(())
}

/// A line for each workload, and whether one of them takes too many.
fn compare(recorded: &Counts, found: &Counts) -> anyhow::Result<(String, bool)> {
    let names = |counts: &Counts| counts.keys().cloned().collect::<Vec<_>>().join(", ");
    anyhow::ensure!(
        recorded.keys().eq(found.keys()),
        "recorded are {}, counted were {}; record anew",
        names(recorded),
        names(found)
    );
    let (mut report, mut is_worse) = (String::new(), false);
    for ((name, &recorded), &found) in recorded.iter().zip(found.values()) {
        let verdict = if found * 100 > recorded * (100 + TOLERANCE_PERCENT) {
            is_worse = true;
            ", too many"
        } else if found * 100 < recorded * (100 - TOLERANCE_PERCENT) {
            ", fewer: record anew with PINTLE_REWRITE=1"
        } else {
            ""
        };
        let change = (found as f64 / recorded as f64 - 1.0) * 100.0;
        report += &format!("{name}: recorded {recorded}, found {found} instructions ({change:+.1} %){verdict}\n");
    }
    Ok((report, is_worse))
}
