//! Takes out of etcdctl's output what differs between any two clusters: ids, ports, sizes, times, versions, places in
//! the log.

use std::collections::HashMap;

use anyhow::Result;
use prost::Message;
use proto::etcdserverpb::{DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse};
use serde_json::Value;

/// Fields, table columns and JSON members whose values say nothing about behaviour, in lower case and without
/// separators.
const VOLATILE: &[&str] = &[
    "memberid",
    "raftterm",
    "raftindex",
    "raftappliedindex",
    "dbsize",
    "dbsizeinuse",
    "hash",
    "took",
    "ts",
    "target",
    "peer",
    "attempt",
    // Of a snapshot, a file whose pages no two servers fill alike.
    "size",
    "totalsize",
    // Counts what stands beside keys, too, and 3.6 added the storage version to that.
    "totalkey",
    "totalkeys",
    // Where in etcdctl's source a line was logged says less than the line.
    "caller",
];
/// Which member leads is chance, if there are several.
const LEADERSHIP: &[&str] = &["leader", "isleader"];
/// A hexadecimal id has up to 16 digits, a decimal one up to 20; nothing else in the script's output is as long.
pub const ID_DIGITS_MIN: usize = 13;

/// One cluster's ids and addresses, and the names to show in their place.
#[derive(Default)]
pub struct Names {
    several_members: bool,
    addresses: Vec<(String, String)>,
    ids: HashMap<String, String>,
}

impl Names {
    pub fn new(several_members: bool) -> Names {
        Names { several_members, ..Names::default() }
    }

    pub fn add_address(&mut self, url: &str, name: &str) {
        let address = url.strip_prefix("http://").unwrap_or(url);
        self.addresses.push((address.to_owned(), format!("<{name}>")));
    }

    /// etcdctl prints ids in both bases, and some with leading zeros.
    pub fn add_id(&mut self, id: u64, name: &str) {
        for printed in [format!("{id:x}"), format!("{id:016x}"), id.to_string()] {
            self.ids.insert(printed, format!("<{name}>"));
        }
    }

    fn is_volatile(&self, name: &str) -> bool {
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
        VOLATILE.contains(&plain.as_str()) || (self.several_members && LEADERSHIP.contains(&plain.as_str()))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

fn format_of(words: &[String]) -> Format {
    let format = words.iter().skip_while(|word| *word != "-w").nth(1);
    match format.map_or("simple", String::as_str) {
        "json" => Format::Json,
        "fields" => Format::Fields,
        "table" => Format::Table,
        "protobuf" => Format::Protobuf,
        _ => Format::Simple,
    }
}

/// The lines of a command's output, comparable with those of another cluster.
pub fn output(words: &[String], output: &[u8], names: &Names) -> Result<Vec<String>> {
    let format = format_of(words);
    if format == Format::Protobuf && !output.is_empty() {
        // Of other messages no more than that there is one; what only reads is compared byte by byte elsewhere.
        return Ok(vec![decode(&words[0], output)?.unwrap_or_else(|| "<a message>".to_owned())]);
    }
    let text = String::from_utf8_lossy(output);
    let mut lines: Vec<String> = match format {
        Format::Table => table(&text, names),
        Format::Fields => {
            // With what was granted stands what remains.
            let remaining = text.contains("\"GrantedTTL\"");
            let lines = text.lines().filter(|line| !(remaining && line.starts_with("\"TTL\"")));
            lines.map(|line| field(line, names)).collect()
        }
        Format::Json => text.lines().map(|line| json_line(line, names)).collect(),
        Format::Simple | Format::Protobuf => text.lines().map(|line| simple(words, line, names)).collect(),
    };
    // Members are told in the order of their ids or of their answers.
    if matches!(words[0].as_str(), "member" | "endpoint" | "alarm" | "defrag") {
        lines.sort();
    }
    Ok(lines)
}

/// The lines of a command's standard error: a log in JSON, and plain text.
pub fn errors(words: &[String], output: &[u8], names: &Names) -> Vec<String> {
    // etcd makes a member's id of its URLs and the second it is added in: within that second the id is taken, afterwards
    // the URLs are.
    let text = String::from_utf8_lossy(output).replace("member ID already exist", "Peer URLs already exists");
    // A member may not know yet the token that another has given out; the client tries again.
    let lines = text.lines().filter(|line| !(names.several_members && line.contains("invalid auth token")));
    let mut lines: Vec<String> = lines.map(|line| json_line(without_timestamp(line), names)).collect();
    // Members complain in the order in which they answer.
    if words[0] == "endpoint" {
        lines.sort();
    }
    lines
}

/// The output, unless it tells how a command is used: each program says that in its own words.
pub fn without_use(output: &[u8]) -> &[u8] {
    if output.starts_with(b"NAME:") { b"" } else { output }
}

/// What a program complains of, without what only etcdctl says beside it: its log, its notice about a later version, how
/// it is used, and the complaint once more.
pub fn complaints(output: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(output);
    let shows_use = |line: &str| matches!(line, "USAGE:" | "Usage:") || line.starts_with("Run '");
    let is_about_use = text.lines().any(shows_use);
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines() {
        let beside =
            line.is_empty() || line.starts_with('{') || line.starts_with("In etcd v3.6") || line.starts_with("Try: ");
        if !beside && (!is_about_use || line.starts_with("Error:")) && !kept.contains(&line) {
            kept.push(line);
        }
    }
    // Each is called by its own name.
    kept.iter()
        .map(|line| format!("{}\n", line.replace("\"pintlectl\"", "\"etcdctl\"")))
        .collect::<String>()
        .into_bytes()
}

/// etcdutl's log has tabs between its fields, of which the first is the time.
fn without_timestamp(line: &str) -> &str {
    match line.split_once('\t') {
        Some((time, rest)) if time.ends_with('Z') && time.starts_with(|first: char| first.is_ascii_digit()) => rest,
        _ => line,
    }
}

fn decode(command: &str, bytes: &[u8]) -> Result<Option<String>> {
    fn show<M: Message + Default + std::fmt::Debug>(
        bytes: &[u8],
        header: impl Fn(&mut M) -> &mut Option<ResponseHeader>,
    ) -> Result<Option<String>> {
        let mut message = M::decode(bytes)?;
        if let Some(header) = header(&mut message) {
            *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
        }
        Ok(Some(format!("{message:?}")))
    }
    match command {
        "get" => show(bytes, |message: &mut RangeResponse| &mut message.header),
        "put" => show(bytes, |message: &mut PutResponse| &mut message.header),
        "del" => show(bytes, |message: &mut DeleteRangeResponse| &mut message.header),
        "txn" => show(bytes, |message: &mut TxnResponse| &mut message.header),
        _ => Ok(None),
    }
}

fn simple(words: &[String], line: &str, names: &Names) -> String {
    if let Some(members) = line.strip_prefix("ETCD_INITIAL_CLUSTER=") {
        let mut members: Vec<String> =
            members.trim_matches('"').split(',').map(|member| plain(member, names)).collect();
        members.sort();
        return format!("ETCD_INITIAL_CLUSTER={}", members.join(","));
    }
    let volatile: &[usize] = match words.get(..2).map(|words| [words[0].as_str(), words[1].as_str()]) {
        // Endpoint, id, version, size, leads, learner, term, index, applied index, errors.
        Some(["endpoint", "status"]) if names.several_members => &[3, 4, 6, 7, 8],
        Some(["endpoint", "status"]) => &[3, 6, 7, 8],
        Some(["endpoint", "hashkv"]) => &[1],
        // Hash, revision, keys, size.
        Some(["snapshot", "status"]) => &[0, 2, 3],
        _ => &[],
    };
    if words[0] == "move-leader" {
        return anyone(&plain(line, names));
    }
    if volatile.is_empty() {
        return plain(line, names);
    }
    let columns = line.split(", ").enumerate().map(|(column, text)| match volatile.contains(&column) {
        true => "<…>".to_owned(),
        false => plain(text, names),
    });
    columns.collect::<Vec<String>>().join(", ")
}

/// Which of the members it is, is chance.
fn anyone(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("<member ") {
        shown += before;
        shown += "<member>";
        rest = after.split_once('>').map_or("", |(_, rest)| rest);
    }
    shown + rest
}

fn field(line: &str, names: &Names) -> String {
    match line.split_once(" : ") {
        Some((name, _)) if names.is_volatile(name) => format!("{name} : <…>"),
        Some((name, value)) => format!("{name} : {}", plain(value, names)),
        None => plain(line, names),
    }
}

fn table(text: &str, names: &Names) -> Vec<String> {
    let mut columns: Vec<&str> = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let Some(row) = line.strip_prefix('│').and_then(|line| line.strip_suffix('│')) else {
            // Frames are as wide as what they hold.
            if !line.starts_with(['┌', '├', '└']) {
                lines.push(plain(line, names));
            }
            continue;
        };
        let cells: Vec<&str> = row.split('│').map(str::trim).collect();
        if columns.is_empty() {
            lines.push(cells.join(" | "));
            columns = cells;
            continue;
        }
        let shown = cells.iter().zip(&columns).map(|(cell, column)| match names.is_volatile(column) {
            true => "<…>".to_owned(),
            false => plain(cell, names),
        });
        lines.push(shown.collect::<Vec<String>>().join(" | "));
    }
    lines
}

fn json_line(line: &str, names: &Names) -> String {
    match serde_json::from_str::<Value>(line) {
        Ok(mut value) if value.is_object() || value.is_array() => {
            json(&mut value, names);
            value.to_string()
        }
        Ok(_) | Err(_) => plain(line, names),
    }
}

fn json(value: &mut Value, names: &Names) {
    match value {
        Value::Object(members) => {
            // With what was granted stands what remains.
            let remaining = members.contains_key("granted-ttl");
            for (name, member) in members {
                if let (Value::Array(keys), true) = (&mut *member, name == "keys" && remaining) {
                    // A lease's keys come in no order.
                    keys.sort_by_key(Value::to_string);
                }
                if names.is_volatile(name) || (name == "ttl" && remaining) {
                    *member = "<…>".into();
                } else {
                    json(member, names);
                }
            }
        }
        Value::Array(elements) => {
            elements.iter_mut().for_each(|element| json(element, names));
            // Members are listed in the order of their ids, or of their answers.
            if names.several_members && elements.iter().any(is_about_a_member) {
                elements.sort_by_key(Value::to_string);
            }
        }
        Value::Number(number) => {
            let shown = plain(&number.to_string(), names);
            if shown.starts_with('<') {
                *value = shown.into();
            }
        }
        Value::String(text) => *text = plain(text, names),
        Value::Null | Value::Bool(_) => (),
    }
}

fn is_about_a_member(element: &Value) -> bool {
    let text = element.to_string();
    element.is_object() && (text.contains("<member") || text.contains("<client"))
}

/// Text with addresses, ids, durations and versions replaced.
fn plain(text: &str, names: &Names) -> String {
    let text = names.addresses.iter().fold(text.to_owned(), |text, (address, name)| text.replace(address, name));
    let mut shown = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|character| !is_word(character)).unwrap_or(rest.len());
        if end == 0 {
            let length = rest.chars().next().map_or(0, char::len_utf8);
            shown.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        shown.push_str(&word(&rest[..end], names));
        rest = &rest[end..];
    }
    // Ids are padded to 16 digits.
    while shown.contains("  <") {
        shown = shown.replace("  <", " <");
    }
    match shown.split_once("remaining(") {
        Some((before, after)) => {
            format!("{before}remaining(<…>{}", after.find(')').map_or("", |end| &after[end..]))
        }
        None => shown,
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '.'
}

fn word(word: &str, names: &Names) -> String {
    if let Some(name) = names.ids.get(word) {
        return name.clone();
    }
    if word.len() >= ID_DIGITS_MIN && word.chars().all(|character| character.is_ascii_hexdigit()) {
        return "<id>".to_owned();
    }
    let number = word.trim_end_matches(char::is_alphabetic);
    let unit = &word[number.len()..];
    if matches!(unit, "ns" | "µs" | "ms" | "s") && number.contains('.') && number.parse::<f64>().is_ok() {
        return "<time>".to_owned();
    }
    if matches!(unit, "ns" | "µs" | "ms") && number.parse::<u64>().is_ok() {
        return "<time>".to_owned();
    }
    let parts: Vec<&str> = word.split('.').collect();
    if parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok()) {
        return "<version>".to_owned();
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        names.add_address("http://127.0.0.1:28001", "client n1");
        names.add_id(0x8e9e05c52164694d, "member n1");
        names
    }

    fn lines(words: &str, text: &str) -> Vec<String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        output(&words, text.as_bytes(), &names()).unwrap()
    }

    #[test]
    fn what_differs_between_clusters_is_taken_out() {
        assert_eq!(
            lines("endpoint status", "127.0.0.1:28001, 8e9e05c52164694d, 3.5.30, 20 kB, true, false, 2, 4, 4, "),
            ["<client n1>, <member n1>, <version>, <…>, true, false, <…>, <…>, <…>, "],
        );
        assert_eq!(
            lines("endpoint health", "127.0.0.1:28001 is healthy: took = 1.5ms"),
            ["<client n1> is healthy: took = <time>"],
        );
        assert_eq!(
            lines("lease timetolive", "lease 694d9b1a2b3c4d5e granted with TTL(60s), remaining(59s)"),
            ["lease <id> granted with TTL(60s), remaining(<…>)"],
        );
        assert_eq!(
            lines("get a -w json", r#"{"header":{"member_id":10276657743932975437,"revision":3,"raft_term":2}}"#),
            [r#"{"header":{"member_id":"<…>","raft_term":"<…>","revision":3}}"#],
        );
        assert_eq!(
            lines("get a -w fields", "\"RaftTerm\" : 5\n\"Revision\" : 7"),
            ["\"RaftTerm\" : <…>", "\"Revision\" : 7"]
        );
        assert_eq!(
            lines("endpoint status -w table", "┌──┬──┐\n│ ID │ DB SIZE │\n├──┼──┤\n│ 8e9e05c52164694d │ 20 kB │"),
            ["<member n1> | <…>", "ID | DB SIZE",]
        );
    }

    #[test]
    fn what_clients_see_is_kept() {
        assert_eq!(lines("get a", "a\n1"), ["a", "1"]);
        assert_eq!(lines("del a", "3"), ["3"]);
        assert_ne!(lines("get a -w json", r#"{"count":1}"#), lines("get a -w json", r#"{"count":2}"#));
        assert_ne!(lines("lease grant 5", "TTL(5s)"), lines("lease grant 5", "TTL(6s)"));
    }
}
