//! One run: set up, load and faults, heal, wait until all agree, read once more, judge, report.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use jepsen::check::history::{RunNote, Setup};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    client::{Context, Endpoint},
    convergence::{self, Agreement},
    judge,
    nemesis::{self, Nemesis},
    nodes::{Needs, Nodes, Options},
    recorder::{Recorder, WITNESS},
    report::{Page, Verdict},
    storm::{self, Toll},
    watching,
    workload::Workload,
};
use crate::process::Target;

/// No workload waits longer than this for anything once it was told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long observers may take to see the last of what was written.
const OBSERVER_LIMIT: Duration = Duration::from_secs(15);
/// How long nothing may succeed once a fault is healed.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// What is run.
pub struct Plan {
    /// More than one share the cluster, each with keys and processes of its own.
    pub workloads: Vec<&'static Workload>,
    /// None: no faults. Several: any of them each time.
    pub nemeses: Vec<&'static str>,
    pub time: Duration,
    pub nodes: usize,
    pub seed: u64,
    pub target: Target,
    pub flags: Vec<String>,
    pub rate: Option<f64>,
    pub processes: Option<u64>,
    /// Where history, report and logs go.
    pub dir: PathBuf,
    /// The command that runs it again.
    pub command: String,
}

pub struct Outcome {
    pub verdict: Verdict,
    /// A line for a person.
    pub summary: String,
    pub failures: Vec<String>,
    pub report: PathBuf,
}

impl Plan {
    pub fn title(&self) -> String {
        self.setup().title()
    }

    fn setup(&self) -> Setup {
        Setup {
            command: self.command.clone(),
            server: self.target.label(),
            workloads: self.workloads.iter().map(|workload| workload.name.to_owned()).collect(),
            nemeses: self.nemeses.iter().map(|nemesis| (*nemesis).to_owned()).collect(),
            members: self.nodes,
            seed: self.seed,
            seconds: self.time.as_secs(),
        }
    }

    fn all_flags(&self) -> Vec<String> {
        let of_workloads = self.workloads.iter().flat_map(|workload| workload.flags).map(|flag| (*flag).to_owned());
        of_workloads.chain(self.flags.iter().cloned()).collect()
    }

    pub async fn run(&self) -> Result<Outcome> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let needs = self
            .nemeses
            .iter()
            .try_fold(Needs::default(), |needs, name| anyhow::Ok(needs.and(nemesis::by_name(name)?.needs())))?;
        let options =
            Options { size: self.nodes, flags: self.all_flags(), needs, seed: self.seed, ..Options::default() };
        let mut nodes = Nodes::start(&self.target, &self.dir, options).await?;
        let mut run = Run::new(self, &nodes);
        let faults = run.load(&mut nodes).await;
        run.step("nemesis", faults.map(|()| run.toll_text()));
        run.step("exits", nodes.check_running().await.map(|()| "nobody ended unordered".to_owned()));
        run.settle().await;
        if run.failed {
            eprintln!("{}", nodes.log_tails());
            nodes.keep(&self.dir.join("disks"))?;
        } else {
            run.step("shutdown", nodes.shutdown().await.map(|()| "all ended in order".to_owned()));
        }
        run.judge()
    }
}

/// What is known of a run so far.
struct Run<'a> {
    plan: &'a Plan,
    recorder: Arc<Recorder>,
    contexts: Vec<Context>,
    stop: watch::Sender<bool>,
    quiet: watch::Sender<Option<i64>>,
    toll: Toll,
    /// Whether a step of the run has failed.
    failed: bool,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, nodes: &Nodes) -> Run<'a> {
        let recorder = Arc::new(Recorder::new());
        recorder.run(RunNote::Begin(plan.setup()));
        let (stop, stopped) = watch::channel(false);
        let endpoints = named(nodes.endpoints());
        let (quiet, quieted) = watch::channel(None);
        let context = |workload: &&'static Workload| Context {
            workload: workload.name,
            quiet: quieted.clone(),
            recorder: Arc::clone(&recorder),
            endpoints: endpoints.clone(),
            stopped: stopped.clone(),
            seed: plan.seed,
            processes: plan.processes.unwrap_or_else(|| share(workload.processes, plan.workloads.len())),
            rate: plan.rate.unwrap_or(workload.rate),
        };
        Run {
            plan,
            contexts: plan.workloads.iter().map(context).collect(),
            recorder,
            stop,
            quiet,
            toll: Toll::default(),
            failed: false,
        }
    }

    /// Takes down what became of a step of the run itself.
    fn step(&mut self, name: &str, result: Result<String>) {
        let failed = result.is_err();
        let detail = result.unwrap_or_else(|error| format!("{error:#}"));
        self.failed |= failed;
        self.recorder.run(RunNote::Step { name: name.to_owned(), failed, detail });
    }

    /// Load and faults, until the time is over or something is wrong.
    async fn load(&mut self, nodes: &mut Nodes) -> Result<()> {
        let mut processes = JoinSet::new();
        for (workload, context) in self.plan.workloads.iter().zip(&self.contexts) {
            for index in 0..context.processes {
                processes.spawn((workload.process)(context.clone(), index));
            }
        }
        let mut observers = JoinSet::new();
        for (workload, context) in self.plan.workloads.iter().zip(&self.contexts) {
            for index in 0..workload.observers {
                observers.spawn((workload.observe)(context.clone(), index));
            }
        }
        if self.is_witnessed() {
            observers.spawn(watching::witness(Context { workload: WITNESS, ..self.contexts[0].clone() }));
        }
        let until = Instant::now() + self.plan.time;
        let raging = match self.plan.nemeses.is_empty() {
            false => {
                let nemeses = self.plan.nemeses.iter().map(|name| nemesis::by_name(name));
                let mut nemeses: Vec<Box<dyn Nemesis>> = nemeses.collect::<Result<_>>()?;
                storm::rage(&mut nemeses, nodes, &self.recorder, self.plan.seed, until, &mut self.toll).await
            }
            true => {
                tokio::time::sleep_until(until).await;
                Ok(())
            }
        };
        let recovered = self.wait_for_success().await;
        self.recorder.run(RunNote::LoadEnds);
        self.stop.send_replace(true);
        let stopped = join(processes, STOP_LIMIT).await;
        let observed = self.let_observers_finish(observers).await;
        raging.and(recovered).and(stopped).and(observed)
    }

    fn is_witnessed(&self) -> bool {
        self.plan.workloads.iter().all(|workload| workload.is_witnessed)
    }

    /// Nothing is written any more: observers must see all that was.
    async fn let_observers_finish(&mut self, observers: JoinSet<Result<()>>) -> Result<()> {
        let endpoints = self.contexts[0].endpoints.borrow().clone();
        let newest = timeout(RECOVERY_LIMIT, convergence::newest_revision_of(&endpoints)).await;
        let revision = newest.context("nobody tells the newest revision")?;
        self.recorder.run(RunNote::Quiet { revision });
        self.quiet.send_replace(Some(revision));
        // Those that do not finish are judged by what they saw.
        let _ = join(observers, OBSERVER_LIMIT).await;
        Ok(())
    }

    /// With all faults healed, operations must succeed again within a bounded time.
    async fn wait_for_success(&self) -> Result<()> {
        let begin = Instant::now();
        while self.recorder.silence_ns() > begin.elapsed().as_nanos() as u64 {
            ensure!(begin.elapsed() < RECOVERY_LIMIT, "nothing succeeded for {RECOVERY_LIMIT:?} after the last fault");
            // A delay: between two looks at a time that every success changes.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until the members agree, and lets the workloads read once more.
    async fn settle(&mut self) {
        let endpoints = self.contexts[0].endpoints.borrow().clone();
        let agreement = convergence::converge(&endpoints).await;
        let text = agreement.map(|Agreement { revision, hash, after }| {
            format!(
                "all members have the hash {hash:08x} at revision {revision}, {} ms after the load",
                after.as_millis()
            )
        });
        self.step("convergence", text);
        for (workload, context) in self.plan.workloads.iter().zip(self.contexts.clone()) {
            let finish = timeout(STOP_LIMIT, (workload.finish)(context)).await;
            if let Some(error) = finish.map_or_else(|_| Some(anyhow::anyhow!("not done in time")), Result::err) {
                self.step(&format!("{}: final reads", workload.name), Err(error));
            }
        }
    }

    fn toll_text(&self) -> String {
        let counters: Vec<String> = self.toll.counters.iter().map(|(name, count)| format!("{name}: {count}")).collect();
        format!("{} faults; {}", self.toll.faults, counters.join(", "))
    }

    /// Keeps the history, and judges it as it is kept.
    fn judge(self) -> Result<Outcome> {
        let plan = self.plan;
        self.recorder.run(RunNote::End);
        let history = self.recorder.take();
        let path = plan.dir.join("history.jsonl");
        history.write(BufWriter::new(File::create(&path)?))?;
        let page = judge::judge(&history).with_context(|| format!("cannot judge {}", path.display()))?;
        let report = plan.dir.join("report.html");
        fs::write(&report, page.html())?;
        Ok(self.outcome(&page, report))
    }

    fn outcome(&self, page: &Page, report: PathBuf) -> Outcome {
        let successes =
            page.run.operations.iter().filter(|operation| operation.outcome == super::report::plots::Outcome::Ok);
        let outage = page.faults.iter().map(|fault| fault.outage_ms).fold(0.0, f64::max);
        let summary = format!(
            "{}: {} of {} operations ok, {}, longest outage {outage:.0} ms",
            page.title,
            successes.count(),
            page.run.operations.len(),
            self.toll_text(),
        );
        Outcome { verdict: page.verdict(), summary, failures: page.failures(), report }
    }
}

async fn join(mut processes: JoinSet<Result<()>>, limit: Duration) -> Result<()> {
    let all = async {
        while let Some(ended) = processes.join_next().await {
            ended??;
        }
        Ok(())
    };
    timeout(limit, all).await.unwrap_or_else(|_| bail!("a process did not stop within {limit:?}"))
}

/// Several workloads at once have fewer processes each.
fn share(processes: u64, workloads: usize) -> u64 {
    (processes / workloads as u64).max(3)
}

/// Gives each member the name that it has in logs and faults, by its address.
fn named(mut urls: crate::load::Endpoints) -> watch::Receiver<Vec<Endpoint>> {
    let name = |urls: &[String]| -> Vec<Endpoint> { urls.iter().map(|url| Endpoint::of(url)).collect() };
    let (sender, receiver) = watch::channel(name(&urls.borrow_and_update()));
    tokio::spawn(async move {
        while urls.changed().await.is_ok() {
            sender.send_replace(name(&urls.borrow_and_update()));
        }
    });
    receiver
}
