//! Whatever a crash leaves of a short run is recovered, and what is done wrong on purpose is found.

mod binaries;

/// Less than what the command does by itself: it is to take less than a minute.
fn images(scenario: &str, writes: &str, share: &str, further: &[&str]) {
    let arguments = ["images", "--scenario", scenario, "--writes", writes, "--share", share];
    binaries::run(&[&arguments, further].concat());
}

#[test]
fn one_member_recovers_from_all_that_a_crash_may_leave() {
    images("single", "240", "15", &[]);
}

#[test]
fn three_members_keep_their_promises_with_all_that_crashes_may_leave() {
    images("three", "480", "1", &[]);
}

#[test]
fn a_member_recovers_from_a_second_crash_soon_after_the_first() {
    images("twice", "120", "10", &["--again", "6"]);
}

#[test]
fn what_is_done_wrong_is_found() {
    for double in ["log-not-synced", "store-not-synced", "directories-not-synced", "applied-apart"] {
        images("single", "240", "2", &["--double", double]);
    }
}
