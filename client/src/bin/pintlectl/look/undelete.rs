//! undelete: puts back what a key was before it was deleted last.
//!
//! It is put in a transaction that holds only while the key is not there, so that nothing put meanwhile is lost.

use clap::Args;
use client::{
    Compare, Error, EtcdError, Get, Op, Put, Txn,
    mvccpb::{KeyValue, event::EventType},
};

use super::{events::Events, is_json};
use crate::{
    Context,
    failure::{ERROR, Failure},
    print::{go::quote, json, print_line},
};

#[derive(Args)]
#[command(after_help = "The key's lease is not restored: it is gone, or about something else by now.")]
pub struct Undelete {
    /// The key.
    #[arg(id = "KEY")]
    key: String,
    /// Only say what would be put.
    #[arg(long)]
    dry_run: bool,
}

impl Undelete {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let is_json = is_json(&context.printer)?;
        let (deleted, old) = self.find(context).await?;
        let shown = quote(self.key.as_bytes());
        let revision = match self.dry_run {
            true => 0,
            false => self.put(context, old.clone()).await?,
        };
        if is_json {
            let object = json::Object::new()
                .field("key", json::base64(self.key.as_bytes()))
                .field("deleted_at", deleted.to_string())
                .field("from", old.mod_revision.to_string())
                .number("revision", revision)
                .bytes("value", &old.value);
            return print_line(&object.end());
        }
        let (bytes, from) = (old.value.len(), old.mod_revision);
        print_line(&match self.dry_run {
            true => format!(
                "{shown} was deleted at revision {deleted}; its {bytes} bytes of revision {from} would be put back"
            ),
            false => format!(
                "{shown} is back: the {bytes} bytes of revision {from}, deleted at {deleted}, put at {revision}"
            ),
        })
    }

    /// The newest deletion, and what was there before.
    async fn find(&self, context: &Context) -> anyhow::Result<(i64, KeyValue)> {
        let shown = quote(self.key.as_bytes());
        let found = Events::of(&context.client, self.key.as_bytes()).await?;
        let refused = |text: String, hint: &str| Failure::new(ERROR, text).hint(hint);
        let Some((kv, kind)) = found.events.last().and_then(|event| Some((event.kv.as_ref()?, event.r#type()))) else {
            let text = match found.compacted {
                0 => format!("{shown} never was there"),
                compacted => {
                    format!("{shown} was not there since revision {compacted}, before which the store is compacted")
                }
            };
            return Err(refused(
                text,
                "a backup may have it: `pintlectl snapshot restore`, `pintlectl backup restore`",
            )
            .into());
        };
        if kind == EventType::Put {
            let text = format!("{shown} is there, put at revision {}; nothing was changed", kv.mod_revision);
            return Err(refused(text, "`pintlectl history` shows its earlier values").into());
        }
        let deleted = kv.mod_revision;
        match context.client.get(Get::key(self.key.clone()).revision(deleted - 1)).await {
            Ok(mut answer) if !answer.kvs.is_empty() => Ok((deleted, answer.kvs.swap_remove(0))),
            Ok(_) => Err(Failure::new(ERROR, format!("{shown} was put and deleted at one revision, {deleted}")).into()),
            Err(Error::Etcd(EtcdError::Compacted)) => {
                let text = format!("{shown} was deleted at revision {deleted}, and what was there before is compacted");
                Err(refused(text, "a backup may have it: `pintlectl snapshot restore`, `pintlectl backup restore`")
                    .into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn put(&self, context: &Context, old: KeyValue) -> anyhow::Result<i64> {
        let txn = Txn::new()
            .when(Compare::mod_revision(self.key.clone()).equals(0))
            .then(Op::put(Put::new(self.key.clone(), old.value)));
        let answer = context.client.txn(txn).await?;
        match answer.succeeded {
            true => Ok(answer.header.map_or(0, |header| header.revision)),
            false => {
                let text = format!("{} was put again meanwhile; nothing was changed", quote(self.key.as_bytes()));
                Err(Failure::new(ERROR, text).into())
            }
        }
    }
}
