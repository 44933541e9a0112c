//! Faults against a running store, and what it must still hold afterwards.

mod clients;
mod damage;
mod differential;
mod etcdctl;
mod failover;
mod flood;
mod history;
mod images;
mod kill;
mod load;
mod planted;
mod probe;
mod process;
mod reconfigure;
mod root;
mod simulate;
mod test;
mod tls;
mod verify;
mod watcher;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "pintle-jepsen", about = "Crashes, damaged files and comparisons with etcd", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends one sequence of random requests to etcd and to Pintle and compares every answer
    Differential(differential::Arguments),
    /// Kills members under load and checks that nothing acknowledged is lost
    Kill(kill::Arguments),
    /// Adds, replaces and removes members under load and checks that nothing acknowledged is lost
    Reconfigure(reconfigure::Arguments),
    /// Cuts the power of members under load and checks that nothing acknowledged is lost; needs root
    PowerCut(test::rounds::PowerCutArguments),
    /// Makes one fault after another under load and measures the recovery from each; needs root
    Rounds(test::rounds::Arguments),
    /// Measures how long a replaced or lagging member takes to be back with a large store; needs root
    Rejoin(test::rejoin::Arguments),
    /// Runs workloads under faults on machines of its own and checks what the clients were told; needs root
    Test(test::Arguments),
    /// Judges the history that a run of `test` kept, with the checkers of its workloads
    Check(test::again::Arguments),
    /// Runs whole clusters under simulated time, network and disk, and all that can go wrong
    Simulate(simulate::Arguments),
    /// Damages files of a stopped member and checks that it refuses to start or answers rightly
    Damage(damage::Arguments),
    /// Floods a member in many ways and watches its memory and what a well-behaved client gets
    Flood(flood::Arguments),
    /// Runs what has to find each planted bug, with the bug and without
    Planted(planted::Arguments),
    /// Makes situations that load seldom produces, and looks at what comes of each
    Probe(probe::Arguments),
    /// Runs one script of etcdctl commands against etcd and Pintle and compares what is printed
    Etcdctl(etcdctl::Arguments),
    /// Opens every directory that a crash may leave of a short run, and checks what was recovered
    Images(images::Arguments),
    /// Runs clients of five languages against a cluster with TLS while its leader is killed
    Clients(clients::Arguments),
}

fn main() -> anyhow::Result<()> {
    let command = Arguments::parse().command;
    if let Command::Simulate(arguments) = &command
        && let Some(seed) = arguments.one()
    {
        return simulate::run_one(arguments, seed);
    }
    if let Command::PowerCut(_) | Command::Rounds(_) | Command::Rejoin(_) | Command::Test(_) = command {
        // Before there are other threads, which would stay outside.
        test::nodes::sandbox::enter()?;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(command))
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Differential(arguments) => differential::run(arguments).await,
        Command::Kill(arguments) => kill::run(arguments).await,
        Command::Reconfigure(arguments) => reconfigure::run(arguments).await,
        Command::PowerCut(arguments) => test::rounds::run_power_cut(arguments).await,
        Command::Rounds(arguments) => test::rounds::run(arguments).await,
        Command::Rejoin(arguments) => test::rejoin::run(arguments).await,
        Command::Test(arguments) => test::run(arguments).await,
        Command::Check(arguments) => test::again::run(&arguments),
        Command::Simulate(arguments) => simulate::run(arguments).await,
        Command::Damage(arguments) => damage::run(arguments).await,
        Command::Flood(arguments) => flood::run(arguments).await,
        Command::Planted(arguments) => planted::run(arguments).await,
        Command::Probe(arguments) => probe::run(arguments).await,
        Command::Etcdctl(arguments) => etcdctl::run(arguments).await,
        Command::Images(arguments) => images::run(arguments).await,
        Command::Clients(arguments) => clients::run(arguments).await,
    }
}
