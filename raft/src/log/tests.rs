//! Tests of the log on real files.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    time::Duration,
};

use futures::future::BoxFuture;
use openraft::{entry::RaftEntry as _, storage::IOFlushed, type_config::TypeConfigExt as _};
use proptest::prelude::*;
use prost::Message as _;
use tempfile::TempDir;

use super::*;
use crate::{
    LogWrite,
    disk::FileSystem,
    types::{Command, log_id},
};

fn entry(term: u64, index: u64, len: usize) -> Entry {
    Entry::new(log_id(term, index), Payload::Normal(Command(vec![index as u8; len].into())))
}

fn open(dir: &Path) -> Result<Log, LogError> {
    Log::open(Folder::of(dir), Arc::new(()), true)
}

/// Appends, and waits until it is synced.
async fn append(log: &mut Log, entries: Vec<Entry>) {
    let (done, flushed) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

async fn all(log: &mut Log) -> Vec<Entry> {
    log.try_get_log_entries(0..).await.unwrap_or_default()
}

async fn from(log: &mut Log, first: u64) -> Vec<Entry> {
    log.try_get_log_entries(first..).await.unwrap()
}

fn only_segment(dir: &Path) -> PathBuf {
    Folder::of(dir).path_of(*Folder::of(dir).numbers().unwrap().last().unwrap())
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[tokio::test]
async fn what_was_synced_is_there_after_opening_again() {
    let dir = TempDir::new().unwrap();
    let vote = Vote::new_committed(3, 7);
    {
        let mut log = open(dir.path()).unwrap();
        append(&mut log, vec![entry(1, 0, 10), entry(1, 1, 0)]).await;
        log.save_vote(&vote).await.unwrap();
        log.save_committed(Some(log_id(1, 1))).await.unwrap();
        append(&mut log, vec![entry(3, 2, 5000)]).await;
        append(&mut log, vec![entry(3, 3, 1)]).await;
        log.truncate_after(Some(log_id(3, 2))).await.unwrap();
    }
    let mut log = open(dir.path()).unwrap();
    assert_eq!(all(&mut log).await, [entry(1, 0, 10), entry(1, 1, 0), entry(3, 2, 5000)]);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1)));
    assert_eq!(log.end(), Some(log_id(3, 2)));
}

/// Holds the writer up after each write, until it is let go.
struct Gate(Mutex<std::sync::mpsc::Receiver<()>>);

impl Meter for Gate {
    fn log_written(&self, _write: LogWrite) {
        // A sender that is gone holds nobody up.
        let _ = self.0.lock().recv();
    }
}

#[tokio::test]
async fn what_is_named_as_committed_is_in_the_files() {
    let dir = TempDir::new().unwrap();
    {
        let (go, gate) = std::sync::mpsc::channel();
        let mut log = Log::open(Folder::of(dir.path()), Arc::new(Gate(Mutex::new(gate))), true).unwrap();
        let (done, flushed) = TypeConfig::oneshot();
        log.append([entry(1, 0, 1)], IOFlushed::signal(done)).await.unwrap();
        // More than one batch, queued as a whole while the writer is held up.
        let (rest_done, rest_flushed) = TypeConfig::oneshot();
        let rest: Vec<Entry> = (1..4).map(|index| entry(1, index, 5 << 20)).collect();
        log.append(rest, IOFlushed::signal(rest_done)).await.unwrap();
        log.save_committed(Some(log_id(1, 3))).await.unwrap();
        drop(go);
        flushed.await.unwrap().unwrap();
        rest_flushed.await.unwrap().unwrap();
        let (path, end) = log.tail();
        drop(log);
        flip(&path, end - 1);
    }
    let mut log = open(dir.path()).unwrap();
    assert_eq!(log.end(), Some(log_id(1, 2)));
    assert_eq!(log.read_committed().await.unwrap(), None);
}

/// Files whose closing takes as long as the lock is held.
struct SlowToClose(Arc<Mutex<()>>);

#[derive(Debug)]
struct SlowFile(Arc<dyn DiskFile>, Arc<Mutex<()>>);

impl Drop for SlowFile {
    fn drop(&mut self) {
        drop(self.1.lock());
    }
}

impl Disk for SlowToClose {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        FileSystem.make_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        FileSystem.list(dir)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        FileSystem.read(path)
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = FileSystem.open(path, create)?;
        match path.ends_with("newest.new") {
            true => Ok(file),
            false => Ok(Arc::new(SlowFile(file, self.0.clone()))),
        }
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        FileSystem.sync_dir(dir)
    }
}

impl DiskFile for SlowFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn allocate(&self, size: u64) -> io::Result<()> {
        self.0.allocate(size)
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn sync_data(&self) -> BoxFuture<'_, io::Result<()>> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[tokio::test]
async fn nothing_waits_until_purged_files_are_closed() {
    let dir = TempDir::new().unwrap();
    let closing = Arc::new(Mutex::new(()));
    let folder = Folder { disk: Arc::new(SlowToClose(closing.clone())), path: dir.path().into(), segment_bytes: 4096 };
    let mut log = Log::open(folder, Arc::new(()), true).unwrap();
    for index in 0..20 {
        append(&mut log, vec![entry(1, index, 2000)]).await;
    }
    let segments = Folder::of(dir.path()).numbers().unwrap().len();
    let held = closing.lock();
    let go_on = async {
        log.purge(log_id(1, 18)).await.unwrap();
        for index in 20..30 {
            append(&mut log, vec![entry(1, index, 10)]).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), go_on).await.expect("nothing waits");
    drop(held);
    drop(log);
    let left = Folder::of(dir.path()).numbers().unwrap().len();
    assert!(segments >= 6 && left <= 2, "{segments} segments, {left} left");
}

#[tokio::test]
async fn segments_follow_each_other_and_are_recycled_when_purged() {
    let dir = TempDir::new().unwrap();
    let big = 1 << 20;
    {
        let mut log = open(dir.path()).unwrap();
        for index in 0..200 {
            append(&mut log, vec![entry(1, index, big)]).await;
        }
        assert!(Folder::of(dir.path()).numbers().unwrap().len() >= 3);
        log.purge(log_id(1, 149)).await.unwrap();
    }
    assert_eq!(Folder::of(dir.path()).numbers().unwrap().len(), 2);
    {
        let mut log = open(dir.path()).unwrap();
        assert_eq!(log.purged(), Some(log_id(1, 149)));
        assert_eq!(from(&mut log, 150).await.len(), 50);
        for index in 200..300 {
            append(&mut log, vec![entry(2, index, big)]).await;
        }
        // A snapshot behind the end of the log leaves it empty.
        log.purge(log_id(3, 1000)).await.unwrap();
        append(&mut log, vec![entry(3, 1001, 3)]).await;
    }
    let mut log = open(dir.path()).unwrap();
    assert_eq!(from(&mut log, 1001).await, [entry(3, 1001, 3)]);
    assert_eq!(log.end(), Some(log_id(3, 1001)));
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_written_over() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path()).unwrap();
        append(&mut log, vec![entry(1, 0, 100)]).await;
        append(&mut log, vec![entry(1, 1, 100), entry(1, 2, 100)]).await;
    }
    // The last batch's second record lacks a byte: the batch was never synced whole.
    let path = only_segment(dir.path());
    let end = {
        let log = open(dir.path()).unwrap();
        log.tail().1
    };
    flip(&path, end - 5);
    {
        let mut log = open(dir.path()).unwrap();
        assert_eq!(all(&mut log).await, [entry(1, 0, 100)]);
        append(&mut log, vec![entry(2, 1, 7)]).await;
    }
    let mut log = open(dir.path()).unwrap();
    assert_eq!(all(&mut log).await, [entry(1, 0, 100), entry(2, 1, 7)]);
}

#[tokio::test]
async fn every_bit_flipped_before_the_last_batch_is_noticed() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path()).unwrap();
        for index in 0..3 {
            append(&mut log, vec![entry(1, index, 20)]).await;
        }
    }
    let path = only_segment(dir.path());
    let end = open(dir.path()).unwrap().tail().1;
    let last_batch = end - (record::PREFIX_LEN as u64 + 28);
    for offset in (0..32).chain(record::HEADER_LEN..last_batch) {
        flip(&path, offset);
        match open(dir.path()) {
            Err(LogError::Damaged { path: named, .. }) => assert_eq!(named, path, "offset {offset}"),
            Err(error) => panic!("offset {offset}: {error}"),
            Ok(_) => panic!("offset {offset}: not noticed"),
        }
        flip(&path, offset);
    }
    assert!(open(dir.path()).is_ok());
}

#[tokio::test]
async fn missing_files_are_named() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path()).unwrap();
        for index in 0..200 {
            append(&mut log, vec![entry(1, index, 1 << 20)]).await;
        }
    }
    let numbers = Folder::of(dir.path()).numbers().unwrap();
    let names = numbers.iter().map(|number| Folder::of(dir.path()).path_of(*number));
    for path in names.chain([Folder::of(dir.path()).newest_path()]) {
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        let error = open(dir.path()).err().unwrap_or_else(|| panic!("{} was not missed", path.display()));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        fs::rename(&aside, &path).unwrap();
    }
    let first = Folder::of(dir.path()).path_of(numbers[0]);
    let size = fs::metadata(&first).unwrap().len();
    OpenOptions::new().write(true).open(&first).unwrap().set_len(size / 2).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(error.to_string().contains(first.to_str().unwrap()), "{error}");
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8, u16),
    Truncate(u8),
    Purge(u8),
    Vote,
    Reopen,
    /// Garbage behind the end, as a crashed write leaves it.
    Tear(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..5, 0u16..2000).prop_map(|(count, len)| Step::Append(count, len)),
        1 => (0u8..6).prop_map(Step::Truncate),
        1 => (0u8..6).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        1 => Just(Step::Reopen),
        1 => any::<u8>().prop_map(Step::Tear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_history_comes_back(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let dir = TempDir::new().unwrap();
            let mut log = open(dir.path()).unwrap();
            let (mut model, mut purged, mut term, mut vote) = (Vec::<Entry>::new(), None::<LogId>, 1, None);
            let next = |model: &Vec<Entry>, purged: Option<LogId>| {
                model.last().map(|entry| entry.log_id.index + 1).or(purged.map(|id| id.index + 1)).unwrap_or(0)
            };
            for step in steps {
                match step {
                    Step::Append(count, len) => {
                        let first = next(&model, purged);
                        let entries: Vec<Entry> =
                            (first..first + u64::from(count)).map(|index| entry(term, index, len.into())).collect();
                        model.extend(entries.clone());
                        append(&mut log, entries).await;
                    }
                    Step::Truncate(count) => {
                        model.truncate(model.len().saturating_sub(count.into()));
                        let last = model.last().map(|entry| entry.log_id).or(purged);
                        log.truncate_after(last).await.unwrap();
                        term += 1;
                    }
                    Step::Purge(count) => {
                        let gone: Vec<Entry> = model.drain(..model.len().min(count.into())).collect();
                        if let Some(last) = gone.last() {
                            purged = Some(last.log_id);
                            log.purge(last.log_id).await.unwrap();
                        }
                    }
                    Step::Vote => {
                        term += 1;
                        vote = Some(Vote::new(term, 1));
                        log.save_vote(&Vote::new(term, 1)).await.unwrap();
                    }
                    Step::Reopen => {
                        drop(log);
                        log = open(dir.path()).unwrap();
                    }
                    Step::Tear(seed) => {
                        drop(log);
                        let path = only_segment(dir.path());
                        let end = recovery::recover(&Folder::of(dir.path())).unwrap().end;
                        let garbage: Vec<u8> = (0..300u32).map(|i| (i * 7 + u32::from(seed)) as u8).collect();
                        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&garbage, end).unwrap();
                        log = open(dir.path()).unwrap();
                    }
                }
                let first = purged.map_or(0, |id| id.index + 1);
                assert_eq!(from(&mut log, first).await, model);
                assert_eq!(log.purged(), purged);
                assert_eq!(log.read_vote().await.unwrap(), vote);
            }
        });
    }
}

/// Writes a log of one segment, whose records have checksums that match, and says what is found in it.
fn recovered(number: u64, first_batch: u64, records: &[(u8, bool, Vec<u8>)]) -> Result<u64, LogError> {
    let dir = TempDir::new().unwrap();
    fs::write(Folder::of(dir.path()).path_of(number), fuzzing::segment(number, first_batch, records)).unwrap();
    fs::write(Folder::of(dir.path()).newest_path(), number.to_string()).unwrap();
    recovery::recover(&Folder::of(dir.path())).map(|recovered| recovered.state.next())
}

#[test]
fn numbers_that_no_log_reaches_are_damage_and_not_a_crash() {
    use proto::peer::{LogId, LogStart};
    let id = |index| Some(LogId { term: 1, index });
    let start = |last, purged| LogStart { last, purged, ..Default::default() }.encode_to_vec();
    let purge = |index: u64| (4, true, id(index).unwrap().encode_to_vec());
    let far = 1 << 40;
    assert_eq!(recovered(1, 1, &[(6, true, start(None, None))]).unwrap(), 0);
    // Entries that are gone are counted, not listed.
    assert!(recovered(1, 1, &[(6, true, start(id(far), None))]).is_err());
    assert_eq!(recovered(1, 1, &[(6, true, start(id(far), None)), purge(far)]).unwrap(), far + 1);
    assert!(recovered(0, 1, &[(6, true, start(id(7), None))]).is_err());
    for record in [start(id(u64::MAX), None), start(None, id(u64::MAX))] {
        assert!(recovered(1, 1, &[(6, true, record)]).is_err());
    }
    assert!(recovered(1, 1, &[(6, true, start(None, None)), purge(u64::MAX)]).is_err());
    // No batch has such a number: this was never written, and the segment is empty.
    assert_eq!(recovered(1, u64::MAX, &[(6, true, start(None, None))]).unwrap(), 0);
}
