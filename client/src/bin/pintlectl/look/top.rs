//! top: how many keys there are, how big they are, and what is written, by prefix.
//!
//! All keys are read once, page by page at one revision, without values unless `--sizes` asks for them; from there on a
//! watch tells what changes. No key is kept: an event says itself whether its key is new (version 1), and, with sizes,
//! what was there before.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use client::{
    Client, Error, Get, Keys, Watch,
    mvccpb::{Event, event::EventType},
};
use console::Term;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::is_json;
use crate::{
    Context,
    failure::{self, Failure},
    number,
    print::{
        go::{quote, size},
        json, print, print_line,
    },
    progress,
};

const PAGE_KEYS: i64 = 5000;
/// Pages with values: a page of the biggest ones still fits an answer.
const PAGE_KEYS_WITH_VALUES: i64 = 500;
/// Of the terminal, what is not a row: two lines above, and the last one stays empty.
const LINES_BESIDE: usize = 4;

#[derive(Args)]
#[command(after_help = "Where the output is no terminal, --once is meant.")]
pub struct Top {
    /// Only keys that begin so.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// How many parts between slashes make a row.
    #[arg(long, default_value = "2", value_parser = number::decimal)]
    depth: i64,
    /// Read all values once, too, so that sizes are known.
    #[arg(long)]
    sizes: bool,
    /// How often the numbers are renewed; with --once, how long writes are counted.
    #[arg(long, default_value = "2s", value_parser = number::duration)]
    interval: Duration,
    /// Print once, and end.
    #[arg(long)]
    once: bool,
}

/// The numbers of one prefix.
#[derive(Default, Clone, Debug, PartialEq)]
struct Row {
    keys: i64,
    bytes: i64,
    /// Since the last renewal.
    writes: u64,
    written_bytes: u64,
}

/// What a key is counted under: its first so many parts, with the slash behind them.
fn group(key: &[u8], depth: usize) -> &[u8] {
    let mut end = 0;
    let mut parts = 0;
    for (position, byte) in key.iter().enumerate() {
        // A slash at the very beginning ends no part.
        if *byte == b'/' && position > 0 {
            end = position + 1;
            parts += 1;
            if parts == depth {
                break;
            }
        }
    }
    &key[..end]
}

struct Table {
    depth: usize,
    rows: BTreeMap<Vec<u8>, Row>,
}

impl Table {
    fn row(&mut self, key: &[u8]) -> &mut Row {
        self.rows.entry(group(key, self.depth).to_vec()).or_default()
    }

    fn apply(&mut self, event: &Event) {
        let Some(kv) = &event.kv else { return };
        let length = |bytes: &[u8]| i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let before = event.prev_kv.as_ref().map_or(0, |kv| length(&kv.value));
        let (key, value) = (length(&kv.key), length(&kv.value));
        let row = self.row(&kv.key);
        row.writes += 1;
        row.written_bytes += u64::try_from(key + value).unwrap_or(0);
        match event.r#type() {
            EventType::Put if kv.version == 1 => {
                row.keys += 1;
                row.bytes += key + value;
            }
            EventType::Put => row.bytes += value - before,
            EventType::Delete => {
                row.keys -= 1;
                row.bytes -= key + before;
            }
        }
    }

    /// The busiest first, then the biggest.
    fn sorted(&self) -> Vec<(&[u8], &Row)> {
        let mut rows: Vec<(&[u8], &Row)> = self.rows.iter().map(|(name, row)| (name.as_slice(), row)).collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse((row.writes, row.keys, row.bytes)));
        rows
    }

    /// Forgets what was written, and rows without keys.
    fn renew(&mut self) {
        self.rows.retain(|_, row| row.keys != 0);
        self.rows.values_mut().for_each(|row| (row.writes, row.written_bytes) = (0, 0));
    }
}

impl Top {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let is_json = is_json(&context.printer)?;
        let depth = usize::try_from(self.depth).ok().filter(|depth| *depth > 0);
        let depth = depth.ok_or_else(|| failure::bad_arguments("--depth must be 1 at least"))?;
        if self.interval.is_zero() {
            return Err(failure::bad_arguments("--interval must be more than nothing").into());
        }
        let mut table = Table { depth, rows: BTreeMap::new() };
        let revision = self.scan(&context.client, &mut table).await?;
        let watch = Watch::new(Keys::prefix(self.prefix.clone())).from_revision(revision + 1);
        let watch = if self.sizes { watch.prev_kv() } else { watch };
        let mut watcher = context.client.watch(watch).await?;
        let once = self.once || is_json || !io::stdout().is_terminal();
        let (mut tick, mut renewed) = (interval(self.interval), Instant::now());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut revision = revision;
        let mut first = true;
        loop {
            tokio::select! {
                response = watcher.next() => {
                    let response = response.map_err(|error| lost(&error))?;
                    revision = response.header.map_or(revision, |header| header.revision);
                    response.events.iter().for_each(|event| table.apply(event));
                }
                // The first tick comes at once: a terminal has something to show, and nothing is measured yet.
                _ = tick.tick() => {
                    let seconds = renewed.elapsed().as_secs_f64();
                    let is_measured = !std::mem::take(&mut first);
                    if once && is_measured {
                        return match is_json {
                            true => print_line(&self.as_json(&table, revision, seconds)),
                            false => print(self.text(&table, revision, seconds, usize::MAX).as_bytes()),
                        };
                    }
                    if !once {
                        self.show(&table, revision, seconds)?;
                    }
                    table.renew();
                    renewed = Instant::now();
                }
            }
        }
    }

    /// Reads all keys as they are at one revision, which it gives.
    async fn scan(&self, client: &Client, table: &mut Table) -> anyhow::Result<i64> {
        let mut keys = Keys::prefix(self.prefix.clone());
        let mut revision = 0;
        let bar = progress::spinner("reading", "keys");
        loop {
            let get = Get::new(keys.clone()).revision(revision);
            let get = match self.sizes {
                true => get.limit(PAGE_KEYS_WITH_VALUES),
                false => get.limit(PAGE_KEYS).keys_only(),
            };
            let page = client.get(get).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                let row = table.row(&kv.key);
                row.keys += 1;
                row.bytes += i64::try_from(kv.key.len() + kv.value.len())?;
            }
            bar.inc(u64::try_from(page.kvs.len())?);
            let Some(last) = page.kvs.last().filter(|_| page.more) else {
                bar.finish_and_clear();
                return Ok(revision);
            };
            keys = Keys::range([last.key.as_ref(), b"\0"].concat(), keys.range_end().clone());
        }
    }

    fn show(&self, table: &Table, revision: i64, seconds: f64) -> anyhow::Result<()> {
        let terminal = Term::stdout();
        let (height, width) = terminal.size();
        let rows = usize::from(height).saturating_sub(LINES_BESIDE);
        let text = self.text(table, revision, seconds, rows);
        let cut = |line: &str| console::truncate_str(line, usize::from(width), "…").into_owned();
        let lines: Vec<String> = text.lines().map(cut).collect();
        terminal.clear_screen()?;
        Ok(terminal.write_str(&(lines.join("\n") + "\n"))?)
    }

    fn text(&self, table: &Table, revision: i64, seconds: f64, rows: usize) -> String {
        let all = table.rows.values();
        let (keys, writes) = all.fold((0, 0), |(keys, writes), row| (keys + row.keys, writes + row.writes));
        let rate = |count: u64| count as f64 / seconds.max(f64::EPSILON);
        let mut out = format!("revision {revision}, {keys} keys, {:.1} writes/s\n", rate(writes));
        let line = |keys: &str, bytes: &str, writes: &str, written: &str, name: &str| match self.sizes {
            true => format!("{keys:>10} {bytes:>9} {writes:>9} {written:>11}  {name}\n"),
            false => format!("{keys:>10} {writes:>9} {written:>11}  {name}\n"),
        };
        out += &line("KEYS", "SIZE", "WRITES/S", "WRITTEN/S", "PREFIX");
        for (name, row) in table.sorted().into_iter().take(rows) {
            let name = if name.is_empty() { "(none)".to_string() } else { printable(name) };
            let writes = format!("{:.1}", rate(row.writes));
            let written = size(rate(row.written_bytes) as i64);
            out += &line(&row.keys.to_string(), &size(row.bytes), &writes, &written, &name);
        }
        out
    }

    fn as_json(&self, table: &Table, revision: i64, seconds: f64) -> String {
        let rate = |count: u64| format!("{:.3}", count as f64 / seconds.max(f64::EPSILON));
        let row = |(name, row): (&[u8], &Row)| {
            json::Object::new()
                .field("prefix", json::text(&printable(name)))
                .field("keys", row.keys.to_string())
                .optional("bytes", self.sizes.then(|| row.bytes.to_string()))
                .field("writes_per_second", rate(row.writes))
                .field("bytes_written_per_second", rate(row.written_bytes))
                .end()
        };
        let rows = json::list(table.sorted().into_iter().map(row));
        json::Object::new().field("revision", revision.to_string()).field("prefixes", rows).end()
    }
}

/// Text as it is, anything else between quotes.
fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_string(),
        _ => quote(bytes),
    }
}

fn lost(error: &Error) -> Failure {
    Failure::new(failure::ERROR, format!("the watch has ended: {}", failure::describe(error)))
        .hint("start it again: it reads what is there now")
}

#[cfg(test)]
mod tests {
    use client::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn keys_are_counted_under_their_first_parts() {
        assert_eq!(group(b"/registry/pods/default/a", 2), b"/registry/pods/");
        assert_eq!(group(b"/registry/pods/default/a", 1), b"/registry/");
        assert_eq!(group(b"/registry/a", 2), b"/registry/");
        assert_eq!(group(b"a/b/c", 2), b"a/b/");
        assert_eq!(group(b"plain", 2), b"");
        assert_eq!(group(b"/plain", 1), b"");
    }

    #[test]
    fn events_change_what_a_key_adds() {
        let mut table = Table { depth: 1, rows: BTreeMap::new() };
        let kv = |value: &'static str, version| {
            Some(KeyValue { key: "a/b".into(), value: value.into(), version, ..Default::default() })
        };
        let put = |value, version, before| Event { r#type: 0, kv: kv(value, version), prev_kv: before };
        table.apply(&put("1234", 1, None));
        table.apply(&put("12", 2, kv("1234", 1)));
        assert_eq!(table.rows[b"a/".as_slice()], Row { keys: 1, bytes: 5, writes: 2, written_bytes: 12 });
        table.apply(&Event { r#type: 1, kv: kv("", 0), prev_kv: kv("12", 2) });
        assert_eq!(table.rows[b"a/".as_slice()], Row { keys: 0, bytes: 0, writes: 3, written_bytes: 15 });
        table.renew();
        assert!(table.rows.is_empty());
    }
}
