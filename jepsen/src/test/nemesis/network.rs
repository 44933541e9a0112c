//! Links cut, and links that lose, hold up, reorder, repeat and squeeze what is sent.
//!
//! Only links between members are touched: clients reach all members all the time.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::time::sleep;

use super::{Effect, Fault, Nemesis, victims};
use crate::test::nodes::{
    Nodes,
    link::{Link, Traffic},
};

const FLAPS: std::ops::Range<u32> = 4..12;
const FLAP_MS: std::ops::Range<u64> = 30..700;
const CUT: Link = Link {
    cut: true,
    lost_permille: 0,
    duplicated_permille: 0,
    reordered_permille: 0,
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    bytes_per_second: None,
    damage: None,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two groups that hear nothing of each other
    Halves,
    /// Each node hears a majority, and no two hear the same
    MajorityRing,
    /// One node is not heard by the others, or does not hear them
    OneWay,
    /// The leader alone on one side
    Leader,
    /// A partition that comes and goes faster than elections do
    Flapping,
    Lossy,
    Slow,
    Reordering,
    Duplicating,
    Narrow,
}

pub struct Network {
    kind: Kind,
    before: Traffic,
}

/// Which directions are cut: who is not heard by whom.
type Cuts = Vec<(usize, usize)>;

impl Network {
    pub fn new(kind: Kind) -> Network {
        Network { kind, before: Traffic::default() }
    }

    /// Strikes, and gives what it did and whom it concerns.
    async fn make(&self, nodes: &Nodes, random: &mut StdRng) -> Result<(String, Vec<usize>)> {
        let all: Vec<usize> = (0..nodes.len()).collect();
        Ok(match self.kind {
            Kind::Halves => {
                let group = halves(nodes.len(), random);
                cut(nodes, &around(nodes.len(), &group));
                (format!("cut {} off", nodes.names(&group)), group)
            }
            Kind::MajorityRing => {
                cut(nodes, &majority_ring(nodes.len(), random));
                ("each node hears another majority".to_owned(), all)
            }
            Kind::OneWay => {
                let victim = victims::choose(nodes, 1, random).await?[0];
                let deaf = random.random();
                cut(nodes, &one_way(nodes.len(), victim, deaf));
                let verb = if deaf { "hears nobody" } else { "is not heard" };
                (format!("{} {verb}", nodes.name(victim)), vec![victim])
            }
            Kind::Leader => {
                let leader = vec![nodes.leader().await?];
                cut(nodes, &around(nodes.len(), &leader));
                (format!("cut the leader off, {}", nodes.names(&leader)), leader)
            }
            Kind::Flapping => {
                let flaps = random.random_range(FLAPS);
                for _ in 0..flaps {
                    cut(nodes, &around(nodes.len(), &halves(nodes.len(), random)));
                    sleep(Duration::from_millis(random.random_range(FLAP_MS))).await;
                    nodes.heal_links();
                    sleep(Duration::from_millis(random.random_range(FLAP_MS))).await;
                }
                (format!("{flaps} partitions came and went"), all)
            }
            Kind::Lossy | Kind::Slow | Kind::Reordering | Kind::Duplicating | Kind::Narrow => {
                let (link, description) = self.bad_link(random);
                for from in 0..nodes.len() {
                    (0..nodes.len()).filter(|to| *to != from).for_each(|to| nodes.set_link(from, to, link));
                }
                (description, all)
            }
        })
    }

    fn bad_link(&self, random: &mut StdRng) -> (Link, String) {
        let mut link = Link::default();
        let description = match self.kind {
            Kind::Lossy => {
                link.lost_permille = random.random_range(20..300);
                format!("links lose {} of 1000 packets", link.lost_permille)
            }
            Kind::Slow => {
                link.delay = Duration::from_millis(random.random_range(10..400));
                link.jitter = link.delay / 2;
                format!("links hold packets up for {:?} and more", link.delay)
            }
            Kind::Reordering => {
                link.delay = Duration::from_millis(random.random_range(5..60));
                link.reordered_permille = random.random_range(100..500);
                format!("links let {} of 1000 packets overtake others", link.reordered_permille)
            }
            Kind::Duplicating => {
                link.duplicated_permille = random.random_range(100..600);
                format!("links repeat {} of 1000 packets", link.duplicated_permille)
            }
            _ => {
                let rate = random.random_range(8_000..100_000);
                link.bytes_per_second = Some(rate);
                format!("links carry {rate} bytes a second")
            }
        };
        (link, description)
    }

    fn counter(&self, traffic: Traffic) -> (&'static str, u64) {
        match self.kind {
            Kind::Lossy => ("packets lost", traffic.lost),
            Kind::Slow => ("packets delayed", traffic.delayed),
            Kind::Reordering => ("packets reordered", traffic.reordered),
            Kind::Duplicating => ("packets duplicated", traffic.duplicated),
            Kind::Narrow => ("packets throttled", traffic.throttled),
            _ => ("packets cut off", traffic.cut),
        }
    }
}

impl Nemesis for Network {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Halves => "partition-halves",
            Kind::MajorityRing => "partition-ring",
            Kind::OneWay => "partition-one-way",
            Kind::Leader => "partition-leader",
            Kind::Flapping => "partition-flapping",
            Kind::Lossy => "lossy-links",
            Kind::Slow => "slow-links",
            Kind::Reordering => "reordering-links",
            Kind::Duplicating => "duplicating-links",
            Kind::Narrow => "narrow-links",
        }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.before = nodes.switch().traffic();
            let at = Instant::now();
            let (description, victims) = self.make(nodes, random).await?;
            Ok(Fault::new(nodes, &victims, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            nodes.heal_links();
            let counter = self.counter(nodes.switch().traffic().since(self.before));
            Ok(Effect::now("made all links sound", &[counter]))
        }
        .boxed()
    }
}

fn cut(nodes: &Nodes, cuts: &Cuts) {
    for (from, to) in cuts {
        nodes.set_link(*from, *to, CUT);
    }
}

/// The smaller group of two, with any of the nodes in it.
fn halves(nodes: usize, random: &mut StdRng) -> Vec<usize> {
    let mut shuffled: Vec<usize> = (0..nodes).collect();
    shuffled.shuffle(random);
    let size = random.random_range(1..=(nodes / 2).max(1));
    shuffled.truncate(size);
    shuffled
}

/// Both directions between a group and all others.
fn around(nodes: usize, group: &[usize]) -> Cuts {
    let inside = |node: &usize| group.contains(node);
    all_directions(nodes).filter(|(from, to)| inside(from) != inside(to)).collect()
}

/// In a shuffled ring, each node hears those that follow it, as many as make a majority with it.
fn majority_ring(nodes: usize, random: &mut StdRng) -> Cuts {
    let mut ring: Vec<usize> = (0..nodes).collect();
    ring.shuffle(random);
    let place = |node: usize| ring.iter().position(|other| *other == node).expect("all are in the ring");
    let heard = |from: usize, to: usize| (place(from) + nodes - place(to)) % nodes <= nodes / 2;
    all_directions(nodes).filter(|(from, to)| !heard(*from, *to)).collect()
}

fn one_way(nodes: usize, victim: usize, deaf: bool) -> Cuts {
    all_directions(nodes).filter(|(from, to)| if deaf { *to == victim } else { *from == victim }).collect()
}

fn all_directions(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..nodes).flat_map(move |from| (0..nodes).map(move |to| (from, to))).filter(|(from, to)| from != to)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_half_is_never_more_than_that() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            assert_eq!(halves(3, &mut random).len(), 1);
            assert!((1..=2).contains(&halves(5, &mut random).len()));
        }
    }

    #[test]
    fn a_partition_cuts_both_directions_between_its_sides_and_none_within() {
        let cuts = around(3, &[1]);
        assert_eq!(cuts, [(0, 1), (1, 0), (1, 2), (2, 1)]);
    }

    #[test]
    fn in_a_ring_each_hears_a_majority_and_no_two_the_same() {
        let mut random = StdRng::seed_from_u64(1);
        for nodes in [3, 5] {
            let cuts = majority_ring(nodes, &mut random);
            let heard_by = |node: usize| -> BTreeSet<usize> {
                (0..nodes).filter(|from| *from == node || !cuts.contains(&(*from, node))).collect()
            };
            let majorities: BTreeSet<BTreeSet<usize>> = (0..nodes).map(heard_by).collect();
            assert_eq!(majorities.len(), nodes);
            assert!(majorities.iter().all(|heard| heard.len() == nodes / 2 + 1));
        }
    }

    #[test]
    fn one_way_leaves_the_other_way_open() {
        assert_eq!(one_way(3, 0, true), [(1, 0), (2, 0)]);
        assert_eq!(one_way(3, 0, false), [(0, 1), (0, 2)]);
    }
}
