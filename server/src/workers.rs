//! As many of the runtime's threads at work as the load needs.
//!
//! A task that wakes two others has tokio wake another thread for the second one, which often is done before that thread
//! runs: two switches of threads, of 15 to 28 µs each, for a poll of one. So a thread that is not needed is kept from
//! being woken: a task of ours blocks it, which to the runtime is a long poll.
//!
//! ```text
//!           in a WINDOW the threads were busy for less than FEW of the time of one thread fewer
//!   working ──────────────────────────────────────────────────────────────────────────────────▶ resting
//!           ◀──────────────────────────────────────────────────────────────────────────────────
//!                 for a LOOK no thread has waited for something to do, or after a REST
//! ```
//!
//! A thread does not rest for long at a time: a task that has used up its turn (tokio's budget), or has yielded, waits on
//! a list of the thread that polled it, from which no other thread takes it.
//!
//! Nobody is told that all threads are busy, so one of those that rest looks: seldom where nothing is done. Where the
//! runtime shuts down, its other threads end, which looks as if they were busy, and so those that rest end, too.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Runtime, RuntimeMetrics},
    sync::watch,
    time::sleep,
};

/// For as long all threads that work may be busy while others rest.
const LOOK: Duration = Duration::from_millis(2);
/// The same where there is little to do: threads have begun or ended to wait less often than this since the last look.
const LOOK_IDLE: Duration = Duration::from_millis(16);
const LITTLE: u64 = 8;
const WINDOW: Duration = Duration::from_millis(20);
/// What a task may have to wait for that is on the list of a thread that rests.
const REST: Duration = Duration::from_millis(50);
const FEW: f64 = 0.8;

struct Workers {
    metrics: RuntimeMetrics,
    working: watch::Sender<usize>,
    /// Held by the one that looks.
    looking: Mutex<()>,
}

/// Lets threads of the runtime rest where fewer can do what there is to do. How many work is told as it changes.
pub fn rest_when_idle(runtime: &Runtime) -> watch::Receiver<usize> {
    let metrics = runtime.metrics();
    let all = metrics.num_workers();
    let workers = Arc::new(Workers { metrics, working: watch::Sender::new(all), looking: Mutex::new(()) });
    for _ in 1..all {
        runtime.spawn(rest(workers.clone()));
    }
    workers.working.subscribe()
}

/// Blocks the thread it runs on, again and again, for as long as that is not needed.
async fn rest(workers: Arc<Workers>) {
    loop {
        let (begin, before) = (Instant::now(), workers.busy());
        // What happens in a while is seen when it has passed.
        sleep(WINDOW).await;
        let busy = workers.busy().saturating_sub(before).as_secs_f64() / begin.elapsed().as_secs_f64();
        if workers.leave(busy) {
            // Of two tasks the second has the first put where others find it, and wakes a thread. That takes over this
            // thread's queue, and when it waits again, it waits for sockets and timers, as this one may have done.
            tokio::spawn(async {});
            tokio::spawn(async {});
            workers.wait_until_needed();
            workers.working.send_modify(|working| *working += 1);
        }
    }
}

impl Workers {
    /// What all threads together have been busy for. The time that one rested is added when it ends: it works for a
    /// `WINDOW` at least.
    fn busy(&self) -> Duration {
        (0..self.metrics.num_workers()).map(|worker| self.metrics.worker_total_busy_duration(worker)).sum()
    }

    /// Whether one thread fewer can do what so many were `busy` with.
    fn leave(&self, busy: f64) -> bool {
        self.working.send_if_modified(|working| {
            let can = *working > 1 && busy < FEW * (*working - 1) as f64;
            *working -= usize::from(can);
            can
        })
    }

    /// Blocks until all threads that work are busy, for a `REST` at most.
    fn wait_until_needed(&self) {
        let began = Instant::now();
        let _only = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut look = LOOK;
        let mut before = self.waits();
        while began.elapsed() < REST {
            // A delay: that a thread has been busy for as long, no event tells.
            thread::sleep(look);
            let now = self.waits();
            if now == before && now.iter().all(|changes| changes.is_multiple_of(2)) {
                return;
            }
            let changes = now.iter().sum::<u64>() - before.iter().sum::<u64>();
            look = if changes < LITTLE { (2 * look).min(LOOK_IDLE) } else { LOOK };
            before = now;
        }
    }

    /// How often each thread has begun or ended to wait for something to do: odd while it waits. One that rests does not.
    fn waits(&self) -> Vec<u64> {
        (0..self.metrics.num_workers()).map(|worker| self.metrics.worker_park_unpark_count(worker)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// A runtime that is stuck keeps no time either.
    fn soon(test: impl FnOnce() + Send + 'static) {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            test();
            done.send(())
        });
        is_done.recv_timeout(SOON).expect("it ends");
    }

    fn runtime(threads: usize) -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    }

    async fn all_rest_but_one(working: &mut watch::Receiver<usize>) {
        working.wait_for(|working| *working == 1).await.unwrap();
    }

    /// None goes on before each has its thread.
    async fn all_work(threads: usize) {
        let barrier = Arc::new(Barrier::new(threads));
        let tasks = (0..threads).map(|_| {
            let barrier = barrier.clone();
            tokio::spawn(async move { barrier.wait() })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }

    #[test]
    fn one_thread_works_where_there_is_nothing_to_do_and_all_where_each_has_something() {
        soon(|| {
            for threads in [1, 2, 4] {
                let runtime = runtime(threads);
                let mut working = rest_when_idle(&runtime);
                for _ in 0..3 {
                    runtime.block_on(async {
                        all_rest_but_one(&mut working).await;
                        all_work(threads).await;
                    });
                }
            }
        });
    }

    #[test]
    fn nothing_is_left_in_the_queue_of_a_thread_that_rests() {
        soon(|| {
            let runtime = runtime(2);
            let mut working = rest_when_idle(&runtime);
            runtime.block_on(async {
                for _ in 0..20 {
                    let barrier = Arc::new(tokio::sync::Barrier::new(16));
                    let tasks = (0..16).map(|_| {
                        let barrier = barrier.clone();
                        tokio::spawn(async move {
                            for _ in 0..200 {
                                barrier.wait().await;
                            }
                        })
                    });
                    for task in tasks.collect::<Vec<_>>() {
                        task.await.unwrap();
                    }
                    all_rest_but_one(&mut working).await;
                }
            });
        });
    }

    #[test]
    fn what_has_yielded_on_a_thread_goes_on_though_it_rests() {
        soon(|| {
            let runtime = runtime(2);
            let mut working = rest_when_idle(&runtime);
            let turns: Vec<_> = (0..16).map(|_| watch::Sender::new(0_u64)).collect();
            for turns in turns.clone() {
                runtime.spawn(async move {
                    loop {
                        // As often as there is time for it, but not so often that no thread rests.
                        sleep(Duration::from_millis(1)).await;
                        for _ in 0..8 {
                            tokio::task::yield_now().await;
                        }
                        turns.send_modify(|turns| *turns += 1);
                    }
                });
            }
            runtime.block_on(async {
                for _ in 0..100 {
                    all_rest_but_one(&mut working).await;
                    for turns in &turns {
                        let before = *turns.borrow();
                        turns.subscribe().wait_for(|turns| *turns > before).await.unwrap();
                    }
                    all_work(2).await;
                }
            });
        });
    }

    #[test]
    fn the_end_wakes_those_that_rest() {
        soon(|| {
            let runtime = runtime(4);
            let mut working = rest_when_idle(&runtime);
            runtime.block_on(all_rest_but_one(&mut working));
            drop(runtime);
        });
    }
}
