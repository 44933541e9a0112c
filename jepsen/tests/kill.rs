//! Nothing acknowledged is lost when members are killed.

mod binaries;

fn kill(binary: &str, nodes: &str, rounds: &str, further: &[&str]) {
    let arguments = ["kill", "--binary", binary, "--nodes", nodes, "--rounds", rounds];
    binaries::run(&[&arguments, further].concat());
}

#[test]
fn a_killed_member_comes_back_with_all_that_it_acknowledged() {
    kill(binaries::pintle().to_str().expect("the path is text"), "1", "6", &["--seed", "11"]);
}

#[test]
fn three_members_lose_nothing_when_some_or_all_are_killed() {
    kill(binaries::pintle().to_str().expect("the path is text"), "3", "6", &["--seed", "12"]);
}

/// A leader that lost the unsynced end of its log must not go on leading its term: the others have other entries there.
#[test]
fn three_members_lose_nothing_when_all_are_killed_again_and_again() {
    let further = ["--seed", "2", "--victims", "all"];
    kill(binaries::pintle().to_str().expect("the path is text"), "3", "20", &further);
}

/// What is demanded of Pintle is what etcd does.
#[test]
fn etcd_passes_too() {
    let etcd = binaries::of_etcd("etcd", "PINTLE_TEST_ETCD");
    kill(etcd.to_str().expect("the path is text"), "3", "3", &["--seed", "14"]);
}
