//! TLS between members, with certificates of the test's own.

mod certs;
mod member;

use std::{path::Path, thread};

use certs::{Authority, Issued};
use member::{Member, free_ports};

/// Three members that start at once; `flags` are those of each.
fn cluster(dir: &Path, flags: impl Fn(usize) -> Vec<String>) -> Vec<Member> {
    let clients: [u16; 3] = free_ports();
    let peers: [u16; 3] = free_ports();
    let url = |i: usize| format!("https://127.0.0.1:{}", peers[i]);
    let all = (0..3).map(|i| format!("m{i}={}", url(i))).collect::<Vec<_>>().join(",");
    let starting: Vec<_> = (0..3)
        .map(|i| {
            let own = [
                format!("--name=m{i}"),
                format!("--listen-peer-urls={}", url(i)),
                format!("--initial-advertise-peer-urls={}", url(i)),
                format!("--initial-cluster={all}"),
            ];
            let (dir, flags) = (dir.join(format!("m{i}")), flags(i));
            thread::spawn(move || {
                let all: Vec<&str> = own.iter().chain(&flags).map(String::as_str).collect();
                Member::start_on(&dir, clients[i], peers[i], &all)
            })
        })
        .collect();
    starting.into_iter().map(|starting| starting.join().unwrap()).collect()
}

fn with(authority: &Authority, issued: &Issued) -> Vec<String> {
    vec![
        format!("--peer-cert-file={}", issued.cert.display()),
        format!("--peer-key-file={}", issued.key.display()),
        format!("--peer-trusted-ca-file={}", authority.file.display()),
        "--peer-client-cert-auth".into(),
    ]
}

#[test]
fn members_know_each_other_by_their_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let issued = ["one", "two", "three"].map(|name| authority.issue_here(name));
    let allowed = "--peer-cert-allowed-cn=one,two,three".to_string();
    let members = cluster(dir.path(), |i| [with(&authority, &issued[i]), vec![allowed.clone()]].concat());
    for member in &members {
        assert_eq!(member.get("/health").0, 200, "it reads through a quorum");
    }
    let reads = |shown: Option<&Issued>| {
        let answer = certs::get(members[0].peer, "/members", &authority.file, shown);
        answer.is_ok_and(|(answer, _)| answer.contains("clientURLs"))
    };
    assert!(reads(Some(&issued[1])));
    assert!(!reads(None));
    assert!(!reads(Some(&authority.issue_here("four"))), "another name");
    assert!(!reads(Some(&authority.issue("two", &["127.0.0.1"], 9, 0))), "expired");
    assert!(!reads(Some(&authority.issue("two", &["10.1.2.3"], 9, 30))), "from another address");
    assert!(reads(Some(&authority.issue("two", &["10.1.2.3", "localhost"], 9, 30))));
    members[0].wait_for_log("rejected connection on peer endpoint");
}

#[test]
fn a_member_of_another_authority_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(dir.path(), "ca"), Authority::new(dir.path(), "other"));
    let members = cluster(dir.path(), |i| {
        let by = if i == 2 { &other } else { &authority };
        with(by, &by.issue_here(&format!("m{i}")))
    });
    assert_eq!(members[0].get("/health").0, 200);
    assert_eq!(members[1].get("/health").0, 200);
    assert_eq!(members[2].get("/health").0, 503);
}

#[test]
fn members_may_make_their_own_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let members = cluster(dir.path(), |_| vec!["--peer-auto-tls".into()]);
    for member in &members {
        assert_eq!(member.get("/health").0, 200);
        assert!(member.dir.join("fixtures/peer/cert.pem").exists());
    }
}
