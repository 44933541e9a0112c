//! Operations in words, as short as they can be read.

use jepsen::check::history::{
    Answer, Compare, CompareResult, CompareTarget, KeyValue, Keys, ListOp, Range, RegisterOp, Request, Response, Txn,
    TxnOp, TxnResult,
};

use super::figures;

/// `put a = 1 → revision 5`.
pub fn operation(request: &Request, response: Option<&Response>) -> String {
    let asked = asked(request);
    match response {
        Some(response) => format!("{asked} → {}", answered(response)),
        None => asked,
    }
}

fn asked(request: &Request) -> String {
    match request {
        Request::Put(put) => format!("put {} = {}{}", put.key, put.value, lease(put.lease)),
        Request::Range(range) => self::range(range),
        Request::DeleteRange(delete) => format!("delete {}", keys(&delete.keys)),
        Request::Txn(txn) => self::txn(txn),
        Request::Compact { revision } => format!("compact {revision}"),
        Request::LeaseGrant { lease, ttl_s } => format!("grant lease {lease} for {ttl_s} s"),
        Request::LeaseRevoke { lease } => format!("revoke lease {lease}"),
        Request::LeaseKeepAlive { lease } => format!("keep lease {lease} alive"),
        Request::LeaseTimeToLive { lease, .. } => format!("time to live of lease {lease}"),
        Request::Lock { name, lease } => format!("lock {name} with lease {lease}"),
        Request::Unlock { key } => format!("unlock {key}"),
        Request::Campaign { name, lease, value } => format!("campaign {name} = {value} with lease {lease}"),
        Request::Proclaim { leader, value, .. } => format!("proclaim {value} as {leader}"),
        Request::Resign { leader, .. } => format!("resign {leader}"),
        Request::Watch { watcher, watch } => {
            format!("watcher {watcher} on {} from revision {}", keys(&watch.keys), watch.start_revision)
        }
        Request::Auth(change) => format!("{change:?}"),
        Request::As { user, request } => format!("as {user}: {}", asked(request)),
        Request::Append { ops } => list_ops(ops),
        Request::Registers { ops } => register_ops(ops),
        Request::Leader { .. } | Request::HashKv { .. } | Request::Defragment | Request::Snapshot => {
            figures::name(request).to_owned()
        }
    }
}

fn answered(response: &Response) -> String {
    let answer = match &response.answer {
        Answer::Range { kvs, count, .. } => self::kvs(kvs, *count),
        Answer::DeleteRange { deleted, .. } => format!("{deleted} deleted"),
        Answer::Txn { succeeded, results } => txn_results(*succeeded, results),
        Answer::LeaseKeepAlive { ttl_s, .. } | Answer::LeaseTimeToLive { ttl_s, .. } => format!("{ttl_s} s"),
        Answer::Lock { key } => key.to_string(),
        Answer::Campaign { leader, .. } => leader.to_string(),
        Answer::HashKv { hash, .. } => format!("{hash:08x}"),
        Answer::Append { ops } => list_ops(ops),
        Answer::Registers { ops } => register_ops(ops),
        Answer::Put { prev_kv: Some(kv) } => format!("before: {}", self::kv(kv)),
        _ => return format!("revision {}", response.header.revision),
    };
    format!("{answer} at revision {}", response.header.revision)
}

fn lease(lease: i64) -> String {
    if lease == 0 { String::new() } else { format!(" with lease {lease}") }
}

fn keys(keys: &Keys) -> String {
    if keys.is_one() { keys.key.to_string() } else { format!("{}..{}", keys.key, keys.range_end) }
}

fn range(range: &Range) -> String {
    let kind = if range.serializable { "serializable range" } else { "range" };
    let revision = if range.revision == 0 { String::new() } else { format!(" at {}", range.revision) };
    format!("{kind} {}{revision}", keys(&range.keys))
}

fn txn(txn: &Txn) -> String {
    let branch = |ops: &[TxnOp]| ops.iter().map(txn_op).collect::<Vec<String>>().join(", ");
    let compares = txn.compares.iter().map(compare).collect::<Vec<String>>().join(" and ");
    match (compares.is_empty(), txn.failure.is_empty()) {
        (true, _) => format!("txn {}", branch(&txn.success)),
        (false, true) => format!("if {compares} then {}", branch(&txn.success)),
        (false, false) => format!("if {compares} then {} else {}", branch(&txn.success), branch(&txn.failure)),
    }
}

fn txn_op(op: &TxnOp) -> String {
    match op {
        TxnOp::Put(put) => format!("put {} = {}{}", put.key, put.value, lease(put.lease)),
        TxnOp::Range(range) => self::range(range),
        TxnOp::DeleteRange(delete) => format!("delete {}", keys(&delete.keys)),
        TxnOp::Txn(txn) => format!("({})", self::txn(txn)),
    }
}

fn compare(compare: &Compare) -> String {
    let sign = match compare.result {
        CompareResult::Equal => "=",
        CompareResult::NotEqual => "≠",
        CompareResult::Greater => ">",
        CompareResult::Less => "<",
    };
    let (what, with) = match &compare.target {
        CompareTarget::Value(value) => ("value", value.to_string()),
        CompareTarget::Version(version) => ("version", version.to_string()),
        CompareTarget::CreateRevision(revision) => ("created", revision.to_string()),
        CompareTarget::ModRevision(revision) => ("modified", revision.to_string()),
        CompareTarget::Lease(lease) => ("lease", lease.to_string()),
    };
    format!("{what} of {} {sign} {with}", keys(&compare.keys))
}

fn kv(kv: &KeyValue) -> String {
    format!("{} = {} (modified {}, version {})", kv.key, kv.value, kv.mod_revision, kv.version)
}

fn kvs(kvs: &[KeyValue], count: i64) -> String {
    match kvs {
        [] => format!("{count} keys"),
        kvs => kvs.iter().map(kv).collect::<Vec<String>>().join(", "),
    }
}

fn txn_results(succeeded: bool, results: &[TxnResult]) -> String {
    let result = |result: &TxnResult| match result {
        TxnResult::Put { .. } => "put".to_owned(),
        TxnResult::Range { kvs, count, .. } => self::kvs(kvs, *count),
        TxnResult::DeleteRange { deleted, .. } => format!("{deleted} deleted"),
        TxnResult::Txn { succeeded, results } => format!("({})", txn_results(*succeeded, results)),
    };
    let word = if succeeded { "then" } else { "else" };
    format!("{word}: {}", results.iter().map(result).collect::<Vec<String>>().join("; "))
}

fn list_ops(ops: &[ListOp]) -> String {
    let op = |op: &ListOp| match op {
        ListOp::Append { key, value } => format!("append {value} to {key}"),
        ListOp::Read { key, list: None } => format!("read {key}"),
        ListOp::Read { key, list: Some(list) } => format!("read {key} {list:?}"),
    };
    ops.iter().map(op).collect::<Vec<String>>().join(", ")
}

fn register_ops(ops: &[RegisterOp]) -> String {
    let op = |op: &RegisterOp| match op {
        RegisterOp::Write { key, value } => format!("write {key} = {value}"),
        RegisterOp::Read { key, value: None } => format!("read {key}"),
        RegisterOp::Read { key, value: Some(None) } => format!("read {key}: nothing"),
        RegisterOp::Read { key, value: Some(Some(value)) } => format!("read {key}: {value}"),
    };
    ops.iter().map(op).collect::<Vec<String>>().join(", ")
}

#[cfg(test)]
mod tests {
    use jepsen::check::history::{Header, Put};

    use super::*;

    #[test]
    fn an_operation_reads_as_a_sentence() {
        let put = Put { key: "a".into(), value: "1".into(), ..Put::default() };
        let header = Header { revision: 5, ..Header::default() };
        let response = Response { header, answer: Answer::Put { prev_kv: None } };
        assert_eq!(operation(&Request::Put(put.clone()), Some(&response)), "put a = 1 → revision 5");
        let compares =
            vec![Compare { keys: Keys::one("a"), result: CompareResult::Equal, target: CompareTarget::ModRevision(5) }];
        let request = Request::Txn(Txn { compares, success: vec![TxnOp::Put(put)], failure: Vec::new() });
        assert_eq!(operation(&request, None), "if modified of a = 5 then put a = 1");
    }
}
