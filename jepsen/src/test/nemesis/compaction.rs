//! History forgotten as fast as it is made.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use proto::etcdserverpb::{CompactionRequest, RangeRequest, kv_client::KvClient};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use super::{Effect, Fault, Nemesis};
use crate::root::as_root;
use crate::test::nodes::Nodes;

const PAUSE_MS: std::ops::Range<u64> = 5..100;
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// How much of the history is left at most.
const LEFT_MAX: i64 = 50;

/// One compaction after another, of any member, up to the present or a little before.
#[derive(Default)]
pub struct CompactionStorm {
    storm: Option<JoinHandle<()>>,
    compactions: Arc<AtomicU64>,
}

impl Nemesis for CompactionStorm {
    fn name(&self) -> &'static str {
        "compaction-storm"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let channels: Vec<Channel> = nodes.cluster.nodes.iter().map(|node| node.channel()).collect();
            let at = Instant::now();
            let counter = Arc::clone(&self.compactions);
            self.storm = Some(tokio::spawn(storm(channels, StdRng::from_rng(random), counter)));
            let all: Vec<usize> = (0..nodes.len()).collect();
            Ok(Fault::new(nodes, &all, at, "one compaction after another".to_owned()))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, _: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            if let Some(storm) = self.storm.take() {
                storm.abort();
                // It was told to end, and nothing else can have happened to it.
                let _ = storm.await;
            }
            Ok(Effect::now("no more compactions", &[("compactions", self.compactions.swap(0, Ordering::Relaxed))]))
        }
        .boxed()
    }
}

impl Drop for CompactionStorm {
    fn drop(&mut self) {
        if let Some(storm) = &self.storm {
            storm.abort();
        }
    }
}

async fn storm(channels: Vec<Channel>, mut random: StdRng, counter: Arc<AtomicU64>) {
    loop {
        let channel = channels[random.random_range(0..channels.len())].clone();
        let (left, physical) = (random.random_range(0..LEFT_MAX), random.random_ratio(1, 4));
        // A member that is down or leads nobody does not answer, which is no matter here.
        if let Ok(Ok(())) = timeout(REQUEST_LIMIT, compact(channel, left, physical)).await {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
    }
}

async fn compact(channel: Channel, left: i64, physical: bool) -> Result<(), tonic::Status> {
    let mut client = KvClient::new(as_root(channel).await?);
    let range = RangeRequest { key: "any".into(), count_only: true, ..RangeRequest::default() };
    let present = client.range(range).await?.into_inner().header.unwrap_or_default().revision;
    let revision = (present - left).max(1);
    client.compact(CompactionRequest { revision, physical }).await.map(drop)
}
