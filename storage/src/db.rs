//! One RocksDB with Pintle's column families. RocksDB's types end here and in the files beside.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use proto::{Revision, mvccpb::KeyValue};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator, FlushOptions,
    Options, ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};

use crate::{
    error::StorageError,
    host, keys, planted,
    record::{self, EventRecord},
    table,
};

/// Column families, with what they hold. Their layout is in `docs/format.md`.
pub(crate) const DATA: &str = "data";
pub(crate) const EVENTS: &str = "events";
pub(crate) const LEASE: &str = "lease";
pub(crate) const AUTH: &str = "auth";
pub(crate) const MEMBER: &str = "member";
pub(crate) const ALARM: &str = "alarm";
pub(crate) const META: &str = "meta";
const COLUMN_FAMILIES: [&str; 7] = [DATA, EVENTS, LEASE, AUTH, MEMBER, ALARM, META];

/// What is written goes to a place of its own in a sorted list of this size. In one of 64 MiB most steps to that place
/// miss the processor's caches.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Tables that gather before they are merged with the level below, before writers are slowed down, and stopped.
const TABLES_TO_MERGE: i32 = 16;
const TABLES_TO_SLOW: i32 = 32;
const TABLES_TO_STOP: i32 = 48;
/// The place of what was written last is where the search for the next one begins, for each first byte. `data` is
/// written in order within a batch, `events` always.
const INSERT_NEARBY: &str = "memtable_insert_with_hint_prefix_extractor=rocksdb.CappedPrefix.1";
/// RocksDB takes memory for writes in such pieces, and counts them whole in the size that the quota is held against.
const ARENA_BLOCK_BYTES: usize = 64 << 10;
const OPEN_FILES_MAX: i32 = 4096;

pub(crate) struct Db {
    raw: DB,
    /// Behind what is in it: RocksDB is closed first.
    folder: Folder,
}

/// Where a RocksDB is.
struct Folder {
    path: PathBuf,
    is_given_up: AtomicBool,
}

impl Folder {
    fn new(path: &Path) -> Folder {
        Folder { path: path.into(), is_given_up: AtomicBool::new(false) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_given_up.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an old store stays until the next start");
        }
    }
}

impl Db {
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Db, StorageError> {
        check_complete(path)?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // All column families reach the disk at one point of the write order, so a crash never tears one from another.
        options.set_atomic_flush(!planted!(FamiliesFlushedApart));
        options.set_paranoid_checks(true);
        options.set_max_background_jobs(2);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_bytes_per_sync(1 << 20);
        options.set_keep_log_file_num(2);
        options.set_max_total_wal_size(1 << 20);
        let cache = Cache::new_lru_cache(cache_bytes);
        let family = |name| Ok(ColumnFamilyDescriptor::new(name, family_options(name, &cache)?));
        let families = COLUMN_FAMILIES.into_iter().map(family).collect::<Result<Vec<_>, _>>();
        let families = families.map_err(|e| StorageError::rocksdb(path, e))?;
        let raw = DB::open_cf_descriptors(&options, path, families).map_err(|e| refused(path, e))?;
        let db = Db { raw, folder: Folder::new(path) };
        db.settle_in_simulation()?;
        Ok(db)
    }

    /// Opens for reading a checkpoint that nothing writes to.
    pub fn open_read_only(path: &Path) -> Result<Db, StorageError> {
        let raw = DB::open_cf_for_read_only(&Options::default(), path, COLUMN_FAMILIES, false)
            .map_err(|e| StorageError::rocksdb(path, e))?;
        Ok(Db { raw, folder: Folder::new(path) })
    }

    pub fn path(&self) -> &Path {
        &self.folder.path
    }

    /// Removes its folder once it is closed, not earlier: RocksDB merges tables there, and writes down that it did.
    pub fn give_up(&self) {
        self.folder.is_given_up.store(true, Ordering::Relaxed);
    }

    pub fn raw(&self) -> &DB {
        &self.raw
    }

    pub fn cf(&self, name: &str) -> &ColumnFamily {
        self.raw.cf_handle(name).expect("every column family is created at open")
    }

    pub fn error(&self, error: rocksdb::Error) -> StorageError {
        StorageError::rocksdb(self.path(), error)
    }

    /// Damage in the record at `key` of a column family.
    pub fn damaged(&self, family: &str, key: &[u8], detail: impl std::fmt::Display) -> StorageError {
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        StorageError::damaged(self.path(), format!("column family {family}, key {key}: {detail}"))
    }

    pub fn get(&self, family: &str, key: &[u8]) -> Result<Option<rocksdb::DBPinnableSlice<'_>>, StorageError> {
        self.raw.get_pinned_cf(self.cf(family), key).map_err(|e| self.error(e))
    }

    /// The version of `key` written at `revision`; None when it is not there (any more).
    pub fn version(&self, key: &[u8], revision: Revision) -> Result<Option<KeyValue>, StorageError> {
        let at = keys::data_key(key, revision);
        match self.get(DATA, &at)? {
            Some(value) => self.decode_version(&at, &value, key),
            None => Ok(None),
        }
    }

    pub fn decode_version(&self, at: &[u8], value: &[u8], key: &[u8]) -> Result<Option<KeyValue>, StorageError> {
        record::decode_version(at, value, Bytes::copy_from_slice(key)).map_err(|e| self.damaged(DATA, at, e))
    }

    /// See [`record::open_version`].
    pub fn open_version<'a>(&self, at: &[u8], value: &'a [u8]) -> Result<Option<&'a [u8]>, StorageError> {
        record::open_version(at, value).map_err(|e| self.damaged(DATA, at, e))
    }

    /// Whether RocksDB makes writers wait, or stops them.
    pub fn writes_wait(&self) -> bool {
        let is_set = |name: &str| self.raw.property_int_value(name).is_ok_and(|value| value.is_some_and(|n| n > 0));
        is_set("rocksdb.is-write-stopped") || is_set("rocksdb.actual-delayed-write-rate")
    }

    /// Writes atomically. The Raft log is the durable log: RocksDB keeps none.
    pub fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.raw.write_opt(batch, &options).map_err(|e| self.error(e))
    }

    /// Brings everything written so far to the disk, all column families at one point of the write order.
    pub fn flush(&self) -> Result<(), StorageError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families: Vec<&ColumnFamily> = COLUMN_FAMILIES.iter().map(|name| self.cf(name)).collect();
        self.raw.flush_cfs_opt(&families, &options).map_err(|e| self.error(e))?;
        self.settle_in_simulation()
    }

    /// RocksDB merges tables in threads of its own, after an open and a flush. In a simulation that is waited for, so
    /// that which tables there are does not depend on how fast they are.
    fn settle_in_simulation(&self) -> Result<(), StorageError> {
        if host::is_simulated() {
            self.raw.wait_for_compact(&WaitForCompactOptions::default()).map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    /// For a planted bug: removes all that a small column family holds.
    pub fn clear(&self, family: &'static str) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        self.all(family)?.iter().for_each(|(key, _)| batch.delete_cf(self.cf(family), key));
        self.write(batch)
    }

    /// For a planted bug: what [`Db::flush`] does, with time to crash in between, as larger stores take it.
    pub fn flush_apart(&self) -> Result<(), StorageError> {
        for name in COLUMN_FAMILIES {
            self.raw.flush_cf(self.cf(name)).map_err(|e| self.error(e))?;
            // A delay: the planted bug is that there is time in between.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Ok(())
    }

    /// A cursor over a column family as it is now.
    pub fn cursor(&self, family: &'static str) -> Cursor<'_> {
        self.cursor_at(family, None)
    }

    /// A cursor over a column family as it was at `point`.
    pub fn cursor_at<'a>(&'a self, family: &'static str, point: Option<&rocksdb::Snapshot<'a>>) -> Cursor<'a> {
        let mut options = ReadOptions::default();
        options.set_async_io(false);
        if let Some(point) = point {
            options.set_snapshot(point);
        }
        self.cursor_with(family, options)
    }

    /// A cursor at the first key of a column family, to read all of it once: the cache keeps what others read.
    pub fn scan(&self, family: &'static str) -> Cursor<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut cursor = self.cursor_with(family, options);
        cursor.seek(b"");
        cursor
    }

    fn cursor_with(&self, family: &'static str, options: ReadOptions) -> Cursor<'_> {
        Cursor { raw: self.raw.raw_iterator_cf_opt(self.cf(family), options), db: self }
    }

    /// Calls `visit` with each event whose main revision is in `from..=to`, in order, until it returns false.
    pub fn each_event(
        &self,
        from: i64,
        to: i64,
        visit: impl FnMut(Revision, EventRecord) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        self.each_event_at(None, Revision::new(from.max(0), 0), to, visit)
    }

    /// The same from an event on.
    pub fn each_event_from(
        &self,
        from: Revision,
        to: i64,
        visit: impl FnMut(Revision, EventRecord) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        self.each_event_at(None, from, to, visit)
    }

    /// The same as it was at `point`.
    pub fn each_event_at<'a>(
        &'a self,
        point: Option<&rocksdb::Snapshot<'a>>,
        from: Revision,
        to: i64,
        mut visit: impl FnMut(Revision, EventRecord) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut cursor = self.cursor_at(EVENTS, point);
        cursor.seek(&keys::event_key(from));
        while let Some((at, value)) = cursor.item()? {
            let revision =
                keys::parse_event_key(at).ok_or_else(|| self.damaged(EVENTS, at, "the key is not a revision"))?;
            if revision.main > to {
                break;
            }
            let event = EventRecord::decode(at, value).map_err(|e| self.damaged(EVENTS, at, e))?;
            if !visit(revision, event)? {
                break;
            }
            cursor.next();
        }
        Ok(())
    }

    /// The revision of the newest event.
    pub fn newest_event(&self) -> Result<Option<Revision>, StorageError> {
        let mut cursor = self.cursor(EVENTS);
        cursor.raw.seek_to_last();
        let Some((at, _)) = cursor.item()? else { return Ok(None) };
        let parsed = keys::parse_event_key(at);
        parsed.map(Some).ok_or_else(|| self.damaged(EVENTS, at, "the key is not a revision"))
    }

    /// Every key and value of a small column family.
    pub fn all(&self, family: &'static str) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.all_at(family, None)
    }

    /// The same as it was at `point`.
    pub fn all_at<'a>(
        &'a self,
        family: &'static str,
        point: Option<&rocksdb::Snapshot<'a>>,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let mut all = Vec::new();
        let mut cursor = self.cursor_at(family, point);
        cursor.seek(b"");
        while let Some((key, value)) = cursor.item()? {
            all.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            cursor.next();
        }
        Ok(all)
    }

    /// Sum of an integer property over all column families.
    pub fn property(&self, name: &str) -> Result<u64, StorageError> {
        let mut sum = 0;
        for family in COLUMN_FAMILIES {
            let value = self.raw.property_int_value_cf(self.cf(family), name).map_err(|e| self.error(e))?;
            sum += value.unwrap_or(0);
        }
        Ok(sum)
    }

    /// An integer property that all column families share.
    pub fn shared_property(&self, name: &str) -> Result<u64, StorageError> {
        let value = self.raw.property_int_value_cf(self.cf(META), name).map_err(|e| self.error(e))?;
        Ok(value.unwrap_or(0))
    }

    /// Rewrites all files, dropping what is deleted.
    pub fn compact(&self) {
        for family in COLUMN_FAMILIES {
            self.raw.compact_range_cf(self.cf(family), None::<&[u8]>, None::<&[u8]>);
        }
    }
}

/// Why the store cannot be opened, with the file's name.
fn refused(path: &Path, error: rocksdb::Error) -> StorageError {
    let text = error.to_string();
    let is_unnamed = error.kind() == rocksdb::ErrorKind::Corruption && !text.contains(".sst");
    match is_unnamed.then(|| table::damaged(path, &text)).flatten() {
        Some(table) => StorageError::damaged(&table, text.split("  The file").next().unwrap_or(&text)),
        None => StorageError::rocksdb(path, error),
    }
}

/// RocksDB makes a new database where it finds no file `CURRENT`, whatever else is there.
fn check_complete(path: &Path) -> Result<(), StorageError> {
    let current = path.join("CURRENT");
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(()) };
    let has_data = entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "sst"));
    if has_data && !current.exists() {
        return Err(StorageError::damaged(&current, "the file is missing"));
    }
    Ok(())
}

fn family_options(name: &str, cache: &Cache) -> Result<Options, rocksdb::Error> {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    let large = matches!(name, DATA | EVENTS);
    options.set_write_buffer_size(if large { WRITE_BUFFER_BYTES } else { 4 << 20 });
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_max_write_buffer_number(3);
    match large {
        true => {
            options.set_level_zero_file_num_compaction_trigger(TABLES_TO_MERGE);
            options.set_level_zero_slowdown_writes_trigger(TABLES_TO_SLOW);
            options.set_level_zero_stop_writes_trigger(TABLES_TO_STOP);
            options.get_options_from_string(INSERT_NEARBY)
        }
        false => Ok(options),
    }
}

/// A position in a column family. Reads one state of it, whatever is written meanwhile.
pub(crate) struct Cursor<'a> {
    raw: DBRawIterator<'a>,
    db: &'a Db,
}

impl Cursor<'_> {
    pub fn seek(&mut self, key: &[u8]) {
        self.raw.seek(key);
    }

    pub fn next(&mut self) {
        if self.raw.valid() {
            self.raw.next();
        }
    }

    /// Key and value here; None behind the last.
    pub fn item(&self) -> Result<Option<(&[u8], &[u8])>, StorageError> {
        if self.raw.valid() {
            return Ok(self.raw.item());
        }
        self.raw.status().map_err(|e| self.db.error(e))?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn tables(dir: &Path) -> Vec<PathBuf> {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|kind| kind == "sst")).collect()
    }

    #[test]
    fn a_table_whose_end_is_damaged_is_named() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("1");
        let db = Db::open(&path, 1 << 20).unwrap();
        let mut batch = WriteBatch::default();
        for (number, family) in COLUMN_FAMILIES.iter().enumerate() {
            batch.put_cf(db.cf(family), number.to_be_bytes(), [7; 100]);
        }
        db.write(batch).unwrap();
        db.flush().unwrap();
        drop(db);
        let table = tables(&path).pop().unwrap();
        let sound = fs::read(&table).unwrap();
        let mut unnamed_by_rocksdb = 0;
        for at in (0..sound.len()).step_by(7) {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            fs::write(&table, damaged).unwrap();
            // What is not read when the store is opened is found when it is read.
            let Err(error) = Db::open(&path, 1 << 20) else { continue };
            let name = table.file_name().unwrap().to_str().unwrap();
            assert!(error.to_string().contains(name), "byte {at}: {error}");
            let is_looked_for = matches!(&error, StorageError::Damaged { path, .. } if *path == table);
            unnamed_by_rocksdb += usize::from(is_looked_for);
        }
        assert!(unnamed_by_rocksdb > 0);
        assert!(!path.with_extension("look").exists());
        fs::write(&table, sound).unwrap();
        Db::open(&path, 1 << 20).unwrap();
    }
}
