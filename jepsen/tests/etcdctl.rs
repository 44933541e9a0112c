//! etcdctl prints the same for Pintle and etcd, and pintlectl what etcdctl prints.

mod binaries;

fn compare(nodes: &str, others: &[&str]) {
    let [etcdctl, etcd, pintle] = [
        binaries::of_etcd("etcdctl", "PINTLE_TEST_ETCDCTL"),
        binaries::of_etcd("etcd", "PINTLE_TEST_ETCD"),
        binaries::pintle(),
    ];
    let path = |path: &std::path::Path| path.to_str().expect("the path is text").to_owned();
    let (etcdctl, etcd, pintle) = (path(&etcdctl), path(&etcd), path(&pintle));
    let arguments = ["etcdctl", "--nodes", nodes, "--etcdctl", &etcdctl, "--etcd", &etcd, "--pintle", &pintle];
    binaries::run(&[arguments.as_slice(), others].concat());
}

#[test]
fn etcdctl_prints_the_same_for_one_member() {
    compare("1", &[]);
}

#[test]
fn etcdctl_prints_the_same_for_three_members() {
    compare("3", &[]);
}

#[test]
fn pintlectl_prints_what_etcdctl_prints_for_one_member() {
    let pintlectl = binaries::pintlectl();
    compare("1", &["--pintlectl", pintlectl.to_str().expect("the path is text")]);
}

#[test]
fn pintlectl_prints_what_etcdctl_prints_for_three_members() {
    let pintlectl = binaries::pintlectl();
    compare("3", &["--pintlectl", pintlectl.to_str().expect("the path is text")]);
}
