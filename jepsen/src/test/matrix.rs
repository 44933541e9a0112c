//! Which runs are made: one, or each workload under each nemesis.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    nemesis,
    report::Verdict,
    run::{Outcome, Plan},
    workload::{self, Workload},
};
use crate::process::Target;

/// All workloads at once, or all nemeses in one run.
const MIXED: &str = "mixed";
const ALL: &str = "all";
const NONE: &str = "none";

#[derive(clap::Args)]
pub struct Arguments {
    /// What the clients do, `all` for one run of each, `mixed` for all at once
    #[arg(long, default_value = MIXED)]
    workload: String,
    /// What is done to the members, `none`, `all` for one run of each, `mixed` for all in turn and at once
    #[arg(long, default_value = MIXED)]
    nemesis: String,
    /// How long each run lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u64,
    #[arg(long, default_value_t = 3, value_parser = parse_size)]
    nodes: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server to run
    #[arg(long, required_unless_present = "etcd")]
    binary: Option<PathBuf>,
    /// Run the etcd that PINTLE_TEST_ETCD names, or that is in the PATH
    #[arg(long, conflicts_with = "binary")]
    etcd: bool,
    /// Operations a second of each process
    #[arg(long)]
    rate: Option<f64>,
    /// Processes of each workload
    #[arg(long)]
    processes: Option<u64>,
    /// A further flag for each member, such as --node-flag=--snapshot-count=500
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Keep histories, reports and logs in this folder; else only those of runs that failed are kept, in a temporary one
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text {
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("3 or 5".to_owned()),
    }
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let target = Target::new(&arguments.server()?)?;
    let mut dir = tempfile::Builder::new().prefix("pintle-test-").tempdir()?;
    let store = arguments.store.clone().unwrap_or_else(|| dir.path().to_path_buf());
    let plans = arguments.plans(&target, &store)?;
    let mut failed = Vec::new();
    for plan in &plans {
        let outcome = plan.run().await;
        if outcome.as_ref().is_ok_and(|outcome| outcome.verdict == Verdict::Pass) {
            print_outcome(&outcome?);
            continue;
        }
        dir.disable_cleanup(true);
        match outcome {
            Ok(outcome) => print_outcome(&outcome),
            Err(error) => println!("FAILED    {}: {error:#}", plan.title()),
        }
        println!("          again: {}", plan.command);
        failed.push(plan.title());
    }
    println!("{} of {} runs passed", plans.len() - failed.len(), plans.len());
    ensure!(failed.is_empty(), "not passed: {}; all about it is in {}", failed.join(", "), store.display());
    Ok(())
}

fn print_outcome(outcome: &Outcome) {
    println!("{:<9} {}", outcome.verdict.word(), outcome.summary);
    for failure in &outcome.failures {
        println!("          {failure}");
    }
    println!("          report: {}", outcome.report.display());
}

impl Arguments {
    fn server(&self) -> Result<PathBuf> {
        if let Some(binary) = &self.binary {
            return Ok(binary.clone());
        }
        let named = env::var_os("PINTLE_TEST_ETCD").map(PathBuf::from);
        let in_path =
            || env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join("etcd")).find(|path| path.is_file());
        named.or_else(in_path).context("no etcd: name it in PINTLE_TEST_ETCD")
    }

    fn plans(&self, target: &Target, store: &Path) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for (name, workloads) in self.workloads()? {
            for (nemesis, nemeses) in self.nemeses()? {
                plans.push(Plan {
                    workloads: workloads.clone(),
                    nemeses,
                    time: Duration::from_secs(self.time),
                    nodes: self.nodes,
                    seed: self.seed,
                    target: target.clone(),
                    flags: self.node_flag.clone(),
                    rate: self.rate,
                    processes: self.processes,
                    dir: store.join(format!("{name}-{nemesis}-{}", self.seed)),
                    command: self.command(&name, nemesis),
                });
            }
        }
        Ok(plans)
    }

    fn workloads(&self) -> Result<Vec<(String, Vec<&'static Workload>)>> {
        let alone = |workload: &'static Workload| (workload.name.to_owned(), vec![workload]);
        Ok(match self.workload.as_str() {
            ALL => workload::ALL.iter().map(alone).collect(),
            MIXED => {
                let all = workload::ALL.iter().filter(|workload| workload.shares);
                vec![(MIXED.to_owned(), all.collect())]
            }
            name => {
                let names = || workload::ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
                let workload = workload::by_name(name);
                vec![alone(workload.with_context(|| format!("no workload {name}; there are: {}", names()))?)]
            }
        })
    }

    fn nemeses(&self) -> Result<Vec<(&str, Vec<&'static str>)>> {
        let names = nemesis::names();
        Ok(match self.nemesis.as_str() {
            ALL => names.into_iter().map(|name| (name, vec![name])).collect(),
            NONE => vec![(NONE, Vec::new())],
            name => match names.iter().find(|known| **known == name) {
                Some(known) => vec![(*known, vec![*known])],
                None if name == MIXED => vec![(MIXED, names)],
                None => bail!("no nemesis {name}; there are: {}", names.join(", ")),
            },
        })
    }

    fn command(&self, workload: &str, nemesis: &str) -> String {
        let mut command = format!(
            "pintle-jepsen test --workload {workload} --nemesis {nemesis} --time {} --nodes {} --seed {}",
            self.time, self.nodes, self.seed,
        );
        match &self.binary {
            Some(binary) => command.push_str(&format!(" --binary {}", binary.display())),
            None => command.push_str(" --etcd"),
        }
        if let Some(rate) = self.rate {
            command.push_str(&format!(" --rate {rate}"));
        }
        if let Some(processes) = self.processes {
            command.push_str(&format!(" --processes {processes}"));
        }
        for flag in &self.node_flag {
            command.push_str(&format!(" --node-flag={flag}"));
        }
        command
    }
}
