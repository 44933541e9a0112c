//! A simulated host: it runs, is paused, or has ended; and its clocks go wrong.

use std::{
    sync::Arc,
    task::Waker,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// The moment at which every simulation begins: 2026-01-01.
const BEGIN: Duration = Duration::from_secs(1_767_225_600);

pub struct SimHost {
    state: Mutex<State>,
    /// When the simulation began, by tokio's clock.
    began: Instant,
}

#[derive(Default)]
struct State {
    is_paused: bool,
    /// To be woken when the host goes on.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// Tasks at which those that have ended are forgotten.
    sweep_at: usize,
    clock: Clock,
}

/// How this host's clocks differ from the simulation's time.
#[derive(Default, Clone, Copy)]
struct Clock {
    /// The monotonic clock is ahead by this much; it never goes back.
    ahead: Duration,
    /// The wall clock is ahead by this much, in nanoseconds, or behind.
    wall: i128,
    /// Parts per million by which the clocks go faster (or slower).
    drift: i64,
    /// Up to where the drift has been taken into account, since the beginning.
    drifted_until: Duration,
    drifted: i128,
}

impl Clock {
    fn settle(&mut self, now: Duration) {
        let since = now.saturating_sub(self.drifted_until).as_nanos() as i128;
        self.drifted += since * i128::from(self.drift) / 1_000_000;
        self.drifted_until = now;
    }

    fn monotonic(&mut self, now: Duration) -> Duration {
        self.settle(now);
        let nanos = now.as_nanos() as i128 + self.drifted + self.ahead.as_nanos() as i128;
        Duration::from_nanos(nanos.max(0) as u64)
    }
}

impl SimHost {
    pub fn new() -> Arc<SimHost> {
        Arc::new(SimHost { state: Mutex::default(), began: tokio::time::Instant::now().into_std() })
    }

    /// The same machine, booted anew: its clocks go on as they were.
    pub fn of(before: &SimHost) -> Arc<SimHost> {
        let clock = before.state.lock().clock;
        Arc::new(SimHost { state: Mutex::new(State { clock, ..State::default() }), began: before.began })
    }

    fn elapsed(&self) -> Duration {
        tokio::time::Instant::now().into_std().saturating_duration_since(self.began)
    }

    /// Nothing runs on the host until [`SimHost::resume`].
    pub fn pause(&self) {
        self.state.lock().is_paused = true;
    }

    pub fn resume(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.is_paused = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ends all that runs on the host, each task at the point where it waits.
    pub async fn end(&self) {
        loop {
            let tasks = std::mem::take(&mut self.state.lock().tasks);
            if tasks.is_empty() {
                return;
            }
            tasks.iter().for_each(AbortHandle::abort);
            while tasks.iter().any(|task| !task.is_finished()) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The monotonic clock jumps ahead, as after a suspension that nobody noticed, and the wall clock with it.
    pub fn jump_ahead(&self, by: Duration) {
        self.state.lock().clock.ahead += by;
    }

    /// The wall clock is set.
    pub fn set_wall_clock(&self, ahead_nanos: i128) {
        self.state.lock().clock.wall = ahead_nanos;
    }

    /// The clocks go faster from now on, by parts per million, or slower.
    pub fn set_drift(&self, parts_per_million: i64) {
        let now = self.elapsed();
        let clock = &mut self.state.lock().clock;
        clock.settle(now);
        clock.drift = parts_per_million;
    }
}

impl storage::host::Host for SimHost {
    fn adopt(&self, task: AbortHandle) {
        let state = &mut *self.state.lock();
        state.tasks.push(task);
        if state.tasks.len() > state.sweep_at {
            state.tasks.retain(|task| !task.is_finished());
            state.sweep_at = (2 * state.tasks.len()).max(256);
        }
    }

    fn is_running(&self, waker: &Waker) -> bool {
        let state = &mut *self.state.lock();
        if state.is_paused {
            state.waiting.push(waker.clone());
        }
        !state.is_paused
    }

    fn now(&self) -> Instant {
        self.began + self.state.lock().clock.monotonic(self.elapsed())
    }

    fn system_time(&self) -> SystemTime {
        let clock = &mut self.state.lock().clock;
        let monotonic = clock.monotonic(self.elapsed()).as_nanos() as i128;
        let nanos = BEGIN.as_nanos() as i128 + monotonic + clock.wall;
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos.max(0) as u64)
    }
}
