//! Members on loopback, with real sockets, logs and stores.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod holding_disk;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message;
use proto::{
    ClusterId, MemberId,
    command::{Command, command::Op, outcome},
    etcdserverpb::{PutRequest, RangeRequest},
};
use raft::{Config, Connect, LeaderHandler, Member, Node, PeerStream, Reach, StartError, disk::Disk};
use storage::{Change, Observer, Options, Store};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::mpsc,
    time::Instant,
};
use tokio_stream::wrappers::TcpListenerStream;

pub const ELECTION: Duration = Duration::from_millis(500);
pub const HEARTBEAT: Duration = Duration::from_millis(50);
const CLOSE_MAX: Duration = Duration::from_secs(10);

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

pub struct Running {
    pub node: Node,
    pub store: Store,
    closed: mpsc::Receiver<()>,
    /// All its tasks, connections included: they end with it.
    runtime: Runtime,
}

impl Drop for Cluster {
    /// The process may end next, and with it what is RocksDB's for all stores: each is closed before. A test that fails
    /// may keep one open, and is not to hang.
    fn drop(&mut self) {
        let (ended, ends) = std::sync::mpsc::channel::<()>();
        for Running { node, store, mut closed, runtime } in self.running.drain(..).flatten() {
            drop((node, store));
            runtime.shutdown_background();
            let ended = ended.clone();
            // A task may not block.
            std::thread::spawn(move || {
                closed.blocking_recv();
                drop(ended);
            });
        }
        drop(ended);
        let _ = ends.recv_timeout(CLOSE_MAX);
    }
}

pub struct Cluster {
    pub dirs: Vec<TempDir>,
    pub addresses: Vec<SocketAddr>,
    pub running: Vec<Option<Running>>,
    pub links: Tcp,
    /// Members that the cluster began with; the others join.
    size: usize,
}

impl Cluster {
    pub async fn start(size: usize) -> Cluster {
        let mut addresses = Vec::new();
        for _ in 0..size {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            addresses.push(listener.local_addr().unwrap());
        }
        let dirs = (0..size).map(|_| TempDir::new().unwrap()).collect();
        let mut cluster = Cluster { dirs, addresses, running: Vec::new(), links: Tcp::default(), size };
        cluster.running.resize_with(size, || None);
        for i in 0..size {
            cluster.start_node(i).await;
        }
        cluster
    }

    pub async fn start_node(&mut self, i: usize) {
        let (links, disk, dir) = (self.links.clone(), Arc::new(raft::disk::FileSystem), self.dirs[i].path());
        let node = try_start_member_over(links, disk, dir, i, &self.addresses, self.size).await.unwrap();
        self.running[i] = Some(node);
    }

    /// Starts a member as a cluster of its own.
    pub async fn start_alone(&mut self, i: usize) {
        let node = try_start_member(self.dirs[i].path(), i, &self.addresses, 0).await.unwrap();
        self.running[i] = Some(node);
    }

    /// A place for one more member, which is not started.
    pub async fn new_place(&mut self) -> usize {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        self.addresses.push(listener.local_addr().unwrap());
        self.dirs.push(TempDir::new().unwrap());
        self.running.push(None);
        self.running.len() - 1
    }

    pub fn url(&self, i: usize) -> String {
        format!("http://{}", self.addresses[i])
    }

    /// Members that have started and lead, or know who does.
    pub async fn leader_among(&self, members: &[usize]) -> usize {
        let is_one = |id: MemberId| members.contains(&(id.0 as usize - 1));
        for i in members {
            let mut status = self.node(*i).watch_status();
            let _ = status.wait_for(|status| status.leader.is_some_and(is_one)).await.unwrap();
        }
        self.node(members[0]).status().leader.unwrap().0 as usize - 1
    }

    /// Ends a node as a crash does: nothing is handed over or flushed.
    pub async fn crash(&mut self, i: usize) {
        let Running { node, store, mut closed, runtime } = self.running[i].take().unwrap();
        drop((node, store));
        runtime.shutdown_background();
        assert_eq!(closed.recv().await, None);
    }

    pub fn node(&self, i: usize) -> &Node {
        &self.running[i].as_ref().unwrap().node
    }

    pub fn store(&self, i: usize) -> &Store {
        &self.running[i].as_ref().unwrap().store
    }

    pub async fn leader(&self) -> usize {
        let any = self.running.iter().flatten().next().unwrap();
        let mut status = any.node.watch_status();
        let is_running = |id: MemberId| self.running[id.0 as usize - 1].is_some();
        let status = status.wait_for(|status| status.leader.is_some_and(is_running)).await.unwrap();
        status.leader.unwrap().0 as usize - 1
    }
}

/// Connects to `http://address`. Clones share which one's link is narrow, and which one is far away.
#[derive(Clone, Default)]
pub struct Tcp {
    pub narrow: Arc<OnceLock<String>>,
    pub far: Arc<OnceLock<String>>,
}

impl Connect for Tcp {
    fn connect(&self, url: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        let (is_narrow, is_far) = (self.narrow.get() == Some(&url), self.far.get() == Some(&url));
        let connect = async move {
            let stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn PeerStream> = match () {
                () if is_narrow => Box::new(narrowed(stream)),
                () if is_far => Box::new(delayed(stream)),
                () => Box::new(stream),
            };
            Ok(stream)
        };
        Box::pin(connect)
    }
}

/// What is sent waits in a queue of megabytes, and goes on at 2 MiB a second.
fn narrowed(stream: TcpStream) -> DuplexStream {
    let (near, queue) = tokio::io::duplex(8 << 20);
    let (mut sent, mut answered) = tokio::io::split(queue);
    let (mut answers, mut out) = stream.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answered).await });
    tokio::spawn(async move {
        let mut bytes = [0; 16 << 10];
        loop {
            let count = sent.read(&mut bytes).await?;
            if count == 0 {
                return io::Result::Ok(());
            }
            // A delay, and no event: bytes take time on a narrow link, during which pings behind them go unanswered.
            tokio::time::sleep(Duration::from_secs(1) * count as u32 / (2 << 20)).await;
            out.write_all(&bytes[..count]).await?;
        }
    });
    near
}

/// What is sent arrives two heartbeats later.
fn delayed(stream: TcpStream) -> DuplexStream {
    let (near, queue) = tokio::io::duplex(8 << 20);
    let (mut sent, mut answered) = tokio::io::split(queue);
    let (mut answers, mut out) = stream.into_split();
    let (on_the_way, mut arriving) = mpsc::unbounded_channel();
    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answered).await });
    tokio::spawn(async move {
        loop {
            let mut bytes = Vec::with_capacity(16 << 10);
            // Its end is the channel's.
            if sent.read_buf(&mut bytes).await? == 0
                || on_the_way.send((Instant::now() + 2 * HEARTBEAT, bytes)).is_err()
            {
                return io::Result::Ok(());
            }
        }
    });
    tokio::spawn(async move {
        while let Some((arrival, bytes)) = arriving.recv().await {
            // A delay, and no event: it is the distance.
            tokio::time::sleep_until(arrival).await;
            out.write_all(&bytes).await?;
        }
        io::Result::Ok(())
    });
    near
}

/// Starts member `i` of a cluster that began with `size` members: the first ones. None: it goes on alone.
pub async fn try_start_member(
    dir: &Path,
    i: usize,
    addresses: &[SocketAddr],
    size: usize,
) -> Result<Running, StartError> {
    try_start_member_on(Arc::new(raft::disk::FileSystem), dir, i, addresses, size).await
}

/// The same, with the log on this disk.
pub async fn try_start_member_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    i: usize,
    addresses: &[SocketAddr],
    size: usize,
) -> Result<Running, StartError> {
    try_start_member_over(Tcp::default(), disk, dir, i, addresses, size).await
}

/// The same, with these links to the others.
pub async fn try_start_member_over(
    links: Tcp,
    disk: Arc<dyn Disk>,
    dir: &Path,
    i: usize,
    addresses: &[SocketAddr],
    size: usize,
) -> Result<Running, StartError> {
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
        cluster: ClusterId(0xc1),
        initial_members: addresses.iter().enumerate().take(size).map(member).collect(),
        is_joining: i >= size,
        force_new_cluster: size == 0,
        data_dir: dir.into(),
        wal_dir: dir.join("wal"),
        heartbeat: HEARTBEAT,
        election_timeout: ELECTION,
        snapshot_count: 1000,
        catch_up_entries: 5000,
        is_log_synced: true,
        segment_bytes: raft::SEGMENT_BYTES,
        meter: Arc::new(()),
        reach: Reach::Connections(Arc::new(links)),
        disk,
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

pub fn put(key: &str, value: impl Into<Bytes>) -> Bytes {
    let put = PutRequest { key: key.to_string().into(), value: value.into(), ..Default::default() };
    Command { op: Some(Op::Put(put)), auth: None }.encode_to_vec().into()
}

pub fn value(store: &Store, key: &str) -> Option<Bytes> {
    let request = RangeRequest { key: key.to_string().into(), ..Default::default() };
    store.range(&request).unwrap().kvs.pop().map(|kv| kv.value)
}

pub async fn put_on(node: &Node, key: &str, value: &'static str) {
    let outcome = node.propose(put(key, value)).await.unwrap();
    assert!(matches!(outcome.result, Some(outcome::Result::Put(_))), "{outcome:?}");
}
