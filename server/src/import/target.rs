//! The data directory that is made: a member of a new cluster, whose store comes from elsewhere.
//!
//! ```text
//! <data-dir>/member.partial/       while it is made; a later import begins anew
//! <data-dir>/member/               once it is whole and on the disk: a rename
//! <wal-dir>/                       the log, where it is to stand elsewhere; made right before the rename
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use storage::Settled;

use super::ImportError;
use crate::{bootstrap, config::Config, flags::Flags, identity::Identity};

/// Who the member is to be: etcd's flags of the same names, with the same defaults where they are not given.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    pub name: Option<String>,
    pub data_dir: Option<PathBuf>,
    pub wal_dir: Option<PathBuf>,
    pub initial_cluster: Option<String>,
    pub initial_cluster_token: Option<String>,
    pub initial_advertise_peer_urls: Option<String>,
}

/// A data directory to be made.
#[derive(Debug)]
pub struct Target {
    pub data_dir: PathBuf,
    pub identity: Identity,
    members: Vec<raft::Member>,
    /// Where it is not to stand in the data directory.
    wal_dir: Option<PathBuf>,
}

impl Target {
    /// # Errors
    /// When the flags do not make a member, or there is something in the directories already.
    pub fn new(membership: &Membership) -> Result<Target, ImportError> {
        let config = membership.config()?;
        let members = bootstrap::initial_members(&config).map_err(|error| ImportError::Flags(error.to_string()))?;
        let identity = Identity { has_log: true, ..Identity::new(&config.name, &config.cluster) };
        let target = Target { data_dir: config.data_dir, identity, members, wal_dir: membership.wal_dir.clone() };
        target.check_empty()?;
        Ok(target)
    }

    fn check_empty(&self) -> Result<(), ImportError> {
        // What a file system puts into its root, and what an import that was killed has left.
        let may_be = |name: &std::ffi::OsStr| name == "lost+found" || name == PARTIAL;
        if !is_empty(&self.data_dir, may_be) {
            return Err(ImportError::DataDir(self.data_dir.clone()));
        }
        match self.wal_dir.as_ref().filter(|dir| !is_empty(dir, |name| name == "lost+found")) {
            Some(dir) => Err(ImportError::TargetWalDir(dir.clone())),
            None => Ok(()),
        }
    }

    /// Makes the directory, whose store `fill` makes in an empty folder. When this fails, all that was made is removed
    /// again. `bump` is [`storage::settle`]'s.
    pub fn build<E: From<ImportError>>(
        &self,
        bump: Option<i64>,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Settled, E> {
        let mut unfinished = Unfinished::default();
        let (partial, _lock) = self.begin(&mut unfinished)?;
        let store = partial.join("store");
        create(&store)?;
        fill(&store)?;
        Ok(self.finish(&partial, &store, bump, unfinished)?)
    }

    fn begin(&self, unfinished: &mut Unfinished) -> Result<(PathBuf, File), ImportError> {
        unfinished.create(&self.data_dir)?;
        let partial = self.data_dir.join(PARTIAL);
        create(&partial)?;
        let lock = lock(&partial)?;
        unfinished.made.push(partial.clone());
        remove_all(&partial, |name| name == LOCK)?;
        Ok((partial, lock))
    }

    fn finish(
        &self,
        partial: &Path,
        store: &Path,
        bump: Option<i64>,
        mut unfinished: Unfinished,
    ) -> Result<Settled, ImportError> {
        let applied = raft::restored::first_state(&self.members)?;
        let settled = storage::settle(store, bump, &applied)?;
        let wal = match &self.wal_dir {
            Some(dir) => {
                unfinished.create(dir)?;
                dir.clone()
            }
            None => partial.join("wal"),
        };
        unfinished.filled.push(wal.clone());
        futures::executor::block_on(raft::restored::begin_log(&wal, self.identity.member, &applied))?;
        self.identity.write(&partial.join("identity"))?;

        for dir in [store, &wal, partial] {
            sync(dir)?;
        }
        let member = self.data_dir.join("member");
        fs::rename(partial, &member).map_err(|error| ImportError::io(&member, error))?;
        unfinished.keep();
        sync(&self.data_dir)?;
        Ok(settled)
    }
}

const PARTIAL: &str = "member.partial";
const LOCK: &str = "lock";

impl Membership {
    /// As a member that is started with these flags has it.
    fn config(&self) -> Result<Config, ImportError> {
        let text = |path: &Option<PathBuf>| {
            let text = |path: &PathBuf| path.to_str().map(String::from).ok_or_else(|| path.clone());
            let not_text = |path| ImportError::Flags(format!("{path:?}: the name of the directory is not UTF-8"));
            path.as_ref().map(text).transpose().map_err(not_text)
        };
        let given = [
            ("name", self.name.clone()),
            ("data-dir", text(&self.data_dir)?),
            ("wal-dir", text(&self.wal_dir)?),
            ("initial-cluster", self.initial_cluster.clone()),
            ("initial-cluster-token", self.initial_cluster_token.clone()),
            ("initial-advertise-peer-urls", self.initial_advertise_peer_urls.clone()),
        ];
        let arguments = given.into_iter().filter_map(|(flag, value)| Some(format!("--{flag}={}", value?)));
        let flags = Flags::read(arguments, []).map_err(|error| ImportError::Flags(error.to_string()))?;
        Ok(Config::from_flags(&flags)?)
    }
}

/// What is removed unless all goes well.
#[derive(Default)]
struct Unfinished {
    /// Directories; the last one goes first.
    made: Vec<PathBuf>,
    /// Directories that stay, without what is in them: they were there, and empty.
    filled: Vec<PathBuf>,
}

impl Unfinished {
    /// Makes a directory; one that was there, but was empty, stays.
    fn create(&mut self, dir: &Path) -> Result<(), ImportError> {
        let is_new = !dir.exists();
        create(dir)?;
        if is_new {
            self.made.push(dir.into());
        }
        Ok(())
    }

    fn keep(&mut self) {
        self.made.clear();
        self.filled.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // What cannot be removed is in the way of the next one, which says so.
        for dir in &self.filled {
            let _ = remove_all(dir, |name| name == "lost+found");
        }
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn create(dir: &Path) -> Result<(), ImportError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|error| ImportError::io(dir, error))
}

fn is_empty(dir: &Path, may_be: impl Fn(&std::ffi::OsStr) -> bool) -> bool {
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| may_be(&entry.file_name()))),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn remove_all(dir: &Path, may_stay: impl Fn(&std::ffi::OsStr) -> bool) -> Result<(), ImportError> {
    let remove = || {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                _ if may_stay(&entry.file_name()) => {}
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    remove().map_err(|error| ImportError::io(dir, error))
}

/// Held while the directory is made; the member that is made of it uses the same file.
fn lock(partial: &Path) -> Result<File, ImportError> {
    let path = partial.join(LOCK);
    let io = |error| ImportError::io(&path, error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    // SAFETY: the descriptor belongs to `file`, which outlives the call.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    match io::Error::last_os_error() {
        taken if taken.kind() == io::ErrorKind::WouldBlock => Err(ImportError::Busy(partial.into())),
        error => Err(io(error)),
    }
}

fn sync(dir: &Path) -> Result<(), ImportError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| ImportError::io(dir, error))
}
