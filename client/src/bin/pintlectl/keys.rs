//! put, get, del, compaction.

use std::io::Read;

use clap::{Args, ValueEnum};
use client::{
    Keys, LeaseId,
    pb::range_request::{SortOrder, SortTarget},
};

use crate::{BadArguments, Context, json, lease::lease_id, print, text};

#[derive(Args)]
pub struct Put {
    key: String,
    value: Option<String>,
    /// The lease (hexadecimal) the key goes with.
    #[arg(long, value_parser = lease_id)]
    lease: Option<LeaseId>,
    /// Print what was there before.
    #[arg(long)]
    prev_kv: bool,
    /// Keep the present value.
    #[arg(long, conflicts_with = "value")]
    ignore_value: bool,
    /// Keep the present lease.
    #[arg(long, conflicts_with = "lease")]
    ignore_lease: bool,
}

impl Put {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let value = match self.value {
            Some(value) => value.into_bytes(),
            None if self.ignore_value => Vec::new(),
            None => {
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value)?;
                value
            }
        };
        let mut put = client::Put::new(self.key, value);
        if let Some(lease) = self.lease {
            put = put.lease(lease);
        }
        if self.prev_kv {
            put = put.prev_kv();
        }
        if self.ignore_value {
            put = put.ignore_value();
        }
        if self.ignore_lease {
            put = put.ignore_lease();
        }
        let answer = context.client.put(put).await?;
        context.print(|| text::put(&answer), || json::Put::from(&answer))
    }
}

/// How get, del and watch say which keys they mean.
#[derive(Args)]
pub struct Selection {
    key: String,
    /// All keys from the first up to, without, this one.
    range_end: Option<String>,
    /// All keys that begin with the key given.
    #[arg(long, conflicts_with_all = ["range_end", "from_key"])]
    prefix: bool,
    /// The key given and all after it.
    #[arg(long, conflicts_with = "range_end")]
    from_key: bool,
}

impl Selection {
    pub fn keys(self) -> Result<Keys, BadArguments> {
        match self.range_end {
            _ if self.prefix => Ok(Keys::prefix(self.key)),
            _ if self.from_key => Ok(Keys::from(self.key)),
            Some(end) => Ok(Keys::range(self.key, end)),
            None if self.key.is_empty() => Err(BadArguments("an empty key is for --prefix and --from-key")),
            None => Ok(Keys::one(self.key)),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SortBy {
    Create,
    Key,
    Modify,
    Value,
    Version,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Order {
    Ascend,
    Descend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Consistency {
    /// As the cluster has agreed.
    #[value(name = "l")]
    Linearizable,
    /// As the server asked knows, which may be behind.
    #[value(name = "s")]
    Serializable,
}

#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    selection: Selection,
    /// As it was at this revision.
    #[arg(long, default_value_t = 0)]
    rev: i64,
    /// At most this many keys.
    #[arg(long, default_value_t = 0)]
    limit: i64,
    #[arg(long, ignore_case = true)]
    sort_by: Option<SortBy>,
    #[arg(long, ignore_case = true)]
    order: Option<Order>,
    #[arg(long, default_value = "l")]
    consistency: Consistency,
    /// Keys without values.
    #[arg(long)]
    keys_only: bool,
    /// The number of keys alone.
    #[arg(long)]
    count_only: bool,
    /// Values without keys (simple output).
    #[arg(long, conflicts_with_all = ["keys_only", "count_only"])]
    print_value_only: bool,
}

impl Get {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut get = client::Get::new(self.selection.keys()?).revision(self.rev).limit(self.limit);
        let target = match self.sort_by {
            None | Some(SortBy::Key) => SortTarget::Key,
            Some(SortBy::Create) => SortTarget::Create,
            Some(SortBy::Modify) => SortTarget::Mod,
            Some(SortBy::Value) => SortTarget::Value,
            Some(SortBy::Version) => SortTarget::Version,
        };
        let order = match self.order {
            None => SortOrder::None,
            Some(Order::Ascend) => SortOrder::Ascend,
            Some(Order::Descend) => SortOrder::Descend,
        };
        get = get.sort(target, order);
        if self.consistency == Consistency::Serializable {
            get = get.serializable();
        }
        if self.keys_only {
            get = get.keys_only();
        }
        if self.count_only {
            get = get.count_only();
        }
        let answer = context.client.get(get).await?;
        let shown = if self.count_only {
            text::Shown::Count
        } else if self.print_value_only {
            text::Shown::Values
        } else {
            text::Shown::KeysAndValues
        };
        context.print(|| text::get(&answer, shown), || json::Get::from(&answer))
    }
}

#[derive(Args)]
pub struct Del {
    #[command(flatten)]
    selection: Selection,
    /// Print what was there before.
    #[arg(long)]
    prev_kv: bool,
}

impl Del {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut delete = client::Delete::new(self.selection.keys()?);
        if self.prev_kv {
            delete = delete.prev_kv();
        }
        let answer = context.client.delete(delete).await?;
        context.print(|| text::delete(&answer), || json::Delete::from(&answer))
    }
}

#[derive(Args)]
pub struct Compaction {
    revision: i64,
    /// Wait until it is gone from the store.
    #[arg(long)]
    physical: bool,
}

impl Compaction {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        context.client.compact(self.revision, self.physical).await?;
        // As in etcdctl, the same in both formats.
        print(format!("compacted revision {}\n", self.revision).as_bytes())
    }
}
