//! Members of an etcd cluster as child processes.
//!
//! Which etcd: `PINTLE_TEST_ETCD`, else the one on PATH.

use std::{
    env,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use client::{Client, Options};

const READY_WITHIN: Duration = Duration::from_secs(20);

fn etcd() -> PathBuf {
    if let Some(path) = env::var_os("PINTLE_TEST_ETCD") {
        return path.into();
    }
    let found = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("etcd"))
        .find(|candidate| candidate.is_file());
    found.expect("these tests need etcd on PATH or in PINTLE_TEST_ETCD; script/setup --test installs it")
}

/// Ports nobody listens on. All are held until all are known, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

pub struct Etcd {
    dir: tempfile::TempDir,
    /// Client and peer port of each member.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
}

impl Etcd {
    /// A cluster that is ready to answer.
    pub async fn start(size: usize) -> Etcd {
        let ports = free_ports(2 * size);
        let ports: Vec<(u16, u16)> = ports.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let members = ports.iter().map(|_| None).collect();
        let mut etcd = Etcd { dir: tempfile::tempdir().unwrap(), ports, members };
        for index in 0..size {
            etcd.launch(index);
        }
        for index in 0..size {
            etcd.ready(index).await;
        }
        etcd
    }

    pub fn urls(&self) -> Vec<String> {
        self.ports.iter().map(|(client, _)| format!("http://127.0.0.1:{client}")).collect()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.urls()).unwrap()
    }

    fn launch(&mut self, index: usize) {
        let peer = |index: usize| format!("http://127.0.0.1:{}", self.ports[index].1);
        let cluster: Vec<String> = (0..self.ports.len()).map(|i| format!("m{i}={}", peer(i))).collect();
        let url = &self.urls()[index];
        let log = std::fs::File::create(self.dir.path().join(format!("m{index}.log"))).unwrap();
        let child = Command::new(etcd())
            .args(["--name", &format!("m{index}"), "--initial-cluster", &cluster.join(",")])
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("m{index}")))
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", &peer(index), "--initial-advertise-peer-urls", &peer(index)])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[index] = Some(child);
    }

    async fn ready(&mut self, index: usize) {
        let url = self.urls()[index].clone();
        let options = Options { request_timeout: Duration::from_secs(1), ..Options::default() };
        let client = Client::with_options([&url], options).unwrap();
        let deadline = Instant::now() + READY_WITHIN;
        while let Err(error) = client.health(&url).await {
            let ended = self.members[index].as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "member {index}: {error}; {ended:?}");
            // Another process: it can only be asked again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn kill(&mut self, index: usize) {
        let mut child = self.members[index].take().expect("the member is running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub async fn restart(&mut self, index: usize) {
        self.launch(index);
        self.ready(index).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            // Nothing can be done about a failure here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
