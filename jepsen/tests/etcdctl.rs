//! etcdctl prints the same for Pintle and etcd.

mod binaries;

fn compare(nodes: &str) {
    let [etcdctl, etcd, pintle] = [
        binaries::of_etcd("etcdctl", "PINTLE_TEST_ETCDCTL"),
        binaries::of_etcd("etcd", "PINTLE_TEST_ETCD"),
        binaries::pintle(),
    ];
    let path = |path: &std::path::Path| path.to_str().expect("the path is text").to_owned();
    binaries::run(&[
        "etcdctl",
        "--nodes",
        nodes,
        "--etcdctl",
        &path(&etcdctl),
        "--etcd",
        &path(&etcd),
        "--pintle",
        &path(&pintle),
    ]);
}

#[test]
fn etcdctl_prints_the_same_for_one_member() {
    compare("1");
}

#[test]
fn etcdctl_prints_the_same_for_three_members() {
    compare("3");
}
