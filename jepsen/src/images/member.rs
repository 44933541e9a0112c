//! Members of a cluster within this process: the real store, log and Raft, on loopback.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::{ClusterId, MemberId};
use raft::{Config, Connect, LeaderHandler, Member, Node, PeerStream, Reach, disk::FileSystem};
use storage::{Change, Observer, Store};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::{Builder, Runtime},
    sync::mpsc,
};
use tokio_stream::wrappers::TcpListenerStream;

use super::{
    recover::{LOG, SEGMENT_BYTES, STORE, open_observed_store},
    tap::Tap,
};

const ELECTION: Duration = Duration::from_millis(600);
/// So small that a run of some hundred writes lets go of its log often.
const SNAPSHOT_COUNT: u64 = 20;
const CATCH_UP_ENTRIES: u64 = 5;

/// Who cannot be reached, and reaches nobody.
#[derive(Clone, Default)]
struct Isolated(Arc<Mutex<BTreeSet<usize>>>);

impl Isolated {
    fn check(&self, ends: [usize; 2]) -> io::Result<()> {
        let isolated = self.0.lock();
        match ends.iter().any(|end| isolated.contains(end)) {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }
}

/// Opens the connections of one member.
struct Links {
    member: usize,
    addresses: Vec<SocketAddr>,
    isolated: Isolated,
}

impl Connect for Links {
    fn connect(&self, url: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        let address = self.addresses.iter().position(|address| url == format!("http://{address}"));
        let (ends, isolated, addresses) =
            (address.map(|to| [self.member, to]), self.isolated.clone(), self.addresses.clone());
        Box::pin(async move {
            let ends = ends.ok_or(io::ErrorKind::NotFound)?;
            isolated.check(ends)?;
            let stream = TcpStream::connect(addresses[ends[1]]).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(Link { stream, ends, isolated }) as Box<dyn PeerStream>)
        })
    }
}

/// A connection that fails while one of its ends is isolated.
struct Link {
    stream: TcpStream,
    ends: [usize; 2],
    isolated: Isolated,
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.isolated.check(self.ends)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.isolated.check(self.ends)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Nobody asks the leader for anything here.
struct NoHandler;

#[tonic::async_trait]
impl LeaderHandler for NoHandler {
    async fn handle(&self, _: Bytes) -> Result<Bytes, tonic::Status> {
        Err(tonic::Status::unimplemented("members of this run ask for nothing"))
    }
}

/// Held by the store: the channel closes when the store has.
struct Open(#[allow(dead_code, reason = "only its end is of use")] mpsc::Sender<()>);

impl Observer for Open {
    fn applied(&self, _: Change) {}
    fn restored(&self, _: i64, _: i64) {}
}

struct Running {
    node: Node,
    store: Store,
    closed: mpsc::Receiver<()>,
    /// All its tasks end with it.
    runtime: Runtime,
}

pub struct Cluster {
    root: PathBuf,
    listeners: Vec<TcpListener>,
    isolated: Isolated,
    running: Vec<Option<Running>>,
}

/// The directory of a member, below that of the run.
pub fn dir_name(member: usize) -> String {
    format!("m{member}")
}

impl Cluster {
    /// Members with empty directories below `root`; none is started.
    pub fn new(root: &Path, size: usize) -> Result<Cluster> {
        let mut cluster = Cluster {
            root: root.into(),
            listeners: Vec::new(),
            isolated: Isolated::default(),
            running: (0..size).map(|_| None).collect(),
        };
        for member in 0..size {
            // The server has made this directory and written the member's identity into it before Raft begins.
            fs::create_dir_all(root.join(dir_name(member)).join("member"))?;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            cluster.listeners.push(listener);
        }
        Ok(cluster)
    }

    pub fn size(&self) -> usize {
        self.running.len()
    }

    pub async fn start(&mut self, member: usize) -> Result<()> {
        let dir = self.root.join(dir_name(member));
        let (open, closed) = mpsc::channel(1);
        let store = open_observed_store(&dir.join(STORE), Arc::new(Open(open)))?;
        let config = self.config(member, &dir)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (listener, of_node) = (self.listeners[member].try_clone()?, store.clone());
        let serve = async move {
            let node = Node::start(config, of_node, Arc::new(NoHandler)).await?;
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
            let router = tonic::transport::Server::builder().layer(Tap { member }).add_routes(node.peer_routes());
            tokio::spawn(router.serve_with_incoming(incoming));
            anyhow::Ok(node)
        };
        let node = runtime.spawn(serve).await??;
        self.running[member] = Some(Running { node, store, closed, runtime });
        Ok(())
    }

    fn config(&self, member: usize, dir: &Path) -> Result<Config> {
        let addresses = self.listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let of = |(i, address): (usize, &SocketAddr)| Member {
            id: MemberId(i as u64 + 1),
            name: dir_name(i),
            peer_urls: vec![format!("http://{address}")],
            client_urls: Vec::new(),
            is_learner: false,
        };
        Ok(Config {
            member: MemberId(member as u64 + 1),
            cluster: ClusterId(0xc1),
            initial_members: addresses.iter().enumerate().map(of).collect(),
            is_joining: false,
            force_new_cluster: false,
            data_dir: dir.into(),
            wal_dir: dir.join(LOG),
            disk: Arc::new(FileSystem),
            heartbeat: ELECTION / 10,
            election_timeout: ELECTION,
            snapshot_count: SNAPSHOT_COUNT,
            catch_up_entries: CATCH_UP_ENTRIES,
            is_log_synced: true,
            segment_bytes: SEGMENT_BYTES,
            meter: Arc::new(()),
            reach: Reach::Connections(Arc::new(Links { member, addresses, isolated: self.isolated.clone() })),
        })
    }

    pub fn node(&self, member: usize) -> &Node {
        &self.running[member].as_ref().expect("the member runs").node
    }

    pub fn store(&self, member: usize) -> &Store {
        &self.running[member].as_ref().expect("the member runs").store
    }

    /// The leader that one of the members knows of.
    pub async fn leader_seen_by(&self, member: usize) -> Result<usize> {
        let mut status = self.node(member).watch_status();
        let status = status.wait_for(|status| status.leader.is_some()).await?;
        Ok(status.leader.context("just seen")?.0 as usize - 1)
    }

    /// A leader that is not `member`, seen by another one.
    pub async fn leader_beside(&self, member: usize) -> Result<usize> {
        let observer = (member + 1) % self.size();
        let mut status = self.node(observer).watch_status();
        let other = |id: MemberId| id.0 as usize - 1 != member;
        let status = status.wait_for(|status| status.leader.is_some_and(other)).await?;
        Ok(status.leader.context("just seen")?.0 as usize - 1)
    }

    pub fn isolate(&self, member: usize) {
        self.isolated.0.lock().insert(member);
    }

    pub fn heal(&self) {
        self.isolated.0.lock().clear();
    }

    /// Waits until all members have applied what this one has.
    pub async fn converge(&self, from: usize) -> Result<()> {
        self.node(from).read_index().await?;
        let index = self.node(from).status().applied_index;
        for member in 0..self.size() {
            // A member that is far behind needs a snapshot, which takes longer than one call waits.
            while self.node(member).status().applied_index < index {
                match self.node(member).wait_until_applied(index).await {
                    Ok(()) | Err(raft::RaftError::Timeout) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Ends a member; `cleanly` as a signal does, otherwise as its Raft ends in a crash.
    pub async fn stop(&mut self, member: usize, cleanly: bool) -> Result<()> {
        let Some(Running { node, store, mut closed, runtime }) = self.running[member].take() else { return Ok(()) };
        if cleanly {
            node.shutdown().await?;
        }
        drop((node, store));
        runtime.shutdown_background();
        // Now nobody uses the files any more.
        ensure!(closed.recv().await.is_none(), "nothing is sent there");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.running.drain(..).flatten() {
            running.runtime.shutdown_background();
        }
    }
}
