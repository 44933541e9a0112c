//! Files of a minority changed behind its back.
//!
//! What bits rot in, or what is cut short, must be noticed: the node ends and its log names the file, or, for damage to
//! a table that it has not yet read, it may run until it reads it. Whatever it does, it is replaced afterwards.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{FutureExt as _, future::BoxFuture};
use proto::etcdserverpb::{HashKvRequest, maintenance_client::MaintenanceClient};
use rand::{Rng as _, rngs::StdRng};
use tokio::{task::block_in_place, time::timeout};

use super::{Effect, Fault, Nemesis, victims};
use crate::{
    damage::layout::{Layout, name, records},
    root::as_root,
    test::nodes::Nodes,
};

const READ_ALL_LIMIT: Duration = Duration::from_secs(10);
/// The end of the newest segment may look like what a crash leaves; so far in front of it, damage is damage.
const RECORDS_BEHIND: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One bit is another, in the log or in a table of a stopped node
    BitFlip,
    /// A file of a stopped node ends earlier
    Truncation,
    /// One bit is another, in a table of a running node, which is then asked for everything
    BitFlipRunning,
}

pub struct Files {
    kind: Kind,
    /// The names of nodes.
    damaged: Vec<String>,
}

impl Files {
    pub fn new(kind: Kind) -> Files {
        Files { kind, damaged: Vec::new() }
    }

    async fn damage(&self, nodes: &mut Nodes, victim: usize, random: &mut StdRng) -> Result<String> {
        let data_dir = nodes.cluster.nodes[victim].data_dir().to_path_buf();
        if self.kind != Kind::BitFlipRunning {
            nodes.kill(&[victim]).await?;
        }
        let target = block_in_place(|| self.choose(&data_dir, random))?;
        let what = block_in_place(|| target.inflict(&data_dir, self.kind, random))?;
        nodes.may_end(victim, &[&name(&target.file)]);
        if self.kind == Kind::BitFlipRunning {
            // Whether there is an answer is no matter; all is read.
            let channel = nodes.cluster.nodes[victim].channel();
            let asked =
                async { MaintenanceClient::new(as_root(channel).await?).hash_kv(HashKvRequest { revision: 0 }).await };
            let _ = timeout(READ_ALL_LIMIT, asked).await;
        } else {
            nodes.cluster.nodes[victim].spawn()?;
        }
        Ok(format!("{what} of {}", nodes.name(victim)))
    }

    fn choose(&self, data_dir: &Path, random: &mut StdRng) -> Result<Target> {
        let layout = Layout::read(data_dir)?;
        let mut targets: Vec<Target> = Vec::new();
        if self.kind != Kind::BitFlipRunning {
            for segment in &layout.segments {
                let records = records(&data_dir.join(segment))?;
                let last = records.len().saturating_sub(1 + RECORDS_BEHIND);
                if last > 0 {
                    targets.push(Target { file: segment.clone(), from: records[0], to: records[last] });
                }
            }
        }
        for table in &layout.tables {
            let bytes = data_dir.join(table).metadata()?.len();
            // A kill may leave a table that nothing was written to.
            if bytes == 0 {
                continue;
            }
            targets.push(Target { file: table.clone(), from: 0, to: bytes });
        }
        ensure!(!targets.is_empty(), "there is no file yet to damage");
        Ok(targets.swap_remove(random.random_range(0..targets.len())))
    }
}

/// A part of a file that must not be other than it is.
struct Target {
    file: PathBuf,
    from: u64,
    to: u64,
}

impl Target {
    fn inflict(&self, data_dir: &Path, kind: Kind, random: &mut StdRng) -> Result<String> {
        let path = data_dir.join(&self.file);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let at = random.random_range(self.from..self.to);
        match kind {
            Kind::Truncation => {
                file.set_len(at)?;
                Ok(format!("cut {} off at byte {at}", self.file.display()))
            }
            Kind::BitFlip | Kind::BitFlipRunning => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                let bit = random.random_range(0..8);
                byte[0] ^= 1 << bit;
                file.write_all_at(&byte, at)?;
                file.sync_all()?;
                Ok(format!("flipped bit {bit} of byte {at} of {}", self.file.display()))
            }
        }
    }
}

impl Nemesis for Files {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::BitFlip => "bit-flip",
            Kind::Truncation => "truncation",
            Kind::BitFlipRunning => "bit-flip-running",
        }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let victims = victims::minority(nodes, random).await?;
            self.damaged = victims.iter().map(|victim| nodes.name(*victim).to_owned()).collect();
            let at = Instant::now();
            let mut descriptions = Vec::new();
            for victim in &victims {
                descriptions.push(self.damage(nodes, *victim, random).await?);
            }
            Ok(Fault::new(nodes, &victims, at, descriptions.join("; ")))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let mut refused = 0;
            for damaged in &self.damaged {
                // Replacing one changes the places of the others.
                let victim = (0..nodes.len()).find(|node| nodes.name(*node) == damaged).context("it is gone")?;
                if self.kind != Kind::BitFlipRunning {
                    nodes.cluster.nodes[victim].ready_or_wait().await?;
                }
                refused += nodes.must_run(&[victim]).await?.len();
                nodes.replace_member(victim, random.random()).await?;
            }
            let description = format!("replaced {}; {refused} had refused to run", self.damaged.join(", "));
            Ok(Effect::now(description, &[("files damaged", self.damaged.len() as u64)]))
        }
        .boxed()
    }
}
