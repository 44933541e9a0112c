//! `pintlectl`: a command line for Pintle, and for anything else that speaks etcd's v3 API. Commands, flags, output and
//! exit codes are those of etcdctl 3.5, with what later versions added, and more.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`], [`txn`], [`watch`], [`lease`] | put, get, del, compaction; txn; watch; lease |
//! | [`member`], [`endpoint`], [`maintenance`] | member; endpoint; defrag, alarm, move-leader, downgrade |
//! | [`auth`] | auth, user, role |
//! | [`lock`], [`make_mirror`], [`check`], [`completion`] | lock, elect; make-mirror; check; completion |
//! | [`look`] | top, history, diff, undelete |
//! | [`mirror`], [`backup`], [`snapshot`] | mirror; backup list, verify, restore; snapshot save, status, restore |
//! | [`options`], [`cobra`] | global flags; a command line as etcdctl's parser takes it |
//! | [`print`] | answers in all formats |
//! | [`failure`] | exit codes, and what is said on standard error |
//! | [`line`], [`number`], [`password`], [`process`], [`progress`] | what commands are given, what they run, how far they are |

mod auth;
mod backup;
mod check;
mod cobra;
mod completion;
mod endpoint;
mod failure;
mod keys;
mod lease;
mod line;
mod lock;
mod look;
mod maintenance;
mod make_mirror;
mod member;
mod mirror;
mod new_member;
mod number;
mod options;
mod password;
mod print;
mod process;
mod progress;
mod snapshot;
mod txn;
mod watch;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use client::Client;

use crate::{
    options::Global,
    print::{Answer, Printer, print_line},
};

#[derive(Parser)]
#[command(
    name = "pintlectl",
    version,
    about = "Talks to Pintle, etcd and other stores with etcd's v3 API",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put a value under a key.
    Put(keys::Put),
    /// Read a key or a range of keys.
    Get(keys::Get),
    /// Delete a key or a range of keys.
    Del(keys::Del),
    /// Compare, and do one thing or the other, as one change.
    Txn(txn::Txn),
    /// Forget history before a revision.
    Compaction(keys::Compaction),
    /// Print changes of keys as they happen.
    Watch(watch::Watch),
    /// Leases.
    #[command(subcommand, arg_required_else_help = true)]
    Lease(lease::Lease),
    /// Members of the cluster.
    #[command(subcommand, arg_required_else_help = true)]
    Member(member::Member),
    /// The servers, one by one.
    Endpoint(endpoint::Endpoint),
    /// Give unused space of the servers' stores back to the file system.
    Defrag(maintenance::Defrag),
    /// Alarms.
    #[command(subcommand, arg_required_else_help = true)]
    Alarm(maintenance::Alarm),
    /// Make another member the leader.
    MoveLeader(maintenance::MoveLeader),
    /// Go back to an earlier version.
    #[command(subcommand, arg_required_else_help = true)]
    Downgrade(maintenance::Downgrade),
    /// Whether requests need a user.
    #[command(subcommand, arg_required_else_help = true)]
    Auth(auth::Auth),
    /// Users.
    #[command(subcommand, arg_required_else_help = true)]
    User(auth::User),
    /// Roles: what users may do.
    #[command(subcommand, arg_required_else_help = true)]
    Role(auth::Role),
    /// Hold a lock, as long as a command runs or until a signal comes.
    Lock(lock::Lock),
    /// Take part in an election, or watch it.
    Elect(lock::Elect),
    /// Show how many keys there are, how big they are, and what is written, by prefix.
    Top(look::top::Top),
    /// Print the revisions of a key with what they changed.
    History(look::history::History),
    /// Print what became of keys between two revisions.
    Diff(look::diff::Diff),
    /// Put back what a key was before it was deleted.
    Undelete(look::undelete::Undelete),
    /// Copy keys to another cluster and follow. `mirror` does it better.
    MakeMirror(make_mirror::MakeMirror),
    /// Measure whether the cluster bears a load.
    #[command(subcommand, arg_required_else_help = true)]
    Check(check::Check),
    /// Print a script that completes commands in a shell.
    Completion(completion::Completion),
    /// Keep a destination in step with a source: a migration while everything runs.
    Mirror(Box<mirror::Mirror>),
    /// Backups in a directory that members bring there.
    #[command(subcommand, arg_required_else_help = true)]
    Backup(backup::Backup),
    /// Snapshots: of a server to a file, and from a file to a data directory.
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(snapshot::Snapshot),
    /// Print the versions of this program and of the API.
    Version {
        #[arg(hide = true)]
        args: Vec<String>,
    },
}

/// What a command needs besides its own arguments.
struct Context {
    client: Client,
    printer: Printer,
}

impl Context {
    fn print(&self, answer: &dyn Answer) -> anyhow::Result<()> {
        self.printer.print(answer)
    }
}

fn main() -> ExitCode {
    match parse().and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(failure::report(error)),
    }
}

fn command() -> clap::Command {
    cobra::behave(Cli::command())
}

fn parse() -> anyhow::Result<Cli> {
    let parsed = command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        if cli.global.is_debug() {
            cobra::settings(&command(), &matches).for_each(|setting| eprintln!("{setting}"));
        }
        Ok(cli)
    });
    parsed.map_err(|error| match cobra::complaint(&error) {
        Some(failure) => failure.into(),
        None => {
            // It was asked for. There is nowhere to report a failure to print.
            let _ = write!(std::io::stdout(), "{}", rendered(&error));
            std::process::exit(0)
        }
    })
}

/// Help, with colours on a terminal.
fn rendered(help: &clap::Error) -> String {
    let help = help.render();
    if std::io::stdout().is_terminal() { help.ansi().to_string() } else { help.to_string() }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(run(cli));
    // A read of standard input that nobody waits for must not hold the end up.
    runtime.shutdown_background();
    done
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let command = match cli.command {
        Command::Version { args: _ } => {
            print_line(concat!("pintlectl version: ", env!("CARGO_PKG_VERSION")))?;
            return print_line("API version: 3.5");
        }
        Command::Completion(completion) => return completion.run(),
        Command::Backup(backup) => return backup.run(cli.global.printer()?.format).await,
        Command::Snapshot(snapshot) => return snapshot.run(&cli.global).await,
        command => command,
    };
    let printer = cli.global.printer()?;
    let context = Context { client: cli.global.client().await?, printer };
    match command {
        Command::Put(put) => put.run(&context).await,
        Command::Get(get) => get.run(&context).await,
        Command::Del(del) => del.run(&context).await,
        Command::Txn(txn) => txn.run(&context).await,
        Command::Compaction(compaction) => compaction.run(&context).await,
        Command::Watch(watch) => watch.run(&context).await,
        Command::Lease(lease) => lease.run(&context).await,
        Command::Member(member) => member.run(&context).await,
        Command::Endpoint(endpoint) => endpoint.run(&context).await,
        Command::Defrag(defrag) => defrag.run(&context).await,
        Command::Alarm(alarm) => alarm.run(&context).await,
        Command::MoveLeader(move_leader) => move_leader.run(&context).await,
        Command::Downgrade(downgrade) => downgrade.run(&context).await,
        Command::Auth(auth) => auth.run(&context).await,
        Command::User(user) => user.run(&context).await,
        Command::Role(role) => role.run(&context).await,
        Command::Lock(lock) => lock.run(&context).await,
        Command::Elect(elect) => elect.run(&context).await,
        Command::Top(top) => top.run(&context).await,
        Command::History(history) => history.run(&context).await,
        Command::Diff(diff) => diff.run(&context).await,
        Command::Undelete(undelete) => undelete.run(&context).await,
        Command::MakeMirror(make_mirror) => make_mirror.run(&context).await,
        Command::Check(check) => check.run(&context).await,
        Command::Mirror(mirror) => mirror.run(&context).await,
        Command::Version { .. } | Command::Completion(_) | Command::Backup(_) | Command::Snapshot(_) => {
            unreachable!("they were run before")
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    /// The parser would take a command's own argument for the global one.
    #[test]
    fn no_argument_of_a_command_has_the_name_of_a_global_one() {
        fn visit(command: &clap::Command, global: &[&clap::Id]) {
            for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
                assert!(!global.contains(&arg.get_id()), "{}: {}", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(|command| visit(command, global));
        }
        let command = super::command();
        let global: Vec<&clap::Id> = command.get_arguments().map(|arg| arg.get_id()).collect();
        assert!(global.len() > 10);
        command.get_subcommands().for_each(|command| visit(command, &global));
    }
}
