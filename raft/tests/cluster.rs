//! Members on loopback, with real sockets, logs and stores.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use proto::{
    ClusterId, MemberId,
    command::{Command, MemberAttributes, command::Op, outcome},
    etcdserverpb::{PutRequest, RangeRequest},
};
use raft::{Config, LeaderHandler, Member, Node, RaftError, StartError};
use storage::{Change, Observer, Options, Store};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::mpsc,
};
use tokio_stream::wrappers::TcpListenerStream;

const ELECTION: Duration = Duration::from_millis(500);

/// Held by the store: the channel closes when the store does.
struct Open(#[allow(dead_code, reason = "only its end is of use")] mpsc::Sender<()>);

impl Observer for Open {
    fn applied(&self, _: Change) {}
    fn restored(&self, _: i64, _: i64) {}
}

/// Says who answered.
struct Echo(u64);

#[tonic::async_trait]
impl LeaderHandler for Echo {
    async fn handle(&self, request: Bytes) -> Result<Bytes, tonic::Status> {
        Ok([&request[..], &self.0.to_be_bytes()[..]].concat().into())
    }
}

struct Running {
    node: Node,
    store: Store,
    closed: mpsc::Receiver<()>,
    /// All its tasks, connections included: they end with it.
    runtime: Runtime,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.running.drain(..).flatten() {
            running.runtime.shutdown_background();
        }
    }
}

struct Cluster {
    dirs: Vec<TempDir>,
    addresses: Vec<SocketAddr>,
    running: Vec<Option<Running>>,
}

impl Cluster {
    async fn start(size: usize) -> Cluster {
        let mut addresses = Vec::new();
        for _ in 0..size {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            addresses.push(listener.local_addr().unwrap());
        }
        let dirs = (0..size).map(|_| TempDir::new().unwrap()).collect();
        let mut cluster = Cluster { dirs, addresses, running: Vec::new() };
        cluster.running.resize_with(size, || None);
        for i in 0..size {
            cluster.start_node(i).await;
        }
        cluster
    }

    async fn start_node(&mut self, i: usize) {
        let node = start_member(self.dirs[i].path(), i, &self.addresses, 0xc1).await;
        self.running[i] = Some(node);
    }

    /// Ends a node as a crash does: nothing is handed over or flushed.
    async fn crash(&mut self, i: usize) {
        let Running { node, store, mut closed, runtime } = self.running[i].take().unwrap();
        drop((node, store));
        runtime.shutdown_background();
        assert_eq!(closed.recv().await, None);
    }

    fn node(&self, i: usize) -> &Node {
        &self.running[i].as_ref().unwrap().node
    }

    fn store(&self, i: usize) -> &Store {
        &self.running[i].as_ref().unwrap().store
    }

    async fn leader(&self) -> usize {
        let any = self.running.iter().flatten().next().unwrap();
        let mut status = any.node.watch_status();
        let is_running = |id: MemberId| self.running[id.0 as usize - 1].is_some();
        let status = status.wait_for(|status| status.leader.is_some_and(is_running)).await.unwrap();
        status.leader.unwrap().0 as usize - 1
    }
}

async fn start_member(dir: &Path, i: usize, addresses: &[SocketAddr], cluster: u64) -> Running {
    try_start_member(dir, i, addresses, cluster).await.unwrap()
}

async fn try_start_member(dir: &Path, i: usize, addresses: &[SocketAddr], cluster: u64) -> Result<Running, StartError> {
    let member = |(i, address): (usize, &SocketAddr)| Member {
        id: MemberId(i as u64 + 1),
        name: format!("m{i}"),
        peer_urls: vec![format!("http://{address}")],
        client_urls: Vec::new(),
        is_learner: false,
    };
    let (open, closed) = mpsc::channel(1);
    let options = Options { observer: Arc::new(Open(open)), cache_bytes: 1 << 20 };
    let store = Store::open(&dir.join("db"), options).unwrap();
    let config = Config {
        member: MemberId(i as u64 + 1),
        cluster: ClusterId(cluster),
        initial_members: addresses.iter().enumerate().map(member).collect(),
        data_dir: dir.into(),
        wal_dir: dir.join("wal"),
        heartbeat: ELECTION / 10,
        election_timeout: ELECTION,
        snapshot_count: 1000,
        log_synced: Arc::new(|_| {}),
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (address, of_node) = (addresses[i], store.clone());
    let serve = async move {
        let node = Node::start(config, of_node, Arc::new(Echo(i as u64 + 1))).await?;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(128).unwrap();
        let incoming = TcpListenerStream::new(TcpListener::from_std(socket.into()).unwrap());
        let router = tonic::transport::Server::builder().add_routes(node.peer_routes());
        tokio::spawn(router.serve_with_incoming(incoming));
        Ok(node)
    };
    match runtime.spawn(serve).await.unwrap() {
        Ok(node) => Ok(Running { node, store, closed, runtime }),
        Err(error) => {
            runtime.shutdown_background();
            Err(error)
        }
    }
}

fn put(key: &str, value: impl Into<Bytes>) -> Bytes {
    let put = PutRequest { key: key.to_string().into(), value: value.into(), ..Default::default() };
    Command { op: Some(Op::Put(put)), auth: None }.encode_to_vec().into()
}

fn value(store: &Store, key: &str) -> Option<Bytes> {
    let request = RangeRequest { key: key.to_string().into(), ..Default::default() };
    store.range(&request).unwrap().kvs.pop().map(|kv| kv.value)
}

async fn put_on(node: &Node, key: &str, value: &'static str) {
    let outcome = node.propose(put(key, value)).await.unwrap();
    assert!(matches!(outcome.result, Some(outcome::Result::Put(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_leads_at_once_and_keeps_what_it_acknowledged() {
    let mut cluster = Cluster::start(1).await;
    put_on(cluster.node(0), "a", "1").await;
    cluster.node(0).read_index().await.unwrap();
    assert_eq!(value(cluster.store(0), "a").unwrap(), "1");
    cluster.crash(0).await;
    let began = Instant::now();
    cluster.start_node(0).await;
    cluster.node(0).read_index().await.unwrap();
    assert!(began.elapsed() < 4 * ELECTION);
    assert_eq!(value(cluster.store(0), "a").unwrap(), "1");
    cluster.node(0).shutdown().await.unwrap();
    assert!(matches!(cluster.node(0).propose(put("b", "2")).await, Err(RaftError::Fatal(_) | RaftError::Stopped)));
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_forward_and_see_what_they_wrote() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for i in 0..3 {
        let key = format!("from {i}");
        put_on(cluster.node(i), &key, "x").await;
        assert_eq!(value(cluster.store(i), &key).unwrap(), "x");
    }
    for i in 0..3 {
        cluster.node(i).read_index().await.unwrap();
        assert!((0..3).all(|from| value(cluster.store(i), &format!("from {from}")).is_some()));
        let answer = cluster.node(i).ask_leader("who".into()).await.unwrap();
        assert_eq!(answer[3..], (leader as u64 + 1).to_be_bytes());
        assert_eq!(cluster.node(i).members().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_possible_again_after_the_leaders_death() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_on(cluster.node(leader), "before", "1").await;
    cluster.crash(leader).await;
    let survivor = (0..3).find(|i| *i != leader).unwrap();
    let began = Instant::now();
    while let Err(error) = cluster.node(survivor).propose(put("after", "2")).await {
        assert!(matches!(error, RaftError::LeaderChanged), "{error}");
    }
    assert!(began.elapsed() < 4 * ELECTION, "{:?}", began.elapsed());
    assert_eq!(value(cluster.store(survivor), "before").unwrap(), "1");
    cluster.start_node(leader).await;
    cluster.node(leader).read_index().await.unwrap();
    assert_eq!(value(cluster.store(leader), "after").unwrap(), "2");
    let hashes: Vec<u32> = (0..3).map(|i| cluster.store(i).hash_kv(2).unwrap().hash).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_on(cluster.node(leader), "a", "1").await;
    cluster.node(leader).transfer_leadership(None).await.unwrap();
    assert_ne!(cluster.leader().await, leader);
    put_on(cluster.node(leader), "a", "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let late = (leader + 1) % 3;
    put_on(cluster.node(leader), "first", "1").await;
    cluster.crash(late).await;
    // More than what is kept of the log once the store has been flushed.
    let value_bytes = Bytes::from(vec![7; 16 << 10]);
    let leader = loop {
        let leader = cluster.leader().await;
        let node = cluster.node(leader).clone();
        let puts = (0..12_000).map(|i| {
            let (node, command) = (node.clone(), put(&format!("key {}", i % 500), value_bytes.clone()));
            async move { node.propose(command).await }
        });
        let results = futures::StreamExt::collect::<Vec<_>>(futures::StreamExt::buffer_unordered(
            futures::stream::iter(puts),
            256,
        ))
        .await;
        if results.iter().all(Result::is_ok) {
            break leader;
        }
    };
    cluster.start_node(late).await;
    cluster.node(late).read_index().await.unwrap();
    assert_eq!(value(cluster.store(late), "first").unwrap(), "1");
    let revision = cluster.store(leader).revision();
    assert_eq!(cluster.store(late).revision(), revision);
    let hash = |i: usize| cluster.store(i).hash_kv(revision).unwrap().hash;
    assert_eq!(hash(late), hash(leader));
    // And it goes on from the log, also after another crash.
    put_on(cluster.node(late), "last", "2").await;
    cluster.crash(late).await;
    cluster.start_node(late).await;
    cluster.node(late).read_index().await.unwrap();
    assert_eq!(value(cluster.store(late), "last").unwrap(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_cluster_is_refused() {
    let cluster = Cluster::start(1).await;
    let client = proto::peer::peer_client::PeerClient::connect(format!("http://{}", cluster.addresses[0])).await;
    let mut request = tonic::Request::new(proto::peer::ReadIndexRequest {});
    request.metadata_mut().insert("pintle-cluster", "ff".parse().unwrap());
    request.metadata_mut().insert("pintle-member", "1".parse().unwrap());
    let refused = client.unwrap().read_index(request).await.unwrap_err();
    assert_eq!(refused.message(), "cluster ID mismatch: this is c1, the call is for ff");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_directory_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let attributes = MemberAttributes { id: lost as u64 + 1, name: "m".into(), client_urls: Vec::new() };
    let command = Command { op: Some(Op::MemberAttributes(attributes)), auth: None }.encode_to_vec();
    cluster.node(leader).propose(command.into()).await.unwrap();
    cluster.crash(lost).await;
    let empty = TempDir::new().unwrap();
    let refused = try_start_member(empty.path(), lost, &cluster.addresses, 0xc1).await.err().unwrap();
    assert!(refused.to_string().contains("already been bootstrapped"), "{refused}");
    // With its own directory it is welcome.
    cluster.start_node(lost).await;
    cluster.node(lost).read_index().await.unwrap();
}
