//! What a member's code runs on: the process, with tokio's tasks and threads of their own for what blocks; or, in a
//! simulation, one of many hosts that share one thread, take turns, and have clocks of their own.
//!
//! Everything that a member does is begun through here ([`spawn`], [`worker`], [`blocking`]) and inherits the host of
//! whoever began it, so that a simulated host can be paused, and ended at any point where its code waits. Without a
//! [`Host`] these are tokio's own, and a thread.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::task::{AbortHandle, JoinError, JoinHandle};

/// A simulated host.
pub trait Host: Send + Sync {
    /// Takes a task in, which ends with the host.
    fn adopt(&self, task: AbortHandle);
    /// Whether the host's code runs now. If not, `waker` is woken when it does again.
    fn is_running(&self, waker: &Waker) -> bool;
    /// This host's monotonic clock.
    fn now(&self) -> Instant;
    /// This host's wall clock.
    fn system_time(&self) -> SystemTime;
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

fn current() -> Option<Arc<dyn Host>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether what runs here runs on a simulated host: then everything must follow from the simulation.
pub fn is_simulated() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// Makes what this thread begins run on a host. Dropped, it restores the one that was current before.
#[must_use = "the host is left when this is dropped"]
pub struct Entered(Option<Arc<dyn Host>>);

impl Entered {
    pub fn on(host: Arc<dyn Host>) -> Entered {
        Entered(CURRENT.replace(Some(host)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// A future that runs on a host, and is dropped there.
struct Hosted<F> {
    host: Arc<dyn Host>,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Hosted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if !self.host.is_running(context.waker()) {
            return Poll::Pending;
        }
        let _entered = Entered::on(self.host.clone());
        self.future.as_mut().expect("it is there until this is dropped").as_mut().poll(context)
    }
}

impl<F> Drop for Hosted<F> {
    fn drop(&mut self) {
        let _entered = Entered::on(self.host.clone());
        self.future = None;
    }
}

/// Runs `future` as a task of `host`. Within a tokio runtime of one thread.
pub fn spawn_on<F>(host: &Arc<dyn Host>, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let task = tokio::spawn(Hosted { host: host.clone(), future: Some(Box::pin(future)) });
    host.adopt(task.abort_handle());
    task
}

/// Runs `future` as a task. Within a tokio runtime.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    match current() {
        None => tokio::spawn(future),
        Some(host) => spawn_on(&host, future),
    }
}

/// Runs what blocks, such as a read of the store, where it holds up no task. Within a tokio runtime.
///
/// # Errors
/// When `work` panics, or the runtime ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match current() {
        None => tokio::task::spawn_blocking(work).await,
        Some(host) => spawn_on(&host, async { work() }).await,
    }
}

/// Runs what blocks for a short time only where it stands, and lets other tasks go on elsewhere. Within a tokio runtime.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match current() {
        None => tokio::task::block_in_place(work),
        Some(_) => work(),
    }
}

/// The monotonic clock.
pub fn now() -> Instant {
    CURRENT.with_borrow(|host| match host {
        None => Instant::now(),
        Some(host) => host.now(),
    })
}

/// The wall clock.
pub fn system_time() -> SystemTime {
    CURRENT.with_borrow(|host| match host {
        None => SystemTime::now(),
        Some(host) => host.system_time(),
    })
}

/// Work that goes on beside the tasks, and may block: it has a thread of its own. Dropped, this waits for its end; it
/// must have been told to end before.
#[derive(Debug)]
pub struct Worker(Option<thread::JoinHandle<()>>);

/// Begins work that goes on until `work` resolves.
///
/// # Errors
/// When no thread can be started.
pub fn worker(name: &str, work: impl Future<Output = ()> + Send + 'static) -> std::io::Result<Worker> {
    if let Some(host) = current() {
        spawn_on(&host, work);
        return Ok(Worker(None));
    }
    let thread = thread::Builder::new().name(name.into()).spawn(|| futures::executor::block_on(work))?;
    Ok(Worker(Some(thread)))
}

/// Lets time pass within a [`worker`], or, without a duration, lets others run.
pub async fn pause(duration: Duration) {
    match current() {
        None if duration.is_zero() => {}
        None => thread::sleep(duration),
        Some(_) if duration.is_zero() => tokio::task::yield_now().await,
        Some(_) => tokio::time::sleep(duration).await,
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The last owner may be the work itself.
        if let Some(thread) = self.0.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            // Work that panicked has said so.
            let _ = thread.join();
        }
    }
}
