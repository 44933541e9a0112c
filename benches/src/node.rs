//! Servers as child processes: start, readiness, CPU time, memory, disk, stop.
//!
//! Pintle and etcd get the same flags. Only processes started here are ever signalled.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::wire;

const POLL: Duration = Duration::from_millis(5);
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// Room for every workload here; etcd's own default would stop the loading of a million keys.
const QUOTA_BYTES: u64 = 64 << 30;

/// The flags of one member.
#[derive(Debug, Clone)]
struct Flags {
    name: String,
    data_dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    initial_cluster: String,
}

impl Flags {
    fn client_authority(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    fn args(&self) -> Vec<String> {
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let data_dir = self.data_dir.display().to_string();
        let quota = QUOTA_BYTES.to_string();
        [
            ("name", self.name.as_str()),
            ("data-dir", &data_dir),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &self.initial_cluster),
            ("initial-cluster-token", "pintle-bench"),
            ("initial-cluster-state", "new"),
            ("quota-backend-bytes", &quota),
            ("log-level", "warn"),
        ]
        .into_iter()
        .map(|(flag, value)| format!("--{flag}={value}"))
        .collect()
    }
}

/// A running member.
struct Node {
    flags: Flags,
    child: Child,
    log: PathBuf,
}

impl Node {
    fn start(binary: &Path, flags: Flags) -> anyhow::Result<Node> {
        let log = flags.data_dir.with_extension("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(binary)
            .args(flags.args())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Node { flags, child, log })
    }

    fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.flags.client_port)
    }

    fn terminate(&self) -> io::Result<()> {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits");
        // SAFETY: kill takes no pointers; the pid is that of a child not yet waited for, so it cannot be another's.
        match unsafe { libc::kill(pid, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(POLL).await;
        }
    }

    async fn ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.flags.name, tail(&self.log));
            }
            match timeout(Duration::from_secs(2), http_get(&self.flags.client_authority(), "/health")).await {
                Ok(Ok(body)) if body.contains(r#""health":"true""#) => return Ok(()),
                _ if Instant::now() >= deadline => {
                    bail!("{} is not healthy after {within:?}:\n{}", self.flags.name, tail(&self.log))
                }
                _ => sleep(POLL).await,
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Nothing can be done about a failure here; the child is ours and is reaped if it can be.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// One member, or several that form a cluster, on a fresh directory.
pub struct Cluster {
    binary: PathBuf,
    dir: tempfile::TempDir,
    flags: Vec<Flags>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts `size` members on ports from `base_port` on, with their data below `parent`, and waits until all are
    /// healthy.
    pub async fn start(binary: &Path, size: u16, base_port: u16, parent: &Path) -> anyhow::Result<Cluster> {
        fs::create_dir_all(parent)?;
        let dir = tempfile::Builder::new().prefix("pintle-bench-").tempdir_in(parent)?;
        let peer_port = |index: u16| base_port + 2 * index + 1;
        let initial_cluster: Vec<String> =
            (0..size).map(|i| format!("m{i}=http://127.0.0.1:{}", peer_port(i))).collect();
        let flags = (0..size)
            .map(|i| Flags {
                name: format!("m{i}"),
                data_dir: dir.path().join(format!("m{i}")),
                client_port: base_port + 2 * i,
                peer_port: peer_port(i),
                initial_cluster: initial_cluster.join(","),
            })
            .collect();
        let mut cluster = Cluster { binary: binary.to_path_buf(), dir, flags, nodes: Vec::new() };
        cluster.launch(Duration::from_secs(60)).await?;
        Ok(cluster)
    }

    /// Starts the members on the data they have. Returns how long it took until all were healthy.
    pub async fn launch(&mut self, within: Duration) -> anyhow::Result<Duration> {
        anyhow::ensure!(self.nodes.is_empty(), "the cluster is running");
        for flags in &self.flags {
            // Another server on the port would answer in our child's place and be measured for it.
            if TcpStream::connect(("127.0.0.1", flags.client_port)).await.is_ok() {
                bail!("port {} is in use", flags.client_port);
            }
        }
        let begin = Instant::now();
        for flags in &self.flags {
            self.nodes.push(Node::start(&self.binary, flags.clone())?);
        }
        for node in &mut self.nodes {
            node.ready(within).await?;
        }
        Ok(begin.elapsed())
    }

    /// SIGTERM, and the time until all have ended. An exit code other than 0 is an error.
    pub async fn stop(&mut self) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        for node in &self.nodes {
            node.terminate()?;
        }
        for mut node in self.nodes.drain(..) {
            let status = timeout(STOP_WITHIN, node.ended())
                .await
                .with_context(|| format!("{} did not end within {STOP_WITHIN:?}", node.flags.name))??;
            // etcd ends by the signal itself once it has shut down; Pintle exits with 0.
            let by_signal = std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGTERM);
            anyhow::ensure!(status.success() || by_signal, "{} ended: {status}\n{}", node.flags.name, tail(&node.log));
        }
        Ok(begin.elapsed())
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::client_url).collect()
    }

    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.child.id()).collect()
    }

    pub fn disk_bytes(&self) -> io::Result<u64> {
        self.flags.iter().map(|flags| disk_bytes(&flags.data_dir)).sum()
    }

    /// What the first member answers at `/version`.
    pub async fn version(&self) -> anyhow::Result<String> {
        Ok(timeout(Duration::from_secs(5), http_get(&self.flags[0].client_authority(), "/version"))
            .await??
            .trim()
            .to_string())
    }

    /// The flags of the first member, for a report: places and ports are of no interest there.
    pub fn flags_shown(&self) -> String {
        let places = ["--data-dir", "--listen", "--advertise", "--initial-advertise", "--initial-cluster=", "--name"];
        let args = self.flags[0].args();
        let shown = args.iter().filter(|arg| !places.iter().any(|place| arg.starts_with(place)));
        shown.map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|e| format!("(its log cannot be read: {e})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The body of a GET over HTTP/1.1.
async fn http_get(authority: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(authority).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string());
    body.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer"))
}

/// How often the servers have synced their logs since they started, if all of them say so.
pub async fn fsyncs(endpoints: &[String]) -> Option<f64> {
    let mut sum = 0.0;
    for url in endpoints {
        let answer = timeout(Duration::from_secs(5), http_get(wire::authority(url).ok()?, "/metrics")).await;
        let metrics = answer.ok()?.ok()?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("etcd_disk_wal_fsync_duration_seconds_count"))?;
        sum += count.trim().parse::<f64>().ok()?;
    }
    Some(sum)
}

/// Bytes that the processes made the kernel write to disks, summed (proc(5), `write_bytes`).
pub fn written_bytes(pids: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).with_context(|| format!("/proc/{pid}/io"))?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        let bytes: Option<u64> = bytes.and_then(|bytes| bytes.trim().parse().ok());
        sum += bytes.with_context(|| format!("write_bytes in /proc/{pid}/io"))?;
    }
    Ok(sum)
}

/// User and system time of the processes, summed.
pub fn cpu_time(pids: &[u32]) -> anyhow::Result<Duration> {
    // SAFETY: sysconf takes no pointers.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    anyhow::ensure!(ticks_per_second > 0, "the clock tick is unknown");
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
        ticks += cpu_ticks(&stat).with_context(|| format!("/proc/{pid}/stat"))?;
    }
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

/// utime + stime, fields 14 and 15. The second field is the program's name, which may hold anything, `)` included.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

pub fn own_cpu_time() -> Duration {
    // SAFETY: rusage is plain data for which all zeroes is a value, and getrusage writes only into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let duration = |time: libc::timeval| {
        Duration::from_micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs())
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss_bytes: u64,
    /// Without pages of mapped files, which the kernel can take back at any time.
    pub anon_bytes: u64,
}

/// Resident memory of the processes, summed.
pub fn memory(pids: &[u32]) -> anyhow::Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
        let memory = parse_memory(&status).with_context(|| format!("/proc/{pid}/status"))?;
        sum.rss_bytes += memory.rss_bytes;
        sum.anon_bytes += memory.anon_bytes;
    }
    Ok(sum)
}

fn parse_memory(status: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory { rss_bytes: field("VmRSS")?, anon_bytes: field("RssAnon")? })
}

/// What a directory takes on disk, as `du` counts it: blocks, not lengths (files may be preallocated or sparse).
pub fn disk_bytes(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_read_past_any_program_name() {
        let stat = "42 (a) b) (c) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 12 0 100 1 1 1";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("42 (a"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t  2048 kB\nRssAnon:\t    1024 kB\n";
        assert_eq!(parse_memory(status), Some(Memory { rss_bytes: 2 << 20, anon_bytes: 1 << 20 }));
        assert_eq!(parse_memory("Name:\tx\n"), None);
    }

    #[test]
    fn own_processes_can_be_measured() {
        let pid = std::process::id();
        assert!(memory(&[pid]).unwrap().rss_bytes > 0);
        cpu_time(&[pid]).unwrap();
        written_bytes(&[pid]).unwrap();
    }

    #[test]
    fn a_directory_takes_what_its_files_take() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let empty = disk_bytes(dir.path()).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 100_000]).unwrap();
        File::open(dir.path().join("sub/file")).unwrap().sync_all().unwrap();
        assert!(disk_bytes(dir.path()).unwrap() >= empty + 100_000);
    }
}
