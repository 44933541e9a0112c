//! Nothing acknowledged is lost when the power of members is cut. Needs root: each member has a network and a disk of its
//! own.

mod binaries;

#[test]
fn three_members_lose_nothing_when_their_power_is_cut() {
    let pintle = binaries::pintle();
    let pintle = pintle.to_str().expect("the path is text");
    binaries::run(&["power-cut", "--binary", pintle, "--rounds", "6", "--check-every", "3", "--seed", "3"]);
}

/// Any part of what a disk had not been told to sync may be gone, in any order.
#[test]
fn three_members_lose_nothing_when_their_disks_lose_any_part_of_their_caches() {
    let pintle = binaries::pintle();
    let pintle = pintle.to_str().expect("the path is text");
    let nemesis = ["--nemesis", "power-cut-any-subset", "--hold-ms", "100"];
    binaries::run(&[&["rounds", "--binary", pintle, "--rounds", "4", "--check-every", "2"], &nemesis[..]].concat());
}
