//! etcd and Pintle get the same requests in JSON, and answer the same: HTTP code, headers, and the lines of the body.
//!
//! Left out of the comparison are the values that no two clusters share, and the words in which broken JSON is refused.

#[allow(dead_code, reason = "the other tests use the rest")]
mod binaries;
#[path = "../../server/tests/member/ports.rs"]
mod ports;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use self::ports::free_port;

const PATIENCE: Duration = Duration::from_secs(30);
const READY: &str = "ready to serve client requests";
/// One request a line: method, path, headers, body. Empty lines and those that begin with # are passed over.
const SCRIPT: &str = include_str!("gateway.script");
/// Values that no two clusters share, or that etcd 3.7 has and 3.5 has not.
const MASKED: &[&str] = &[
    "cluster_id",
    "member_id",
    "raft_term",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "dbSize",
    "dbSizeInUse",
    "leader",
    "version",
    "hash",
    "token",
];
const SINCE_3_6: &[&str] = &["storageVersion", "dbSizeQuota", "downgradeInfo", "hash_revision"];
const HEADERS: &[&str] = &[
    "content-type",
    "grpc-metadata-content-type",
    "location",
    "x-content-type-options",
    "www-authenticate",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
];

struct Server {
    port: u16,
    process: Child,
}

impl Server {
    fn start(binary: &Path, dir: &Path) -> Server {
        let port = free_port();
        let [client, peer] = [port, free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let mut process = Command::new(binary)
            .args([format!("--data-dir={}", dir.display()), format!("--initial-cluster=default={peer}")])
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(log.any(|line| line.contains(READY)), "{} does not serve", binary.display());
        // The rest of the log is read and forgotten, so that the server can go on writing it.
        std::thread::spawn(move || log.for_each(drop));
        Server { port, process }
    }

    fn send(&self, request: &Request) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let Request { method, path, headers, body } = request;
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}");
        // In one piece: a server that answers before it has read the rest resets the connection.
        let whole = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(whole.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        Answer::of(&text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that failed has nothing more to say about it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Request {
    method: &'static str,
    path: &'static str,
    headers: Vec<&'static str>,
    body: &'static str,
}

impl Request {
    fn parse(line: &'static str) -> Request {
        let mut words = line.splitn(3, ' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut rest = words.next().unwrap_or("");
        let mut headers = Vec::new();
        while let Some((header, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            if !header.contains(':') {
                break;
            }
            headers.push(header);
            rest = after.trim_start();
        }
        Request { method, path, headers, body: rest }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: String,
    headers: Vec<String>,
    /// Lines of JSON with what is not compared masked; as they are if they are no JSON.
    body: Vec<String>,
}

impl Answer {
    fn of(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
        let (status, headers) = head.split_once("\r\n").unwrap();
        let code = status.split(' ').nth(1).unwrap().to_string();
        let headers: Vec<String> = headers.lines().map(|line| line.replacen(": ", ":", 1)).collect();
        let named = |line: &&String| {
            let name = line.split(':').next().unwrap().to_ascii_lowercase();
            HEADERS.contains(&name.as_str())
        };
        let mut compared: Vec<String> = headers.iter().filter(named).map(|line| lower_name(line)).collect();
        compared.sort();
        let is_chunked = headers.iter().any(|line| line.eq_ignore_ascii_case("transfer-encoding:chunked"));
        let body = if is_chunked { joined(body) } else { body.to_string() };
        let body = body.lines().map(masked).collect();
        Answer { code, headers: compared, body }
    }
}

fn lower_name(line: &str) -> String {
    let (name, value) = line.split_once(':').unwrap();
    format!("{}:{value}", name.to_ascii_lowercase())
}

/// The chunks of a body, put together.
fn joined(mut chunked: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunked.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&rest[..size]);
        chunked = rest[size..].trim_start_matches("\r\n");
    }
    body
}

fn masked(line: &str) -> String {
    let Ok(mut value) = serde_json::from_str(line) else { return line.to_string() };
    mask(&mut value);
    value.to_string()
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !SINCE_3_6.contains(&name.as_str()));
            // A member, and a lease whose time goes by.
            let own: &[&str] = match fields {
                _ if fields.contains_key("peerURLs") => &["ID", "peerURLs", "clientURLs"],
                _ if fields.contains_key("grantedTTL") => &["TTL"],
                _ => &[],
            };
            for name in own {
                fields.entry(*name).and_modify(|value| *value = "*".into());
            }
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(_) | Value::Number(_) if MASKED.contains(&name.as_str()) => *value = "*".into(),
                    // In whose words broken JSON is refused: Go's change from build to build.
                    Value::String(text) if name == "message" && is_about_json(text) => *value = "bad JSON".into(),
                    // How a call that was late ended within etcd.
                    Value::String(text) if text.contains("RST_STREAM") => *value = "context deadline exceeded".into(),
                    value => mask(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(mask),
        _ => {}
    }
}

fn is_about_json(text: &str) -> bool {
    ["proto:", "invalid character", "unexpected EOF", "invalid binary header"]
        .iter()
        .any(|begin| text.starts_with(begin))
}

fn compare(etcd: PathBuf, pintle: PathBuf) {
    let dirs = [(); 2].map(|_| tempfile::tempdir().unwrap());
    let etcd = Server::start(&etcd, dirs[0].path());
    let pintle = Server::start(&pintle, dirs[1].path());
    let lines = SCRIPT.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut differences = Vec::new();
    for line in lines {
        let request = Request::parse(line);
        let (expected, got) = std::thread::scope(|scope| {
            let expected = scope.spawn(|| etcd.send(&request));
            let got = pintle.send(&request);
            (expected.join().unwrap(), got)
        });
        if expected != got {
            differences.push(format!("{line}\n  etcd   {expected:?}\n  Pintle {got:?}"));
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn both_answer_json_alike() {
    compare(binaries::of_etcd("etcd", "PINTLE_TEST_ETCD"), binaries::pintle());
}
