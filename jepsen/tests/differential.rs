//! Pintle answers as etcd does, to some thousands of random requests.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const REQUESTS: &str = "5000";

/// A program named by an environment variable, else the one of that name in the folders given.
fn program(variable: &str, name: &str, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    match env::var_os(variable) {
        Some(path) => Some(path.into()),
        None => folders.map(|folder| folder.join(name)).find(|path| path.is_file()),
    }
}

fn etcd() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    program("PINTLE_TEST_ETCD", "etcd", env::split_paths(&path))
        .expect("there is no etcd to compare with: script/setup installs it, or PINTLE_TEST_ETCD names one")
}

fn pintle() -> PathBuf {
    let harness = Path::new(env!("CARGO_BIN_EXE_pintle-jepsen"));
    program("PINTLE_TEST_BIN", "pintle", harness.parent().map(PathBuf::from).into_iter())
        .expect("there is no pintle beside the harness: cargo build --release builds it, or PINTLE_TEST_BIN names one")
}

fn no_difference_is_found_with(seed: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_pintle-jepsen"))
        .arg("differential")
        .arg("--etcd")
        .arg(etcd())
        .arg("--pintle")
        .arg(pintle())
        .args(["--requests", REQUESTS, "--seed", seed])
        .output()
        .expect("the harness runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
}

#[test]
fn etcd_and_pintle_answer_alike_from_one_seed() {
    no_difference_is_found_with("1");
}

#[test]
fn etcd_and_pintle_answer_alike_from_another_seed() {
    no_difference_is_found_with("2");
}
