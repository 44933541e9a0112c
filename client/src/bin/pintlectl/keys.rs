//! put, get, del, compaction.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Read as _},
    os::unix::ffi::OsStringExt as _,
    time::Duration,
};

use clap::Args;
use client::{
    Keys, LeaseId,
    pb::{
        RangeRequest, RangeResponse,
        kv_client::KvClient,
        range_request::{SortOrder, SortTarget},
    },
    retry::Repeat,
};

use crate::{
    Context,
    failure::{self, Failure},
    number,
    print::{Format, go::quote, print_line},
};

/// The time to stop a range from being deleted that was meant otherwise.
const SECOND_THOUGHTS: Duration = Duration::from_secs(2);

fn bytes(arg: OsString) -> Vec<u8> {
    arg.into_vec()
}

#[derive(Args)]
#[command(override_usage = "pintlectl put [OPTIONS] <KEY> [VALUE]")]
pub struct Put {
    /// The key, and the value; without a value, it is read from standard input. Write `--` before what begins with a
    /// hyphen.
    #[arg(value_name = "KEY> <VALUE")]
    args: Vec<OsString>,
    /// The lease (hexadecimal) the key goes with.
    #[arg(long, default_value = "0", hide_default_value = true)]
    lease: String,
    /// Print what was there before.
    #[arg(long)]
    prev_kv: bool,
    /// Keep the present value.
    #[arg(long)]
    ignore_value: bool,
    /// Keep the present lease.
    #[arg(long)]
    ignore_lease: bool,
}

impl Put {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let put = self.request(|| {
            let mut value = Vec::new();
            io::stdin().read_to_end(&mut value).is_ok().then_some(value)
        })?;
        let answer = context.client.put(put).await?;
        context.print(&answer)
    }

    /// The request; `input` gives the value where no argument does.
    pub fn request(self, input: impl FnOnce() -> Option<Vec<u8>>) -> Result<client::Put, Failure> {
        let missing = || failure::bad_arguments("put command needs 1 argument and input from stdin or 2 arguments");
        let mut args = self.args.into_iter().map(bytes);
        let key = args.next().ok_or_else(missing)?;
        let value = match args.next() {
            Some(_) if self.ignore_value => {
                let text = "put command needs only 1 argument when 'ignore-value' is set";
                return Err(failure::bad_arguments(text));
            }
            None if self.ignore_value => Vec::new(),
            Some(value) => value,
            None => input().filter(|value| !value.is_empty()).ok_or_else(missing)?,
        };
        let lease = number::int(&self.lease, 16)
            .map_err(|error| failure::bad_arguments(format!("bad lease ID ({error}), expecting ID in Hex")))?;
        let mut put = client::Put::new(key, value).lease(LeaseId(lease));
        if self.prev_kv {
            put = put.prev_kv();
        }
        if self.ignore_value {
            put = put.ignore_value();
        }
        if self.ignore_lease {
            put = put.ignore_lease();
        }
        Ok(put)
    }
}

/// How get and del say which keys they mean.
#[derive(Args)]
struct Selection {
    /// The key; and the key up to which, without it, all are meant.
    #[arg(value_name = "KEY> [RANGE_END]", hide = true)]
    args: Vec<OsString>,
    /// All keys that begin with the key given.
    #[arg(long)]
    prefix: bool,
    /// The key given and all after it.
    #[arg(long)]
    from_key: bool,
}

impl Selection {
    fn keys(self) -> Result<Keys, Failure> {
        let (prefix, from_key) = (self.prefix, self.from_key);
        let mut args = self.args.into_iter().map(bytes);
        let (key, end) = (args.next().unwrap_or_default(), args.next());
        match end {
            Some(_) if prefix || from_key => Err(failure::bad_arguments(
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            )),
            Some(end) => Ok(Keys::range(key, end)),
            None if prefix => Ok(Keys::prefix(key)),
            None if from_key => Ok(Keys::from(key)),
            None => Ok(Keys::one(key)),
        }
    }

    fn exclusive(&self) -> Result<(), Failure> {
        match self.prefix && self.from_key {
            true => {
                Err(failure::bad_arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one"))
            }
            false => Ok(()),
        }
    }
}

/// `l` for linearizable, `s` for serializable.
pub fn is_serializable(consistency: &str) -> Result<bool, Failure> {
    match consistency {
        "l" => Ok(false),
        "s" => Ok(true),
        other => Err(failure::bad_feature(format!("unknown consistency flag {}", quote(other.as_bytes())))),
    }
}

#[derive(Args)]
#[command(override_usage = "pintlectl get [OPTIONS] <KEY> [RANGE_END]")]
pub struct Get {
    #[command(flatten)]
    selection: Selection,
    /// As it was at this revision.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    rev: i64,
    /// At most this many keys.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    limit: i64,
    /// CREATE, KEY, MODIFY, VALUE, VERSION.
    #[arg(long, default_value = "", hide_default_value = true)]
    sort_by: String,
    /// ASCEND, DESCEND.
    #[arg(long, default_value = "", hide_default_value = true)]
    order: String,
    /// l: linearizable, as the cluster has agreed; s: serializable, as the server asked knows, which may be behind.
    #[arg(long, default_value = "l")]
    consistency: String,
    /// Keys without values.
    #[arg(long)]
    keys_only: bool,
    /// The number of keys alone (with `-w fields`).
    #[arg(long)]
    count_only: bool,
    /// Values without keys (with `-w simple`).
    #[arg(long)]
    print_value_only: bool,
    /// Only keys created at this revision or later.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    min_create_rev: i64,
    /// Only keys created at this revision or earlier.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    max_create_rev: i64,
    /// Only keys changed at this revision or later.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    min_mod_rev: i64,
    /// Only keys changed at this revision or earlier.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    max_mod_rev: i64,
    /// Have the answer in parts (Pintle, etcd 3.7 and later).
    #[arg(long)]
    stream: bool,
}

impl Get {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (count_only, print_value_only, stream) = (self.count_only, self.print_value_only, self.stream);
        let get = self.request()?;
        let answer = match stream {
            true => streamed(context, get.into()).await?,
            false => context.client.get(get).await?,
        };
        let mut printer = context.printer;
        if count_only && printer.format != Format::Fields {
            return Err(failure::bad_arguments("--count-only is only for `--write-out=fields`").into());
        }
        if print_value_only && printer.format != Format::Simple {
            return Err(failure::bad_arguments("print-value-only is only for `--write-out=simple`").into());
        }
        printer.style.value_only = print_value_only;
        printer.print(&answer)
    }

    pub fn request(self) -> Result<client::Get, Failure> {
        if self.selection.args.is_empty() {
            let text = "get command needs one argument as key and an optional argument as range_end";
            return Err(failure::bad_arguments(text));
        }
        self.selection.exclusive()?;
        if self.keys_only && self.count_only {
            return Err(failure::bad_arguments(
                "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
            ));
        }
        let is_serializable = is_serializable(&self.consistency)?;
        let (min_create, max_create) = bounds("CreateRev", self.min_create_rev, self.max_create_rev)?;
        let (min_mod, max_mod) = bounds("ModRev", self.min_mod_rev, self.max_mod_rev)?;
        let keys = self.selection.keys()?;
        let mut get = client::Get::new(keys)
            .revision(self.rev.max(0))
            .limit(self.limit)
            .sort(sort_target(&self.sort_by)?, sort_order(&self.order)?)
            .min_create_revision(min_create)
            .max_create_revision(max_create)
            .min_mod_revision(min_mod)
            .max_mod_revision(max_mod);
        if is_serializable {
            get = get.serializable();
        }
        if self.keys_only {
            get = get.keys_only();
        }
        if self.count_only {
            get = get.count_only();
        }
        Ok(get)
    }
}

fn bounds(name: &str, min: i64, max: i64) -> Result<(i64, i64), Failure> {
    match max > 0 && min > max {
        true => Err(failure::bad_feature(format!("getMin{name}(={min}) > getMax{name}(={max})"))),
        false => Ok((min.max(0), max.max(0))),
    }
}

fn sort_target(name: &str) -> Result<SortTarget, Failure> {
    match name.to_uppercase().as_str() {
        "" | "KEY" => Ok(SortTarget::Key),
        "CREATE" => Ok(SortTarget::Create),
        "MODIFY" => Ok(SortTarget::Mod),
        "VALUE" => Ok(SortTarget::Value),
        "VERSION" => Ok(SortTarget::Version),
        _ => Err(failure::bad_feature(format!("bad sort target {name}"))),
    }
}

fn sort_order(name: &str) -> Result<SortOrder, Failure> {
    match name.to_uppercase().as_str() {
        "" => Ok(SortOrder::None),
        "ASCEND" => Ok(SortOrder::Ascend),
        "DESCEND" => Ok(SortOrder::Descend),
        _ => Err(failure::bad_feature(format!("bad sort order {name}"))),
    }
}

/// The answer of RangeStream, put together.
async fn streamed(context: &Context, request: RangeRequest) -> anyhow::Result<RangeResponse> {
    let mut parts = context
        .client
        .call(Repeat::Never, request, async |connection, request| KvClient::new(connection).range_stream(request).await)
        .await?;
    let mut whole = RangeResponse::default();
    while let Some(part) = parts.message().await.map_err(client::Error::from)? {
        let Some(part) = part.range_response else { continue };
        whole.header = part.header.or(whole.header);
        whole.kvs.extend(part.kvs);
        whole.more |= part.more;
        whole.count = whole.count.max(part.count);
    }
    Ok(whole)
}

#[derive(Args)]
#[command(override_usage = "pintlectl del [OPTIONS] <KEY> [RANGE_END]")]
pub struct Del {
    #[command(flatten)]
    selection: Selection,
    /// Print what was there before.
    #[arg(long)]
    prev_kv: bool,
    /// A range is meant: delete it without giving time for second thoughts.
    #[arg(long)]
    range: bool,
}

impl Del {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let doubtful = (self.selection.args.len() == 2 && !self.range).then(|| {
            let quoted = |arg: &OsString| quote(arg.as_encoded_bytes());
            (quoted(&self.selection.args[0]), quoted(&self.selection.args[1]))
        });
        let delete = self.request()?;
        if let Some((from, to)) = doubtful.filter(|_| io::stderr().is_terminal()) {
            eprintln!("Warning: keys from {from} up to {to} will be deleted in 2 seconds; --range does it at once.");
            // A delay: whoever has second thoughts ends the program, and nothing else tells of them.
            tokio::time::sleep(SECOND_THOUGHTS).await;
        }
        let answer = context.client.delete(delete).await?;
        context.print(&answer)
    }

    pub fn request(self) -> Result<client::Delete, Failure> {
        if !matches!(self.selection.args.len(), 1 | 2) {
            let text = "del command needs one argument as key and an optional argument as range_end";
            return Err(failure::bad_arguments(text));
        }
        self.selection.exclusive()?;
        let delete = client::Delete::new(self.selection.keys()?);
        Ok(if self.prev_kv { delete.prev_kv() } else { delete })
    }
}

#[derive(Args)]
#[command(override_usage = "pintlectl compaction [OPTIONS] <REVISION>")]
pub struct Compaction {
    /// The oldest revision to keep.
    #[arg(value_name = "REVISION")]
    args: Vec<String>,
    /// Wait until it is gone from the store.
    #[arg(long)]
    physical: bool,
}

impl Compaction {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let [revision] = self.args.as_slice() else {
            return Err(failure::bad_arguments("compaction command needs 1 argument").into());
        };
        let revision = number::decimal(revision).map_err(|error| Failure::new(failure::ERROR, error))?;
        context.client.compact(revision, self.physical).await?;
        print_line(&format!("compacted revision {revision}"))
    }
}
