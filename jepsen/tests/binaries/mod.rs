//! The programs that the tests run.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn harness() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_pintle-jepsen"))
}

/// Pintle as `PINTLE_TEST_BIN` names it, or as it was built beside the harness.
#[allow(dead_code, reason = "a comparison of etcd with itself runs no Pintle")]
pub fn pintle() -> PathBuf {
    let named = env::var_os("PINTLE_TEST_BIN").map(PathBuf::from);
    let pintle = named.unwrap_or_else(|| harness().with_file_name("pintle"));
    assert!(pintle.is_file(), "no pintle at {}: build it with `cargo build --release -p server`", pintle.display());
    pintle
}

/// pintlectl as it was built beside the harness.
#[allow(dead_code, reason = "one test runs it")]
pub fn pintlectl() -> PathBuf {
    let pintlectl = harness().with_file_name("pintlectl");
    assert!(
        pintlectl.is_file(),
        "no pintlectl at {}: build it with `cargo build --release -p client`",
        pintlectl.display()
    );
    pintlectl
}

/// etcd or etcdctl, as the variable names it, or in the PATH.
#[allow(dead_code, reason = "not every test needs etcd")]
pub fn of_etcd(name: &str, variable: &str) -> PathBuf {
    let named = env::var_os(variable).map(PathBuf::from);
    let in_path = || env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file());
    let found = named.filter(|path| path.is_file()).or_else(in_path);
    found.unwrap_or_else(|| panic!("no {name}: run `script/setup`, or name it in {variable}"))
}

/// Runs the harness, which must not be content, and gives what it says.
#[allow(dead_code, reason = "one test looks for it")]
pub fn run_refused(arguments: &[&str]) -> String {
    let output = Command::new(harness()).args(arguments).output().expect("the harness runs");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert_eq!(output.status.code(), Some(1), "pintle-jepsen {arguments:?}\n{said}");
    said
}

/// Runs the harness, which must be content. What it finds is in its output.
pub fn run(arguments: &[&str]) {
    let output = Command::new(harness()).args(arguments).output().expect("the harness runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "pintle-jepsen {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    println!("{stdout}");
}
