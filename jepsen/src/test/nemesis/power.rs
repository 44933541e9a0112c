//! Power cuts: what was not synced is lost.

use std::time::Instant;

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng};

use super::{Effect, Fault, Nemesis, victims};
use crate::test::nodes::{Lost, Needs, Nodes};

/// Cuts the power of one node, some or all. A disk that fails as told loses any part of what is in its cache; any other
/// loses what the file system had not yet given to it.
pub struct PowerCut {
    any_subset: bool,
    off: Vec<usize>,
    lost: Lost,
}

impl PowerCut {
    pub fn new() -> PowerCut {
        PowerCut { any_subset: false, off: Vec::new(), lost: Lost::default() }
    }

    /// Of all blocks that are not synced any may be lost, in any order.
    pub fn of_any_subset() -> PowerCut {
        PowerCut { any_subset: true, ..PowerCut::new() }
    }
}

impl Nemesis for PowerCut {
    fn name(&self) -> &'static str {
        if self.any_subset { "power-cut-any-subset" } else { "power-cut" }
    }

    fn needs(&self) -> Needs {
        Needs { failing_disk: self.any_subset, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            // All at once loses most: nobody else holds what was lost.
            let count = match random.random_bool(0.5) {
                true => nodes.len(),
                false => random.random_range(1..=nodes.len()),
            };
            self.off = match count == nodes.len() {
                true => (0..count).collect(),
                false => victims::choose(nodes, count, random).await?,
            };
            let at = Instant::now();
            self.lost = nodes.cut_power(&self.off).await?;
            let (names, Lost { unsynced_bytes, blocks }) = (nodes.names(&self.off), self.lost);
            let description = format!(
                "cut the power of {names}: lost {unsynced_bytes} bytes that no disk had, and {blocks} blocks of caches"
            );
            Ok(Fault::new(nodes, &self.off, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let off = std::mem::take(&mut self.off);
            nodes.restore_power(&off)?;
            nodes.start_stopped().await?;
            let mut counters =
                vec![("power cuts", off.len() as u64), ("unsynced bytes lost", self.lost.unsynced_bytes)];
            if self.any_subset {
                counters.push(("blocks lost", self.lost.blocks));
            }
            Ok(Effect::now(format!("started {}", nodes.names(&off)), &counters))
        }
        .boxed()
    }
}
