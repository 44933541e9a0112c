//! Tests of the log on a disk from which everything goes that was not synced.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};
use openraft::{entry::RaftEntry as _, storage::IOFlushed, type_config::TypeConfigExt as _};

use super::*;
use crate::{
    disk::{Disk, DiskFile},
    types::{Command, log_id},
};

const WAL: &str = "/data/member/wal";

#[derive(Debug, Clone, Default)]
struct Contents {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Counts as clean, though it is not on the disk.
    is_lost: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Name {
    Dir,
    File(usize),
}

type Names = BTreeMap<PathBuf, Name>;

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: Names,
    durable: Names,
    /// What still works; then the process has ended.
    steps_left: Option<usize>,
    fails_syncs: bool,
}

#[derive(Debug, Clone, Default)]
struct Lossy(Arc<Mutex<State>>);

#[derive(Debug)]
struct LossyFile(Lossy, usize);

impl Lossy {
    fn step(&self) -> io::Result<()> {
        match &mut self.0.lock().steps_left {
            Some(0) => Err(io::Error::other("the process has ended")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The process ends after so many more changes of the disk.
    fn end_after(&self, steps: usize) {
        self.0.lock().steps_left = Some(steps);
    }

    fn restart(&self) {
        let state = &mut *self.0.lock();
        (state.steps_left, state.fails_syncs) = (None, false);
    }

    fn cut_power(&self) {
        let state = &mut *self.0.lock();
        state.names = state.durable.clone();
        let is_there =
            |path: &Path| path.ancestors().skip(1).all(|dir| dir == Path::new("/") || state.durable.contains_key(dir));
        state.names.retain(|path, _| is_there(path));
        state.files.iter_mut().for_each(|file| {
            (file.cached, file.is_lost) = (file.durable.clone(), false);
        });
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.0.lock().names.get(path) {
            Some(Name::File(number)) => Ok(*number),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Disk for Lossy {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        let names = &mut self.0.lock().names;
        dir.ancestors().for_each(|dir| drop(names.insert(dir.into(), Name::Dir)));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let names = &self.0.lock().names;
        if dir != Path::new("/") && !names.contains_key(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let number = self.file(path)?;
        Ok(self.0.lock().files[number].cached.clone())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        if self.file(path).is_err() && create {
            self.step()?;
            let state = &mut *self.0.lock();
            state.names.insert(path.into(), Name::File(state.files.len()));
            state.files.push(Contents::default());
        }
        Ok(Arc::new(LossyFile(self.clone(), self.file(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let number = self.file(from)?;
        self.step()?;
        let names = &mut self.0.lock().names;
        names.remove(from);
        names.insert(to.into(), Name::File(number));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.step()?;
        self.0.lock().names.remove(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        let state = &mut *self.0.lock();
        let is_in = |path: &Path| path.parent() == Some(dir);
        state.durable.retain(|path, _| !is_in(path));
        state.durable.extend(
            state.names.iter().filter(|(path, _)| is_in(path)).map(|(path, name)| (path.clone(), name.clone())),
        );
        Ok(())
    }
}

impl LossyFile {
    fn contents<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> T {
        act(&mut self.0.0.lock().files[self.1])
    }
}

impl DiskFile for LossyFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.contents(|file| file.cached.len() as u64))
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.0.step()?;
        self.contents(|file| file.cached.resize(file.cached.len().max(size as usize), 0));
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.contents(|file| bytes.copy_from_slice(&file.cached[offset as usize..offset as usize + bytes.len()]));
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.step()?;
        let end = offset as usize + bytes.len();
        self.contents(|file| {
            file.cached.resize(file.cached.len().max(end), 0);
            file.cached[offset as usize..end].copy_from_slice(bytes);
            file.is_lost = false;
        });
        Ok(())
    }

    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>> {
        async { self.sync_all() }.boxed()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.step()?;
        let fails = self.0.0.lock().fails_syncs;
        self.contents(|file| match fails {
            true => {
                file.is_lost = true;
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            false => {
                if !file.is_lost {
                    file.durable = file.cached.clone();
                }
                Ok(())
            }
        })
    }
}

fn open(disk: &Lossy) -> Result<Log, LogError> {
    let folder = Folder { disk: Arc::new(disk.clone()), path: WAL.into(), segment_bytes: 8192 };
    Log::open(folder, Arc::new(()), true)
}

async fn append(log: &mut Log, index: u64) -> io::Result<()> {
    let (done, flushed) = TypeConfig::oneshot();
    let entry = Entry::new(log_id(1, index), Payload::Normal(Command(vec![index as u8; 1000].into())));
    log.append([entry], IOFlushed::signal(done)).await?;
    flushed.await.map_err(io::Error::other)?
}

async fn indexes(log: &mut Log) -> Vec<u64> {
    let entries = log.try_get_log_entries(0..).await.unwrap_or_default();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[tokio::test]
async fn a_new_log_outlives_a_power_cut() {
    let disk = Lossy::default();
    append(&mut open(&disk).unwrap(), 0).await.unwrap();
    disk.cut_power();
    assert_eq!(indexes(&mut open(&disk).unwrap()).await, [0]);
}

/// What a process finds when it starts it acts upon, and so it must be there after a power cut, wherever the process
/// before it had ended.
#[tokio::test]
async fn what_was_found_once_is_found_after_a_power_cut() {
    for steps in 0..120 {
        let disk = Lossy::default();
        disk.end_after(steps);
        let mut acknowledged = 0;
        if let Ok(mut log) = open(&disk) {
            while acknowledged < 12 && append(&mut log, acknowledged).await.is_ok() {
                acknowledged += 1;
            }
        }
        disk.restart();
        let found = indexes(&mut open(&disk).unwrap()).await;
        assert!(found.len() as u64 >= acknowledged, "{steps}: {found:?}");
        disk.cut_power();
        let mut log = open(&disk).unwrap_or_else(|e| panic!("{steps}: {e}"));
        assert_eq!(indexes(&mut log).await, found, "{steps}");
        // And it goes on from there.
        append(&mut log, found.len() as u64).await.unwrap();
        drop(log);
        disk.cut_power();
        let mut log = open(&disk).unwrap_or_else(|e| panic!("{steps}: {e}"));
        assert_eq!(indexes(&mut log).await.len(), found.len() + 1, "{steps}");
    }
}

/// The system says Ok to the sync after one that failed, and has written nothing.
#[tokio::test]
async fn what_was_found_after_a_failed_sync_is_found_after_a_power_cut() {
    let disk = Lossy::default();
    let mut log = open(&disk).unwrap();
    append(&mut log, 0).await.unwrap();
    disk.0.lock().fails_syncs = true;
    append(&mut log, 1).await.unwrap_err();
    drop(log);
    disk.restart();
    let found = indexes(&mut open(&disk).unwrap()).await;
    assert_eq!(found, [0, 1]);
    disk.cut_power();
    assert_eq!(indexes(&mut open(&disk).unwrap()).await, found);
}
