//! make-mirror: copies keys to another cluster and follows. Source: etcd, `etcdctl/ctlv3/command/make_mirror_command.go`.
//!
//! It is there for scripts that use it. It cannot be resumed, and knows no leases; `pintlectl mirror` does better.

use std::time::Duration;

use clap::{ArgAction, Args};
use client::{Client, Error, EtcdError, Get, Keys, Op, Options, Put, Txn, Watch, mvccpb::event::EventType};
use tokio::time::{Instant, interval_at};

use crate::{
    Context,
    failure::{self, Failure},
    number,
    options::{credentials, tls},
    print::print_line,
};

const PAGE_KEYS: i64 = 1000;
const COUNT_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(override_usage = "pintlectl make-mirror [OPTIONS] <DESTINATION>")]
pub struct MakeMirror {
    /// The other cluster's endpoint.
    #[arg(value_name = "DESTINATION")]
    args: Vec<String>,
    /// Only keys that begin so.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Copy nothing, and follow from this revision on.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    rev: i64,
    /// At most this many operations in a transaction.
    #[arg(long, default_value = "128", value_parser = number::decimal)]
    max_txn_ops: i64,
    /// What keys begin with there, in place of the prefix.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    dest_prefix: String,
    /// Take the prefix away.
    #[arg(long)]
    no_dest_prefix: bool,
    /// The certificate to show there.
    #[arg(long, value_name = "FILE")]
    dest_cert: Option<String>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    dest_key: Option<String>,
    /// Trust servers there whose certificates were signed by one of these.
    #[arg(long, value_name = "FILE")]
    dest_cacert: Option<String>,
    /// Without TLS, where neither a URL nor a certificate asks for it.
    #[arg(long, action = ArgAction::SetFalse)]
    dest_insecure_transport: bool,
    /// Who is asked there: name, or name:password.
    #[arg(long, value_name = "NAME[:PASSWORD]")]
    dest_user: Option<String>,
    /// That user's password.
    #[arg(long, value_name = "PASSWORD")]
    dest_password: Option<String>,
}

impl MakeMirror {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let [destination] = self.args.as_slice() else {
            return Err(failure::bad_arguments("make-mirror takes one destination argument").into());
        };
        if self.no_dest_prefix && !self.dest_prefix.is_empty() {
            let text = "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one";
            return Err(failure::bad_arguments(text).into());
        }
        let options = Options {
            tls: tls(&self.dest_cacert, &self.dest_cert, &self.dest_key, self.dest_insecure_transport, false)?,
            credentials: credentials(
                self.dest_user.as_deref(),
                self.dest_password.as_deref(),
                "Destination Password: ",
            )?,
            ..context.client.options().clone()
        };
        let there = if self.dest_prefix.is_empty() && !self.no_dest_prefix { &self.prefix } else { &self.dest_prefix };
        let mut copy = Copy {
            from: &context.client,
            to: Client::with_options([destination], options).map_err(failure::bad_client)?,
            prefix: &self.prefix,
            there,
            ops_max: usize::try_from(self.max_txn_ops.max(1))?,
            total: 0,
        };
        let from = match self.rev {
            0 | 1 => copy.everything().await? + 1,
            rev => rev,
        };
        copy.follow(from).await
    }
}

struct Copy<'a> {
    from: &'a Client,
    to: Client,
    prefix: &'a str,
    there: &'a str,
    ops_max: usize,
    /// Keys put and deleted.
    total: i64,
}

impl Copy<'_> {
    /// What a key is called there.
    fn renamed(&self, key: &[u8]) -> Vec<u8> {
        [self.there.as_bytes(), key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key)].concat()
    }

    /// Copies all keys as they are at one revision, which it gives.
    async fn everything(&mut self) -> Result<i64, Error> {
        let all = Keys::prefix(self.prefix.to_string());
        let (mut start, end) = (all.key().clone(), all.range_end().clone());
        let mut revision = 0;
        loop {
            let get = Get::new(Keys::range(start.clone(), end.clone())).revision(revision).limit(PAGE_KEYS);
            let page = self.from.get(get).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                self.to.put(Put::new(self.renamed(&kv.key), kv.value.clone())).await?;
                self.total += 1;
            }
            match page.kvs.last() {
                // The next key there can be.
                Some(last) if page.more => start = [last.key.as_ref(), b"\0"].concat().into(),
                _ => return Ok(revision),
            }
        }
    }

    /// Ends with the first failure.
    async fn follow(&mut self, from: i64) -> anyhow::Result<()> {
        let watch = Watch::new(Keys::prefix(self.prefix.to_string())).from_revision(from);
        let mut watcher = self.from.watch(watch).await.map_err(compacted)?;
        let mut count = interval_at(Instant::now() + COUNT_INTERVAL, COUNT_INTERVAL);
        loop {
            let response = tokio::select! {
                response = watcher.next() => response.map_err(compacted)?,
                _ = count.tick() => {
                    print_line(&self.total.to_string())?;
                    continue;
                }
            };
            for events in response.events.chunk_by(|a, b| revision(a) == revision(b)) {
                for ops in events.chunks(self.ops_max) {
                    let txn = ops.iter().fold(Txn::new(), |txn, event| txn.then(self.op(event)));
                    self.to.txn(txn).await?;
                    self.total += i64::try_from(ops.len())?;
                }
            }
        }
    }

    fn op(&self, event: &client::mvccpb::Event) -> Op {
        let kv = event.kv.clone().unwrap_or_default();
        match event.r#type() {
            EventType::Put => Op::put(Put::new(self.renamed(&kv.key), kv.value)),
            EventType::Delete => Op::delete(client::Delete::key(self.renamed(&kv.key))),
        }
    }
}

fn revision(event: &client::mvccpb::Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn compacted(error: Error) -> Failure {
    match error {
        Error::WatchCompacted { .. } => Failure::from(Error::Etcd(EtcdError::Compacted)),
        error => Failure::from(error),
    }
}
