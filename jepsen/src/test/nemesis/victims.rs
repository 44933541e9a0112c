//! Who is struck.

use anyhow::Result;
use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::test::nodes::Nodes;

/// How many of so many nodes a quorum can spare.
pub fn spare(nodes: usize) -> usize {
    nodes.saturating_sub(1) / 2
}

/// So many of the nodes, the leader among them in half of the cases.
pub async fn choose(nodes: &Nodes, count: usize, random: &mut StdRng) -> Result<Vec<usize>> {
    let with_leader = random.random_bool(0.5);
    let leader = nodes.leader().await?;
    Ok(pick(nodes.len(), leader, with_leader, count, random))
}

/// One node or more, but so few that a quorum stays.
pub async fn minority(nodes: &Nodes, random: &mut StdRng) -> Result<Vec<usize>> {
    let count = random.random_range(1..=spare(nodes.len()).max(1));
    choose(nodes, count, random).await
}

fn pick(nodes: usize, leader: usize, with_leader: bool, count: usize, random: &mut StdRng) -> Vec<usize> {
    let mut others: Vec<usize> = (0..nodes).filter(|node| *node != leader).collect();
    others.shuffle(random);
    let mut picked: Vec<usize> = if with_leader { vec![leader] } else { Vec::new() };
    picked.extend(others);
    if !with_leader {
        picked.push(leader);
    }
    picked.truncate(count);
    picked
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_quorum_stays() {
        for (nodes, expected) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)] {
            assert_eq!(spare(nodes), expected, "of {nodes}");
        }
    }

    #[test]
    fn the_leader_is_picked_first_or_last() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..50 {
            let with = pick(5, 3, true, 2, &mut random);
            assert!(with[0] == 3 && with.len() == 2 && with[1] != 3);
            let without = pick(5, 3, false, 4, &mut random);
            assert!(!without.contains(&3) && without.len() == 4);
            let mut all = pick(5, 3, false, 5, &mut random);
            all.sort();
            assert_eq!(all, [0, 1, 2, 3, 4]);
        }
    }
}
