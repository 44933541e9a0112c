//! Files of a stopped member damaged, one at a time, and the member started on them.
//!
//! The member must notice: it exits, with an error, and its log names the file. Damage to a table of the database may
//! come to light only when the damaged block is read, so there it may also start; but then each answer must be what
//! it was before, or the member must end as said. What a crash may leave behind the log's last synced record is no
//! damage, and must be no obstacle.

mod cases;
pub mod layout;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use proto::{
    etcdserverpb::{
        DeleteRangeRequest, HashKvRequest, PutRequest, RangeRequest, kv_client::KvClient,
        maintenance_client::MaintenanceClient,
    },
    mvccpb::KeyValue,
};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{
    history::{Change, Event, History, Ledger, Outcome, Write, read_history},
    process::{Node, Target},
};
use cases::{Case, Expected};
use layout::Layout;

const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const WRITERS: usize = 16;
const SMALL_WRITES: u64 = 2000;
const SMALL_KEYS: u64 = 500;
const SMALL_BYTES: usize = 100;
const LARGE_BYTES: usize = 256 * 1024;
/// Keys per page of a read of everything: what the large values allow in one message.
const PAGE: i64 = 50;
const PROBES: u64 = 5;

#[derive(clap::Args)]
pub struct Arguments {
    /// The Pintle to run
    #[arg(long)]
    binary: PathBuf,
    /// How much to write before anything is damaged: more than a log segment holds
    #[arg(long, default_value_t = 90)]
    megabytes: u64,
    /// Only the cases whose description contains this
    #[arg(long)]
    only: Option<String>,
    /// Keep the data of failed cases
    #[arg(long)]
    keep: bool,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-damage-").tempdir()?;
    let target = Target::new(&arguments.binary)?;
    let mut run = Run {
        node: Node::single(&target, &dir.path().join("killed"), &[])?,
        history: History::new(),
        hash: 0,
        next_number: 1,
    };
    let result = run.cases(&arguments, dir.path()).await;
    if result.is_err() && arguments.keep {
        dir.disable_cleanup(true);
        eprintln!("data and logs are in {}", dir.path().display());
    }
    result
}

struct Run {
    node: Node,
    /// What the member must hold.
    history: History,
    hash: u32,
    next_number: u64,
}

impl Run {
    async fn cases(&mut self, arguments: &Arguments, dir: &Path) -> Result<()> {
        let killed = self.node.data_dir().to_path_buf();
        if let Err(error) = self.load(arguments.megabytes << 20).await {
            return Err(error.context(self.node.log_tail()));
        }
        // After a clean stop, what was in memory and in the database's own log is in tables.
        let stopped = dir.join("stopped");
        copy(&killed, &stopped, None)?;
        self.node.set_data_dir(&stopped);
        self.node.start().await?;
        ensure!(self.node.terminate(STOP_LIMIT).await?.success(), "a clean stop gave an error");

        let mut all = Vec::new();
        for (base, cases) in [
            (&killed, cases::to_log(&killed, &Layout::read(&killed)?)?),
            (&stopped, cases::to_database(&stopped, &Layout::read(&stopped)?)?),
        ] {
            all.extend(cases.into_iter().map(|case| (base, case)));
        }
        if let Some(only) = &arguments.only {
            all.retain(|(_, case)| case.to_string().contains(only));
        }
        let mut failed = Vec::new();
        for (index, (base, case)) in all.iter().enumerate() {
            let data_dir = dir.join(format!("case-{}", index + 1));
            copy(base, &data_dir, Some(&case.file))?;
            case.inflict(&data_dir)?;
            self.node.set_data_dir(&data_dir);
            let outcome = self.case(case).await;
            if self.node.is_running() {
                self.node.kill()?;
                self.node.exited().await?;
            }
            match outcome {
                Ok(outcome) => println!("{case}: {outcome}"),
                Err(error) => {
                    println!("FAILED {case}: {error:#}\n{}", self.node.log_tail());
                    failed.push(case.to_string());
                }
            }
            if !arguments.keep || failed.last() != Some(&case.to_string()) {
                fs::remove_dir_all(&data_dir)?;
            }
        }
        println!("{} cases, {} failed", all.len(), failed.len());
        ensure!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), all.len(), failed.join("\n"));
        Ok(())
    }

    /// Starts on damaged data and says what came of it, if that is as it must be.
    async fn case(&mut self, case: &Case) -> Result<&'static str> {
        let log_start = self.node.log_length();
        self.node.spawn()?;
        if let Some(status) = self.node.ready_or_exit().await? {
            ensure!(case.expected != Expected::Service, "refused to start ({status})");
            self.check_refusal(case, status.success(), log_start)?;
            return Ok("refused");
        }
        match self.check_content().await {
            Ok(()) => {
                ensure!(case.expected != Expected::Refusal, "served in spite of the damage (rightly, so far)");
                self.check_writes().await?;
                Ok("served rightly")
            }
            Err(error) => {
                ensure!(case.expected != Expected::Service, "{error:#}");
                let Ok(status) = timeout(REQUEST_LIMIT, self.node.exited()).await else {
                    bail!("still runs after: {error:#}");
                };
                self.check_refusal(case, status?.success(), log_start).with_context(|| format!("{error:#}"))?;
                Ok("stopped when it was read")
            }
        }
    }

    fn check_refusal(&self, case: &Case, success: bool, log_start: u64) -> Result<()> {
        ensure!(!success, "ended without an error");
        let name = layout::name(&case.file);
        ensure!(self.node.log_from(log_start)?.contains(&name), "ended without naming {name}");
        Ok(())
    }

    /// Fills the member: half before a clean stop, half before a SIGKILL.
    async fn load(&mut self, bytes: u64) -> Result<()> {
        let mut ledger = Ledger::default();
        for half in 0..2 {
            self.node.start().await?;
            let new_from = self.history.revision() + 1;
            let writes = self.write(bytes / 2).await?;
            let to = new_from + writes.len() as i64 - 1;
            let told = read_history(self.node.channel(), 2, to).await?;
            self.history.take(2, to, told.events)?;
            ledger.check(&self.history, new_from, writes)?;
            if half == 0 {
                ensure!(self.node.terminate(STOP_LIMIT).await?.success(), "a clean stop gave an error");
            }
        }
        self.hash = self.read_hash().await?;
        self.node.kill()?;
        self.node.exited().await?;
        Ok(())
    }

    async fn write(&mut self, bytes: u64) -> Result<Vec<Write>> {
        let first = self.next_number;
        let large = bytes / LARGE_BYTES as u64;
        let every = (SMALL_WRITES / large.max(1)).max(1);
        let total = SMALL_WRITES + large;
        self.next_number += total;
        let client = KvClient::new(self.node.channel());
        let writes = stream::iter(first..first + total).map(|number| {
            let is_large = number % (every + 1) == 0;
            write_one(client.clone(), number, is_large)
        });
        let writes: Vec<Option<Write>> = writes.buffer_unordered(WRITERS).try_collect().await?;
        Ok(writes.into_iter().flatten().collect())
    }

    /// Reads everything: the history, the keys now and at some revisions before, the hash.
    async fn check_content(&mut self) -> Result<()> {
        let revision = self.history.revision();
        let range = RangeRequest { key: "any".into(), ..RangeRequest::default() };
        let answer = timeout(REQUEST_LIMIT, KvClient::new(self.node.channel()).range(range)).await??.into_inner();
        let current = answer.header.context("no header")?.revision;
        ensure!(current == revision, "it is at revision {current}, and was at {revision}");
        let told = read_history(self.node.channel(), 2, revision).await.context("the history")?;
        ensure!(told.from == 2, "the history begins at {}", told.from);
        self.history.take(2, revision, told.events)?;
        let mut points = Vec::new();
        for point in [revision / 4, revision / 2, revision] {
            let keys = read_keys(self.node.channel(), point).await;
            points.push((point, keys.with_context(|| format!("the keys at revision {point}"))?));
        }
        self.history.replay(points, |_, state, keys| state.check_range(b"", &keys))?;
        let hash = self.read_hash().await.context("the hash")?;
        ensure!(hash == self.hash, "the hash is {hash} and was {}", self.hash);
        Ok(())
    }

    async fn read_hash(&self) -> Result<u32> {
        let request = HashKvRequest { revision: self.history.revision() };
        let mut client = MaintenanceClient::new(self.node.channel());
        Ok(timeout(REQUEST_LIMIT, client.hash_kv(request)).await??.into_inner().hash)
    }

    /// Writes more, and finds it all after a restart.
    async fn check_writes(&mut self) -> Result<()> {
        let revision = self.history.revision();
        let client = KvClient::new(self.node.channel());
        let mut expected = Vec::new();
        for number in 1..=PROBES {
            let key = format!("probe/{number}").into();
            let write = put(client.clone(), key, self.next_number + number, SMALL_BYTES).await?;
            ensure!(
                write.outcome == Outcome::Done(revision + number as i64),
                "the first writes after the damage: {write:?}, after revision {revision}",
            );
            expected.push(write);
        }
        self.node.kill()?;
        self.node.exited().await?;
        self.node.start().await.context("the start after that")?;
        let to = revision + PROBES as i64;
        let told = read_history(self.node.channel(), 2, to).await.context("the history after a restart")?;
        let (old, new): (Vec<Event>, Vec<Event>) =
            told.events.into_iter().partition(|event| event.mod_revision <= revision);
        self.history.take(2, revision, old).context("the history after a restart")?;
        ensure!(new.len() == expected.len(), "{} of {PROBES} new writes are there after a restart", new.len());
        for (write, event) in expected.iter().zip(&new) {
            let Change::Put { keys, value } = &write.change else { unreachable!("probes are puts") };
            ensure!(event.key == keys[0] && event.value.as_ref() == Some(value), "{write:?} became {event}");
        }
        Ok(())
    }
}

/// Writes what belongs to a number; `None` if there was nothing to delete.
async fn write_one(client: KvClient<Channel>, number: u64, is_large: bool) -> Result<Option<Write>> {
    if is_large {
        return put(client, format!("large/{number}").into(), number, LARGE_BYTES).await.map(Some);
    }
    let key = Bytes::from(format!("small/{}", number % SMALL_KEYS));
    match number % 23 {
        0 => delete(client, key, number).await,
        _ => put(client, key, number, SMALL_BYTES).await.map(Some),
    }
}

async fn put(mut client: KvClient<Channel>, key: Bytes, number: u64, size: usize) -> Result<Write> {
    // Values that do not compress: the files shall be as large as what is written.
    let mut value = format!("{number}:").into_bytes();
    let text = value.len();
    value.resize(text + size, 0);
    StdRng::seed_from_u64(number).fill_bytes(&mut value[text..]);
    let value = Bytes::from(value);
    let request = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
    let response = timeout(REQUEST_LIMIT, client.put(request)).await??.into_inner();
    let outcome = Outcome::Done(response.header.context("no header")?.revision);
    Ok(Write { number, change: Change::Put { keys: vec![key], value }, begun_after: 1, outcome })
}

async fn delete(mut client: KvClient<Channel>, key: Bytes, number: u64) -> Result<Option<Write>> {
    let request = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
    let response = timeout(REQUEST_LIMIT, client.delete_range(request)).await??.into_inner();
    let outcome = Outcome::Done(response.header.context("no header")?.revision);
    let write = Write { number, change: Change::Delete { key }, begun_after: 1, outcome };
    Ok((response.deleted > 0).then_some(write))
}

async fn read_keys(channel: Channel, revision: i64) -> Result<Vec<KeyValue>> {
    let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut keys: Vec<KeyValue> = Vec::new();
    loop {
        let key = keys.last().map_or(b"\0".to_vec(), |last| [&last.key[..], b"\0"].concat());
        let range = RangeRequest {
            key: key.into(),
            range_end: b"\0".as_slice().into(),
            revision,
            limit: PAGE,
            ..RangeRequest::default()
        };
        let response = timeout(REQUEST_LIMIT, client.range(range)).await??.into_inner();
        keys.extend(response.kvs);
        if !response.more {
            return Ok(keys);
        }
    }
}

/// Copies a data directory. Tables of the database are never written to again, so all but the one to be damaged are
/// shared.
fn copy(from: &Path, to: &Path, damaged: Option<&Path>) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        let source = entry.path();
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            copy(&source, &target, damaged.and_then(|damaged| damaged.strip_prefix(&name).ok()))?;
        } else if name.extension().is_some_and(|extension| extension == "sst") && damaged != Some(&name) {
            fs::hard_link(&source, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
