//! history: the revisions of a key, each with what it changed.

use clap::Args;
use client::mvccpb::{Event, KeyValue, event::EventType};
use console::Style;

use super::{changes, events::Events, is_json, styled, value};
use crate::{
    Context, number,
    print::{go::quote, json, kv::event_name, print, print_line},
};

#[derive(Args)]
#[command(
    after_help = "The store keeps history up to its compaction; what was before is gone, and it is said where that is."
)]
pub struct History {
    /// The key.
    #[arg(id = "KEY")]
    key: String,
    /// The newest so many only; 0: all.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    limit: i64,
    /// Whole values in place of changes.
    #[arg(long)]
    values: bool,
}

impl History {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let is_json = is_json(&context.printer)?;
        let found = Events::of(&context.client, self.key.as_bytes()).await?;
        let skipped = match usize::try_from(self.limit) {
            Ok(limit) if limit > 0 => found.events.len().saturating_sub(limit),
            _ => 0,
        };
        match is_json {
            true => print_line(&as_json(&self.key, &found, skipped)),
            false => self.show(&found, skipped),
        }
    }

    fn show(&self, found: &Events, skipped: usize) -> anyhow::Result<()> {
        let mut out = String::new();
        out += &match (skipped, found.compacted) {
            (0, 0) => String::new(),
            (0, compacted) => {
                format!("(compacted at revision {compacted}: what was before it is gone)\n")
            }
            (skipped, _) => format!("({skipped} older ones are left out)\n"),
        };
        for (index, event) in found.events.iter().enumerate().skip(skipped) {
            let before = index.checked_sub(1).and_then(|index| found.events[index].kv.as_ref());
            out += &self.describe(event, before);
        }
        if found.events.is_empty() {
            let since = if found.compacted == 0 { "ever".to_string() } else { format!("since {}", found.compacted) };
            out += &format!("{}: not there, and nothing happened to it {since}\n", quote(self.key.as_bytes()));
        }
        print(out.as_bytes())
    }

    fn describe(&self, event: &Event, before: Option<&KeyValue>) -> String {
        let kv = event.kv.clone().unwrap_or_default();
        if event.r#type() == EventType::Delete {
            return styled(&format!("revision {}: deleted", kv.mod_revision), Style::new().red().bold()) + "\n";
        }
        let lease = if kv.lease == 0 { String::new() } else { format!(", lease {:016x}", kv.lease) };
        let how = if kv.version == 1 { "created" } else { "put" };
        let heading =
            format!("revision {}: {how}, version {}, {} bytes{lease}", kv.mod_revision, kv.version, kv.value.len());
        let heading = styled(&heading, Style::new().bold()) + "\n";
        let old = before.filter(|before| before.version > 0 && kv.version > 1 && !self.values);
        heading
            + &match old {
                Some(old) if old.value == kv.value => "    (the same value)\n".to_string(),
                Some(old) => changes(&value::readable(&old.value), &value::readable(&kv.value)),
                None => value::readable(&kv.value).lines().map(|line| format!("    {line}\n")).collect(),
            }
    }
}

fn as_json(key: &str, found: &Events, skipped: usize) -> String {
    let event = |event: &Event| {
        let kv = event.kv.clone().unwrap_or_default();
        json::Object::new()
            .field("type", json::text(event_name(event)))
            .number("revision", kv.mod_revision)
            .number("create_revision", kv.create_revision)
            .number("version", kv.version)
            .number("lease", kv.lease)
            .bytes("value", &kv.value)
            .optional("object", value::json(&kv.value))
            .end()
    };
    json::Object::new()
        .field("key", json::base64(key.as_bytes()))
        .field("revision", found.revision.to_string())
        .field("compacted", found.compacted.to_string())
        .field("events", json::list(found.events.iter().skip(skipped).map(event)))
        .end()
}
