//! A member as a process of its own, in a directory of its own.

#![allow(dead_code)] // Each test file uses a part of it.

mod ports;
pub mod readiness;

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;

const READY: &str = "ready to serve client requests";
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Member {
    pub dir: PathBuf,
    pub client: u16,
    pub peer: u16,
    process: Child,
    log: mpsc::Receiver<String>,
    seen: RefCell<Vec<String>>,
}

/// Several of [`ports::free_port`].
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| ports::free_port())
}

/// The command line of a single member.
pub fn command(dir: &Path, client: u16, peer: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pintle"));
    command.args([
        format!("--data-dir={}", dir.display()),
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
    ]);
    command
}

/// Runs a member that is to refuse, up to its end.
pub fn refusal(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().expect("it exits"), String::from_utf8(stderr).unwrap())
}

impl Member {
    pub fn start(dir: &Path, arguments: &[&str]) -> Member {
        let [client, peer] = free_ports();
        Member::start_on(dir, client, peer, arguments)
    }

    /// Returns when it serves clients.
    pub fn start_on(dir: &Path, client: u16, peer: u16, arguments: &[&str]) -> Member {
        let mut command = command(dir, client, peer);
        command.args(arguments);
        Member::start_command(dir, client, peer, command)
    }

    /// Like [`Member::start_on`], with a command line of the test's own.
    pub fn start_command(dir: &Path, client: u16, peer: u16, mut command: Command) -> Member {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let member = Member { dir: dir.into(), client, peer, process, log, seen: RefCell::default() };
        member.wait_for_log(READY);
        member
    }

    /// The first line of the log that holds `text`; waits for it.
    pub fn wait_for_log(&self, text: &str) -> String {
        let mut seen = self.seen.borrow_mut();
        if let Some(line) = seen.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        while let Ok(line) = self.log.recv_timeout(PATIENCE) {
            seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("the log does not say {text:?}, but:\n{}", seen.join("\n"));
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.client, path)
    }

    /// Bytes of it that are in memory.
    pub fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the process is a child that has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(self.process.id() as i32, signal) }, 0);
    }

    /// Asks it to stop; returns the exit code.
    pub fn stop(self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.exit_code()
    }

    /// Waits for its end.
    pub fn exit_code(mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It has ended already where the test stopped it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Places of three members.
pub struct Places {
    pub dirs: [TempDir; 3],
    pub clients: [u16; 3],
    pub peers: [u16; 3],
}

impl Places {
    pub fn new() -> Places {
        let [a, b, c, d, e, f] = free_ports();
        Places { dirs: std::array::from_fn(|_| TempDir::new().unwrap()), clients: [a, b, c], peers: [d, e, f] }
    }

    pub fn start(&self, i: usize, arguments: &[&str]) -> Member {
        let url = |i: usize| format!("m{i}=http://127.0.0.1:{}", self.peers[i]);
        let cluster = format!("--initial-cluster={},{},{}", url(0), url(1), url(2));
        let name = format!("--name=m{i}");
        let arguments: Vec<&str> = [cluster.as_str(), name.as_str()].iter().chain(arguments).copied().collect();
        Member::start_on(self.dirs[i].path(), self.clients[i], self.peers[i], &arguments)
    }

    pub fn start_all(&self, arguments: &[&str]) -> Vec<Member> {
        std::thread::scope(|scope| {
            let starting: Vec<_> = (0..3).map(|i| scope.spawn(move || self.start(i, arguments))).collect();
            starting.into_iter().map(|member| member.join().unwrap()).collect()
        })
    }
}

/// HTTP/1.1 GET: code and body.
pub fn get(port: u16, path: &str) -> (u16, String) {
    get_with(port, path, &[])
}

/// HTTP/1.1 GET, with whole header lines: code and body.
pub fn get_with(port: u16, path: &str, headers: &[String]) -> (u16, String) {
    let (head, body) = get_whole(port, path, headers);
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body)
}

/// HTTP/1.1 GET, with whole header lines: head and body.
pub fn get_whole(port: u16, path: &str, headers: &[String]) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.into(), body.into())
}

/// HTTP/1.1 POST, with whole header lines: code and body.
pub fn post(port: u16, path: &str, headers: &[String], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.into())
}
