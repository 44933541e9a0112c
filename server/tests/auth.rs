//! Every door, knocked at by everyone: each RPC of each service, and the gateway, by callers with and without rights.
//!
//! `doors/pintle.txt` holds the answers of etcd 3.7's rules, `doors/etcd-3.5.txt` those that the etcd of the tests gives,
//! so that the difference is the two releases' and can be read. With `PINTLE_REWRITE=1` both are written anew, to be
//! read before they are committed.
//!
//! | caller | may |
//! |---|---|
//! | nobody, forged, gone | nothing: no token, one that was never given, one of a user who was deleted since |
//! | idle | nothing, but is a user |
//! | reader | read `r/…` |
//! | writer | write `w/…` |
//! | root | everything |

mod doors;
mod etcd;
mod member;

use std::{collections::BTreeSet, fs, path::Path};

use doors::{CALLERS, DOORS, World};
use etcd::Etcd;
use member::Member;
use prost_reflect::DescriptorPool;

/// What may be done without being anyone.
const OPEN: [&str; 2] = ["Auth/AuthStatus", "Auth/Authenticate"];

fn check(name: &str, found: &str) {
    let path = Path::new("tests/doors").join(name);
    if std::env::var_os("PINTLE_REWRITE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    for (expected, found) in expected.lines().zip(found.lines()) {
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(found, expected, "{name}");
}

#[tokio::test]
async fn no_door_stands_open() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--bcrypt-cost=4"]);
    let table = World::new(member.client).await.table().await;
    check("pintle.txt", &table);
    for line in table.lines().skip(1) {
        let mut cells = line.split(" | ");
        let door = cells.next().unwrap().trim();
        if !OPEN.iter().any(|open| door.starts_with(open)) {
            let strangers: Vec<&str> = cells.take(3).map(str::trim).collect();
            assert!(strangers.iter().all(|answer| *answer != "ok"), "{line}");
        }
    }
}

#[tokio::test]
async fn etcd_answers_as_it_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path(), &["--bcrypt-cost=4"]);
    check("etcd-3.5.txt", &World::new(etcd.client()).await.table().await);
}

/// So that an RPC that is added is not forgotten here.
#[test]
fn the_table_has_every_rpc() {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let rpcs: BTreeSet<String> = pool
        .services()
        .flat_map(|service| {
            service.methods().map(|rpc| format!("{}/{}", service.name(), rpc.name())).collect::<Vec<_>>()
        })
        .collect();
    let knocked: BTreeSet<String> = DOORS
        .iter()
        .map(|door| door.split(' ').next().unwrap())
        .filter(|door| !door.starts_with("POST"))
        .map(String::from)
        .collect();
    assert_eq!(rpcs.difference(&knocked).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(CALLERS.len(), 7);
}
