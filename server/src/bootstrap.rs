//! Opening the data directory: only one process may use it, and only the member it belongs to.
//!
//! ```text
//! <data-dir>/member/lock       held while the process runs
//! <data-dir>/member/identity   who the member is
//! <data-dir>/member/store      the store
//! <data-dir>/member/wal        the Raft log, unless --wal-dir says otherwise
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use raft::{StartError, disk::Disk};

use crate::{
    config::Config,
    discovery::{self, DiscoveryError},
    identity::{Identity, IdentityError, member_id},
    join::{JoinError, Joined, join},
    peer_http::PeerHttp,
    urls,
};

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{0}: another process uses this data directory; stop it first, or give this one its own --data-dir")]
    Locked(PathBuf),
    #[error(
        "{0}: this data directory was written by etcd, whose files Pintle does not use; make one of Pintle's out of it with pintle import, or give Pintle a --data-dir of its own"
    )]
    Etcd(PathBuf),
    #[error(
        "{path}: this data directory belongs to member {found} ({found_name}), but the flags describe member {expected} ({expected_name}); give this member its own --data-dir, or correct --name, --initial-cluster and --initial-advertise-peer-urls"
    )]
    OtherMember { path: PathBuf, found: String, found_name: String, expected: String, expected_name: String },
    #[error(
        "{0}: there is data, but no file \"identity\" that says whose; restore the file, or give an empty --data-dir"
    )]
    NoIdentity(PathBuf),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(
        "{wal}: the Raft log is gone, of which the store in {store} has applied {applied} entries; give the --wal-dir that this member had, or remove the member from the cluster and let a new one join"
    )]
    LogGone { wal: PathBuf, store: PathBuf, applied: u64 },
    #[error(transparent)]
    Log(#[from] StartError),
    #[error("the members of --initial-cluster have the same id {0}: their peer URLs must differ")]
    SameId(String),
}

/// The data directory, locked as long as this lives.
pub struct DataDir {
    pub identity: Identity,
    /// Whether this member has run before.
    pub is_restart: bool,
    /// The members that the cluster begins with, this one among them, or that it has when this one joins it. None on
    /// most restarts: the log and the store hold the membership.
    pub members: Vec<raft::Member>,
    pub is_joining: bool,
    pub store: PathBuf,
    pub wal: PathBuf,
    /// Writes the identity where it is read at the next start.
    keep: Keep,
    _lock: Option<File>,
}

type Keep = Box<dyn Fn(&Identity) -> Result<(), IdentityError> + Send + Sync>;

impl DataDir {
    /// Where the directory is empty and the cluster runs already, its members are asked who this one is.
    pub async fn open(config: &Config, http: &PeerHttp) -> Result<DataDir, BootstrapError> {
        let member = config.data_dir.join("member");
        refuse_etcd(&config.data_dir, &member)?;
        create(&member)?;
        let lock = lock(&config.data_dir, &member.join("lock"))?;
        let (store, wal) = (member.join("store"), config.wal_dir.clone());
        let path = member.join("identity");
        let mut is_joining = false;
        let (identity, is_restart, members) = match Identity::read(&path)? {
            Some(identity) => {
                check(&identity, config)?;
                let described = initial_members(config)?;
                let is_own = described.iter().any(|member| member.id == identity.member);
                (identity, true, if is_own { described } else { Vec::new() })
            }
            None if is_filled(&store) || is_filled(&wal) => return Err(BootstrapError::NoIdentity(member)),
            None => {
                let config = &discovery::complete(config).await?;
                is_joining = config.cluster.is_existing;
                let (identity, members) = match is_joining {
                    true => {
                        let Joined { identity, members } = join(config, http).await?;
                        (identity, members)
                    }
                    false => (Identity::new(&config.name, &config.cluster), initial_members(config)?),
                };
                identity.write(&path)?;
                (identity, false, members)
            }
        };
        create(&store)?;
        create(&wal)?;
        let keep: Keep = Box::new(move |identity| identity.write(&path));
        Ok(DataDir { identity, is_restart, members, is_joining, store, wal, keep, _lock: Some(lock) })
    }

    /// One that no other process can come near, with the store in `store` and the log in `wal`. `keep` is called when
    /// the identity changes.
    pub fn private(
        identity: Identity,
        is_restart: bool,
        members: Vec<raft::Member>,
        is_joining: bool,
        store: PathBuf,
        wal: PathBuf,
        keep: impl Fn(&Identity) -> Result<(), IdentityError> + Send + Sync + 'static,
    ) -> DataDir {
        DataDir { identity, is_restart, members, is_joining, store, wal, keep: Box::new(keep), _lock: None }
    }

    /// Makes the log of a member that has none yet, and notes that there is one from now on: its votes, and what the
    /// store has not applied, stand nowhere else.
    ///
    /// # Errors
    /// When there was a log, and it is gone.
    pub async fn prepare_log(
        &self,
        disk: &Arc<dyn Disk>,
        segment_bytes: u64,
        applied: u64,
    ) -> Result<(), BootstrapError> {
        if self.identity.has_log || applied > 0 {
            return match disk.list(&self.wal) {
                Ok(files) if !files.is_empty() => Ok(()),
                _ => Err(BootstrapError::LogGone { wal: self.wal.clone(), store: self.store.clone(), applied }),
            };
        }
        raft::make_log(disk.clone(), self.wal.clone(), segment_bytes).await?;
        Ok((self.keep)(&Identity { has_log: true, ..self.identity.clone() })?)
    }
}

/// The members that the flags name, in order of ids.
pub fn initial_members(config: &Config) -> Result<Vec<raft::Member>, BootstrapError> {
    let member = |(name, peer_urls): (&String, &Vec<urls::Url>)| raft::Member {
        id: member_id(peer_urls, &config.cluster.token),
        name: name.clone(),
        peer_urls: urls::to_strings(peer_urls),
        client_urls: Vec::new(),
        is_learner: false,
    };
    let mut members: Vec<raft::Member> = config.cluster.members.iter().map(member).collect();
    members.sort_by_key(|member| member.id);
    match members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        Some(pair) => Err(BootstrapError::SameId(pair[0].id.to_string())),
        None => Ok(members),
    }
}

/// On a restart the flags need not say who the member is; where they do, they must say the same. A member that took the
/// place of one that the cluster began with has the name and the flags of that one, and an id of its own.
fn check(identity: &Identity, config: &Config) -> Result<(), BootstrapError> {
    if !config.cluster.is_given || config.cluster.is_existing {
        return Ok(());
    }
    let expected = Identity::new(&config.name, &config.cluster);
    let is_in_its_place = expected.cluster == identity.cluster && expected.name == identity.name;
    if expected.member == identity.member || is_in_its_place {
        return Ok(());
    }
    Err(BootstrapError::OtherMember {
        path: config.data_dir.clone(),
        found: identity.member.to_string(),
        found_name: identity.name.clone(),
        expected: expected.member.to_string(),
        expected_name: expected.name,
    })
}

fn refuse_etcd(data_dir: &Path, member: &Path) -> Result<(), BootstrapError> {
    let mut logs = fs::read_dir(member.join("wal")).into_iter().flatten().flatten();
    let has_log = logs.any(|entry| entry.path().extension().is_some_and(|extension| extension == "wal"));
    if has_log || member.join("snap").join("db").exists() {
        return Err(BootstrapError::Etcd(data_dir.into()));
    }
    Ok(())
}

fn create(dir: &Path) -> Result<(), BootstrapError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|error| BootstrapError::Io { path: dir.into(), error })
}

fn lock(data_dir: &Path, path: &Path) -> Result<File, BootstrapError> {
    let error = |error| BootstrapError::Io { path: path.into(), error };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(error)?;
    // SAFETY: the descriptor belongs to `file`, which outlives the call.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    match io::Error::last_os_error() {
        taken if taken.kind() == io::ErrorKind::WouldBlock => Err(BootstrapError::Locked(data_dir.into())),
        reason => Err(error(reason)),
    }
}

fn is_filled(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft::disk::FileSystem;

    use super::*;
    use crate::{flags::Flags, tls::Dialer};

    fn config(dir: &Path, arguments: &[&str]) -> Config {
        let data_dir = format!("--data-dir={}", dir.display());
        let arguments = arguments.iter().map(|argument| argument.to_string()).chain([data_dir]);
        Config::from_flags(&Flags::read(arguments, []).unwrap()).unwrap()
    }

    async fn open(config: &Config) -> Result<DataDir, BootstrapError> {
        DataDir::open(config, &PeerHttp::new(Arc::new(Dialer::plain()))).await
    }

    #[tokio::test]
    async fn a_new_member_stays_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&config(dir.path(), &[])).await.unwrap();
        assert!(!first.is_restart);
        let identity = first.identity.clone();
        drop(first);
        let again = open(&config(dir.path(), &["--name=other"])).await.unwrap();
        assert!(again.is_restart);
        assert_eq!(again.identity, identity);
    }

    #[tokio::test]
    async fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(&config(dir.path(), &[])).await.unwrap();
        assert!(matches!(open(&config(dir.path(), &[])).await, Err(BootstrapError::Locked(_))));
    }

    #[tokio::test]
    async fn another_members_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&config(dir.path(), &[])).await.unwrap());
        let other = config(dir.path(), &["--initial-advertise-peer-urls=http://127.0.0.1:25001"]);
        assert!(matches!(open(&other).await, Err(BootstrapError::OtherMember { .. })));
    }

    #[tokio::test]
    async fn a_member_in_anothers_place_starts_with_the_flags_the_cluster_began_with() {
        let dir = tempfile::tempdir().unwrap();
        let flags = |name: &str, own: &str| {
            let cluster = "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2".to_string();
            let own = format!("--initial-advertise-peer-urls=http://127.0.0.1:{own}");
            config(dir.path(), &[&cluster, &format!("--name={name}"), &own])
        };
        let first = open(&flags("a", "1")).await.unwrap();
        let added = Identity { member: member_id(&[], "added later"), ..first.identity.clone() };
        drop(first);
        added.write(&dir.path().join("member/identity")).unwrap();
        let again = open(&flags("a", "1")).await.unwrap();
        assert_eq!((again.identity.member, again.members.len()), (added.member, 0), "the log has the members");
        drop(again);
        assert!(matches!(open(&flags("b", "2")).await, Err(BootstrapError::OtherMember { .. })));
    }

    #[tokio::test]
    async fn etcds_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("member/snap")).unwrap();
        fs::write(dir.path().join("member/snap/db"), "").unwrap();
        assert!(matches!(open(&config(dir.path(), &[])).await, Err(BootstrapError::Etcd(_))));
        assert!(!dir.path().join("member/lock").exists());
    }

    #[tokio::test]
    async fn data_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("member/store/x")).unwrap();
        assert!(matches!(open(&config(dir.path(), &[])).await, Err(BootstrapError::NoIdentity(_))));
    }

    #[tokio::test]
    async fn a_store_without_its_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(&config(dir.path(), &[])).await.unwrap();
        let prepare = |opened: DataDir, applied| async move {
            let disk: Arc<dyn Disk> = Arc::new(FileSystem);
            opened.prepare_log(&disk, 1 << 20, applied).await
        };
        assert!(matches!(prepare(opened, 5).await, Err(BootstrapError::LogGone { applied: 5, .. })));
    }

    #[tokio::test]
    async fn a_log_that_was_made_once_is_missed_even_if_nothing_of_it_was_applied() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(FileSystem);
        for _ in 0..2 {
            let opened = open(&config(dir.path(), &[])).await.unwrap();
            opened.prepare_log(&disk, 1 << 20, 0).await.unwrap();
        }
        fs::remove_dir_all(dir.path().join("member/wal")).unwrap();
        let opened = open(&config(dir.path(), &[])).await.unwrap();
        assert!(matches!(opened.prepare_log(&disk, 1 << 20, 0).await, Err(BootstrapError::LogGone { .. })));
    }
}
