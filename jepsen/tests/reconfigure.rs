//! Nothing acknowledged is lost when members are added, replaced and removed.

mod binaries;

fn reconfigure(binary: std::path::PathBuf, further: &[&str]) {
    let binary = binary.to_str().expect("the path is text");
    binaries::run(&[&["reconfigure", "--binary", binary], further].concat());
}

#[test]
fn members_come_and_go_under_load() {
    reconfigure(binaries::pintle(), &["--largest", "5", "--seed", "3"]);
}

/// What is demanded of Pintle is what etcd does.
#[test]
fn etcd_passes_too() {
    reconfigure(binaries::of_etcd("etcd", "PINTLE_TEST_ETCD"), &["--largest", "3", "--seed", "1"]);
}
