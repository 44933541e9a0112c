//! What load seldom makes comes out right, too.

mod binaries;

#[test]
fn every_probe_holds() {
    binaries::run(&["probe", "--binary", binaries::pintle().to_str().expect("the path is text")]);
}
