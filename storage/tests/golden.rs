//! Scripts of requests with the answers they have: `golden/*.txt`. With `PINTLE_REWRITE=1` the answers are written anew,
//! to be read before they are committed.
//!
//! ```text
//! put a 1            > rev 2
//! range a z          > a=1 create 2 mod 2 version 1 …
//! ```

mod common;

use std::{fs, path::Path};

use common::Bench;
use proto::{
    KeyRange, LeaseId,
    command::{LeaseExpire, command::Op, outcome},
    etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
        RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::{KeyValue, event::EventType},
};
use storage::ReadError;

#[test]
fn scripts_have_their_answers() {
    let dir = Path::new("tests/golden");
    let rewrite = std::env::var_os("PINTLE_REWRITE").is_some();
    let mut scripts = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let expected = fs::read_to_string(&path).unwrap();
        let found = run(&expected);
        if rewrite {
            fs::write(&path, &found).unwrap();
            continue;
        }
        for (line, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
            assert_eq!(found, expected, "{}:{}", path.display(), line + 1);
        }
        assert_eq!(found, expected, "{}", path.display());
        scripts += 1;
    }
    assert!(rewrite || scripts > 4);
}

/// The script with its answers: lines that begin with `>` are answers, and follow the request.
fn run(script: &str) -> String {
    let mut bench = Bench::new();
    let mut out = String::new();
    let mut requests: Vec<&str> = script.lines().filter(|line| !line.starts_with('>')).collect();
    requests.reverse();
    while let Some(line) = requests.pop() {
        out += &format!("{line}\n");
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut block = Vec::new();
        if line == "txn" {
            loop {
                let line = requests.pop().expect("a txn has an end");
                out += &format!("{line}\n");
                match line.trim() {
                    "end" => break,
                    line => block.push(line),
                }
            }
        }
        for answer in answer(&mut bench, line, &block) {
            out += &format!("> {answer}\n");
        }
    }
    out
}

fn answer(bench: &mut Bench, line: &str, block: &[&str]) -> Vec<String> {
    let (positional, options) = split(line);
    let number = |at: usize| positional[at].parse::<i64>().unwrap();
    let op = match positional[0] {
        "put" => Op::Put(put(&positional, &options)),
        "del" => Op::DeleteRange(delete(&positional, &options)),
        "txn" => Op::Txn(txn(block)),
        "compact" => Op::Compact(CompactionRequest { revision: number(1), physical: false }),
        "grant" => Op::LeaseGrant(LeaseGrantRequest { id: number(1), ttl: number(2) }),
        "revoke" => Op::LeaseRevoke(LeaseRevokeRequest { id: number(1) }),
        "expire" => Op::LeaseExpire(LeaseExpire { ids: vec![number(1)], term: number(2) as u64 }),
        "range" => {
            return match bench.range(&range(&positional, &options)) {
                Ok(response) => show_range(&response),
                Err(ReadError::Request(error)) => vec![error.message().to_string()],
                Err(error) => panic!("{error}"),
            };
        }
        "wait" => {
            futures::executor::block_on(bench.store.wait_compacted(number(1))).unwrap();
            return Vec::new();
        }
        "crash" => {
            bench.crash();
            return Vec::new();
        }
        "reopen" => {
            bench.reopen();
            return Vec::new();
        }
        "hash" => {
            return match bench.store.hash_kv(number(1)) {
                Ok(hash) => {
                    vec![format!("{:08x} of {} compacted {}", hash.hash, hash.hash_revision, hash.compact_revision)]
                }
                Err(error) => vec![error.to_string()],
            };
        }
        "leases" => {
            let leases = bench.store.leases().into_iter();
            return leases
                .map(|lease| {
                    let keys = bench.store.lease_keys(LeaseId(lease.id.0));
                    format!("lease {} ttl {} keys {:?}", lease.id.0, lease.ttl, keys)
                })
                .collect();
        }
        "events" => {
            let range = KeyRange::new(bytes(positional[1]), bytes(positional[2]));
            return match bench.store.events(&range, number(3), i64::MAX, 1 << 20) {
                Ok((events, next)) => {
                    let mut lines: Vec<String> = events
                        .iter()
                        .map(|event| {
                            let kind = if event.kind == EventType::Put { "put" } else { "delete" };
                            let prev = bench.store.previous(event).unwrap();
                            let prev = prev.map_or("nothing".into(), |kv| show(&kv));
                            format!(
                                "{}.{} {kind} {}, was {prev}",
                                event.revision.main,
                                event.revision.sub,
                                show(&event.kv)
                            )
                        })
                        .collect();
                    lines.push(format!("next {next}"));
                    lines
                }
                Err(error) => vec![error.to_string()],
            };
        }
        other => panic!("{other} is no request"),
    };
    match bench.apply(op).result.unwrap() {
        outcome::Result::Put(response) => {
            let mut lines = vec![format!("rev {}", response.header.unwrap().revision)];
            lines.extend(response.prev_kv.map(|kv| format!("was {}", show(&kv))));
            lines
        }
        outcome::Result::DeleteRange(response) => {
            let mut lines = vec![format!("deleted {} rev {}", response.deleted, response.header.unwrap().revision)];
            lines.extend(response.prev_kvs.iter().map(|kv| format!("was {}", show(kv))));
            lines
        }
        outcome::Result::Txn(response) => show_txn(&response, ""),
        outcome::Result::Compact(response) => vec![format!("rev {}", response.header.unwrap().revision)],
        outcome::Result::LeaseGrant(response) => vec![format!("lease {} ttl {}", response.id, response.ttl)],
        outcome::Result::LeaseRevoke(response) => vec![format!("rev {}", response.header.unwrap().revision)],
        outcome::Result::Failure(failure) => vec![failure.message],
        outcome::Result::Done(_) => Vec::new(),
        outcome::Result::Alarm(alarm) => vec![format!("{alarm:?}")],
        outcome::Result::AuthDone(done) => vec![format!("{done:?}")],
    }
}

/// What stands by its place, and `name` or `name=value` behind it.
fn split(line: &str) -> (Vec<&str>, Vec<(&str, &str)>) {
    let mut words = line.split_whitespace();
    let mut positional = Vec::new();
    for word in words.by_ref() {
        if word == "|" {
            break;
        }
        positional.push(word);
    }
    (positional, words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect())
}

/// `""` is nothing, `\0` a zero byte.
fn bytes(word: &str) -> bytes::Bytes {
    match word {
        "\"\"" => bytes::Bytes::new(),
        word => word.replace("\\0", "\0").into_bytes().into(),
    }
}

fn get<'a>(options: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value)
}

fn get_number(options: &[(&str, &str)], name: &str) -> i64 {
    get(options, name).map_or(0, |value| value.parse().unwrap())
}

fn put(positional: &[&str], options: &[(&str, &str)]) -> PutRequest {
    PutRequest {
        key: bytes(positional[1]),
        value: positional.get(2).map(|word| bytes(word)).unwrap_or_default(),
        lease: get_number(options, "lease"),
        prev_kv: get(options, "prev").is_some(),
        ignore_value: get(options, "ignore-value").is_some(),
        ignore_lease: get(options, "ignore-lease").is_some(),
    }
}

fn delete(positional: &[&str], options: &[(&str, &str)]) -> DeleteRangeRequest {
    let range_end = positional.get(2).map(|word| bytes(word)).unwrap_or_default();
    DeleteRangeRequest { key: bytes(positional[1]), range_end, prev_kv: get(options, "prev").is_some() }
}

fn range(positional: &[&str], options: &[(&str, &str)]) -> RangeRequest {
    let target = |name: &str| SortTarget::from_str_name(&name.to_uppercase()).unwrap() as i32;
    RangeRequest {
        key: bytes(positional[1]),
        range_end: positional.get(2).map(|word| bytes(word)).unwrap_or_default(),
        limit: get_number(options, "limit"),
        revision: get_number(options, "rev"),
        sort_target: get(options, "sort").map_or(0, target),
        sort_order: match (get(options, "sort"), get(options, "descend")) {
            (_, Some(_)) => SortOrder::Descend as i32,
            (Some(_), None) => SortOrder::Ascend as i32,
            (None, None) => SortOrder::None as i32,
        },
        keys_only: get(options, "keys-only").is_some(),
        count_only: get(options, "count-only").is_some(),
        min_mod_revision: get_number(options, "min-mod"),
        max_mod_revision: get_number(options, "max-mod"),
        min_create_revision: get_number(options, "min-create"),
        max_create_revision: get_number(options, "max-create"),
        ..Default::default()
    }
}

/// `if KEY TARGET OP VALUE [| end=KEY]`, `then …`, `else …`.
fn txn(block: &[&str]) -> TxnRequest {
    let mut txn = TxnRequest::default();
    for line in block {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (positional, options) = split(rest);
        let op = || {
            let request = match positional[0] {
                "put" => Request::RequestPut(put(&positional, &options)),
                "del" => Request::RequestDeleteRange(delete(&positional, &options)),
                "range" => Request::RequestRange(range(&positional, &options)),
                other => panic!("{other} is no operation"),
            };
            RequestOp { request: Some(request) }
        };
        match kind {
            "if" => txn.compare.push(compare(&positional, &options)),
            "then" => txn.success.push(op()),
            "else" => txn.failure.push(op()),
            other => panic!("{other} is no part of a txn"),
        }
    }
    txn
}

fn compare(positional: &[&str], options: &[(&str, &str)]) -> Compare {
    let number = || positional[3].parse::<i64>().unwrap();
    let (target, union) = match positional[1] {
        "version" => (CompareTarget::Version, TargetUnion::Version(number())),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number())),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number())),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes(positional[3]))),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number())),
        other => panic!("{other} is no target"),
    };
    let result = match positional[2] {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        other => panic!("{other} is no comparison"),
    };
    Compare {
        result: result as i32,
        target: target as i32,
        key: bytes(positional[0]),
        range_end: get(options, "end").map(bytes).unwrap_or_default(),
        target_union: Some(union),
    }
}

fn show(kv: &KeyValue) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', "\\0");
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
    let (create, modified, version) = (kv.create_revision, kv.mod_revision, kv.version);
    format!("{}={} create {create} mod {modified} version {version}{lease}", text(&kv.key), text(&kv.value))
}

fn show_range(response: &RangeResponse) -> Vec<String> {
    let mut lines: Vec<String> = response.kvs.iter().map(show).collect();
    let more = if response.more { " more" } else { "" };
    lines.push(format!("count {}{more} rev {}", response.count, response.header.as_ref().unwrap().revision));
    lines
}

fn show_txn(response: &TxnResponse, indent: &str) -> Vec<String> {
    let branch = if response.succeeded { "then" } else { "else" };
    let mut lines = vec![format!("{indent}{branch} rev {}", response.header.as_ref().unwrap().revision)];
    for response in &response.responses {
        match response.response.as_ref().unwrap() {
            Response::ResponseRange(range) => {
                lines.extend(show_range(range).into_iter().map(|line| format!("{indent}  {line}")))
            }
            Response::ResponsePut(put) => {
                lines.push(format!("{indent}  rev {}", put.header.as_ref().unwrap().revision))
            }
            Response::ResponseDeleteRange(delete) => lines.push(format!(
                "{indent}  deleted {} rev {}",
                delete.deleted,
                delete.header.as_ref().unwrap().revision
            )),
            Response::ResponseTxn(txn) => lines.extend(show_txn(txn, &format!("{indent}  "))),
        }
    }
    lines
}
