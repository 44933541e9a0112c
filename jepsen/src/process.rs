//! Servers as processes: started, awaited, killed and started again.
//!
//! A server is any binary that takes etcd's flags and logs JSON lines; etcd and Pintle are run alike. A [`Node`] is
//! ready when it has logged `ready to serve client requests`, and everything that it logs is kept beside its data.
//! A dropped node is killed, and so is every node whose harness dies.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command as Blocking, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::pipe,
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use crate::tls::Tls;

/// How long a node may take to get ready. Generous: a recovery is bounded by the test that measures it, not here.
pub const READY_LIMIT: Duration = Duration::from_secs(60);
/// A thread that waits for the disk stops when it has its answer.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);
const READY_MESSAGE: &str = "ready to serve client requests";
const LOG_TAIL_LINES: usize = 30;

/// Below the range from which Linux takes ports for outgoing connections: a port stays free while its node is down.
const PORTS: Range<u16> = 28000..29000;

/// What a node listens at on a host of its own.
const HOST_CLIENT_PORT: u16 = 2379;
const HOST_PEER_PORT: u16 = 2380;

/// A TCP port that no other harness on this machine takes while this value lives.
///
/// The number is claimed by holding the UDP port of the same number, which leaves the TCP port to the node. On a host
/// of the node's own nothing needs to be claimed.
struct Port {
    address: Ipv4Addr,
    number: u16,
    _claim: Option<UdpSocket>,
}

/// Where a node runs that does not share this process's network, limits or clock.
#[derive(Clone)]
pub struct Host {
    pub address: Ipv4Addr,
    /// Moves the calling process there. It runs between fork and exec, so it may do no more than system calls.
    pub enter: Arc<dyn Fn() -> io::Result<()> + Send + Sync>,
    pub environment: Vec<(String, OsString)>,
}

impl Port {
    fn claim() -> Result<Port> {
        let first = rand::random_range(PORTS);
        for number in (first..PORTS.end).chain(PORTS.start..first) {
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else { continue };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Port { address: Ipv4Addr::LOCALHOST, number, _claim: Some(claim) });
            }
        }
        bail!("no free port in {PORTS:?}")
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}:{}", self.address, self.number)
    }
}

/// The binary under test.
#[derive(Clone, Debug)]
pub struct Target {
    binary: Arc<Path>,
    is_pintle: bool,
    tls: Option<Tls>,
}

impl Target {
    pub fn new(binary: &Path) -> Result<Target> {
        let binary = binary.canonicalize().with_context(|| format!("no server at {}", binary.display()))?;
        let output = Blocking::new(&binary).arg("--version").output();
        let version = output.with_context(|| format!("{} cannot be run", binary.display()))?.stdout;
        let is_pintle = String::from_utf8_lossy(&version).contains("Pintle Version");
        Ok(Target { binary: binary.into(), is_pintle, tls: None })
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Pintle, and not etcd, by what it says of its version.
    pub fn is_pintle(&self) -> bool {
        self.is_pintle
    }

    /// Clients and members then have to show certificates.
    pub fn over_tls(self, tls: Tls) -> Target {
        Target { tls: Some(tls), ..self }
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The name of the binary, for reports.
    pub fn label(&self) -> String {
        self.binary.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

/// One member: its ports, data and log outlive its processes.
pub struct Node {
    target: Target,
    name: String,
    client: Port,
    peer: Port,
    initial_cluster: String,
    /// Whether the cluster was there before the member.
    joins: bool,
    data_dir: PathBuf,
    log: PathBuf,
    flags: Vec<String>,
    host: Option<Host>,
    process: Option<Process>,
}

struct Process {
    child: Child,
    ready: watch::Receiver<bool>,
    /// Ends when all that the process has logged is on file.
    log_copied: Shared<BoxFuture<'static, ()>>,
    log_start: u64,
}

impl Node {
    /// A cluster of one with its data in `data_dir` and its log beside it; not started yet.
    pub fn single(target: &Target, data_dir: &Path, flags: &[String]) -> Result<Node> {
        let mut node = Node::new(target, "n1", data_dir.to_path_buf(), flags)?;
        node.initial_cluster = format!("n1={}", node.peer_url());
        Ok(node)
    }

    fn new(target: &Target, name: &str, data_dir: PathBuf, flags: &[String]) -> Result<Node> {
        Ok(Node {
            target: target.clone(),
            name: name.to_owned(),
            client: Port::claim()?,
            peer: Port::claim()?,
            initial_cluster: String::new(),
            joins: false,
            log: data_dir.with_extension("log"),
            data_dir,
            flags: flags.to_vec(),
            host: None,
            process: None,
        })
    }

    /// A member on a host of its own, with its log wherever it is wanted. It belongs to no cluster yet.
    pub fn on_host(target: &Target, name: &str, data_dir: PathBuf, log: PathBuf, flags: &[String], host: Host) -> Node {
        let port = |number| Port { address: host.address, number, _claim: None };
        Node {
            target: target.clone(),
            name: name.to_owned(),
            client: port(HOST_CLIENT_PORT),
            peer: port(HOST_PEER_PORT),
            initial_cluster: String::new(),
            joins: false,
            data_dir,
            log,
            flags: flags.to_vec(),
            host: Some(host),
            process: None,
        }
    }

    /// Makes it one of the first members (`name=peer-url,…`) of a new cluster.
    pub fn found(&mut self, initial_cluster: String) {
        assert!(self.process.is_none(), "a running node was told to found a cluster");
        self.initial_cluster = initial_cluster;
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Points a stopped node at other data.
    pub fn set_data_dir(&mut self, data_dir: &Path) {
        assert!(self.process.is_none(), "the data of a running node was exchanged");
        self.data_dir = data_dir.to_path_buf();
        self.log = data_dir.with_extension("log");
    }

    /// Makes it join a cluster of these members (`name=peer-url,…`), of which it is one.
    pub fn join(&mut self, initial_cluster: String) {
        assert!(self.process.is_none(), "a running node was told to join");
        self.initial_cluster = initial_cluster;
        self.joins = true;
    }

    /// Where the other members reach it.
    pub fn peer_url(&self) -> String {
        self.peer.url(self.target.scheme())
    }

    /// Where clients reach it.
    pub fn endpoint(&self) -> String {
        self.client.url(self.target.scheme())
    }

    pub fn pid(&self) -> Result<u32> {
        let pid = self.process.as_ref().and_then(|process| process.child.id());
        pid.with_context(|| format!("{} is not running", self.name))
    }

    /// Connects on first use and again after each failure.
    pub fn channel(&self) -> Channel {
        match &self.target.tls {
            Some(tls) => tls.channel(self.client.number),
            None => channel(&self.endpoint()),
        }
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) -> Result<()> {
        assert!(self.process.is_none(), "{} was started twice", self.name);
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let log_start = log.seek(SeekFrom::End(0))?;
        let (reader, writer) = std::io::pipe()?;

        let mut command = Command::new(&*self.target.binary);
        command
            .args(["--name", &self.name])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()])
            .args(["--listen-peer-urls", &self.peer_url(), "--initial-advertise-peer-urls", &self.peer_url()])
            .args(["--initial-cluster", &self.initial_cluster])
            .args(["--initial-cluster-state", if self.joins { "existing" } else { "new" }])
            .args(self.target.tls.iter().flat_map(Tls::flags))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        if let Some(Host { enter, environment, .. }) = self.host.clone() {
            command.envs(environment);
            // SAFETY: a host's way in is made of system calls only.
            unsafe { command.pre_exec(move || enter()) };
        }
        let child = command.spawn().with_context(|| format!("cannot run {}", self.target.binary.display()))?;
        // The command holds the pipe's writing end: only without it does the reader see the end of the log.
        drop(command);

        let (ready_sender, ready) = watch::channel(false);
        let log_copied = tokio::spawn(copy_log(reader.into(), log, ready_sender));
        let log_copied = log_copied.map(|copied| copied.expect("copying does not panic")).boxed().shared();
        self.process = Some(Process { child, ready, log_copied, log_start });
        Ok(())
    }

    /// Waits until the started process serves clients; an error if it exits instead, or takes too long.
    pub async fn ready(&mut self) -> Result<()> {
        match self.ready_or_exit().await? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} exited with {status} instead of getting ready", self.name)),
        }
    }

    /// Waits until the started process serves clients (`None`) or has exited.
    pub async fn ready_or_exit(&mut self) -> Result<Option<ExitStatus>> {
        match self.ready_or_wait().await? {
            true => Ok(None),
            false => Ok(Some(self.exited().await?)),
        }
    }

    /// Waits until the started process serves clients, or is gone (false); [`Node::exited`] says how it ended.
    pub async fn ready_or_wait(&mut self) -> Result<bool> {
        let process = self.process.as_mut().with_context(|| format!("{} is not started", self.name))?;
        let outcome = timeout(READY_LIMIT, async {
            tokio::select! {
                Ok(_) = process.ready.wait_for(|ready| *ready) => Ok(true),
                status = process.child.wait() => status.map(|_| false),
            }
        })
        .await;
        outcome.map_err(|_| anyhow!("{} was not ready after {READY_LIMIT:?}", self.name))?.map_err(Into::into)
    }

    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Sends SIGKILL and gives the moment just before.
    pub fn kill(&mut self) -> Result<Instant> {
        let killed = Instant::now();
        self.signal(libc::SIGKILL)?;
        Ok(killed)
    }

    /// Stops the process as SIGSTOP does. Afterwards none of its threads runs.
    pub async fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        let pid = self.pid()?;
        let stopped = tokio::task::spawn_blocking(move || {
            // SAFETY: a siginfo_t is plain data, for which zeros are a value.
            let mut told: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: plain system call with a pointer to what lives here. The child is left to be waited for.
            match unsafe {
                libc::waitid(libc::P_PID, pid, &raw mut told, libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT)
            } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        let stopped = timeout(FREEZE_LIMIT, stopped).await;
        stopped.with_context(|| format!("{} runs {FREEZE_LIMIT:?} after SIGSTOP", self.name))???;
        Ok(())
    }

    /// Asks the process to stop and waits for it.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        timeout(limit, self.exited())
            .await
            .map_err(|_| anyhow!("{} did not stop within {limit:?} of SIGTERM", self.name))?
    }

    /// Waits until the process is gone; [`Node::exited`] says how it ended.
    pub async fn wait(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            process.child.wait().await?;
        }
        Ok(())
    }

    /// Waits until the process is gone and all it has logged is on file.
    pub async fn exited(&mut self) -> Result<ExitStatus> {
        let process = self.process.as_mut().with_context(|| format!("{} is not started", self.name))?;
        let status = process.child.wait().await?;
        process.log_copied.clone().await;
        self.process = None;
        Ok(status)
    }

    /// Waits until all is on file that a process has logged which is gone.
    pub async fn log_copied(&self) {
        if let Some(process) = &self.process {
            process.log_copied.clone().await;
        }
    }

    /// Whether the process has ended by itself.
    pub fn has_exited(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        let pid = self.pid()?;
        // SAFETY: plain system call. The child has not been waited for, so the id cannot belong to another process.
        if unsafe { libc::kill(pid as libc::pid_t, signal) } != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot signal {}", self.name));
        }
        Ok(())
    }

    /// How much has been logged so far: where the log of the next start begins.
    pub fn log_length(&self) -> u64 {
        self.log.metadata().map_or(0, |metadata| metadata.len())
    }

    /// What has been logged from a byte on.
    pub fn log_from(&self, start: u64) -> Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(start))?;
        let mut log = Vec::new();
        file.read_to_end(&mut log)?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// The last lines of the log, headed by the node's name, for failure reports.
    pub fn log_tail(&self) -> String {
        let start = self.process.as_ref().map_or(0, |process| process.log_start);
        let log = self.log_from(start).unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        format!("--- {} ({}) ---\n{tail}\n", self.name, self.log.display())
    }
}

/// A channel that connects on first use. Timeouts of calls are the caller's.
pub fn channel(endpoint: &str) -> Channel {
    endpoint_of(endpoint).connect_lazy()
}

/// How all connections are made.
pub fn endpoint_of(url: &str) -> Endpoint {
    Endpoint::from_shared(url.to_owned())
        .expect("the endpoint is made of a port number")
        .connect_timeout(Duration::from_millis(500))
        .tcp_nodelay(true)
}

async fn copy_log(reader: OwnedFd, mut log: File, ready: watch::Sender<bool>) {
    let reader = pipe::Receiver::from_owned_fd(reader).expect("the log is read from a pipe");
    let mut lines = BufReader::new(reader).split(b'\n');
    while let Ok(Some(mut line)) = lines.next_segment().await {
        if !*ready.borrow() && is_ready(&line) {
            ready.send_replace(true);
        }
        line.push(b'\n');
        if let Err(error) = log.write_all(&line) {
            eprintln!("cannot keep a node's log: {error}");
        }
    }
}

fn is_ready(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|entry| entry["msg"] == READY_MESSAGE)
}

#[cfg(target_os = "linux")]
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches only the calling process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

#[cfg(not(target_os = "linux"))]
pub fn die_with_parent(_command: &mut Command) {}

/// The members of one cluster.
pub struct Cluster {
    pub nodes: Vec<Node>,
    target: Target,
    dir: PathBuf,
    flags: Vec<String>,
    /// How many members there have ever been.
    named: usize,
}

impl Cluster {
    /// A cluster of nodes on hosts of their own, not started yet.
    pub fn on_hosts(target: &Target, mut nodes: Vec<Node>, dir: &Path, flags: &[String]) -> Cluster {
        let members: Vec<String> = nodes.iter().map(|node| format!("{}={}", node.name, node.peer_url())).collect();
        for node in &mut nodes {
            node.found(members.join(","));
        }
        let named = nodes.len();
        Cluster { nodes, target: target.clone(), dir: dir.to_path_buf(), flags: flags.to_vec(), named }
    }

    /// Starts members with their data in folders of `dir` and waits until all serve.
    pub async fn start(target: &Target, size: usize, dir: &Path, flags: &[String]) -> Result<Cluster> {
        let mut nodes = (1..=size)
            .map(|number| {
                let name = format!("n{number}");
                Node::new(target, &name, dir.join(&name), flags)
            })
            .collect::<Result<Vec<Node>>>()?;
        let members: Vec<String> = nodes.iter().map(|node| format!("{}={}", node.name, node.peer_url())).collect();
        for node in &mut nodes {
            node.initial_cluster = members.join(",");
        }
        let (target, dir, flags) = (target.clone(), dir.to_path_buf(), flags.to_vec());
        let mut cluster = Cluster { nodes, target, dir, flags, named: size };
        if let Err(error) = cluster.start_stopped().await {
            return Err(error.context(cluster.log_tails()));
        }
        Ok(cluster)
    }

    /// Starts whichever members are down and waits until they serve.
    pub async fn start_stopped(&mut self) -> Result<()> {
        let mut stopped: Vec<&mut Node> = self.nodes.iter_mut().filter(|node| !node.is_running()).collect();
        for node in &mut stopped {
            node.spawn()?;
        }
        for node in stopped {
            node.ready().await?;
        }
        Ok(())
    }

    /// A node with a name that no member had before, which is none of the cluster's yet.
    pub fn new_node(&mut self) -> Result<Node> {
        self.named += 1;
        let name = format!("n{}", self.named);
        Node::new(&self.target, &name, self.dir.join(&name), &self.flags)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    pub fn log_tails(&self) -> String {
        self.nodes.iter().map(Node::log_tail).collect()
    }
}
