//! etcd's database, bucket by bucket, into a store. What stands where: `etcd_schema.rs`.
//!
//! Members, the cluster's version and the place in the log are left out: the store begins in a new cluster.

use std::collections::BTreeSet;

use prost::Message;
use proto::{
    LeaseId,
    authpb::{Role, User},
    etcdserverpb::AlarmMember,
    mvccpb::KeyValue,
};
use serde::Deserialize;
use storage::{Compaction, Kind, LeaseInfo, Loader};

use super::{ImportError, Progress};
use crate::{
    bbolt::{BboltError, Item, Place, ReadBucket, Reader},
    etcd_schema::{self, Lease, bucket, meta},
};

/// Of etcd's `raftpb.ConfState`, those who count for a majority.
#[derive(Deserialize)]
struct ConfState {
    #[serde(default)]
    voters: Vec<u64>,
}

/// Of etcd's `membership.Member`, whether it counts for a majority.
#[derive(Deserialize)]
struct Member {
    id: u64,
    #[serde(rename = "isLearner", default)]
    is_learner: bool,
}

/// What a database says of itself.
#[derive(Debug, Default)]
pub struct Described {
    /// The log is applied up to here.
    pub index: u64,
    /// Those who count for a majority.
    pub voters: BTreeSet<u64>,
    pub compaction: Compaction,
}

/// What has been read.
#[derive(Debug, Default)]
pub struct Loaded {
    pub versions: u64,
    pub leases: u64,
}

/// Users and roles, gathered from three buckets.
#[derive(Default)]
struct Auth {
    is_enabled: bool,
    revision: u64,
    users: Vec<User>,
    roles: Vec<Role>,
}

pub fn describe(reader: &Reader) -> Result<Described, ImportError> {
    let (mut described, mut members, mut found) = (Described::default(), BTreeSet::new(), BTreeSet::new());
    each_bucket(reader, |name, content| {
        found.insert(name.to_string());
        match name {
            bucket::MEMBERS => voting_members(reader, content, &mut members),
            bucket::META => described.read_meta(reader, content),
            _ => Ok(()),
        }
    })?;
    // What comes from Raft counts; releases before 3.5 do not keep it there.
    if described.voters.is_empty() {
        described.voters = members;
    }
    match [bucket::KEY, bucket::META].into_iter().find(|name| !found.contains(*name)) {
        Some(missing) => Err(ImportError::NotEtcds { path: reader.path().into(), missing }),
        None => Ok(described),
    }
}

/// Fills `loader`, but does not finish it.
pub fn load(reader: &Reader, loader: &mut Loader, progress: &Progress) -> Result<Loaded, ImportError> {
    let (mut loaded, mut auth) = (Loaded::default(), Auth::default());
    each_bucket(reader, |name, content| match name {
        bucket::ALARM => alarms(reader, content, loader),
        bucket::AUTH => auth.settings(reader, content),
        bucket::AUTH_ROLES => messages(reader, content, &mut auth.roles),
        bucket::AUTH_USERS => messages(reader, content, &mut auth.users),
        bucket::KEY => {
            loaded.versions = versions(reader, content, loader, progress)?;
            Ok(())
        }
        bucket::LEASE => {
            loaded.leases = leases(reader, content, loader)?;
            Ok(())
        }
        _ => Ok(()),
    })?;
    let Auth { is_enabled, revision, users, roles } = auth;
    loader
        .auth(is_enabled, revision, users, roles)
        .map_err(|detail| ImportError::Auth { path: reader.path().into(), detail })?;
    Ok(loaded)
}

fn each_bucket(
    reader: &Reader,
    mut visit: impl FnMut(&str, &ReadBucket<'_>) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    reader.root().each(|place, name, item| match item {
        Item::Bucket(content) => visit(&String::from_utf8_lossy(name), &content),
        Item::Value(_) => Err(reader.fault(place, "a value stands where buckets do").into()),
    })
}

/// Every key of a bucket that holds no buckets.
fn values(
    reader: &Reader,
    bucket: &ReadBucket<'_>,
    mut visit: impl FnMut(Place, &[u8], &[u8]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    bucket.each(|place, key, item| match item {
        Item::Value(value) => visit(place, key, value),
        Item::Bucket(_) => Err(reader.fault(place, "a bucket stands where values do").into()),
    })
}

fn decode<M: Message + Default>(reader: &Reader, place: Place, what: &str, bytes: &[u8]) -> Result<M, BboltError> {
    M::decode(bytes).map_err(|error| reader.fault(place, format!("{what} does not decode: {error}")))
}

fn versions(
    reader: &Reader,
    bucket: &ReadBucket<'_>,
    loader: &mut Loader,
    progress: &Progress,
) -> Result<u64, ImportError> {
    let mut versions = 0;
    values(reader, bucket, |place, key, value| {
        let (at, kind) = etcd_schema::parse_revision_key(key)
            .ok_or_else(|| reader.fault(place, "a key of the bucket \"key\" is not a revision"))?;
        let kv: KeyValue = decode(reader, place, "a version", value)?;
        if kind == Kind::Put && kv.mod_revision != at.main && !value.is_empty() {
            let detail = format!("the version at revision {at} says that it was made at {}", kv.mod_revision);
            return Err(reader.fault(place, detail).into());
        }
        loader.version(at, kind, &kv)?;
        versions += 1;
        progress.at(reader.bytes_read())
    })?;
    Ok(versions)
}

fn leases(reader: &Reader, bucket: &ReadBucket<'_>, loader: &mut Loader) -> Result<u64, ImportError> {
    let mut leases = 0;
    values(reader, bucket, |place, key, value| {
        let Lease { id, ttl, remaining_ttl } = decode(reader, place, "a lease", value)?;
        if key != id.to_be_bytes() {
            return Err(reader.fault(place, format!("the lease {id:x} stands under another id")).into());
        }
        leases += 1;
        Ok(loader.lease(LeaseInfo { id: LeaseId(id), ttl, remaining_ttl })?)
    })?;
    Ok(leases)
}

fn alarms(reader: &Reader, bucket: &ReadBucket<'_>, loader: &mut Loader) -> Result<(), ImportError> {
    values(reader, bucket, |place, key, _| {
        loader.alarm(&decode::<AlarmMember>(reader, place, "an alarm", key)?);
        Ok(())
    })
}

fn messages<M: Message + Default>(
    reader: &Reader,
    bucket: &ReadBucket<'_>,
    all: &mut Vec<M>,
) -> Result<(), ImportError> {
    values(reader, bucket, |place, _, value| {
        all.push(decode(reader, place, "a user or role", value)?);
        Ok(())
    })
}

fn voting_members(reader: &Reader, bucket: &ReadBucket<'_>, members: &mut BTreeSet<u64>) -> Result<(), ImportError> {
    values(reader, bucket, |place, _, value| {
        let member: Member = serde_json::from_slice(value)
            .map_err(|error| reader.fault(place, format!("a member does not decode: {error}")))?;
        if !member.is_learner {
            members.insert(member.id);
        }
        Ok(())
    })
}

fn number(reader: &Reader, place: Place, value: &[u8]) -> Result<u64, BboltError> {
    let bytes = value.try_into().map_err(|_| reader.fault(place, "a number does not have eight bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

impl Auth {
    fn settings(&mut self, reader: &Reader, bucket: &ReadBucket<'_>) -> Result<(), ImportError> {
        values(reader, bucket, |place, key, value| {
            match key {
                meta::AUTH_ENABLED => self.is_enabled = value == [1],
                meta::AUTH_REVISION => self.revision = number(reader, place, value)?,
                _ => {}
            }
            Ok(())
        })
    }
}

impl Described {
    fn read_meta(&mut self, reader: &Reader, bucket: &ReadBucket<'_>) -> Result<(), ImportError> {
        let Compaction { mut revision, mut finished } = Compaction::default();
        let compaction = |place, value: &[u8]| {
            let parsed = etcd_schema::parse_revision_key(value).map(|(at, _)| at.main);
            parsed.ok_or_else(|| reader.fault(place, "a compaction is not named by a revision"))
        };
        values(reader, bucket, |place, key, value| {
            match key {
                meta::CONSISTENT_INDEX => self.index = number(reader, place, value)?,
                meta::FINISHED_COMPACTION => finished = compaction(place, value)?,
                meta::SCHEDULED_COMPACTION => revision = compaction(place, value)?,
                meta::CONF_STATE => {
                    let state: ConfState = serde_json::from_slice(value)
                        .map_err(|error| reader.fault(place, format!("the membership does not decode: {error}")))?;
                    self.voters = state.voters.into_iter().collect();
                }
                _ => {}
            }
            Ok(())
        })?;
        self.compaction = Compaction { revision: revision.max(finished), finished };
        Ok(())
    }
}
