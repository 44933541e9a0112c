//! RocksDB's write batches alone, in the shape in which Pintle's store writes puts (`storage/src/db.rs`): two column
//! families that are flushed together, no log, and the applied index in the same batch.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rocksdb::{DB, DBCompressionType, Options, WriteBatch, WriteOptions};

use crate::workload;

const KEYS: u64 = 10_000;
const WRITE_BUFFER_BYTES: usize = 64 << 20;

/// Puts per second, so many to a batch.
pub fn write(dir: &Path, value_size: usize, puts: usize, duration: Duration) -> Result<f64> {
    let dir = tempfile::tempdir_in(dir).with_context(|| format!("make a folder in {}", dir.display()))?;
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_max_background_jobs(2);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_compression_type(DBCompressionType::Lz4);
    let families = ["data", "events", "meta"].map(|name| (name, options.clone()));
    let db = DB::open_cf_with_opts(&options, dir.path(), families)?;
    let [data, events, meta] = ["data", "events", "meta"].map(|name| db.cf_handle(name).expect("it was made just now"));
    let mut without_log = WriteOptions::default();
    without_log.disable_wal(true);

    let value = workload::value(value_size);
    let (begin, mut revision) = (Instant::now(), 0_u64);
    while begin.elapsed() < duration {
        let mut batch = WriteBatch::default();
        for _ in 0..puts {
            revision += 1;
            // A step that is prime to the number of keys: all are put, in no order.
            let key = workload::key("/bench/put/", (revision * 7919 % KEYS) as usize);
            batch.put_cf(data, [&key[..], &revision.to_be_bytes()].concat(), &value);
            batch.put_cf(events, revision.to_be_bytes(), &key);
        }
        batch.put_cf(meta, b"applied", revision.to_be_bytes());
        db.write_opt(batch, &without_log)?;
    }
    Ok(revision as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_are_counted_not_batches() {
        let dir = tempfile::tempdir().unwrap();
        let per_second = write(dir.path(), 10, 100, Duration::from_millis(1)).unwrap();
        assert!(per_second > 100.0, "{per_second}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
