//! The well-behaved client, and the member's memory.

use std::{
    fs,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use tokio::{runtime, sync::oneshot, time::timeout};

use crate::process::channel;

const PAUSE: Duration = Duration::from_millis(20);
const CALL_MAX: Duration = Duration::from_secs(20);

/// Bytes of a process that are in memory.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

pub struct Observer {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<Seen>>,
}

#[derive(Default)]
pub struct Seen {
    latencies_ms: Vec<f64>,
    pub failures: Vec<String>,
    pub bytes_peak: u64,
}

impl Seen {
    pub fn latency(&self, quantile: f64) -> f64 {
        let last = self.latencies_ms.len().saturating_sub(1);
        let at = (last as f64 * quantile).round() as usize;
        self.latencies_ms.get(at).copied().unwrap_or(f64::NAN)
    }
}

impl Observer {
    /// It has a thread of its own: the flood, which is made here too, must not hold it up.
    pub fn start(endpoint: String, pid: u32) -> Observer {
        let (stop, mut stopped) = oneshot::channel();
        let observe = async move {
            let mut kv = KvClient::new(channel(&endpoint));
            let mut seen = Seen::default();
            while matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                let begin = Instant::now();
                match timeout(CALL_MAX, put_and_get(&mut kv)).await {
                    Ok(Ok(())) => seen.latencies_ms.push(begin.elapsed().as_secs_f64() * 1000.0),
                    Ok(Err(error)) => seen.failures.push(error.to_string()),
                    Err(_) => seen.failures.push(format!("no answer within {CALL_MAX:?}")),
                }
                seen.bytes_peak = seen.bytes_peak.max(resident_bytes(pid).unwrap_or(0));
                tokio::time::sleep(PAUSE).await;
            }
            seen.latencies_ms.sort_by(f64::total_cmp);
            seen
        };
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(observe))
        });
        Observer { stop, thread }
    }

    pub async fn finish(self) -> Result<Seen> {
        // It ends by itself only when it panics, which the join tells.
        let _ = self.stop.send(());
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        joined.map_err(|_| anyhow!("the observer panicked"))?
    }
}

async fn put_and_get(kv: &mut KvClient<tonic::transport::Channel>) -> Result<(), tonic::Status> {
    kv.put(PutRequest { key: "well-behaved".into(), value: "value".into(), ..Default::default() }).await?;
    kv.range(RangeRequest { key: "well-behaved".into(), ..Default::default() }).await?;
    Ok(())
}
