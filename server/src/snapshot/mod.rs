//! Backups: the Snapshot RPC sends the store as a file of etcd's, which `etcdutl` and etcd itself read.
//!
//! ```text
//! the state at one point ─> etcd.rs: buckets ─> bbolt/: pages ─> file.rs: a file without a name ─> stream.rs: client
//! ```
//!
//! A bbolt file begins with what names the rest, so it is written whole before its first byte can be sent. Nobody waits
//! for it: the state is read from a snapshot of the store.

mod etcd;
mod file;
mod stream;

pub use stream::{SnapshotStream, Snapshots};
