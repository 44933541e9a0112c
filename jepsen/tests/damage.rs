//! Damaged files are noticed.

mod binaries;

#[test]
fn no_damaged_file_leads_to_a_wrong_answer() {
    binaries::run(&["damage", "--binary", binaries::pintle().to_str().expect("the path is text")]);
}
