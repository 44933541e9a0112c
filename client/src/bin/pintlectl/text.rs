//! etcdctl's simple format.

use std::{fmt::Write as _, time::Duration};

use client::{
    LeaseId, MemberId,
    mvccpb::{Event, KeyValue, event::EventType},
    pb::{
        AlarmResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
        LeaseLeasesResponse, LeaseTimeToLiveResponse, MemberListResponse, PutResponse, RangeResponse, StatusResponse,
        WatchResponse,
    },
};

use crate::members::Health;

/// What of the keys found is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    KeysAndValues,
    Values,
    Count,
}

fn line(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.push(b'\n');
}

fn key_and_value(out: &mut Vec<u8>, kv: &KeyValue) {
    line(out, &kv.key);
    line(out, &kv.value);
}

pub fn put(answer: &PutResponse) -> Vec<u8> {
    let mut out = b"OK\n".to_vec();
    answer.prev_kv.iter().for_each(|kv| key_and_value(&mut out, kv));
    out
}

pub fn get(answer: &RangeResponse, shown: Shown) -> Vec<u8> {
    let mut out = Vec::new();
    match shown {
        Shown::KeysAndValues => answer.kvs.iter().for_each(|kv| key_and_value(&mut out, kv)),
        Shown::Values => answer.kvs.iter().for_each(|kv| line(&mut out, &kv.value)),
        Shown::Count => line(&mut out, answer.count.to_string().as_bytes()),
    }
    out
}

pub fn delete(answer: &DeleteRangeResponse) -> Vec<u8> {
    let mut out = format!("{}\n", answer.deleted).into_bytes();
    answer.prev_kvs.iter().for_each(|kv| key_and_value(&mut out, kv));
    out
}

pub fn watch(response: &WatchResponse) -> Vec<u8> {
    if response.events.is_empty() {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        return format!("progress notify: {revision}\n").into_bytes();
    }
    let mut out = Vec::new();
    for event in &response.events {
        line(&mut out, event_name(event).as_bytes());
        event.prev_kv.iter().chain(&event.kv).for_each(|kv| key_and_value(&mut out, kv));
    }
    out
}

fn event_name(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

pub fn lease_granted(answer: &LeaseGrantResponse) -> Vec<u8> {
    format!("lease {:016x} granted with TTL({}s)\n", answer.id, answer.ttl).into_bytes()
}

pub fn lease_revoked(id: LeaseId) -> Vec<u8> {
    format!("lease {:016x} revoked\n", id.0).into_bytes()
}

pub fn lease_kept_alive(answer: &LeaseKeepAliveResponse) -> Vec<u8> {
    format!("lease {:016x} keepalived with TTL({})\n", answer.id, answer.ttl).into_bytes()
}

pub fn lease_time_to_live(answer: &LeaseTimeToLiveResponse, keys: bool) -> Vec<u8> {
    let id = answer.id;
    if answer.granted_ttl == 0 && answer.ttl == -1 {
        return format!("lease {id:016x} already expired\n").into_bytes();
    }
    let (granted, left) = (answer.granted_ttl, answer.ttl);
    let mut out = format!("lease {id:016x} granted with TTL({granted}s), remaining({left}s)").into_bytes();
    if keys {
        out.extend_from_slice(b", attached keys([");
        out.extend_from_slice(&answer.keys.join(&b' '));
        out.extend_from_slice(b"])");
    }
    out.push(b'\n');
    out
}

pub fn leases(answer: &LeaseLeasesResponse) -> Vec<u8> {
    let mut out = format!("found {} leases\n", answer.leases.len());
    for lease in &answer.leases {
        out += &format!("{:016x}\n", lease.id);
    }
    out.into_bytes()
}

pub fn status(found: &[(String, StatusResponse)]) -> Vec<u8> {
    let mut out = String::new();
    for (endpoint, status) in found {
        let member = status.header.as_ref().map_or(0, |header| header.member_id);
        let _ = writeln!(
            out,
            "{endpoint}, {}, {}, {}, {}, {}, {}, {}, {}, {}",
            MemberId(member),
            status.version,
            size(status.db_size),
            status.leader == member,
            status.is_learner,
            status.raft_term,
            status.raft_index,
            status.raft_applied_index,
            status.errors.join(", ")
        );
    }
    out.into_bytes()
}

pub fn health(found: &[Health]) -> Vec<u8> {
    let mut out = String::new();
    for Health { endpoint, took, error } in found {
        let took = go_duration(*took);
        let _ = match error {
            None => writeln!(out, "{endpoint} is healthy: successfully committed proposal: took = {took}"),
            Some(error) => writeln!(out, "{endpoint} is unhealthy: failed to commit proposal: {error}"),
        };
    }
    out.into_bytes()
}

pub fn hash_kv(found: &[(String, HashKvResponse)]) -> Vec<u8> {
    found.iter().map(|(endpoint, answer)| format!("{endpoint}, {}\n", answer.hash)).collect::<String>().into_bytes()
}

pub fn members(answer: &MemberListResponse) -> Vec<u8> {
    let mut out = String::new();
    for member in &answer.members {
        // A member that never started has no name yet.
        let state = if member.name.is_empty() { "unstarted" } else { "started" };
        let _ = writeln!(
            out,
            "{}, {state}, {}, {}, {}, {}",
            MemberId(member.id),
            member.name,
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner
        );
    }
    out.into_bytes()
}

pub fn alarms(answer: &AlarmResponse) -> Vec<u8> {
    let mut out = String::new();
    for alarm in &answer.alarms {
        let _ = writeln!(out, "memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name());
    }
    out.into_bytes()
}

/// A size as etcdctl shows it: two digits, powers of 1000.
fn size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[unit];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A duration as Go prints it: `1.5ms`, `2.000123s`, `1m2.5s`.
pub fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let decimal = |unit_nanos: u128, digits: usize| {
        let text = format!("{}.{:0digits$}", nanos / unit_nanos, nanos % unit_nanos);
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match nanos {
        0 => "0s".to_string(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(1_000, 3) + "µs",
        1_000_000..1_000_000_000 => decimal(1_000_000, 6) + "ms",
        1_000_000_000..60_000_000_000 => decimal(1_000_000_000, 9) + "s",
        _ => {
            let minutes = duration.as_secs() / 60;
            let rest = duration - Duration::from_secs(minutes * 60);
            let rest =
                if rest < Duration::from_secs(1) { format!("{}s", rest.as_secs_f64()) } else { go_duration(rest) };
            match minutes / 60 {
                0 => format!("{minutes}m{rest}"),
                hours => format!("{hours}h{}m{rest}", minutes % 60),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        let shown = [0, 9, 10, 999, 1000, 20_480, 9_950_000, 1_234_567_890].map(size);
        assert_eq!(shown, ["0 B", "9 B", "10 B", "999 B", "1.0 kB", "20 kB", "10 MB", "1.2 GB"]);
    }

    #[test]
    fn durations_are_printed_as_in_go() {
        let nanos = [0, 999, 1_500, 1_876_922, 2_000_000, 1_001_252_560, 60_000_000_000, 3_662_500_000_000];
        let shown = nanos.map(|nanos| go_duration(Duration::from_nanos(nanos)));
        assert_eq!(shown, ["0s", "999ns", "1.5µs", "1.876922ms", "2ms", "1.00125256s", "1m0s", "1h1m2.5s"]);
    }

    #[test]
    fn a_change_is_printed_with_what_was_there_before() {
        let kv = |value: &'static str| KeyValue { key: "k".into(), value: value.into(), ..Default::default() };
        let event = Event { r#type: EventType::Delete.into(), kv: Some(kv("")), prev_kv: Some(kv("old")) };
        let response = WatchResponse { events: vec![event], ..Default::default() };
        assert_eq!(watch(&response), b"DELETE\nk\nold\nk\n\n");
    }

    #[test]
    fn a_lease_is_printed_with_its_keys() {
        let keys = vec!["a".into(), "b".into()];
        let answer = LeaseTimeToLiveResponse { id: 0x1234, ttl: 49, granted_ttl: 50, keys, header: None };
        let shown = String::from_utf8(lease_time_to_live(&answer, true)).unwrap();
        assert_eq!(shown, "lease 0000000000001234 granted with TTL(50s), remaining(49s), attached keys([a b])\n");
        let gone = LeaseTimeToLiveResponse { id: 0x1234, ttl: -1, ..Default::default() };
        assert_eq!(lease_time_to_live(&gone, false), b"lease 0000000000001234 already expired\n");
    }
}
