//! The process: endpoints, signals, and what it refuses to start with.

mod member;

use std::{collections::HashSet, fs, net::TcpListener};

use member::{Member, command, free_ports, get, refusal};

#[test]
fn a_port_is_given_to_one_test_only() {
    let ports: HashSet<u16> = (0..250).flat_map(|_| free_ports::<2>()).collect();
    assert_eq!(ports.len(), 500);
}

#[test]
fn the_endpoints_answer_on_the_client_port() {
    let dir = tempfile::tempdir().unwrap();
    let [metrics] = free_ports();
    let member = Member::start(dir.path(), &[&format!("--listen-metrics-urls=http://127.0.0.1:{metrics}")]);
    member.wait_for_log("cluster version is updated");
    let (code, version) = member.get("/version");
    assert_eq!(code, 200);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["etcdserver"], "3.7.1");
    assert_eq!(version["etcdcluster"], "3.7.0");
    assert_eq!(version["pintle"], env!("CARGO_PKG_VERSION"));
    assert_eq!(member.get("/health"), (200, r#"{"health":"true","reason":""}"#.into()));
    assert_eq!(member.get("/livez"), (200, "ok\n".into()));
    assert_eq!(member.get("/livez/serializable_read"), (200, "ok\n".into()));
    let (code, verbose) = member.get("/readyz?verbose&exclude=non_learner");
    assert_eq!(code, 200);
    assert_eq!(verbose, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\nok\n");
    assert_eq!(member.get("/nowhere").0, 404);
    for port in [member.client, metrics] {
        let (code, page) = get(port, "/metrics");
        assert_eq!(code, 200);
        assert!(page.contains("\netcd_server_has_leader 1\n"), "{page}");
    }
    assert_eq!(get(metrics, "/health").0, 200);
    let (code, members) = get(member.peer, "/members");
    assert_eq!(code, 200);
    let members: serde_json::Value = serde_json::from_str(&members).unwrap();
    assert_eq!(members[0]["peerURLs"][0], format!("http://127.0.0.1:{}", member.peer));
    assert_eq!(get(member.peer, "/version").0, 200);
    assert_eq!(member.stop(), Some(0));
}

#[test]
fn http_may_have_a_listener_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let [http] = free_ports();
    let member = Member::start(dir.path(), &[&format!("--listen-client-http-urls=http://127.0.0.1:{http}")]);
    assert_eq!(get(http, "/health").0, 200);
    assert_eq!(member.get("/health").0, 404);
}

#[test]
fn both_signals_end_it_in_order() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let member = Member::start(dir.path(), &[]);
        member.signal(signal);
        assert_eq!(member.exit_code(), Some(0));
    }
}

#[test]
fn version_and_help_are_printed() {
    let binary = || std::process::Command::new(env!("CARGO_BIN_EXE_pintle"));
    let version = binary().arg("-version").output().unwrap();
    assert!(version.status.success());
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("etcd Version: 3.7.1\n"));
    let help = binary().arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--initial-cluster"));
}

#[test]
fn a_wrong_flag_is_refused_with_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = refusal(command(dir.path(), 1, 2).arg("--hartbeat-interval=1"));
    assert_eq!(code, 2);
    assert!(text.contains("--hartbeat-interval") && text.contains("--heartbeat-interval"), "{text}");
    let (code, text) = refusal(command(dir.path(), 1, 2).arg("--election-timeout=100"));
    assert_eq!(code, 1);
    assert!(text.contains("--election-timeout[100ms]"), "{text}");
    let (code, text) = refusal(command(dir.path(), 1, 2).arg("--discovery=x"));
    assert_eq!(code, 2);
    assert!(text.contains("--discovery"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let [free] = free_ports();
    let taken = held.local_addr().unwrap().port();
    for (client, peer, flag) in [(taken, free, "--listen-client-urls"), (free, taken, "--listen-peer-urls")] {
        let (code, text) = refusal(&mut command(dir.path(), client, peer));
        assert_eq!(code, 1);
        assert!(text.contains(flag) && text.contains(&format!("127.0.0.1:{taken}")), "{text}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let [client] = free_ports();
    // A second process of the same member, so that only the lock stands against it.
    let mut second = command(dir.path(), client, member.peer);
    let [listen_peer] = free_ports();
    let (code, text) = refusal(second.arg(format!("--listen-peer-urls=http://127.0.0.1:{listen_peer}")));
    assert_eq!(code, 1);
    assert!(text.contains("another process uses this data directory"), "{text}");
    assert_eq!(member.stop(), Some(0));
}

#[test]
fn a_directory_of_etcd_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("member/snap")).unwrap();
    fs::write(dir.path().join("member/snap/db"), "").unwrap();
    let [client, peer] = free_ports();
    let (code, text) = refusal(&mut command(dir.path(), client, peer));
    assert_eq!(code, 1);
    assert!(text.contains("written by etcd"), "{text}");
}

#[test]
fn a_directory_of_another_member_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let client = member.client;
    assert_eq!(member.stop(), Some(0));
    let [other_peer] = free_ports();
    let (code, text) = refusal(&mut command(dir.path(), client, other_peer));
    assert_eq!(code, 1);
    assert!(text.contains("belongs to member"), "{text}");
}

#[test]
fn a_damaged_store_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let (client, peer) = (member.client, member.peer);
    assert_eq!(member.stop(), Some(0));
    let mut damaged = 0;
    for generation in fs::read_dir(dir.path().join("member/store")).unwrap() {
        let generation = generation.unwrap().path();
        let files = generation.is_dir().then(|| fs::read_dir(generation).unwrap());
        for file in files.into_iter().flatten().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "sst") {
                let mut bytes = fs::read(&file).unwrap();
                bytes[..32].iter_mut().for_each(|byte| *byte ^= 0xff);
                fs::write(&file, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0, "the store has files after an orderly stop");
    let (code, text) = refusal(&mut command(dir.path(), client, peer));
    assert_eq!(code, 1);
    assert!(text.contains("damaged") && text.contains("member/store"), "{text}");
}

#[test]
fn the_log_goes_where_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let outputs = format!("--log-outputs=stderr,{}", log.display());
    let member = Member::start(&dir.path().join("data"), &[&outputs, "--log-format=console", "--max-wals=3"]);
    let warning = member.wait_for_log("--max-wals");
    assert!(warning.contains("\twarn\t"), "{warning}");
    assert_eq!(member.stop(), Some(0));
    let written = fs::read_to_string(log).unwrap();
    assert!(written.contains("ready to serve client requests") && written.contains(&warning), "{written}");
}
