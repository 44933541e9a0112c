//! diff: what became of keys between two revisions.
//!
//! Both revisions are read page by page, without values, and merged by key: keys are sorted, and a key that was put in
//! between has another mod revision.

use std::cmp::Ordering;

use clap::Args;
use client::{Client, Error, Get, Keys, mvccpb::KeyValue};
use console::Style;

use super::{changes, is_json, styled, value};
use crate::{
    Context,
    failure::{self, Failure},
    number,
    print::{go::quote, json, print, print_line},
    progress,
};

const PAGE_KEYS: i64 = 2000;

#[derive(Args)]
#[command(after_help = "Only keys are read, without values, unless --values asks for them.")]
pub struct Diff {
    /// The earlier revision.
    #[arg(value_name = "REV1", value_parser = number::decimal)]
    from: i64,
    /// The later one; the newest without it.
    #[arg(value_name = "REV2", value_parser = number::decimal)]
    to: Option<i64>,
    /// Only keys that begin so.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Show what values were and became.
    #[arg(long)]
    values: bool,
}

/// The keys of a prefix at one revision, in order, page by page.
struct Pages<'a> {
    client: &'a Client,
    rest: Option<Keys>,
    revision: i64,
    page: std::vec::IntoIter<KeyValue>,
    next: Option<KeyValue>,
}

impl<'a> Pages<'a> {
    async fn open(client: &'a Client, keys: Keys, revision: i64) -> Result<Pages<'a>, Error> {
        let mut pages = Pages { client, rest: Some(keys), revision, page: Vec::new().into_iter(), next: None };
        pages.advance().await?;
        Ok(pages)
    }

    /// Takes the next key, and reads on.
    async fn take(&mut self) -> Result<KeyValue, Error> {
        let taken = self.next.take().expect("only what was seen is taken");
        self.advance().await?;
        Ok(taken)
    }

    async fn advance(&mut self) -> Result<(), Error> {
        self.next = self.page.next();
        let (None, Some(keys)) = (&self.next, self.rest.take()) else { return Ok(()) };
        let get = Get::new(keys.clone()).revision(self.revision).limit(PAGE_KEYS).keys_only();
        let answer = self.client.get(get).await?;
        if let Some(last) = answer.kvs.last().filter(|_| answer.more) {
            self.rest = Some(Keys::range([last.key.as_ref(), b"\0"].concat(), keys.range_end().clone()));
        }
        self.page = answer.kvs.into_iter();
        self.next = self.page.next();
        Ok(())
    }
}

/// What became of a key.
enum Change {
    Added(KeyValue),
    Changed { old: KeyValue, new: KeyValue },
    Deleted(KeyValue),
}

#[derive(Default)]
struct Counts {
    added: u64,
    changed: u64,
    deleted: u64,
    same: u64,
}

impl Diff {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let is_json = is_json(&context.printer)?;
        let client = &context.client;
        let now = client.get(Get::key("\0").count_only()).await?.header.map_or(0, |header| header.revision);
        let to = self.to.unwrap_or(now);
        if self.from < 1 || self.from > to {
            let text =
                format!("REV1 is {} and REV2 {to}: the first must be 1 at least, and not after the second", self.from);
            return Err(failure::bad_arguments(text).into());
        }
        let keys = Keys::prefix(self.prefix.clone());
        let at = |revision: i64| move |error: Error| at_revision(error, revision);
        let mut old = Pages::open(client, keys.clone(), self.from).await.map_err(at(self.from))?;
        let mut new = Pages::open(client, keys, to).await.map_err(at(to))?;
        let (mut counts, mut found) = (Counts::default(), Vec::new());
        let bar = progress::spinner("comparing", "keys");
        while let Some(change) = next(&mut old, &mut new, &mut counts).await? {
            bar.inc(1);
            let Some(change) = change else { continue };
            match is_json {
                true => found.push(change),
                false => {
                    let text = self.describe(client, &change, to).await?;
                    bar.suspend(|| print(text.as_bytes()))?;
                }
            }
        }
        bar.finish_and_clear();
        match is_json {
            true => print_line(&as_json(self.from, to, &found, &counts)),
            false => {
                let Counts { added, changed, deleted, same } = counts;
                let from = self.from;
                print_line(&format!(
                    "revision {from} to {to}: {added} added, {changed} changed, {deleted} deleted, {same} as they were"
                ))
            }
        }
    }

    async fn describe(&self, client: &Client, change: &Change, to: i64) -> anyhow::Result<String> {
        let (sign, style, kv) = match change {
            Change::Added(kv) => ('+', Style::new().green(), kv),
            Change::Changed { new, .. } => ('~', Style::new().yellow(), new),
            Change::Deleted(kv) => ('-', Style::new().red(), kv),
        };
        let key = String::from_utf8(kv.key.to_vec()).unwrap_or_else(|_| quote(&kv.key));
        let heading = format!("{sign} {key} (revision {}, version {})", kv.mod_revision, kv.version);
        let mut text = styled(&heading, style) + "\n";
        if self.values {
            let read = async |revision| readable(client, &kv.key, revision).await;
            let (old, new) = match change {
                Change::Added(_) => (String::new(), read(to).await?),
                Change::Changed { .. } => (read(self.from).await?, read(to).await?),
                Change::Deleted(_) => (read(self.from).await?, String::new()),
            };
            text += &changes(&old, &new);
        }
        Ok(text)
    }
}

fn at_revision(error: Error, revision: i64) -> Failure {
    match Failure::from(error) {
        failure if failure.to_string().contains("compacted") => {
            Failure::new(failure::ERROR, format!("{failure}: revision {revision}")).hint(
                "both revisions must be there: take a later one; `pintlectl history KEY` shows where history begins",
            )
        }
        failure => failure,
    }
}

async fn readable(client: &Client, key: &[u8], revision: i64) -> Result<String, Error> {
    let answer = client.get(Get::key(key.to_vec()).revision(revision)).await?;
    Ok(answer.kvs.first().map(|kv| value::readable(&kv.value)).unwrap_or_default())
}

/// The next key of either; whether it changed. None: there are no more.
async fn next(old: &mut Pages<'_>, new: &mut Pages<'_>, counts: &mut Counts) -> Result<Option<Option<Change>>, Error> {
    let order = match (&old.next, &new.next) {
        (None, None) => return Ok(None),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(old), Some(new)) => old.key.cmp(&new.key),
    };
    Ok(Some(match order {
        Ordering::Less => {
            counts.deleted += 1;
            Some(Change::Deleted(old.take().await?))
        }
        Ordering::Greater => {
            counts.added += 1;
            Some(Change::Added(new.take().await?))
        }
        Ordering::Equal => {
            let (old, new) = (old.take().await?, new.take().await?);
            let is_same = old.mod_revision == new.mod_revision;
            *(if is_same { &mut counts.same } else { &mut counts.changed }) += 1;
            (!is_same).then_some(Change::Changed { old, new })
        }
    }))
}

fn as_json(from: i64, to: i64, changes: &[Change], counts: &Counts) -> String {
    let version = |kv: &KeyValue| {
        json::Object::new()
            .field("key", json::base64(&kv.key))
            .number("create_revision", kv.create_revision)
            .number("mod_revision", kv.mod_revision)
            .number("version", kv.version)
    };
    let of = |wanted: fn(&Change) -> Option<(&KeyValue, Option<i64>)>| {
        let found = changes.iter().filter_map(wanted);
        json::list(found.map(|(kv, before)| version(kv).number("mod_revision_before", before.unwrap_or(0)).end()))
    };
    let added = of(|change| if let Change::Added(kv) = change { Some((kv, None)) } else { None });
    let changed = of(|change| match change {
        Change::Changed { old, new } => Some((new, Some(old.mod_revision))),
        _ => None,
    });
    let deleted = of(|change| if let Change::Deleted(kv) = change { Some((kv, None)) } else { None });
    let counts = json::Object::new()
        .field("added", counts.added.to_string())
        .field("changed", counts.changed.to_string())
        .field("deleted", counts.deleted.to_string())
        .field("same", counts.same.to_string())
        .end();
    json::Object::new()
        .field("from", from.to_string())
        .field("to", to.to_string())
        .field("added", added)
        .field("changed", changed)
        .field("deleted", deleted)
        .field("counts", counts)
        .end()
}
