//! A history as JSON, one line for each entry.

use std::io::{BufRead, Write};

use anyhow::{Context as _, Result, ensure};

use super::{Entry, History};

impl Entry {
    /// Without the line's end.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("an entry has nothing that JSON cannot hold")
    }
}

impl History {
    pub fn write(&self, mut to: impl Write) -> Result<()> {
        for entry in self.entries() {
            writeln!(to, "{}", entry.to_line())?;
        }
        Ok(to.flush()?)
    }

    /// Reads what [`History::write`] wrote.
    pub fn read(from: impl BufRead) -> Result<History> {
        let mut history = History::default();
        for (index, line) in from.lines().enumerate() {
            let taken = line.map_err(Into::into).and_then(|line| history.take(&line));
            taken.with_context(|| format!("line {}", index + 1))?;
        }
        Ok(history)
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let entry: Entry = serde_json::from_str(line)?;
        let (time_ns, last_ns) = (entry.time_ns, self.last_ns());
        ensure!(time_ns >= last_ns, "it is of {time_ns} ns, and the line before it of {last_ns} ns");
        self.push(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Answer, AuthChange, Compare, CompareResult, CompareTarget, Event, Failure, FaultNote, FaultPhase, Header,
            KeyValue, Keys, ListOp, Permission, Put, Range, RegisterOp, Request, Response, RunNote, Setup, Txn, TxnOp,
            TxnResult, WatchEvent, WatchNote, WatchRequest, WatchSeen,
        },
        *,
    };

    fn kv() -> KeyValue {
        KeyValue {
            key: b"a\0\xff".to_vec().into(),
            value: "\"\\\n".into(),
            create_revision: 2,
            mod_revision: i64::MAX,
            version: 3,
            lease: -7,
        }
    }

    fn requests() -> Vec<Request> {
        let put = Put { key: "a".into(), value: "1".into(), lease: 7, ..Put::default() };
        let range = Range { keys: Keys::prefix("a"), serializable: true, ..Range::default() };
        let compare = Compare {
            keys: Keys::one("a"),
            result: CompareResult::NotEqual,
            target: CompareTarget::Value(b"\x01".to_vec().into()),
        };
        let inner = Txn { failure: vec![TxnOp::Range(range.clone())], ..Txn::default() };
        let txn = Txn {
            compares: vec![compare],
            success: vec![TxnOp::Put(put.clone()), TxnOp::Txn(inner)],
            ..Txn::default()
        };
        let unread = ListOp::Read { key: 1, list: None };
        let grant = AuthChange::RoleGrantPermission {
            role: "r".to_owned(),
            keys: Keys::all(),
            permission: Permission::ReadWrite,
        };
        vec![
            Request::Put(put.clone()),
            Request::Range(range),
            Request::Txn(txn),
            Request::LeaseGrant { lease: 0, ttl_s: 5 },
            Request::Defragment,
            Request::Watch { watcher: 4, watch: WatchRequest { no_put: true, ..WatchRequest::default() } },
            Request::Auth(grant),
            Request::As { user: "u".to_owned(), request: Box::new(Request::Put(put)) },
            Request::Append { ops: vec![unread, ListOp::Append { key: 1, value: 2 }] },
            Request::Registers { ops: vec![RegisterOp::Read { key: 1, value: None }] },
        ]
    }

    fn answers() -> Vec<Answer> {
        let results =
            vec![TxnResult::Put { prev_kv: Some(kv()) }, TxnResult::Txn { succeeded: false, results: vec![] }];
        let read = |value| RegisterOp::Read { key: 1, value };
        vec![
            Answer::Put { prev_kv: Some(kv()) },
            Answer::Range { kvs: vec![kv()], count: 2, more: true },
            Answer::Txn { succeeded: true, results },
            Answer::Compact,
            Answer::LeaseTimeToLive { lease: 1, ttl_s: -1, granted_ttl_s: 0, keys: vec!["a".into()] },
            Answer::Append { ops: vec![ListOp::Read { key: 1, list: Some(vec![]) }] },
            Answer::Registers { ops: vec![read(Some(None)), read(Some(Some(u64::MAX)))] },
        ]
    }

    fn notes() -> Vec<Event> {
        let event = WatchEvent { kv: kv(), delete: true, prev_kv: Some(kv()) };
        let seen = [
            WatchSeen::Created { request: WatchRequest::default(), revision: 1 },
            WatchSeen::Events { revision: 9, fragment: true, events: vec![event] },
            WatchSeen::Progress { revision: 2 },
            WatchSeen::Compacted { compact_revision: 3 },
            WatchSeen::Broken { error: "gone".to_owned() },
        ];
        let fault = FaultNote {
            fault: 1,
            name: "partition halves".to_owned(),
            nodes: vec!["n1".to_owned()],
            phase: FaultPhase::End,
            counters: [("packets_dropped".to_owned(), 17)].into(),
        };
        let watch = seen.into_iter().map(|seen| Event::Watch(WatchNote { watcher: 4, seen }));
        watch.chain([Event::Fault(fault), Event::Fail(Failure { error: "a\nb".to_owned() })]).collect()
    }

    fn notes_of_a_run() -> impl Iterator<Item = Event> {
        let setup = Setup {
            command: "pintle-jepsen test".to_owned(),
            server: "pintle".to_owned(),
            workloads: vec!["register".to_owned()],
            nemeses: vec![],
            members: 3,
            seed: u64::MAX,
            seconds: 60,
        };
        let step = |failed| RunNote::Step { name: "exits".to_owned(), failed, detail: "nobody".to_owned() };
        let notes = [
            RunNote::Begin(setup),
            RunNote::Process { workload: "register".to_owned() },
            RunNote::LoadEnds,
            RunNote::Quiet { revision: 7 },
            step(false),
            step(true),
            RunNote::End,
        ];
        notes.into_iter().map(Event::Run)
    }

    #[test]
    fn every_kind_of_entry_comes_back() {
        let header = Header { revision: 5, member: u64::MAX, term: 2 };
        let ends = answers().into_iter().map(|answer| Event::Ok(Response { header, answer }));
        let mut history = History::default();
        for event in requests().into_iter().map(Event::Invoke).chain(ends).chain(notes()).chain(notes_of_a_run()) {
            let time_ns = history.entries().len() as u64 / 2;
            history.push(Entry { time_ns, process: 3, node: Some("n1".to_owned()), event });
        }
        let mut file = Vec::new();
        history.write(&mut file).unwrap();
        assert_eq!(file.iter().filter(|byte| **byte == b'\n').count(), history.entries().len());
        assert_eq!(History::read(file.as_slice()).unwrap(), history);
    }

    #[test]
    fn a_line_can_be_read_by_a_person() {
        let request = Request::Put(Put { key: "a".into(), value: b"\xff".to_vec().into(), ..Put::default() });
        let entry = Entry { time_ns: 12, process: 3, node: None, event: Event::Invoke(request) };
        let line = r#"{"time_ns":12,"process":3,"kind":"invoke","f":"put","key":"a","value":"\\xff"}"#;
        assert_eq!(entry.to_line(), line);
    }

    #[test]
    fn a_line_that_is_no_entry_is_named() {
        let error = History::read(b"{}\n".as_slice()).unwrap_err();
        assert!(format!("{error:#}").starts_with("line 1: missing field"), "{error:#}");
        let error = History::read(b"\xff\n".as_slice()).unwrap_err();
        assert!(format!("{error:#}").starts_with("line 1: "), "{error:#}");
    }

    #[test]
    fn a_line_that_is_earlier_than_the_one_before_is_named() {
        let line = |time_ns| Entry { time_ns, process: 0, node: None, event: Event::Run(RunNote::End) }.to_line();
        let error = History::read(format!("{}\n{}\n", line(7), line(6)).as_bytes()).unwrap_err();
        assert_eq!(format!("{error:#}"), "line 2: it is of 6 ns, and the line before it of 7 ns");
    }
}
