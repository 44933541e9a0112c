//! Scripts against the real store: requests and writes in, and every response that is expected.
//!
//! ```text
//! watch a c start=2 prev      a request: keys `-` for empty and `0` for a zero byte
//! put k v / txn k=v k=v / del k [end] / compact 3
//! cancel 1 / progress
//! > created 0 @2              the next response, with the revision of its header
//! > events 0 @3: put a=1; del b (prev b=0)
//! ```
//! At the end nothing more may come.

use proto::{
    command::{Command, command::Op, outcome::Result as Answer},
    etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request},
};
use storage::{Applier, LogEntry, Options, Payload, Store};

use super::*;
use crate::{auth::Tokens, lease::Clock, metrics::Metrics, observer::Observer};

pub struct World {
    client: Client,
    applier: Applier,
    index: u64,
    store: Store,
    hub: Arc<Hub>,
    _dir: tempfile::TempDir,
}

impl World {
    pub fn new(member: TestMember) -> World {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new();
        let (tokens, metrics) = (Arc::new(Tokens::None), Metrics::for_tests());
        let observer = Arc::new(Observer::new(&hub, &Clock::new(), &tokens, &metrics));
        let store = Store::open(dir.path(), Options { observer, cache_bytes: 1 << 20 }).unwrap();
        hub.attach(store.clone());
        let client = Client::open(&hub, member);
        World { client, applier: store.applier(), index: 0, store, hub, _dir: dir }
    }

    fn apply(&mut self, op: Op) {
        self.index += 1;
        let command = Command { op: Some(op), auth: None }.encode_to_vec();
        let entry = LogEntry { index: self.index, term: 1, payload: Payload::Command(command.into()) };
        let outcome = self.applier.apply(&[entry]).unwrap().remove(0);
        assert!(!matches!(outcome.result, Some(Answer::Failure(_)) | None), "{outcome:?}");
    }

    async fn step(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "put" => self.apply(Op::Put(put(words[1], words[2]))),
            "txn" => {
                let success = words[1..]
                    .iter()
                    .map(|pair| pair.split_once('=').unwrap())
                    .map(|(k, v)| RequestOp { request: Some(Request::RequestPut(put(k, v))) })
                    .collect();
                self.apply(Op::Txn(TxnRequest { success, ..Default::default() }));
            }
            "del" => {
                let (key, range_end) = (bytes(words[1]), words.get(2).map(|end| bytes(end)).unwrap_or_default());
                self.apply(Op::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false }));
            }
            "compact" => {
                self.apply(Op::Compact(CompactionRequest { revision: words[1].parse().unwrap(), physical: false }));
            }
            "cancel" => self.client.cancel(words[1].parse().unwrap()),
            "progress" => self.client.request_progress(),
            "watch" => self.client.create(create(&words[1..])),
            ">" => assert_eq!(render(&self.client.next().await), line[2..].trim()),
            other => panic!("no such step: {other}"),
        }
    }

    /// Runs a script.
    pub async fn run(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            eprintln!("{line}");
            self.step(line).await;
        }
        // A last event shows that nothing came before it.
        self.client.create(create(&["~end", "id=999"]));
        assert!(self.client.created().await.watch_id == 999);
        self.step("put ~end 1").await;
        let (revision, hub) = (self.store.revision(), self.hub.clone());
        eventually("all is delivered", || hub.position() == revision).await;
        loop {
            let response = self.client.next().await;
            let found = events(&response);
            assert!(!found.is_empty(), "not expected: {}", render(&response));
            assert!(
                found.iter().all(|event| event.kv.as_ref().unwrap().key == "~end"),
                "not expected: {}",
                render(&response)
            );
            if response.watch_id == 999 {
                break;
            }
        }
    }
}

fn bytes(word: &str) -> Bytes {
    match word {
        "-" => Bytes::new(),
        "0" => Bytes::from_static(b"\0"),
        word => Bytes::copy_from_slice(word.as_bytes()),
    }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

fn create(words: &[&str]) -> WatchCreateRequest {
    let mut create = WatchCreateRequest { key: bytes(words[0]), ..Default::default() };
    for word in &words[1..] {
        match (*word, word.split_once('=')) {
            (_, Some(("start", revision))) => create.start_revision = revision.parse().unwrap(),
            (_, Some(("id", id))) => create.watch_id = id.parse().unwrap(),
            ("prev", _) => create.prev_kv = true,
            ("fragment", _) => create.fragment = true,
            ("noput", _) => create.filters.push(0),
            ("nodelete", _) => create.filters.push(1),
            (end, _) => create.range_end = bytes(end),
        }
    }
    create
}

fn render(response: &WatchResponse) -> String {
    let header = response.header.as_ref().expect("a header");
    assert_eq!((header.cluster_id, header.member_id, header.raft_term), (1, 2, 7));
    let what = match (response.created, response.canceled) {
        (true, true) => "refused",
        (true, false) => "created",
        (false, true) => "canceled",
        (false, false) if response.events.is_empty() => "progress",
        (false, false) => "events",
    };
    let mut line = format!("{what} {} @{}", response.watch_id, header.revision);
    if response.compact_revision != 0 {
        line += &format!(" compacted {}", response.compact_revision);
    }
    if !response.cancel_reason.is_empty() {
        line += &format!(" because {}", response.cancel_reason);
    }
    if response.fragment {
        line += " fragment";
    }
    if !response.events.is_empty() {
        let events: Vec<String> = events(response).iter().map(render_event).collect();
        line += &format!(": {}", events.join("; "));
    }
    line
}

fn render_event(event: &mvccpb::Event) -> String {
    let text = |kv: &KeyValue| format!("{}={}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
    let kv = event.kv.as_ref().expect("a key");
    let mut line = match event.r#type() {
        EventType::Put => format!("put {}", text(kv)),
        EventType::Delete => {
            assert_eq!((kv.create_revision, kv.version, kv.value.len()), (0, 0, 0));
            format!("del {}", String::from_utf8_lossy(&kv.key))
        }
    };
    if let Some(prev) = &event.prev_kv {
        line += &format!(" (prev {})", text(prev));
    }
    line
}
