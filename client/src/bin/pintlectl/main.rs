//! `pintlectl`: a command line for Pintle, and for anything else that speaks etcd's v3 API. Commands, flags and output
//! are etcdctl's, as far as they go.
//!
//! | module | holds |
//! |---|---|
//! | [`backup`] | backup list, verify, restore |
//! | [`keys`] | put, get, del, compaction |
//! | [`follow`] | watch |
//! | [`lease`] | lease grant, revoke, keep-alive, timetolive, list |
//! | [`members`] | endpoint, member, defrag, alarm |
//! | [`mirror`] | mirror |
//! | [`json`], [`text`] | the two ways to print an answer |

mod backup;
mod follow;
mod json;
mod keys;
mod lease;
mod members;
mod mirror;
mod text;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use client::{Client, Options};
use serde::Serialize;

/// etcdctl's exit code for wrong arguments.
const BAD_ARGUMENTS: u8 = 128;

#[derive(Parser)]
#[command(name = "pintlectl", version, about = "Talks to Pintle and other stores with etcd's v3 API")]
struct Cli {
    /// The servers' client URLs. The first one that works is used.
    #[arg(long, global = true, value_delimiter = ',', env = "PINTLECTL_ENDPOINTS", default_value = "127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// How long a request may take: seconds, or with a unit (500ms, 5s, 1m).
    #[arg(long, global = true, default_value = "5s", value_parser = duration)]
    command_timeout: Duration,
    /// How long making a connection may take.
    #[arg(long, global = true, default_value = "2s", value_parser = duration)]
    dial_timeout: Duration,
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Simple)]
    write_out: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Simple,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Puts a value under a key; without a value, what stands on standard input.
    Put(keys::Put),
    /// Reads a key or a range of keys.
    Get(keys::Get),
    /// Deletes a key or a range of keys.
    Del(keys::Del),
    /// Forgets history before a revision.
    Compaction(keys::Compaction),
    /// Prints changes of a key or a range of keys as they happen.
    Watch(follow::Watch),
    /// Leases.
    #[command(subcommand)]
    Lease(lease::Lease),
    /// The servers, one by one.
    #[command(subcommand)]
    Endpoint(members::Endpoint),
    /// Members of the cluster.
    #[command(subcommand)]
    Member(members::Member),
    /// Gives unused space of the servers' stores back to the file system.
    Defrag(members::Defrag),
    /// Alarms.
    #[command(subcommand)]
    Alarm(members::Alarm),
    /// Keeps a destination in step with a source: a migration while everything runs.
    Mirror(Box<mirror::Mirror>),
    /// Backups in a directory that members bring there.
    #[command(subcommand)]
    Backup(backup::Backup),
    /// Prints the versions of this program and of the API.
    Version,
}

/// What a command needs besides its own arguments.
struct Context {
    client: Client,
    format: Format,
}

impl Context {
    /// A client with the same options for other endpoints.
    fn client_for(&self, endpoints: Vec<String>) -> anyhow::Result<Client> {
        Ok(Client::with_options(endpoints, self.client.options().clone())?)
    }

    /// Prints an answer in the format asked for.
    fn print<T: Serialize>(&self, text: impl FnOnce() -> Vec<u8>, json: impl FnOnce() -> T) -> anyhow::Result<()> {
        let bytes = match self.format {
            Format::Simple => text(),
            Format::Json => {
                let mut line = serde_json::to_vec(&json())?;
                line.push(b'\n');
                line
            }
        };
        print(&bytes)
    }
}

/// Values may be any bytes, so they are written and not formatted.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// `5`, `1.5s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let number_ends = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_ends);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {unit:?}")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a duration"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // There is nowhere to report a failure to print.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_ARGUMENTS) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::from(if error.is::<BadArguments>() { BAD_ARGUMENTS } else { 1 })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Arguments that make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadArguments(&'static str);

async fn run(cli: Cli) -> anyhow::Result<()> {
    let options =
        Options { connect_timeout: cli.dial_timeout, request_timeout: cli.command_timeout, ..Options::default() };
    let context = Context { client: Client::with_options(cli.endpoints, options)?, format: cli.write_out };
    match cli.command {
        Command::Put(put) => put.run(&context).await,
        Command::Get(get) => get.run(&context).await,
        Command::Del(del) => del.run(&context).await,
        Command::Compaction(compaction) => compaction.run(&context).await,
        Command::Watch(watch) => watch.run(&context).await,
        Command::Lease(lease) => lease.run(&context).await,
        Command::Endpoint(endpoint) => endpoint.run(&context).await,
        Command::Member(member) => member.run(&context).await,
        Command::Defrag(defrag) => defrag.run(&context).await,
        Command::Alarm(alarm) => alarm.run(&context).await,
        Command::Mirror(mirror) => mirror.run(&context).await,
        Command::Backup(backup) => backup.run(context.format).await,
        Command::Version => {
            let text = format!("pintlectl version: {}\nAPI version: 3.5\n", env!("CARGO_PKG_VERSION"));
            print(text.as_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_with_and_without_units() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "-1s", "5 s", "5d", "1..2s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
