//! What clients are told is right while members on machines of their own are struck by every fault. Needs root.

mod binaries;

fn test(binary: &str, workload: &str, nemesis: &str, time: &str) {
    let arguments = ["test", "--binary", binary, "--workload", workload, "--nemesis", nemesis, "--time", time];
    binaries::run(&arguments);
}

#[test]
fn all_workloads_hold_for_a_minute_of_mixed_faults() {
    test(binaries::pintle().to_str().expect("the path is text"), "mixed", "mixed", "60");
}

#[test]
fn what_a_run_has_kept_passes_again() {
    let pintle = binaries::pintle();
    let store = tempfile::tempdir().expect("there is a temporary folder");
    let store = store.path().to_str().expect("the path is text");
    let run = ["test", "--workload", "watch", "--nemesis", "kill", "--time", "20", "--store", store];
    binaries::run(&[&run[..], &["--binary", pintle.to_str().expect("the path is text")]].concat());
    binaries::run(&["check", &format!("{store}/watch-kill-1/history.jsonl")]);
}

/// What is demanded of Pintle is what etcd does.
#[test]
fn etcd_holds_too() {
    let etcd = binaries::of_etcd("etcd", "PINTLE_TEST_ETCD");
    test(etcd.to_str().expect("the path is text"), "register", "kill", "10");
}
