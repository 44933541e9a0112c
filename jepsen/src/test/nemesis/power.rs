//! Power cuts: what was not synced is lost.

use std::time::Instant;

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng};

use super::{Effect, Fault, Nemesis, victims};
use crate::test::nodes::Nodes;

/// Cuts the power of one node, some or all.
#[derive(Default)]
pub struct PowerCut {
    off: Vec<usize>,
    bytes_lost: u64,
}

impl Nemesis for PowerCut {
    fn name(&self) -> &'static str {
        "power-cut"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let count = random.random_range(1..=nodes.len());
            self.off = victims::choose(nodes, count, random).await?;
            let at = Instant::now();
            self.bytes_lost = nodes.cut_power(&self.off).await?;
            let names = nodes.names(&self.off);
            let description = format!("cut the power of {names}: {} unsynced bytes lost", self.bytes_lost);
            Ok(Fault::new(nodes, &self.off, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let off = std::mem::take(&mut self.off);
            nodes.restore_power(&off)?;
            nodes.start_stopped().await?;
            let counters = [("power cuts", off.len() as u64), ("unsynced bytes lost", self.bytes_lost)];
            Ok(Effect::now(format!("started {}", nodes.names(&off)), &counters))
        }
        .boxed()
    }
}
