//! Nothing acknowledged is lost when members are added, replaced and removed.

mod binaries;

fn reconfigure(binary: std::path::PathBuf, further: &[&str]) {
    let binary = binary.to_str().expect("the path is text");
    binaries::run(&[&["reconfigure", "--binary", binary], further].concat());
}

/// What is demanded of Pintle is what etcd does.
#[test]
fn etcd_passes_too() {
    reconfigure(binaries::of_etcd("etcd", "PINTLE_TEST_ETCD"), &["--largest", "3", "--seed", "1"]);
}
