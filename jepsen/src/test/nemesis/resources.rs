//! Too little time, too little memory.

use std::time::Instant;

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng};

use super::{Effect, Fault, Nemesis, victims};
use crate::test::nodes::{Needs, Nodes};

/// What a node under memory pressure may have besides what it has now and cannot give back.
const SLACK_BYTES: std::ops::Range<u64> = (1 << 20)..(8 << 20);

/// A minority, or all, get a small part of a processor.
#[derive(Default)]
pub struct SlowCpu {
    slowed: Vec<usize>,
    throttled_before: u64,
}

impl SlowCpu {
    fn throttled(&self, nodes: &Nodes) -> Result<u64> {
        self.slowed.iter().map(|node| nodes.machine(*node).group.throttled_periods()).sum()
    }
}

impl Nemesis for SlowCpu {
    fn name(&self) -> &'static str {
        "slow-cpu"
    }

    fn needs(&self) -> Needs {
        Needs { cpu_limit: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.slowed = match random.random_bool(0.5) {
                true => victims::minority(nodes, random).await?,
                false => (0..nodes.len()).collect(),
            };
            self.throttled_before = self.throttled(nodes)?;
            let percent = random.random_range(2..15);
            let at = Instant::now();
            for node in &self.slowed {
                nodes.machine(*node).group.limit_cpu(Some(percent))?;
            }
            let description = format!("{} have {percent} % of a processor", nodes.names(&self.slowed));
            Ok(Fault::new(nodes, &self.slowed, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            for node in &self.slowed {
                nodes.machine(*node).group.limit_cpu(None)?;
            }
            let throttled = self.throttled(nodes)? - self.throttled_before;
            Ok(Effect::now("all have what there is", &[("periods throttled", throttled)]))
        }
        .boxed()
    }
}

/// A minority may have little more memory than it cannot do without: cached files are dropped again and again.
#[derive(Default)]
pub struct MemoryPressure {
    pressed: Vec<usize>,
    hits_before: u64,
}

impl MemoryPressure {
    fn hits(&self, nodes: &Nodes) -> Result<u64> {
        self.pressed.iter().map(|node| nodes.machine(*node).group.memory_limit_hits()).sum()
    }
}

impl Nemesis for MemoryPressure {
    fn name(&self) -> &'static str {
        "memory-pressure"
    }

    fn needs(&self) -> Needs {
        Needs { memory_limit: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.pressed = victims::minority(nodes, random).await?;
            self.hits_before = self.hits(nodes)?;
            let at = Instant::now();
            for node in &self.pressed {
                // Taking more than this is its right, and then the kernel ends it.
                nodes.may_end(*node, &[]);
                let group = &nodes.machine(*node).group;
                group.limit_memory(Some(group.memory_kept()? + random.random_range(SLACK_BYTES)))?;
            }
            let description = format!("{} have hardly any memory to spare", nodes.names(&self.pressed));
            Ok(Fault::new(nodes, &self.pressed, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            for node in &self.pressed {
                nodes.machine(*node).group.limit_memory(None)?;
            }
            nodes.must_run(&self.pressed).await?;
            nodes.start_stopped().await?;
            let hits = self.hits(nodes)? - self.hits_before;
            Ok(Effect::now("all have what there is", &[("times that a node wanted more memory", hits)]))
        }
        .boxed()
    }
}
