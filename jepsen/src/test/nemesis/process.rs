//! Processes killed, paused and restarted.

use std::time::Instant;

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use rand::rngs::StdRng;

use super::{Effect, Fault, Nemesis, victims};
use crate::test::nodes::Nodes;

/// SIGKILL for a minority, which stays down until it is healed.
#[derive(Default)]
pub struct Kill {
    killed: u64,
}

impl Nemesis for Kill {
    fn name(&self) -> &'static str {
        "kill"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let victims = victims::minority(nodes, random).await?;
            let at = Instant::now();
            nodes.kill(&victims).await?;
            self.killed = victims.len() as u64;
            Ok(Fault::new(nodes, &victims, at, format!("killed {}", nodes.names(&victims))))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            nodes.start_stopped().await?;
            Ok(Effect::now("started what was killed", &[("processes killed", self.killed)]))
        }
        .boxed()
    }
}

/// A minority does nothing for a while and then goes on as if no time had passed.
#[derive(Default)]
pub struct Pause {
    paused: Vec<usize>,
}

impl Nemesis for Pause {
    fn name(&self) -> &'static str {
        "pause"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.paused = victims::minority(nodes, random).await?;
            let at = Instant::now();
            for victim in &self.paused {
                nodes.pause(*victim)?;
            }
            Ok(Fault::new(nodes, &self.paused, at, format!("paused {}", nodes.names(&self.paused))))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let paused = std::mem::take(&mut self.paused);
            for victim in &paused {
                nodes.resume(*victim)?;
            }
            let description = format!("resumed {}", nodes.names(&paused));
            Ok(Effect::now(description, &[("processes paused", paused.len() as u64)]))
        }
        .boxed()
    }
}

/// SIGKILL for all at once.
#[derive(Default)]
pub struct RestartAll {
    killed: u64,
}

impl Nemesis for RestartAll {
    fn name(&self) -> &'static str {
        "restart-all"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let all: Vec<usize> = (0..nodes.len()).collect();
            let at = Instant::now();
            nodes.kill(&all).await?;
            self.killed = all.len() as u64;
            Ok(Fault::new(nodes, &all, at, "killed all".to_owned()))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            nodes.start_stopped().await?;
            Ok(Effect::now("started all", &[("processes killed", self.killed)]))
        }
        .boxed()
    }
}

/// Each node in turn is asked to stop, and started again.
pub struct RollingRestart;

impl Nemesis for RollingRestart {
    fn name(&self) -> &'static str {
        "rolling-restart"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let at = Instant::now();
            let all: Vec<usize> = (0..nodes.len()).collect();
            for node in &all {
                nodes.stop(*node).await?;
                nodes.start_stopped().await?;
            }
            Ok(Fault::new(nodes, &all, at, "restarted one after another".to_owned()))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move { Ok(Effect::now("all run again", &[("processes restarted", nodes.len() as u64)])) }.boxed()
    }
}
