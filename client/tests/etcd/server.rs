//! Members of a cluster, etcd's or Pintle's, as child processes.
//!
//! Which etcd: `PINTLE_TEST_ETCD`, else the one on PATH. Which Pintle: `PINTLE_TEST_BIN`, else the one built beside
//! pintlectl.

#[path = "../../../server/tests/member/ports.rs"]
mod ports;
#[path = "../../../server/tests/member/readiness.rs"]
mod readiness;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use client::{Client, Options};

use self::{ports::free_port, readiness::Readiness};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// Whose members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Etcd,
    Pintle,
}

/// Runs each test on each store.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_etcd { $(#[tokio::test] async fn $name() { super::$name($crate::server::Store::Etcd).await })* }
        mod on_pintle { $(#[tokio::test] async fn $name() { super::$name($crate::server::Store::Pintle).await })* }
    };
}
pub(crate) use on_both;

impl Store {
    pub fn program(self) -> PathBuf {
        match self {
            Store::Etcd => etcd(),
            Store::Pintle => pintle(),
        }
    }
}

fn pintle() -> PathBuf {
    let named = env::var_os("PINTLE_TEST_BIN").map(PathBuf::from);
    let pintle = named.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_pintlectl")).with_file_name("pintle"));
    assert!(pintle.is_file(), "no pintle at {}: build it with `cargo build --release`", pintle.display());
    pintle
}

fn etcd() -> PathBuf {
    if let Some(path) = env::var_os("PINTLE_TEST_ETCD") {
        return path.into();
    }
    let found = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("etcd"))
        .find(|candidate| candidate.is_file());
    found.expect("these tests need etcd on PATH or in PINTLE_TEST_ETCD; script/setup --test installs it")
}

pub struct Etcd {
    store: Store,
    /// Flags besides the usual ones; of the data directory, where one is given.
    extra: Vec<String>,
    scheme: &'static str,
    /// What its client needs.
    pub options: Options,
    dir: tempfile::TempDir,
    /// Client and peer port of each member.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
    /// Of members that were launched and not yet waited for.
    readiness: Vec<Option<Readiness>>,
}

impl Etcd {
    /// A cluster of etcd's that is ready to answer.
    pub async fn start(size: usize) -> Etcd {
        Etcd::of(Store::Etcd, size).await
    }

    /// A cluster that is ready to answer.
    pub async fn of(store: Store, size: usize) -> Etcd {
        Etcd::prepare(store, size).run().await
    }

    /// A cluster that is still to be started.
    pub fn prepare(store: Store, size: usize) -> Etcd {
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let members = ports.iter().map(|_| None).collect();
        let readiness = ports.iter().map(|_| None).collect();
        let dir = tempfile::tempdir().unwrap();
        Etcd { store, extra: Vec::new(), scheme: "http", options: Options::default(), dir, ports, members, readiness }
    }

    pub fn flags(mut self, flags: &[&str]) -> Etcd {
        self.extra.extend(flags.iter().map(|flag| flag.to_string()));
        self
    }

    /// TLS for clients, who need these options.
    pub fn tls(mut self, options: Options) -> Etcd {
        self.scheme = "https";
        self.options = options;
        self
    }

    /// Makes a member's data directory out of a snapshot file.
    pub fn import(&self, index: usize, snapshot: impl AsRef<Path>) {
        let output = Command::new(self.store.program())
            .arg("import")
            .arg(snapshot.as_ref())
            .args(["--name", &format!("m{index}"), "--initial-cluster", &self.initial_cluster()])
            .args(["--initial-advertise-peer-urls", &self.peer_url(index), "--data-dir"])
            .arg(self.data_dir(index))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn initial_cluster(&self) -> String {
        let members = (0..self.ports.len()).map(|index| format!("m{index}={}", self.peer_url(index)));
        members.collect::<Vec<_>>().join(",")
    }

    pub async fn run(mut self) -> Etcd {
        for index in 0..self.ports.len() {
            self.launch(index);
        }
        for index in 0..self.ports.len() {
            self.ready(index).await;
        }
        self
    }

    /// Where a member keeps its data.
    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("m{index}"))
    }

    pub fn urls(&self) -> Vec<String> {
        self.ports.iter().map(|(client, _)| format!("{}://127.0.0.1:{client}", self.scheme)).collect()
    }

    pub fn peer_url(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[index].1)
    }

    pub fn client(&self) -> Client {
        Client::with_options(self.urls(), self.options.clone()).unwrap()
    }

    pub fn launch(&mut self, index: usize) {
        let peer = self.peer_url(index);
        let url = &self.urls()[index];
        let log = std::fs::File::create(self.dir.path().join(format!("m{index}.log"))).unwrap();
        let mut command = Command::new(self.store.program());
        command
            .args(["--name", &format!("m{index}"), "--initial-cluster", &self.initial_cluster()])
            .arg("--data-dir")
            .arg(self.data_dir(index))
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "error"])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.readiness[index] = Some(Readiness::of(&mut command));
        self.members[index] = Some(command.spawn().unwrap());
    }

    async fn ready(&mut self, index: usize) {
        let url = self.urls()[index].clone();
        let readiness = self.readiness[index].take().expect("the member was launched");
        // The test's own tasks go on meanwhile.
        let is_ready = tokio::task::spawn_blocking(move || readiness.wait()).await.unwrap();
        assert!(
            is_ready,
            "member {index} does not become ready: {:?}",
            self.members[index].as_mut().unwrap().try_wait()
        );
        let options = Options { request_timeout: READY_WITHIN, ..self.options.clone() };
        Client::with_options([&url], options).unwrap().health(&url).await.unwrap();
    }

    pub fn kill(&mut self, index: usize) {
        let mut child = self.members[index].take().expect("the member is running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The member does nothing until it is resumed.
    pub fn pause(&self, index: usize) {
        self.signal(index, "-STOP");
    }

    pub fn resume(&self, index: usize) {
        self.signal(index, "-CONT");
    }

    fn signal(&self, index: usize, signal: &str) {
        let child = self.members[index].as_ref().expect("the member is running");
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
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
