//! TLS and Unix sockets for clients, with certificates of the test's own.

mod certs;
mod member;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
};

use certs::{Authority, Issued};
use member::{Member, command, free_ports, refusal};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// A member with TLS for clients; the last of several equal flags counts.
fn secured(dir: &Path, server: &Issued, more: &[String]) -> Member {
    let [client, peer] = free_ports();
    secured_on(dir, client, peer, server, more)
}

fn secured_on(dir: &Path, client: u16, peer: u16, server: &Issued, more: &[String]) -> Member {
    let own = [
        format!("--listen-client-urls=https://127.0.0.1:{client}"),
        format!("--advertise-client-urls=https://127.0.0.1:{client}"),
        format!("--cert-file={}", server.cert.display()),
        format!("--key-file={}", server.key.display()),
    ];
    let all: Vec<&str> = own.iter().chain(more).map(String::as_str).collect();
    Member::start_on(&dir.join("data"), client, peer, &all)
}

fn is_served(port: u16, authority: &Authority, shown: Option<&Issued>) -> bool {
    let answer = certs::get(port, "/health", &authority.file, shown);
    answer.is_ok_and(|(answer, _)| answer.contains(r#"{"health":"true","reason":""}"#))
}

#[test]
fn clients_are_served_over_tls_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let member = secured(dir.path(), &authority.issue_here("server"), &[]);
    assert!(is_served(member.client, &authority, None));
    let other = Authority::new(dir.path(), "other");
    assert!(certs::get(member.client, "/health", &other.file, None).is_err());
    let mut plain = TcpStream::connect(("127.0.0.1", member.client)).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    assert_eq!(member.stop(), Some(0));
}

#[test]
fn a_client_shows_a_certificate_of_the_right_authority() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let other = Authority::new(dir.path(), "other");
    let list = dir.path().join("revoked.crl");
    fs::write(&list, authority.revoke(&[3])).unwrap();
    let flags = [
        "--client-cert-auth".to_string(),
        format!("--trusted-ca-file={}", authority.file.display()),
        format!("--client-crl-file={}", list.display()),
    ];
    let member = secured(dir.path(), &authority.issue_here("server"), &flags);
    let good = authority.issue("alice", &[], 2, 30);
    let served = |shown: Option<&Issued>| is_served(member.client, &authority, shown);
    assert!(served(Some(&good)));
    assert!(!served(None));
    assert!(!served(Some(&other.issue("alice", &[], 4, 30))), "another authority");
    assert!(!served(Some(&authority.issue("alice", &[], 5, 0))), "expired");
    let revoked = authority.issue("alice", &[], 3, 30);
    assert!(!served(Some(&revoked)));
    assert!(member.wait_for_log("rejected connection on client endpoint").contains("127.0.0.1"));

    fs::write(&list, authority.revoke(&[2, 999])).unwrap();
    assert!(served(Some(&revoked)) && !served(Some(&good)), "the list is read again");
    fs::write(&list, "half").unwrap();
    assert!(served(Some(&revoked)) && !served(Some(&good)), "a bad list changes nothing");
    member.wait_for_log("cannot use the changed TLS files");
}

#[test]
fn a_client_certificate_names_an_allowed_host() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let flags = [
        format!("--trusted-ca-file={}", authority.file.display()),
        "--client-cert-allowed-hostname=a.example.com,10.1.2.3".to_string(),
    ];
    let member = secured(dir.path(), &authority.issue_here("server"), &flags);
    let served = |hosts: &[&str]| is_served(member.client, &authority, Some(&authority.issue("alice", hosts, 2, 30)));
    assert!(served(&["a.example.com"]) && served(&["*.example.com"]) && served(&["10.1.2.3"]));
    assert!(!served(&["b.example.com"]) && !served(&[]) && !served(&["10.1.2.4"]));
}

#[test]
fn a_new_certificate_is_taken_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let server = authority.issue_here("server");
    let member = secured(dir.path(), &server, &[]);
    let shown = || certs::get(member.client, "/health", &authority.file, None).unwrap().1;
    let first = shown();
    let next = authority.issue("next", &["127.0.0.1"], 8, 30);
    fs::write(&server.cert, &next.cert_pem).unwrap();
    assert_eq!(shown(), first, "a certificate without its key is not taken");
    member.wait_for_log("keeping what was read before");
    fs::write(&server.key, &next.key_pem).unwrap();
    assert_eq!(shown(), CertificateDer::from_pem_slice(next.cert_pem.as_bytes()).unwrap().to_vec());
    member.wait_for_log("read the changed TLS files");
}

#[test]
fn a_member_makes_its_own_certificate_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let [client, peer] = free_ports();
    let urls = [
        "--auto-tls".to_string(),
        format!("--listen-client-urls=https://127.0.0.1:{client}"),
        format!("--advertise-client-urls=https://127.0.0.1:{client}"),
    ];
    let arguments: Vec<&str> = urls.iter().map(String::as_str).collect();
    let member = Member::start_on(dir.path(), client, peer, &arguments);
    let made = dir.path().join("fixtures/client/cert.pem");
    let kept = fs::read(&made).unwrap();
    assert_eq!(member.stop(), Some(0));
    let member = Member::start_on(dir.path(), client, peer, &arguments);
    assert_eq!(fs::read(&made).unwrap(), kept);
    assert_eq!(member.stop(), Some(0));
}

#[test]
fn one_address_takes_both_schemes() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let [client, peer] = free_ports();
    let both = format!("--listen-client-urls=http://127.0.0.1:{client},https://127.0.0.1:{client}");
    let member = secured_on(dir.path(), client, peer, &authority.issue_here("server"), &[both]);
    assert!(is_served(member.client, &authority, None));
    assert_eq!(member.get("/health").0, 200);
    member.wait_for_log("ignoring key and cert files");
}

#[test]
fn a_unix_socket_is_served_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("client.sock");
    let url = format!("--listen-client-urls=unix://{}", socket.display());
    for _ in 0..2 {
        let [client, peer] = free_ports();
        let peer = if dir.path().join("peer").exists() {
            fs::read_to_string(dir.path().join("peer")).unwrap().parse().unwrap()
        } else {
            fs::write(dir.path().join("peer"), peer.to_string()).unwrap();
            peer
        };
        let member = Member::start_on(&dir.path().join("data"), client, peer, &[&url]);
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert_eq!(member.stop(), Some(0));
        assert!(!socket.exists());
        // What a crash leaves behind does not stand in the way.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
    }
}

#[test]
fn bad_files_are_named_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let authority = Authority::new(dir.path(), "ca");
    let (server, other) = (authority.issue_here("server"), authority.issue_here("other"));
    let text = |cert: &Path, key: &Path, more: &str| {
        let [client, peer] = free_ports();
        let mut command = command(&data, client, peer);
        command.args([
            format!("--listen-client-urls=https://127.0.0.1:{client}"),
            format!("--cert-file={}", cert.display()),
            format!("--key-file={}", key.display()),
            more.into(),
        ]);
        let (code, text) = refusal(&mut command);
        assert_eq!(code, 1);
        text
    };
    let missing = dir.path().join("missing.pem");
    assert!(text(&missing, &server.key, "--client-cert-auth=false").contains("missing.pem"));
    assert!(text(&server.cert, &other.key, "--client-cert-auth=false").contains("other-7-key.pem"));
    assert!(text(&server.cert, &server.cert, "--client-cert-auth=false").contains("server-7-cert.pem"));
    assert!(text(&server.cert, &server.key, "--trusted-ca-file=nowhere.pem").contains("nowhere.pem"));
    assert!(!data.exists());
}
