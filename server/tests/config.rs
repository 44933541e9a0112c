//! What a member is told: flags, environment and configuration file.

mod member;

use std::fs;

use member::{Member, command, free_ports, refusal};

#[test]
fn a_configuration_file_goes_before_flags_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let [client, peer, metrics] = free_ports();
    let file = dir.path().join("etcd.yml");
    let text = format!(
        "name: from-file\n\
         data-dir: {}\n\
         listen-client-urls: http://127.0.0.1:{client}\n\
         advertise-client-urls: http://127.0.0.1:{client}\n\
         listen-peer-urls: http://127.0.0.1:{peer}\n\
         initial-advertise-peer-urls: http://127.0.0.1:{peer}\n\
         listen-metrics-urls: http://127.0.0.1:{metrics}\n\
         heartbeat-interval: 50\n\
         watch-progress-notify-interval: 60000000000\n\
         log-outputs: [stderr]\n\
         feature-gates: StopGRPCServiceOnDefrag=true\n\
         nonsense: 1\n",
        dir.path().join("data").display()
    );
    fs::write(&file, text).unwrap();
    let member =
        Member::start_on(dir.path(), client, peer, &["--name=from-flag", &format!("--config-file={}", file.display())]);
    member.wait_for_log("loaded server configuration");
    member.wait_for_log("nonsense");
    assert!(dir.path().join("data").join("member").exists());
    let (code, members) = member::get(member.peer, "/members");
    assert_eq!(code, 200);
    assert!(members.contains("from-file"), "{members}");
    let (_, page) = member::get(metrics, "/metrics");
    let gate = "etcd_server_feature_enabled{name=\"StopGRPCServiceOnDefrag\",stage=\"ALPHA\"} 1";
    assert!(page.contains(gate), "{page}");
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.yml");
    let run = |file: &std::path::Path| refusal(command(dir.path(), 1, 2).env("ETCD_CONFIG_FILE", file));
    let (code, text) = run(&file);
    assert!(code != 0 && text.contains("No such file"), "{text}");
    fs::write(&file, "snapshot-count: many\n").unwrap();
    let (code, text) = run(&file);
    assert!(code != 0 && text.contains("configYAML.Config.snapshot-count of type uint64"), "{text}");
}

#[test]
fn a_feature_gate_that_etcd_lacks_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = refusal(command(dir.path(), 1, 2).arg("--feature-gates=Nonsense=true"));
    assert!(code != 0 && text.contains("unrecognized feature gate: Nonsense"), "{text}");
}

#[test]
fn the_log_goes_to_files_and_level_fatal_leaves_only_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("pintle.log");
    let output = format!("--log-outputs={},stderr", log.display());
    let member = Member::start(&dir.path().join("data"), &[&output, "--enable-log-rotation"]);
    assert_eq!(member.stop(), Some(0));
    assert!(fs::read_to_string(&log).unwrap().contains("ready to serve client requests"));

    let (code, text) = refusal(command(dir.path(), 1, 2).arg("--enable-log-rotation"));
    assert!(code != 0 && text.contains("--log-outputs requires a single file path"), "{text}");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let (code, text) = refusal(command(&dir.path().join("other"), port, port).arg("--log-level=fatal"));
    let lines: Vec<&str> = text.lines().collect();
    assert!(code != 0 && lines.len() == 1 && lines[0].contains(r#""level":"fatal""#), "{text}");
}
