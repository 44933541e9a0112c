//! The files of the configuration, the identity and the certificates.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = dir.path().join("file");
    std::fs::write(&path, data).expect("a file");
    server::fuzzing::config_file(&path);
    server::fuzzing::certificates(&path, data);
    // Last: it writes what it has read.
    server::fuzzing::identity(&path);
});
