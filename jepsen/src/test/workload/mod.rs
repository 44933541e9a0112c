//! What processes do to the store, and what must be true of what they were told.
//!
//! | workload | its processes | its model |
//! |---|---|---|
//! | `register` | write and read single keys | linearizable register |
//! | `cas` | the same, and compare-and-set by value | linearizable register |
//! | `kv` | all of KV: ranges, transactions, deletes, leases | linearizable store |
//! | `append`, `rw-register` | transactions over several keys | no cycle of dependencies (Elle) |
//! | `set` | add elements, read all | nothing added is lost (Jepsen's set-full) |
//! | `counter` | put one key, read its version | each put counts once |
//! | `watch` | write; watch in every way | the watch properties of etcd's robustness tests |
//! | `lease` | grant, keep alive, revoke, attach, let expire | not early, gone after |
//! | `lock` | lock, do what the lock guards, unlock | guarded effects exclude each other |
//! | `kubernetes` | create, update, delete by revision; caches by list and watch | caches agree with the store |
//! | `stale` | write; read serializably, member by member | a member never goes back |
//! | `auth` | grant and revoke while users try | nobody succeeds without the right |
//! | `maintenance` | register, beside snapshots and defragmentation | linearizable register |
//! | `client`, `client-auth` | ask through the crate `client`: puts, leases, locks, watches | nothing twice, no lapse, no gap |

mod append;
mod auth;
mod counter;
mod finding;
mod kubernetes;
mod kv;
mod lease;
mod library;
mod lock;
mod maintenance;
mod register;
mod rw_register;
mod set;
mod stale;
mod transaction;
mod watch;

use anyhow::Result;
use futures::future::BoxFuture;

use super::client::{Choice, Client, Context};
use jepsen::check::{
    history::{History, Request},
    store::Store,
};

pub use finding::Finding;

pub type Body = BoxFuture<'static, Result<()>>;

/// What there is to judge.
pub struct Case<'a> {
    /// What this workload's processes did, with the faults.
    pub history: &'a History,
    /// Every version of every key, as one watcher saw them come that missed nothing; or why there is none.
    pub truth: &'a Result<Store, String>,
    /// The revision that observers have had time to see.
    pub quiet_at: Option<i64>,
}

pub struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    /// How many processes there are, unless it is said.
    pub processes: u64,
    /// Operations a second of each, unless it is said.
    pub rate: f64,
    /// Whether it may run beside others.
    pub shares: bool,
    /// Flags that members need.
    pub flags: &'static [&'static str],
    /// What the process of this number does until the run is stopped.
    pub process: fn(Context, u64) -> Body,
    /// Processes that change nothing, and go on until they have seen all that the others did.
    pub observers: u64,
    pub observe: fn(Context, u64) -> Body,
    /// Whether a watch on all keys is to tell what happened.
    pub is_witnessed: bool,
    /// What is read when all is healed.
    pub finish: fn(Context) -> Body,
    pub check: fn(&Case) -> Vec<Finding>,
}

impl Workload {
    /// What most have in common: nothing that observes or flags, and they may run beside others.
    const PLAIN: Workload = Workload {
        name: "",
        about: "",
        processes: 1,
        rate: 1.0,
        shares: true,
        flags: &[],
        process: |_, _| Box::pin(async { Ok(()) }),
        observers: 0,
        observe: |_, _| Box::pin(async { Ok(()) }),
        is_witnessed: true,
        finish: |_| Box::pin(async { Ok(()) }),
        check: |_| Vec::new(),
    };
}

pub const ALL: &[Workload] = &[
    register::REGISTER,
    register::CAS,
    kv::KV,
    append::APPEND,
    rw_register::RW_REGISTER,
    set::SET,
    counter::COUNTER,
    watch::WATCH,
    lease::LEASE,
    lock::LOCKS,
    kubernetes::KUBERNETES,
    stale::STALE,
    auth::AUTH,
    maintenance::MAINTENANCE,
    library::CLIENT,
    library::CLIENT_AUTH,
];

pub fn by_name(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}

/// The same requests to every member, as at the end of a run.
fn ask_each_member(context: Context, requests: Vec<Request>) -> Body {
    let members = context.endpoints.borrow().len() as u64;
    Box::pin(async move {
        for member in 0..members {
            let mut client = Client::choosing(&context, member, Choice::Pinned);
            for request in &requests {
                client.call(request.clone()).await;
            }
        }
        Ok(())
    })
}

/// Compacts now and then, and leaves so many revisions that nobody has to be told of; never what the witness has not
/// seen yet.
async fn compact(mut client: Client, lag: i64) -> Result<()> {
    loop {
        let pause = client.random_ms(1_000..5_000);
        if !client.wait(pause).await {
            return Ok(());
        }
        let revision = client.recorder().revision().min(client.recorder().witnessed()) - lag;
        if revision > 1 {
            client.call(Request::Compact { revision }).await;
        }
    }
}
