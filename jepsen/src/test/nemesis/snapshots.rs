//! Snapshots damaged on their way to a member that needs one.
//!
//! A follower is cut off until it needs a snapshot, as by `lagging-member`, and is then reached again by links on which
//! snapshots do not arrive as they were sent. It must refuse each, and take the one that comes when the links are sound.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};

use super::{Effect, Fault, Nemesis, members::Lag, metrics};
use crate::test::nodes::{
    Needs, Nodes, STATUS_PAUSE,
    damage::{Damage, Kind},
    link::{Link, Traffic},
};

const REFUSED: &str = "etcd_network_snapshot_receive_failures";
const REFUSAL_LIMIT: Duration = Duration::from_secs(30);
/// A small snapshot is some twenty packets.
const PERMILLE: std::ops::Range<u32> = 50..300;

pub struct DamagedSnapshot {
    kind: Kind,
    lag: Lag,
    traffic_before: Traffic,
    refused_before: u64,
}

impl DamagedSnapshot {
    pub fn new(kind: Kind) -> DamagedSnapshot {
        DamagedSnapshot { kind, lag: Lag::default(), traffic_before: Traffic::default(), refused_before: 0 }
    }

    async fn refused(&self, nodes: &Nodes) -> Result<u64> {
        Ok(metrics::sum(nodes, self.lag.lagging(), REFUSED).await? - self.refused_before)
    }

    /// Until one is refused, or one has come through unharmed.
    async fn until_refused(&self, nodes: &Nodes) -> Result<u64> {
        let to = nodes.applied_by_leader().await?;
        let refused = async {
            loop {
                let refused = self.refused(nodes).await?;
                if refused > 0 || nodes.has_applied(self.lag.lagging(), to).await {
                    return anyhow::Ok(refused);
                }
                sleep(STATUS_PAUSE).await;
            }
        };
        timeout(REFUSAL_LIMIT, refused)
            .await
            .with_context(|| format!("no snapshot came to {} in {REFUSAL_LIMIT:?}", nodes.name(self.lag.lagging())))?
    }
}

impl Nemesis for DamagedSnapshot {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Flip => "snapshot-bit-flip",
            Kind::Cut => "snapshot-truncation",
        }
    }

    fn needs(&self) -> Needs {
        self.lag.needs()
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let mut fault = self.lag.cut_off(nodes, random).await?;
            self.traffic_before = nodes.switch().traffic();
            self.refused_before = 0;
            self.refused_before = self.refused(nodes).await?;
            let damage = Damage { kind: self.kind, permille: random.random_range(PERMILLE) };
            let lagging = self.lag.lagging();
            for other in (0..nodes.len()).filter(|other| *other != lagging) {
                nodes.set_link(lagging, other, Link::default());
                nodes.set_link(other, lagging, Link { damage: Some(damage), ..Link::default() });
            }
            let refused = self.until_refused(nodes).await?;
            fault.description.push_str(&format!(
                "; {} of 1000 packets of its snapshots are damaged, {refused} were refused so far",
                damage.permille,
            ));
            Ok(fault)
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let to = nodes.applied_by_leader().await?;
            nodes.heal_links();
            let received = self.lag.catch_up(nodes, to).await?;
            let damaged = nodes.switch().traffic().since(self.traffic_before).damaged;
            let refused = self.refused(nodes).await?;
            let counters =
                [("packets damaged", damaged), ("snapshots refused", refused), ("snapshots received", received)];
            Ok(Effect::now(format!("{refused} snapshots were refused, {received} taken"), &counters))
        }
        .boxed()
    }
}
