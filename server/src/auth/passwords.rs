//! Passwords as bcrypt hashes. Hashing is slow on purpose, so it has threads of its own, and not many wait for them: a
//! flood of wrong passwords must not keep a member from its other work.

use std::{
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use bcrypt::{HashParts, Version};
use proto::EtcdError;
use storage::host;
use tokio::sync::Semaphore;
use tonic::Status;

/// The costs that bcrypt knows, and the one that stands for every other.
const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
const COST_DEFAULT: u32 = 10;
/// Longest password, in bytes: bcrypt does not look at more.
const PASSWORD_BYTES_MAX: usize = 72;
/// How many may wait to be hashed.
const WAITING_MAX: usize = 256;

pub struct Passwords {
    cost: u32,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Passwords {
    pub fn new(cost: u32) -> Self {
        let cost = if COSTS.contains(&cost) {
            cost
        } else {
            let (min_cost, max_cost) = COSTS.into_inner();
            tracing::warn!(
                min_cost,
                max_cost,
                default_cost = COST_DEFAULT,
                given_cost = cost,
                "use default bcrypt cost instead of the invalid given cost"
            );
            COST_DEFAULT
        };
        // Half of the processor, so that the rest goes on.
        let threads = thread::available_parallelism().map_or(1, |threads| (threads.get() / 2).max(1));
        Passwords { cost, running: Arc::new(Semaphore::new(threads)), waiting: AtomicUsize::new(0) }
    }

    /// The hash of a password, as etcd writes it.
    pub async fn hash(&self, password: String) -> Result<String, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Status::unknown("bcrypt: password length exceeds 72 bytes"));
        }
        let cost = self.cost;
        let hash = self.run(move || bcrypt::hash_with_result(password, cost)).await?;
        let hash = hash.map_err(|error| Status::unknown(format!("bcrypt: {error}")))?;
        Ok(hash.format_for_version(Version::TwoA))
    }

    /// Whether `hash` is that of `password`. One that is no hash is that of none.
    pub async fn verify(&self, password: String, hash: Vec<u8>) -> Result<bool, Status> {
        self.run(move || verify(&password, &hash)).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let _waiting = Waiting::enter(&self.waiting).ok_or(EtcdError::RequestTooManyRequests)?;
        let stopped = |_| Status::from(EtcdError::Stopped);
        let permit = self.running.clone().acquire_owned().await.map_err(|_| EtcdError::Stopped)?;
        // The permit goes with the work, which goes on when the caller is gone.
        let work = move || (work(), permit).0;
        host::blocking(work).await.map_err(stopped)
    }
}

fn verify(password: &str, hash: &[u8]) -> bool {
    let Ok(hash) = std::str::from_utf8(hash) else { return false };
    HashParts::from_str(hash).is_ok() && bcrypt::verify(password, hash).unwrap_or(false)
}

struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn enter(waiting: &AtomicUsize) -> Option<Waiting<'_>> {
        let entered = Waiting(waiting);
        (waiting.fetch_add(1, SeqCst) < WAITING_MAX).then_some(entered)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_is_that_of_its_password_only() {
        let passwords = Passwords::new(4);
        let hash = passwords.hash("secret".into()).await.unwrap();
        assert!(hash.starts_with("$2a$04$"), "{hash}");
        assert!(passwords.verify("secret".into(), hash.clone().into()).await.unwrap());
        assert!(!passwords.verify("Secret".into(), hash.into()).await.unwrap());
        assert!(!passwords.verify("".into(), Vec::new()).await.unwrap());
    }

    #[tokio::test]
    async fn a_longer_password_is_refused_and_not_cut() {
        let refusal = Passwords::new(4).hash("x".repeat(73)).await.unwrap_err();
        assert_eq!(refusal.message(), "bcrypt: password length exceeds 72 bytes");
    }

    #[test]
    fn a_cost_that_bcrypt_does_not_know_becomes_the_default() {
        assert_eq!((Passwords::new(3).cost, Passwords::new(32).cost, Passwords::new(5).cost), (10, 10, 5));
    }

    #[test]
    fn who_comes_too_many_is_turned_away() {
        let waiting = AtomicUsize::new(WAITING_MAX - 1);
        let last = Waiting::enter(&waiting);
        assert!(last.is_some());
        assert!(Waiting::enter(&waiting).is_none());
        drop(last);
        assert!(Waiting::enter(&waiting).is_some());
    }
}
