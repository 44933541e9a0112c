//! The JSON gateway, and what guards HTTP: by what etcd and grpc-gateway 2 answer.

mod member;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use futures::{SinkExt as _, Stream, StreamExt as _};
use member::Member;
use serde_json::{Value, json};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Error, Message},
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// One request on a connection of its own; `headers` are whole lines.
fn request(member: &Member, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", member.client)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = if headers.iter().any(|header| header.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let close = "Connection: close\r\n";
    // In one piece: a server that answers before it has read the rest resets the connection.
    let whole = format!("{method} {path} HTTP/1.1\r\n{host}{headers}{close}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(whole.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { code, head: head.to_ascii_lowercase(), body: body.into() }
}

fn post(member: &Member, path: &str, body: &str) -> Answer {
    request(member, "POST", path, &[], body)
}

/// A request whose body is sent piece by piece, and whose answer is read line by line.
struct Exchange {
    reader: BufReader<TcpStream>,
    head: String,
}

impl Exchange {
    fn open(member: &Member, path: &str, first: &str) -> Exchange {
        let mut stream = TcpStream::connect(("127.0.0.1", member.client)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let mut exchange = Exchange { reader: BufReader::new(stream), head: String::new() };
        exchange.send(first);
        loop {
            let mut line = String::new();
            exchange.reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                return exchange;
            }
            exchange.head += &line.to_ascii_lowercase();
        }
    }

    fn send(&mut self, text: &str) {
        write!(self.reader.get_mut(), "{:x}\r\n{text}\r\n", text.len()).unwrap();
    }

    fn end(&mut self) {
        write!(self.reader.get_mut(), "0\r\n\r\n").unwrap();
    }

    /// The next line of the answer; None at its end.
    fn next(&mut self) -> Option<Value> {
        let mut size = String::new();
        self.reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).unwrap();
        let text = String::from_utf8(chunk).unwrap();
        (size > 0).then(|| serde_json::from_str(text.trim()).unwrap())
    }
}

#[test]
fn a_call_is_json_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let put = post(&member, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","unknown":{"a":[1]}}"#);
    assert_eq!(put.code, 200);
    assert!(put.head.contains("content-type: application/json"), "{}", put.head);
    assert!(put.head.contains("grpc-metadata-content-type: application/grpc"), "{}", put.head);
    assert_eq!(put.json()["header"]["revision"], "2");
    let kv = json!({"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy"});
    for path in ["/v3/kv/range", "/v3beta/kv/range"] {
        // Either name of a field, a number as a number or as a string, either base64.
        for range in
            [r#"{"key":"Zm9v","range_end":"_w","limit":1}"#, r#"{"key":"Zm9v","rangeEnd":"/w==","limit":"1"} "#]
        {
            let range = post(&member, path, range);
            assert_eq!((range.code, &range.json()["kvs"], &range.json()["count"]), (200, &json!([kv]), &json!("1")));
            assert!(!range.body.contains("more"), "what has its default is left out: {}", range.body);
        }
    }
    let txn = r#"{"compare":[{"key":"Zm9v","target":"VERSION","version":"1"}],"success":[{"requestDeleteRange":{"key":"Zm9v","prevKv":true}}]}"#;
    let txn = post(&member, "/v3/kv/txn", txn).json();
    assert_eq!(txn["succeeded"], true);
    assert_eq!(
        txn["responses"],
        json!([{"response_delete_range": {
            "header": {"revision": "3"}, "deleted": "1", "prev_kvs": [kv],
        }}])
    );
    let grant = post(&member, "/v3/lease/grant", r#"{"TTL":"60","ID":"7"}"#).json();
    assert_eq!((&grant["ID"], &grant["TTL"]), (&json!("7"), &json!("60")));
    let members = post(&member, "/v3/cluster/member/list", "").json();
    assert_eq!(members["members"][0]["peerURLs"], json!([format!("http://127.0.0.1:{}", member.peer)]));
}

#[test]
fn an_error_has_grpc_gateways_form() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let refused = |method, path, headers: &[&str], body| {
        let answer = request(&member, method, path, headers, body);
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        (answer.code, answer.body)
    };
    let no_key = r#"{"code":3,"message":"etcdserver: key is not provided"}"#;
    assert_eq!(refused("POST", "/v3/kv/range", &[], "{}"), (400, no_key.into()));
    assert_eq!(refused("POST", "/v3/kv/range", &[], ""), (400, no_key.into()));
    let not_found = (404, r#"{"code":5,"message":"Not Found"}"#.to_string());
    for path in ["/v3/", "/v3/nothing", "/v3/kv/range/", "/v3beta/nothing"] {
        assert_eq!(refused("POST", path, &[], "{}"), not_found, "{path}");
    }
    let not_allowed = (501, r#"{"code":12,"message":"Method Not Allowed"}"#.to_string());
    for method in ["GET", "PUT"] {
        assert_eq!(refused(method, "/v3/kv/range", &[], ""), not_allowed);
    }
    let no_lease = r#"{"code":5,"message":"etcdserver: requested lease not found"}"#;
    assert_eq!(refused("POST", "/v3/lease/revoke", &[], r#"{"ID":9}"#), (404, no_lease.into()));
    for json in ["{", "[]", r#"{"key":3}"#] {
        let (code, body) = refused("POST", "/v3/kv/range", &[], json);
        assert_eq!(code, 400);
        assert!(body.starts_with(r#"{"code":3,"message":""#), "{body}");
    }
    let timeout = r#"{"code":3,"message":"invalid grpc-timeout: zz"}"#;
    assert_eq!(refused("POST", "/v3/kv/range", &["Grpc-Timeout: zz"], "{}"), (400, timeout.into()));
    let long = format!(r#"{{"key":"{}"}}"#, "A".repeat(5_000_000));
    assert_eq!(refused("POST", "/v3/kv/range", &[], &long).0, 429);
    let moved = post(&member, "/v3", "{}");
    assert_eq!(moved.code, 301);
    assert!(moved.head.contains("location: /v3/"));
}

#[test]
fn a_watch_is_a_line_for_each_response() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let mut watch = Exchange::open(&member, "/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#);
    assert!(watch.head.starts_with("http/1.1 200"), "{}", watch.head);
    assert!(watch.head.contains("grpc-metadata-content-type: application/grpc"), "{}", watch.head);
    assert_eq!(watch.next().unwrap()["result"]["created"], true);
    post(&member, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    let event =
        json!({"kv": {"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy"}});
    assert_eq!(watch.next().unwrap()["result"]["events"], json!([event]));
    // More requests may follow, in pieces.
    watch.send(r#"{"cancel_re"#);
    watch.send(r#"quest":{"watch_id":0}}{"create_request":{"key":"Zm9v","watch_id":"5"}}"#);
    assert_eq!(watch.next().unwrap()["result"]["canceled"], true);
    assert_eq!(watch.next().unwrap()["result"]["watch_id"], "5");
    // The watches outlive the requests.
    watch.end();
    post(&member, "/v3/kv/deleterange", r#"{"key":"Zm9v"}"#);
    let deleted = watch.next().unwrap();
    assert_eq!(deleted["result"]["events"][0]["type"], "DELETE");
    drop(watch);
    assert_eq!(member.stop(), Some(0));
}

#[test]
fn a_stream_ends_with_its_requests_or_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    post(&member, "/v3/lease/grant", r#"{"TTL":"60","ID":"7"}"#);
    let mut alive = Exchange::open(&member, "/v3/lease/keepalive", r#"{"ID":7}{"ID":"8"}"#);
    alive.end();
    let renewed = alive.next().unwrap()["result"].clone();
    assert_eq!((&renewed["ID"], &renewed["TTL"]), (&json!("7"), &json!("60")));
    let unknown = alive.next().unwrap()["result"].clone();
    assert_eq!((&unknown["ID"], unknown.get("TTL")), (&json!("8"), None));
    assert_eq!(alive.next(), None);

    let late = r#"{"error":{"code":4,"message":"context deadline exceeded"}}"#;
    let observe = request(&member, "POST", "/v3/election/observe", &["Grpc-Timeout: 50m"], r#"{"name":"YQ=="}"#);
    assert_eq!((observe.code, observe.body.trim()), (504, late), "before anything is observed");
    post(&member, "/v3/election/campaign", r#"{"name":"YQ==","value":"Yg==","lease":7}"#);
    let observe = request(&member, "POST", "/v3/election/observe", &["Grpc-Timeout: 500m"], r#"{"name":"YQ=="}"#);
    assert_eq!(observe.code, 200);
    assert!(observe.body.contains(r#""value":"Yg==""#) && observe.body.contains(late), "{}", observe.body);
}

#[test]
fn a_lock_that_is_not_got_in_time_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let locked = post(&member, "/v3/lock/lock", r#"{"name":"YQ=="}"#);
    assert_eq!(locked.code, 200);
    let late = request(&member, "POST", "/v3/lock/lock", &["Grpc-Timeout: 50m"], r#"{"name":"YQ=="}"#);
    assert_eq!((late.code, &*late.body), (504, r#"{"code":4,"message":"context deadline exceeded"}"#));
    // Else this one would wait for it, too.
    let key = &locked.json()["key"];
    assert_eq!(post(&member, "/v3/lock/unlock", &json!({ "key": key }).to_string()).code, 200);
    assert_eq!(post(&member, "/v3/lock/lock", r#"{"name":"YQ=="}"#).code, 200);
}

#[test]
fn pages_of_any_origin_may_ask_unless_they_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let allowed = "access-control-allow-origin: ";
    let member = Member::start(&dir.path().join("a"), &[]);
    for (method, path, code) in [
        ("OPTIONS", "/v3/kv/range", 200),
        ("OPTIONS", "/nowhere", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/health", 200),
        ("POST", "/v3/kv/range", 400),
    ] {
        let answer = request(&member, method, path, &["Origin: http://b:1"], "");
        assert_eq!(answer.code, code, "{method} {path}");
        assert!(answer.head.contains(&format!("{allowed}*\r\n")), "{method} {path}: {}", answer.head);
        assert!(answer.head.contains("access-control-allow-headers: accept, content-type, authorization"));
        assert!(answer.head.contains("access-control-allow-methods: post, get, options, put, delete"));
    }
    let member = Member::start(&dir.path().join("b"), &["--cors=http://a:1", "--host-whitelist=localhost,other"]);
    let listed = request(&member, "GET", "/health", &["Origin: http://a:1"], "");
    assert!(listed.head.contains(&format!("{allowed}http://a:1")), "{}", listed.head);
    let other = request(&member, "GET", "/health", &["Origin: http://b:1"], "");
    assert!(!other.head.contains(allowed), "{}", other.head);

    for (host, code) in [("other:2379", 200), ("evil.com", 421), ("127.0.0.1:2379", 421)] {
        assert_eq!(request(&member, "GET", "/health", &[&format!("Host: {host}")], "").code, code, "{host}");
    }
    let refused = request(&member, "POST", "/v3/kv/range", &["Host: evil.com"], "");
    assert_eq!(refused.code, 421);
    assert!(refused.body.contains(r#"--host-whitelist "evil.com""#), "{}", refused.body);
}

#[test]
fn the_gateway_may_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--enable-grpc-gateway=false"]);
    assert_eq!(post(&member, "/v3/kv/range", r#"{"key":"Zm9v"}"#).code, 404);
    assert_eq!(member.get("/health").0, 200);
}

#[test]
fn the_process_tells_its_variables() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let vars = request(&member, "GET", "/debug/vars", &[], "");
    assert!(vars.head.contains("content-type: application/json; charset=utf-8"));
    let vars = vars.json();
    assert!(vars["cmdline"].as_array().unwrap().len() > 1);
    assert!(vars["file_descriptor_limit"].as_u64().unwrap() > 0);
    assert_eq!(vars["raft.status"]["raftState"], "StateLeader");
    assert_eq!(vars["raft.status"]["id"], vars["raft.status"]["lead"]);
    assert_eq!(post(&member, "/debug/vars", "").code, 405);
}

#[tokio::test]
async fn a_websocket_carries_the_lines() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let open = async |path: &str| {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", member.client)).await.unwrap();
        client_async(format!("ws://localhost{path}"), stream).await.unwrap().0
    };
    let mut watch = open("/v3/watch").await;
    async fn next(socket: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) -> Value {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }
    watch.send(Message::text(r#"{"create_request":{"key":"Zm9v"}}"#)).await.unwrap();
    assert_eq!(next(&mut watch).await["result"]["created"], true);

    let mut put = open("/v3/kv/put").await;
    put.send(Message::text(r#"{"key":"Zm9v","value":"YmFy"}"#)).await.unwrap();
    assert_eq!(next(&mut put).await["header"]["revision"], "2");
    assert_eq!(next(&mut watch).await["result"]["events"][0]["kv"]["value"], "YmFy");
    // The call ends with its client: the connection is closed from the other side, too.
    watch.close(None).await.unwrap();
    let end = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    assert_eq!(member.stop(), Some(0));
}

#[test]
fn a_token_is_the_callers_in_json_too() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--bcrypt-cost=4"]);
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/user/add", r#"{"name":"u","password":"p"}"#),
        ("/v3/auth/role/add", r#"{"name":"jobs"}"#),
        // From "job/" to "job0": what the lock "job" is made of.
        (
            "/v3/auth/role/grant",
            r#"{"name":"jobs","perm":{"permType":"READWRITE","key":"am9iLw==","range_end":"am9iMA=="}}"#,
        ),
        ("/v3/auth/user/grant", r#"{"user":"u","role":"jobs"}"#),
        ("/v3/auth/enable", ""),
    ] {
        let answer = post(&member, path, body);
        // The role root need not be made.
        assert_eq!(answer.code, 200, "{path} {}", answer.body);
    }
    let nobody = post(&member, "/v3/lock/lock", r#"{"name":"am9i"}"#);
    assert!(nobody.code != 200 && nobody.body.contains("user name is empty"), "{}", nobody.body);
    let token = post(&member, "/v3/auth/authenticate", r#"{"name":"u","password":"p"}"#).json();
    let token = format!("Authorization: {}", token["token"].as_str().unwrap());
    let lock = |name| request(&member, "POST", "/v3/lock/lock", &[&token], &json!({ "name": name }).to_string());
    let own = lock("am9i");
    assert_eq!(own.code, 200, "{}", own.body);
    let other = lock("b3RoZXI=");
    assert!(other.code != 200 && other.body.contains("permission denied"), "{}", other.body);
    let wrong = request(&member, "POST", "/v3/kv/range", &["Authorization: none"], r#"{"key":"Zm9v"}"#);
    assert_eq!(wrong.code, 401);
    assert!(wrong.head.contains("www-authenticate: etcdserver: invalid auth token"), "{}", wrong.head);
}
