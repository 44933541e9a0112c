//! A whole member on one thread, in this process: the one that `pintle` runs, with its listeners, its log and its store
//! on the disk. Only RocksDB has threads beside it.

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
    task::Waker,
    time::{Instant, SystemTime},
};

use server::{config::Config, flags::Flags, start};
use storage::host::{Entered, Host};
use tokio::{
    runtime::{Builder, Runtime},
    task::{AbortHandle, JoinHandle, LocalSet},
};

/// Work that has threads of its own elsewhere takes turns with the rest on this one.
struct OneThread;

impl Host for OneThread {
    fn adopt(&self, _: AbortHandle) {}

    fn is_running(&self, _: &Waker) -> bool {
        true
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn system_time(&self) -> SystemTime {
        SystemTime::now()
    }
}

pub struct Member {
    runtime: Runtime,
    /// The member's own future is one that stays on its thread.
    tasks: LocalSet,
    running: JoinHandle<anyhow::Result<()>>,
    pub socket: PathBuf,
    _entered: Entered,
}

impl Member {
    pub fn start(dir: &Path) -> anyhow::Result<Member> {
        let config = config(dir)?;
        let entered = Entered::on(Arc::new(OneThread));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let running = tasks.spawn_local(start::run(config, || {}));
        Ok(Member { runtime, tasks, running, socket: dir.join("client"), _entered: entered })
    }

    /// Lets the member run until `work` is done.
    pub fn run<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let running = &mut self.running;
        self.tasks.block_on(&self.runtime, async {
            tokio::select! {
                biased;
                done = work => done,
                ended = running => Err(anyhow::anyhow!("the member has ended: {ended:?}")),
            }
        })
    }

    /// The same, for the count.
    pub fn run_counted(&mut self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        instructions_counted(&self.tasks, &self.runtime, pin!(work))
    }
}

/// All that runs within it is counted: callgrind knows it by its name.
#[inline(never)]
#[unsafe(no_mangle)]
fn instructions_counted(
    tasks: &LocalSet,
    runtime: &Runtime,
    work: Pin<&mut dyn Future<Output = anyhow::Result<()>>>,
) -> anyhow::Result<()> {
    tasks.block_on(runtime, work)
}

/// What was counted since the last time is written down when this returns.
#[inline(never)]
#[unsafe(no_mangle)]
pub fn instructions_told() {
    std::hint::black_box(());
}

/// The timers are slow, so that they are seldom met however slowly this runs.
fn config(dir: &Path) -> anyhow::Result<Config> {
    let unix = |name: &str| format!("unix://{}", dir.join(name).display());
    let arguments = [
        format!("--data-dir={}", dir.join("data").display()),
        format!("--listen-client-urls={}", unix("client")),
        format!("--advertise-client-urls={}", unix("client")),
        format!("--listen-peer-urls={}", unix("peer")),
        format!("--initial-advertise-peer-urls={}", unix("peer")),
        format!("--initial-cluster=default={}", unix("peer")),
        "--heartbeat-interval=5000".into(),
        "--election-timeout=50000".into(),
    ];
    let flags = Flags::read(arguments.into_iter(), []).map_err(|error| anyhow::anyhow!("{error}"))?;
    Config::from_flags(&flags).map_err(|error| anyhow::anyhow!("{error}"))
}
