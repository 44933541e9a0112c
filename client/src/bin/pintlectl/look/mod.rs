//! What etcdctl has not: looking around in a store and its history. Everything uses the public API alone, and works with
//! etcd, too.
//!
//! | module | holds |
//! |---|---|
//! | [`events`] | all events of a key that the store still has |
//! | [`history`], [`undelete`] | a key's revisions; its value before it was deleted, put back |
//! | [`diff`] | two revisions of a prefix |
//! | [`top`] | what is how big, and what is written, by prefix |
//! | [`value`] | values, readable |

pub mod diff;
mod events;
pub mod history;
pub mod top;
pub mod undelete;
mod value;

use std::io::{self, IsTerminal as _};

use console::Style;

use crate::{
    failure::{self, Failure},
    print::{Format, Printer},
};

/// Texts have two formats: one to read, and JSON.
fn is_json(printer: &Printer) -> Result<bool, Failure> {
    match printer.format {
        Format::Simple => Ok(false),
        Format::Json => Ok(true),
        _ => Err(failure::bad_feature("this command prints simple and json")),
    }
}

/// Colours are for terminals.
fn styled(text: &str, style: Style) -> String {
    if io::stdout().is_terminal() { style.force_styling(true).apply_to(text).to_string() } else { text.to_string() }
}

/// Two values line by line, with what was taken away and what was added.
fn changes(old: &str, new: &str) -> String {
    let mut out = String::new();
    let diff = similar::TextDiff::from_lines(old, new);
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        for change in hunk.iter_changes() {
            let line = change.value().trim_end_matches('\n');
            out += &match change.tag() {
                similar::ChangeTag::Delete => styled(&format!("  - {line}"), Style::new().red()),
                similar::ChangeTag::Insert => styled(&format!("  + {line}"), Style::new().green()),
                similar::ChangeTag::Equal => format!("    {line}"),
            };
            out.push('\n');
        }
    }
    out
}
