//! etcd's Election and Lock services: queues of keys below a name, in the order of their creation.
//!
//! ```text
//! jobs/32695410dcc0ca06   create revision 5   holds the lock, or leads
//! jobs/32695410dcc0ca08   create revision 7   waits for the deletion of the key above
//! jobs/32695410dcc0ca0c   create revision 9   waits for the deletion of the key above
//! ```
//! A key is the name, a slash and the lease in hexadecimal, so a holder that is gone loses its key with its lease. The
//! client libraries keep the same keys by themselves: they and these services wait for each other.
//!
//! Sources: etcd, `server/etcdserver/api/v3election`, `server/etcdserver/api/v3lock`, `client/v3/concurrency`.

mod caller;
mod election;
mod lock;
mod observe;
mod place;
mod queue;

pub use caller::Local;
pub use election::ElectionService;
pub use lock::LockService;
