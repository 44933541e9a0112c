//! TLS, users and tokens.

#[path = "../../../server/tests/certs/mod.rs"]
pub mod certs;

use std::{fs, time::Duration};

use certs::Authority;
use client::{
    Client, Credentials, Delete, Error, EtcdError, Get, Keys, Options, Put, Tls, Watch, authpb::permission::Type,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio::time::timeout;

use crate::server::{Etcd, Store, on_both};

on_both! {
    only_whom_the_client_trusts_is_talked_to,
    a_certificate_that_is_its_own_authority_is_trusted_when_it_is_named,
    a_socket_is_an_endpoint,
    users_do_what_their_roles_let_them,
    a_token_that_has_expired_is_replaced,
    a_watch_is_resumed_with_another_token,
}

const SOON: Duration = Duration::from_secs(20);

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn with_tls(tls: Tls) -> Options {
    Options { tls: Some(tls), request_timeout: Duration::from_secs(2), ..Options::default() }
}

async fn only_whom_the_client_trusts_is_talked_to(store: Store) {
    let dir = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(dir.path(), "ca"), Authority::new(dir.path(), "other"));
    let (server, client) = (authority.issue_here("server"), authority.issue_here("client"));
    let shown = Tls::with_ca(&authority.file).identity(&client.cert, &client.key);
    let flags = ["--cert-file", text(&server.cert), "--key-file", text(&server.key), "--client-cert-auth"];
    let authorities = ["--trusted-ca-file", text(&authority.file)];
    let etcd = Etcd::prepare(store, 1).flags(&flags).flags(&authorities).tls(with_tls(shown.clone())).run().await;
    etcd.client().put(Put::new("k", "v")).await.unwrap();

    let fails = async |tls: Tls, with: &str| {
        let error = Client::with_options(etcd.urls(), with_tls(tls)).unwrap().get(Get::key("k")).await.unwrap_err();
        assert!(error.to_string().contains(with), "{error}");
        error
    };
    fails(Tls::with_ca(&other.file), "UnknownIssuer").await;
    fails(Tls { server_name: Some("elsewhere".to_string()), ..shown.clone() }, "elsewhere").await;
    // Without a certificate of its own the client is turned away.
    let turned_away = Client::with_options(etcd.urls(), with_tls(Tls::with_ca(&authority.file))).unwrap();
    turned_away.get(Get::key("k")).await.unwrap_err();
    let plain: Vec<String> = etcd.urls().iter().map(|url| url.replace("https:", "http:")).collect();
    let error = Client::with_options(plain, Options::default()).unwrap().put(Put::new("k", "v")).await.unwrap_err();
    assert!(error.to_string().contains("connection broke: "), "{error}");
    for tls in [
        Tls { server_name: Some("localhost".to_string()), ..shown.clone() },
        Tls { ca: None, insecure_skip_verify: true, ..shown },
    ] {
        let client = Client::with_options(etcd.urls(), with_tls(tls)).unwrap();
        assert_eq!(client.get(Get::key("k")).await.unwrap().count, 1);
    }
}

async fn a_certificate_that_is_its_own_authority_is_trusted_when_it_is_named(store: Store) {
    // As `openssl req -x509` makes them.
    let dir = tempfile::tempdir().unwrap();
    let (shown, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let mut params = CertificateParams::new(["127.0.0.1".to_string()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    fs::write(&shown, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    let flags = ["--cert-file", text(&shown), "--key-file", text(&key_file)];
    let etcd = Etcd::prepare(store, 1).flags(&flags).tls(with_tls(Tls::with_ca(&shown))).run().await;
    let named = Client::with_options(etcd.urls(), with_tls(Tls::with_ca(&shown))).unwrap();
    named.put(Put::new("k", "v")).await.unwrap();
    let elsewhere = Tls { server_name: Some("elsewhere".to_string()), ..Tls::with_ca(&shown) };
    let elsewhere = Client::with_options(etcd.urls(), with_tls(elsewhere)).unwrap();
    assert!(matches!(elsewhere.get(Get::key("k")).await, Err(Error::Unreachable(_))));
}

async fn a_socket_is_an_endpoint(store: Store) {
    let dir = tempfile::tempdir().unwrap();
    // The path has to look like host:port to etcd.
    let socket = format!("unix://{}/localhost:1", dir.path().display());
    let etcd = Etcd::prepare(store, 1).flags(&["--listen-client-urls", &socket]);
    let http = etcd.urls()[0].clone();
    let etcd = etcd.flags(&["--listen-client-urls", &format!("{http},{socket}")]).run().await;
    let client = Client::connect([&socket]).unwrap();
    client.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(etcd.client().get(Get::key("k")).await.unwrap().count, 1);
    client.status(&socket).await.unwrap();
}

fn as_user(etcd: &Etcd, user: &str, password: &str) -> Client {
    let credentials = Credentials::Password { user: user.to_string(), password: password.to_string() };
    Client::with_options(etcd.urls(), Options { credentials: Some(credentials), ..Options::default() }).unwrap()
}

/// Makes root, and a user who may read and write what begins with `a/`.
async fn enable_auth(etcd: &Etcd) -> (Client, Client) {
    let anyone = etcd.client();
    anyone.user_add("root", Some("secret")).await.unwrap();
    anyone.user_grant_role("root", "root").await.unwrap();
    anyone.user_add("ann", Some("word")).await.unwrap();
    anyone.role_add("a").await.unwrap();
    anyone.role_grant_permission("a", Type::Readwrite, Keys::prefix("a/")).await.unwrap();
    anyone.user_grant_role("ann", "a").await.unwrap();
    anyone.auth_enable().await.unwrap();
    (as_user(etcd, "root", "secret"), as_user(etcd, "ann", "word"))
}

async fn users_do_what_their_roles_let_them(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    // Before auth is enabled a name does no harm.
    as_user(&etcd, "ann", "word").put(Put::new("a/1", "v")).await.unwrap();
    let (root, ann) = enable_auth(&etcd).await;
    assert!(root.auth_status().await.unwrap().enabled);
    assert_eq!(root.user_list().await.unwrap().users, ["ann", "root"]);
    assert_eq!(root.user_get("ann").await.unwrap().roles, ["a"]);
    assert_eq!(root.role_list().await.unwrap().roles, ["a"]);
    assert_eq!(root.role_get("a").await.unwrap().perm[0].key, "a/");

    ann.put(Put::new("a/1", "v")).await.unwrap();
    let denied = Err(Error::Etcd(EtcdError::PermissionDenied));
    assert_eq!(ann.put(Put::new("b", "v")).await.map(|_| ()), denied);
    assert_eq!(ann.get(Get::key("b")).await.map(|_| ()), denied);
    let wrong = as_user(&etcd, "ann", "wrong").get(Get::key("a/1")).await.unwrap_err();
    assert_eq!(wrong, Error::Etcd(EtcdError::AuthFailed));
    let nobody = etcd.client().get(Get::key("a/1")).await.unwrap_err();
    assert_eq!(nobody, Error::Etcd(EtcdError::UserEmpty));

    // The same token serves while users and roles change under it.
    root.role_revoke_permission("a", Keys::prefix("a/")).await.unwrap();
    assert_eq!(ann.delete(Delete::key("a/1")).await.map(|_| ()), denied);
    root.user_change_password("ann", "other").await.unwrap();
    root.user_revoke_role("ann", "a").await.unwrap();
    root.role_delete("a").await.unwrap();
    root.user_delete("ann").await.unwrap();
    root.auth_disable().await.unwrap();
    root.put(Put::new("a/1", "v")).await.unwrap();
}

/// With `--auth-token-ttl 1`. A delay: a token lives for as long as it is used, and a while after, and asking whether it
/// has expired uses it.
async fn token_expires() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

async fn a_token_that_has_expired_is_replaced(store: Store) {
    let etcd = Etcd::prepare(store, 1).flags(&["--auth-token-ttl", "1"]).run().await;
    let (root, ann) = enable_auth(&etcd).await;
    ann.put(Put::new("a/1", "v")).await.unwrap();
    token_expires().await;
    ann.put(Put::new("a/2", "v")).await.unwrap();
    assert_eq!(root.get(Get::prefix("a/").count_only()).await.unwrap().count, 2);
    let old = root.authenticate("ann", "word").await.unwrap().token;
    let options = Options { credentials: Some(Credentials::Token(old)), ..Options::default() };
    let fixed = Client::with_options(etcd.urls(), options).unwrap();
    fixed.get(Get::key("a/1")).await.unwrap();
    token_expires().await;
    assert_eq!(fixed.get(Get::key("a/1")).await.unwrap_err(), Error::Etcd(EtcdError::InvalidAuthToken));
}

async fn a_watch_is_resumed_with_another_token(store: Store) {
    let mut etcd = Etcd::of(store, 1).await;
    let (_root, ann) = enable_auth(&etcd).await;
    let mut watcher = ann.watch(Watch::prefix("a/")).await.unwrap();
    ann.put(Put::new("a/1", "v")).await.unwrap();
    timeout(SOON, watcher.next()).await.unwrap().unwrap();
    // Simple tokens are not kept over a restart.
    etcd.kill(0);
    etcd.launch(0);
    let put = timeout(SOON, async { while ann.put(Put::new("a/2", "v")).await.is_err() {} });
    put.await.unwrap();
    let seen = timeout(SOON, watcher.next()).await.unwrap().unwrap();
    assert_eq!(seen.events[0].kv.as_ref().unwrap().key, "a/2");
    let denied = ann.watch(Watch::key("b")).await;
    assert!(denied.is_err(), "{denied:?}");
}
