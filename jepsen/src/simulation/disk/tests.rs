use std::{collections::BTreeSet, future::Future, io, path::Path, sync::Arc, time::Duration};

use futures::FutureExt as _;
use proptest::prelude::*;
use raft::disk::{Disk as _, DiskFile};

use super::{DiskCounts, NameRule, SimDisk, Survival};

const FILE: &str = "/data/log";

fn file(disk: &Arc<SimDisk>) -> Arc<dyn DiskFile> {
    let mount = disk.mount();
    mount.make_dir(Path::new("/data")).unwrap();
    let file = mount.open(Path::new(FILE), true).unwrap();
    mount.sync_dir(Path::new("/")).unwrap();
    mount.sync_dir(Path::new("/data")).unwrap();
    file
}

fn disk_and_file(seed: u64) -> (Arc<SimDisk>, Arc<dyn DiskFile>) {
    let disk = SimDisk::new(seed, NameRule::Posix);
    let file = file(&disk);
    (disk, file)
}

fn contents(disk: &Arc<SimDisk>) -> Vec<u8> {
    disk.mount().read(Path::new(FILE)).unwrap()
}

fn sync(file: &Arc<dyn DiskFile>) -> io::Result<()> {
    file.sync_data().now_or_never().expect("a sync takes no time unless it is told to")
}

fn simulated<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future)
}

/// What is left of the file, over many seeds.
fn outcomes(act: impl Fn(&Arc<SimDisk>, &Arc<dyn DiskFile>)) -> BTreeSet<Vec<u8>> {
    let crashed = (0..300).map(|seed| {
        let (disk, file) = disk_and_file(seed);
        act(&disk, &file);
        disk.crash();
        contents(&disk)
    });
    crashed.collect()
}

#[test]
fn what_is_written_is_read_and_is_lost_or_not_in_a_crash() {
    let write = |_: &Arc<SimDisk>, file: &Arc<dyn DiskFile>| {
        file.write_at(b"hello", 3).unwrap();
        let mut read = [0; 8];
        file.read_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"\0\0\0hello");
        file.read_at(&mut read, 1).unwrap_err();
    };
    let outcomes = outcomes(write);
    // The length may be on the disk without the bytes.
    assert_eq!(outcomes, [vec![], vec![0; 8], b"\0\0\0hello".to_vec()].into());
}

#[test]
fn what_is_synced_stays() {
    let write = |_: &Arc<SimDisk>, file: &Arc<dyn DiskFile>| {
        file.write_at(b"hello", 0).unwrap();
        sync(file).unwrap();
    };
    assert_eq!(outcomes(write), [b"hello".to_vec()].into());
}

#[test]
fn a_sector_never_has_a_later_write_without_the_earlier() {
    let write = |_: &Arc<SimDisk>, file: &Arc<dyn DiskFile>| {
        file.allocate(4).unwrap();
        sync(file).unwrap();
        file.write_at(b"ab", 0).unwrap();
        file.write_at(b"cd", 2).unwrap();
    };
    assert_eq!(outcomes(write), [b"\0\0\0\0".to_vec(), b"ab\0\0".to_vec(), b"abcd".to_vec()].into());
}

#[test]
fn sectors_survive_in_any_order() {
    let write = |_: &Arc<SimDisk>, file: &Arc<dyn DiskFile>| {
        file.allocate(8192).unwrap();
        sync(file).unwrap();
        file.write_at(b"a", 0).unwrap();
        file.write_at(b"b", 4096).unwrap();
    };
    let outcomes = outcomes(write);
    let ends: BTreeSet<_> = outcomes.iter().map(|bytes| (bytes[0], bytes[4096])).collect();
    assert_eq!(ends, [(0, 0), (b'a', 0), (0, b'b'), (b'a', b'b')].into());
}

#[test]
fn a_write_tears_at_a_sector() {
    let write = |_: &Arc<SimDisk>, file: &Arc<dyn DiskFile>| file.write_at(&[1; 8192], 0).unwrap();
    let torn_at: BTreeSet<_> =
        outcomes(write).iter().map(|bytes| bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())).collect();
    assert!(torn_at.iter().all(|at| at % 512 == 0), "{torn_at:?}");
    assert!(torn_at.iter().any(|at| at % 4096 != 0), "{torn_at:?}");
}

#[test]
fn the_last_write_can_be_torn_on_demand() {
    for seed in 0..50 {
        let (disk, file) = disk_and_file(seed);
        file.write_at(&[1; 9000], 0).unwrap();
        file.write_at(&[2; 9000], 9000).unwrap();
        disk.crash_with(Survival::TornLast);
        let left = contents(&disk);
        assert_eq!(left[..9000], [1; 9000]);
        let end = left.iter().rposition(|byte| *byte == 2).unwrap() + 1;
        assert!(left[9000..end].iter().all(|byte| *byte == 2) && end < 18_000);
        assert_eq!(disk.counts().unsynced.torn, 1);
    }
}

#[test]
fn a_crash_kills_what_was_open() {
    let (disk, file) = disk_and_file(1);
    let mount = disk.mount();
    disk.crash();
    assert!(file.size().is_err() && file.write_at(b"a", 0).is_err() && sync(&file).is_err());
    assert!(mount.list(Path::new("/data")).is_err());
    drop(file);
    assert!(contents(&disk).is_empty());
}

#[test]
fn the_end_of_the_process_loses_nothing() {
    let (disk, file) = disk_and_file(1);
    file.write_at(b"hello", 0).unwrap();
    disk.kill();
    file.write_at(b"x", 0).unwrap_err();
    assert_eq!(contents(&disk), b"hello");
}

#[test]
fn a_removed_file_is_there_for_who_has_it_open() {
    let (disk, file) = disk_and_file(1);
    file.write_at(b"hello", 0).unwrap();
    disk.mount().remove(Path::new(FILE)).unwrap();
    let mut read = [0; 5];
    file.read_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"hello");
    assert_eq!(disk.mount().read(Path::new(FILE)).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.mount().open(Path::new(FILE), false).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next() {
    let mut seen_by_readers = BTreeSet::new();
    let mut left = BTreeSet::new();
    for seed in 0..200 {
        let (disk, file) = disk_and_file(seed);
        file.allocate(5).unwrap();
        sync(&file).unwrap();
        file.write_at(b"hello", 0).unwrap();
        disk.fail_next_sync();
        assert_eq!(sync(&file).unwrap_err().raw_os_error(), Some(libc::EIO));
        seen_by_readers.insert(contents(&disk));
        sync(&file).unwrap();
        disk.crash();
        left.insert(contents(&disk));
        assert_eq!(disk.counts().syncs_failed, 1);
    }
    let either = BTreeSet::from([vec![0; 5], b"hello".to_vec()]);
    assert_eq!((seen_by_readers, left), (either.clone(), either));
}

#[test]
fn a_page_that_is_written_again_after_a_failed_sync_is_whole() {
    for seed in 0..100 {
        let (disk, file) = disk_and_file(seed);
        file.write_at(b"hello", 0).unwrap();
        disk.fail_next_sync();
        sync(&file).unwrap_err();
        file.write_at(b"!", 5).unwrap();
        let seen = contents(&disk);
        sync(&file).unwrap();
        disk.crash();
        assert_eq!(contents(&disk), seen);
    }
}

#[test]
fn a_full_disk_refuses_until_there_is_space() {
    let (disk, file) = disk_and_file(1);
    disk.set_full(true);
    let full = |result: io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    full(file.write_at(b"a", 0));
    full(file.allocate(1));
    full(disk.mount().open(Path::new("/data/b"), true).map(drop));
    assert_eq!(disk.counts().refused_when_full, 3);
    disk.set_full(false);
    file.write_at(b"a", 0).unwrap();
    assert_eq!(contents(&disk), b"a");
}

#[test]
fn a_misdirected_write_damages_another_place() {
    let mut damaged = 0;
    for seed in 0..50 {
        let (disk, file) = disk_and_file(seed);
        file.write_at(&[1; 16384], 0).unwrap();
        sync(&file).unwrap();
        disk.misdirect_next_write();
        file.write_at(&[2; 512], 1024).unwrap();
        let seen = contents(&disk);
        assert_eq!((seen[1023], &seen[1024..1536], seen[1536]), (1, [2; 512].as_slice(), 1));
        sync(&file).unwrap();
        disk.crash();
        let left = contents(&disk);
        assert_eq!(left.iter().filter(|byte| **byte == 2).count(), 512);
        damaged += u64::from(left[1024] == 1 && disk.counts().writes_misdirected == 1);
    }
    assert!(damaged > 40, "{damaged}");
}

#[test]
fn rot_shows_at_once_and_stays() {
    let (disk, file) = disk_and_file(1);
    file.write_at(&[0; 4096], 0).unwrap();
    sync(&file).unwrap();
    assert_eq!(disk.rot(Path::new(FILE), 100..200, 3).unwrap(), 3);
    assert_eq!(disk.rot(Path::new(FILE), 4096..5000, 3).unwrap(), 0);
    disk.rot(Path::new("/data/other"), 0..1, 1).unwrap_err();
    let seen = contents(&disk);
    let flipped: u32 = seen[100..200].iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(flipped, 3);
    disk.crash();
    assert_eq!(contents(&disk), seen);
}

#[test]
fn a_disk_that_omits_syncs_loses_what_was_synced() {
    let lying = |disk: &Arc<SimDisk>, file: &Arc<dyn DiskFile>| {
        disk.omit_syncs(true);
        file.write_at(b"hello", 0).unwrap();
        sync(file).unwrap();
    };
    assert!(outcomes(lying).contains(&Vec::new()));
}

#[test]
fn a_sync_takes_its_time_and_a_crash_meanwhile_undoes_it() {
    let mut left = BTreeSet::new();
    for seed in 0..100 {
        simulated(async {
            let (disk, file) = disk_and_file(seed);
            disk.set_sync_time(Duration::from_millis(10)..=Duration::from_millis(20));
            file.write_at(b"a", 0).unwrap();
            let began = tokio::time::Instant::now();
            file.sync_data().await.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(10));

            file.write_at(b"b", 4096).unwrap();
            let waiting = tokio::spawn(async move { file.sync_data().await });
            // Simulated time, in the middle of the sync: it passes at once, when all others wait.
            tokio::time::sleep(Duration::from_millis(5)).await;
            disk.crash();
            waiting.await.unwrap().unwrap_err();
            left.insert(contents(&disk));
            assert_eq!(disk.counts().syncs_interrupted, 1);
        });
    }
    assert!(left.iter().all(|bytes| bytes[0] == b'a'));
    assert!(left.contains(b"a".as_slice()) && left.iter().any(|bytes| bytes.len() == 4097 && bytes[4096] == b'b'));
}

#[test]
fn what_is_written_during_a_sync_is_not_part_of_it() {
    simulated(async {
        let (disk, file) = disk_and_file(1);
        disk.set_sync_time(Duration::from_millis(10)..=Duration::from_millis(10));
        file.write_at(b"a", 0).unwrap();
        let syncing = file.sync_data();
        let write = async {
            // Simulated time, in the middle of the sync: it passes at once, when all others wait.
            tokio::time::sleep(Duration::from_millis(5)).await;
            file.write_at(b"b", 4096).unwrap();
        };
        let (synced, ()) = tokio::join!(syncing, write);
        synced.unwrap();
        disk.crash_with(Survival::Nothing);
        assert_eq!(contents(&disk), b"a");
    });
}

#[test]
fn a_preallocated_file_is_free_until_it_is_written() {
    let (disk, file) = disk_and_file(1);
    for _ in 0..10_000 {
        file.allocate(64 << 30).unwrap();
    }
    file.write_at(b"end", (64 << 30) - 3).unwrap();
    sync(&file).unwrap();
    disk.crash();
    assert_eq!(disk.files(), [(FILE.into(), 64 << 30)]);
}

#[test]
fn a_wiped_disk_is_empty() {
    let (disk, file) = disk_and_file(1);
    disk.wipe();
    file.size().unwrap_err();
    assert!(disk.files().is_empty());
    assert_eq!(disk.mount().list(Path::new("/data")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[derive(Debug, Clone)]
enum Step {
    Write { offset: u64, len: u64 },
    Allocate(u64),
    Sync,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..6_000u64, 1..3_000u64).prop_map(|(offset, len)| Step::Write { offset, len }),
        1 => (0..10_000u64).prop_map(Step::Allocate),
        3 => Just(Step::Sync),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// Each byte of the file and its length: the values that it may have after a crash.
struct Model {
    bytes: Vec<BTreeSet<u8>>,
    now: Vec<u8>,
    len_min: usize,
}

impl Model {
    fn check(&self, left: &[u8]) {
        assert!((self.len_min..=self.now.len()).contains(&left.len()), "the length is one that the file had");
        for (i, byte) in left.iter().enumerate() {
            assert!(self.bytes[i].contains(byte), "byte {i} is {byte}, none of {:?}", self.bytes[i]);
        }
    }

    fn settle(&mut self, left: &[u8]) {
        self.now = left.to_vec();
        self.len_min = left.len();
        self.bytes = left.iter().map(|byte| BTreeSet::from([*byte])).collect();
    }

    fn extend(&mut self, len: usize) {
        if len > self.now.len() {
            self.now.resize(len, 0);
            self.bytes.resize(len, BTreeSet::from([0]));
        }
    }
}

fn run(seed: u64, steps: &[Step]) -> (Vec<u8>, DiskCounts) {
    let (disk, mut file) = disk_and_file(seed);
    let mut model = Model { bytes: Vec::new(), now: Vec::new(), len_min: 0 };
    for (i, step) in steps.iter().enumerate() {
        let value = i as u8 + 1;
        match step {
            Step::Write { offset, len } => {
                file.write_at(&vec![value; *len as usize], *offset).unwrap();
                model.extend((offset + len) as usize);
                for at in *offset as usize..(offset + len) as usize {
                    model.now[at] = value;
                    model.bytes[at].insert(value);
                }
            }
            Step::Allocate(len) => {
                file.allocate(*len).unwrap();
                model.extend(*len as usize);
            }
            Step::Sync => {
                sync(&file).unwrap();
                let now = model.now.clone();
                model.settle(&now);
            }
            Step::Crash => {
                disk.crash();
                let left = contents(&disk);
                model.check(&left);
                model.settle(&left);
                file = disk.mount().open(Path::new(FILE), false).unwrap();
            }
        }
        assert_eq!(contents(&disk), model.now);
    }
    disk.crash();
    let left = contents(&disk);
    model.check(&left);
    (left, disk.counts())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn synced_bytes_stay_and_others_are_ones_that_were_written(seed: u64, steps in steps()) {
        run(seed, &steps);
    }

    #[test]
    fn the_same_seed_gives_the_same_disk(seed: u64, steps in steps()) {
        prop_assert_eq!(run(seed, &steps), run(seed, &steps));
    }
}
