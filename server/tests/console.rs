//! The console's data: what it tells, and that it tells nobody what the API would not.

mod member;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use member::{Member, Places, command, free_ports, get_with, post, refusal};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: [&str; 4] = ["", "app.js", "style.css", "icon.svg"];

/// A call of the gateway that must succeed.
fn call(port: u16, token: &str, path: &str, message: Value) -> Value {
    let (code, answer) = post(port, &format!("/v3/{path}"), &authorization(token), &message.to_string());
    assert_eq!(code, 200, "{path}: {answer}");
    serde_json::from_str(&answer).unwrap()
}

fn authorization(token: &str) -> Vec<String> {
    if token.is_empty() { Vec::new() } else { vec![format!("Authorization: {token}")] }
}

fn data(port: u16, token: &str, what: &str) -> (u16, Value) {
    let (code, answer) = get_with(port, &format!("/console/api/{what}"), &authorization(token));
    (code, serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{what}: {error}: {answer}")))
}

fn good(port: u16, token: &str, what: &str) -> Value {
    let (code, answer) = data(port, token, what);
    assert_eq!(code, 200, "{what}: {answer}");
    answer
}

fn put(port: u16, token: &str, key: &str, value: &str) {
    let standard = base64::prelude::BASE64_STANDARD;
    call(port, token, "kv/put", json!({ "key": standard.encode(key), "value": standard.encode(value) }));
}

fn prefixes(prefix: &str) -> String {
    format!("prefixes?prefix={}", BASE64.encode(prefix))
}

fn history(key: &str) -> String {
    format!("history?key={}", BASE64.encode(key))
}

/// Asks until the answer is as wanted.
fn until(ask: impl Fn() -> Value, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let answer = ask();
        if is_wanted(&answer) {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn there_is_no_console_unless_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    for path in ["/console", "/console/", "/console/app.js", "/console/api/overview", "/console/api/history?key=YQ"] {
        assert_eq!(member.get(path).0, 404, "{path}");
    }
}

#[test]
fn without_the_gateway_the_console_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [client, peer] = free_ports();
    let mut pintle: Command = command(dir.path(), client, peer);
    let (code, told) = refusal(pintle.args(["--console", "--enable-grpc-gateway=false"]));
    assert_eq!(code, 1);
    assert!(told.contains("--console needs the JSON gateway"), "{told}");
}

#[test]
fn the_pages_headers_forbid_what_is_not_of_this_origin() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    for file in PAGE {
        let (head, body) = member::get_whole(member.client, &format!("/console/{file}"), &[]);
        assert!(head.starts_with("HTTP/1.1 200"), "{file}: {head}");
        for line in ["content-security-policy: default-src 'self';", "x-content-type-options: nosniff"] {
            assert!(head.contains(line), "{file}: {head}");
        }
        assert!(!head.contains("set-cookie") && !body.is_empty(), "{file}: {head}");
    }
    let (head, _) = member::get_whole(member.client, "/console", &[]);
    assert!(head.contains("location: /console/"), "{head}");
}

#[test]
fn the_overview_shows_every_member_and_who_is_down() {
    let places = Places::new();
    let mut members = places.start_all(&["--console"]);
    let port = members[0].client;
    put(port, "", "a", "1");
    let all = until(
        || good(port, "", "overview"),
        |answer| {
            let states = answer["members"].as_array().unwrap();
            states.len() == 3 && states.iter().all(|member| member["state"]["revision"] == 2)
        },
    );
    let names: Vec<&str> =
        all["members"].as_array().unwrap().iter().map(|member| member["name"].as_str().unwrap()).collect();
    assert!(["m0", "m1", "m2"].iter().all(|name| names.contains(name)), "{all}");
    assert_eq!(members.pop().unwrap().stop(), Some(0));
    let two = good(port, "", "overview");
    let lost = two["members"].as_array().unwrap().iter().find(|member| member["name"] == "m2").unwrap();
    assert!(lost["state"].is_null() && lost["error"].is_string(), "{two}");
}

#[test]
fn sizes_and_writes_are_told_by_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    for i in 0..5 {
        put(member.client, "", &format!("/app/a/{i}"), "1234");
    }
    put(member.client, "", "/app/b", "12");
    put(member.client, "", "/other", "");
    let below = good(member.client, "", &prefixes("/app/"));
    let child = |i: usize| {
        (
            below["children"][i]["name"].clone(),
            below["children"][i]["keys"].clone(),
            below["children"][i]["bytes"].clone(),
        )
    };
    assert_eq!(child(0), (BASE64.encode("/app/a/").into(), 5.into(), 60.into()));
    assert_eq!(child(1), (BASE64.encode("/app/b").into(), 1.into(), 8.into()));
    assert_eq!((&below["keys"], &below["is_cut"]), (&6.into(), &false.into()));
    // A rate is of seconds that are over.
    let all = until(|| good(member.client, "", &prefixes("")), |answer| answer["writes_per_second"] == 0.7);
    assert_eq!(all["children"][0]["writes_per_second"], 0.6, "{all}");
}

#[test]
fn the_record_goes_on_each_second() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let writes =
        |series: &Value| series.as_array().unwrap().iter().map(|point| point["writes"].as_f64().unwrap()).sum::<f64>();
    let series = until(
        || {
            put(member.client, "", "k", "v");
            good(member.client, "", "series")
        },
        |series| series.as_array().unwrap().len() >= 2 && writes(series) > 0.0,
    );
    let last = series.as_array().unwrap().last().unwrap();
    assert!(last["write_p50"].as_f64().unwrap() > 0.0 && last["size_bytes"].as_i64().unwrap() > 0, "{last}");
    let since = good(member.client, "", &format!("series?since={}", last["at"]));
    assert!(since.as_array().unwrap().len() < series.as_array().unwrap().len());
}

#[test]
fn a_keys_history_holds_its_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    put(member.client, "", "k", "1");
    call(member.client, "", "kv/deleterange", json!({ "key": "aw==" }));
    put(member.client, "", "k", "2");
    let told = good(member.client, "", &history("k"));
    let values: Vec<&Value> = told["versions"].as_array().unwrap().iter().map(|version| &version["value"]).collect();
    assert_eq!(values, [&json!(BASE64.encode("2")), &Value::Null, &json!(BASE64.encode("1"))], "{told}");
    assert_eq!(told["more"], false);
}

#[test]
fn wrong_questions_are_answered_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    for (what, reason) in [
        ("history?key=*", "key=\"*\""),
        ("history", "key is not provided"),
        ("history?key=YQ&before=x", "before=\"x\" is no whole number"),
        ("series?since=soon", "since=\"soon\" is no whole number"),
        ("prefixes?prefix=%00", "prefix=\"\\0\""),
    ] {
        let (code, answer) = data(member.client, "", what);
        assert_eq!(code, 400, "{what}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(reason), "{what}: {answer}");
    }
}

/// Users root and reader, who may read `/a/`; gives their tokens.
fn with_users(port: u16) -> (String, String) {
    let user = |name: &str| call(port, "", "auth/user/add", json!({ "name": name, "password": "secret" }));
    user("root");
    user("reader");
    call(port, "", "auth/user/grant", json!({ "user": "root", "role": "root" }));
    call(port, "", "auth/role/add", json!({ "name": "a" }));
    let permission = json!({ "permType": "READ", "key": "L2Ev", "range_end": "L2Ew" });
    call(port, "", "auth/role/grant", json!({ "name": "a", "perm": permission }));
    call(port, "", "auth/user/grant", json!({ "user": "reader", "role": "a" }));
    call(port, "", "auth/enable", json!({}));
    let token = |name: &str| {
        let answer = call(port, "", "auth/authenticate", json!({ "name": name, "password": "secret" }));
        answer["token"].as_str().unwrap().to_string()
    };
    (token("root"), token("reader"))
}

#[test]
fn with_auth_on_nobody_is_told_what_the_api_would_not_tell() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console", "--bcrypt-cost=4"]);
    let port = member.client;
    call(port, "", "auth/role/add", json!({ "name": "root" }));
    put(port, "", "/a/mine", "1");
    put(port, "", "/b/theirs", "2");
    let (root, reader) = with_users(port);
    let every =
        ["overview".into(), "series".into(), prefixes(""), prefixes("/a/"), history("/a/mine"), history("/b/theirs")];
    for what in &every {
        assert_eq!(data(port, "", what).0, 400, "{what}: without a token");
        assert_eq!(data(port, "forged.1", what).0, 401, "{what}: with a forged one");
        good(port, &root, what);
    }
    for what in ["overview".into(), "series".into(), prefixes("/a/"), prefixes("/a/m"), history("/a/mine")] {
        good(port, &reader, &what);
    }
    for what in [prefixes(""), prefixes("/"), prefixes("/a"), prefixes("/b/"), history("/b/theirs"), history("/a")] {
        let (code, answer) = data(port, &reader, &what);
        assert_eq!((code, &answer["message"]), (403, &json!("etcdserver: permission denied")), "{what}");
    }
}
