//! Which table of a store is damaged, where RocksDB does not say it.
//!
//! RocksDB names the table in most of its complaints. What it finds wrong with a table's properties, while it opens the
//! store, it blames on the manifest.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rocksdb::{DB, IngestExternalFileOptions, Options};

/// The table in `store` that is refused in the words in which the store was. Looking needs a small database of its own,
/// which is made beside the store and removed again.
pub(crate) fn damaged(store: &Path, refusal: &str) -> Option<PathBuf> {
    let scratch = store.with_extension("look");
    let mut options = Options::default();
    options.create_if_missing(true);
    let database = DB::open(&options, &scratch).ok()?;
    let tables = fs::read_dir(store).ok()?.flatten().map(|entry| entry.path());
    let mut tables: Vec<PathBuf> = tables.filter(|path| path.extension().is_some_and(|kind| kind == "sst")).collect();
    tables.sort();
    // No table of a store can become one of another database: a sound one is refused, too, in other words.
    let damaged = tables.into_iter().find(|table| {
        let taken = database.ingest_external_file_opts(&IngestExternalFileOptions::default(), vec![table]);
        taken.is_err_and(|error| refusal.starts_with(error.to_string().trim_end()))
    });
    drop(database);
    // What is left behind does no harm, and is used the next time.
    let _ = DB::destroy(&Options::default(), &scratch);
    let _ = fs::remove_dir(&scratch);
    damaged
}
