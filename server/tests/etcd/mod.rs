//! The real etcd and its tools, which `script/setup --test` brings.

#![allow(dead_code)] // Each test file uses a part of it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::member::{free_ports, get, readiness::Readiness};

/// An etcd as a process of its own.
pub struct Etcd {
    client: u16,
    process: Child,
}

/// A tool that stands beside etcd.
fn tool(name: &str) -> Command {
    let etcd = std::env::var_os("PINTLE_TEST_ETCD").map(PathBuf::from);
    let cache = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/pintle/etcd/etcd");
    let path = etcd.unwrap_or_else(cache).with_file_name(name);
    assert!(path.exists(), "{} is missing: script/setup --test brings it", path.display());
    Command::new(path)
}

fn run(name: &str, arguments: &[&str]) -> String {
    let output = tool(name).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{name} {arguments:?}: {stdout}{stderr}");
    stdout
}

/// What etcdctl says when it fails.
pub fn refused(arguments: &[&str]) -> String {
    let output = tool("etcdctl").args(arguments).output().unwrap();
    assert!(!output.status.success(), "etcdctl {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub fn etcdctl(arguments: &[&str]) -> String {
    // On a machine that is busy with other tests, a hash of a password takes longer than etcdctl waits by itself.
    run("etcdctl", &[&["--dial-timeout=30s", "--command-timeout=30s"], arguments].concat())
}

pub fn etcdutl(arguments: &[&str]) -> String {
    run("etcdutl", arguments)
}

impl Etcd {
    /// Starts a single member in `dir`.
    pub fn start(dir: &Path, arguments: &[&str]) -> Etcd {
        let [client, peer] = free_ports();
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = tool("etcd");
        command.args([
            "--name",
            "n",
            "--initial-cluster",
            &format!("n={peer_url}"),
            "--data-dir",
            dir.to_str().unwrap(),
        ]);
        command.args(["--initial-advertise-peer-urls", &peer_url, "--listen-peer-urls", &peer_url]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(arguments);
        Etcd::run(command, client)
    }

    /// Returns when it serves clients.
    fn run(mut command: Command, client: u16) -> Etcd {
        let readiness = Readiness::of(&mut command);
        let process = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut etcd = Etcd { client, process };
        assert!(readiness.wait(), "etcd does not become ready: {:?}", etcd.process.try_wait());
        assert_eq!(get(client, "/health").0, 200);
        etcd
    }

    pub fn client(&self) -> u16 {
        self.client
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Restores a backup into `dir` and starts an etcd there.
    pub fn restore(backup: &Path, dir: &Path) -> Etcd {
        Etcd::restore_with(backup, dir, &[])
    }

    /// The same with more flags for the restore.
    pub fn restore_with(backup: &Path, dir: &Path, flags: &[&str]) -> Etcd {
        let [client, peer] = free_ports();
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let dir = dir.to_str().unwrap();
        let cluster = ["--name", "n", "--initial-cluster", &format!("n={peer_url}"), "--data-dir", dir];
        let advertised = ["--initial-advertise-peer-urls", &peer_url];
        let backup = ["snapshot", "restore", backup.to_str().unwrap()];
        etcdutl(&[&backup[..], &cluster[..], &advertised[..], flags].concat());
        let mut command = tool("etcd");
        command.args(cluster).args(advertised).args(["--listen-peer-urls", &peer_url]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        Etcd::run(command, client)
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
