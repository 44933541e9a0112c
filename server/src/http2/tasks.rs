//! Futures that a connection's task polls: only those that were woken, and each can be dropped at any time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{future::BoxFuture, task::AtomicWaker};
use parking_lot::Mutex;

/// Where a future is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

pub struct Tasks<O> {
    slots: Vec<Slot<O>>,
    free: Vec<usize>,
    shared: Arc<Shared>,
    /// Those that are polled now; a buffer.
    woken: Vec<usize>,
}

struct Slot<O> {
    future: Option<BoxFuture<'static, O>>,
    bell: Arc<Bell>,
    waker: Waker,
}

#[derive(Default)]
struct Shared {
    woken: Mutex<Vec<usize>>,
    /// The connection's task.
    task: AtomicWaker,
}

/// Wakes one place.
struct Bell {
    place: usize,
    has_rung: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.has_rung.swap(true, Ordering::AcqRel) {
            self.shared.woken.lock().push(self.place);
            self.shared.task.wake();
        }
    }
}

impl<O> Default for Tasks<O> {
    fn default() -> Self {
        Tasks { slots: Vec::new(), free: Vec::new(), shared: Arc::default(), woken: Vec::new() }
    }
}

impl<O> Tasks<O> {
    /// Takes a future in. It is polled when the tasks are polled next.
    pub fn add(&mut self, future: impl Future<Output = O> + Send + 'static) -> Place {
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.slots.len();
            let bell = Arc::new(Bell { place, has_rung: AtomicBool::new(false), shared: self.shared.clone() });
            let waker = Waker::from(bell.clone());
            self.slots.push(Slot { future: None, bell, waker });
            place
        });
        let slot = &mut self.slots[place];
        slot.future = Some(Box::pin(future));
        // The task itself is running, and need not be woken.
        if !slot.bell.has_rung.swap(true, Ordering::AcqRel) {
            self.shared.woken.lock().push(place);
        }
        Place(place)
    }

    /// Drops a future that has not ended.
    pub fn remove(&mut self, place: Place) {
        if self.slots[place.0].future.take().is_some() {
            self.free.push(place.0);
        }
    }

    /// Polls those that were woken, and gives what those that have ended came to into `ended`. Pending when none was
    /// woken: the task is when one is.
    pub fn poll(&mut self, cx: &mut Context<'_>, ended: &mut Vec<(Place, O)>) -> Poll<()> {
        self.shared.task.register(cx.waker());
        std::mem::swap(&mut *self.shared.woken.lock(), &mut self.woken);
        if self.woken.is_empty() {
            return Poll::Pending;
        }
        for place in self.woken.drain(..) {
            let slot = &mut self.slots[place];
            // Before it is polled: what wakes it from then on counts.
            slot.bell.has_rung.swap(false, Ordering::AcqRel);
            // One that was woken late, when another had its place or nobody.
            let Some(future) = &mut slot.future else { continue };
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&slot.waker)) {
                slot.future = None;
                self.free.push(place);
                ended.push((Place(place), output));
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_woken_is_polled_and_nothing_else() {
        let mut tasks = Tasks::default();
        let polls = Arc::new(Mutex::new(vec![0; 3]));
        let mut senders = Vec::new();
        let mut places = Vec::new();
        for i in 0..3 {
            let (sender, mut receiver) = oneshot::channel::<u32>();
            let polls = polls.clone();
            senders.push(sender);
            places.push(tasks.add(poll_fn(move |cx| {
                polls.lock()[i] += 1;
                receiver.poll_unpin(cx)
            })));
        }
        let mut ended = Vec::new();
        let mut poll = |tasks: &mut Tasks<_>| {
            let waker = futures::task::noop_waker();
            let polled = tasks.poll(&mut Context::from_waker(&waker), &mut ended);
            (polled.is_ready(), std::mem::take(&mut ended).into_iter().map(|(_, output)| output).collect::<Vec<_>>())
        };
        assert_eq!(poll(&mut tasks), (true, vec![]));
        assert_eq!(poll(&mut tasks), (false, vec![]));
        let (third, second, first) = (senders.pop().unwrap(), senders.pop().unwrap(), senders.pop().unwrap());
        second.send(5).unwrap();
        assert_eq!(poll(&mut tasks), (true, vec![Ok(5)]));
        assert_eq!(*polls.lock(), [1, 2, 1]);
        tasks.remove(places[2]);
        assert!(third.is_closed(), "it was dropped");
        drop(first);
        assert!(poll(&mut tasks).1[0].is_err());
        assert_eq!(tasks.free.len(), tasks.slots.len());
    }

    #[tokio::test]
    async fn the_task_is_woken_from_another_thread_and_places_are_used_again() {
        let mut tasks = Tasks::default();
        for round in 0..100 {
            let (sender, receiver) = oneshot::channel();
            tasks.add(receiver);
            let thread = std::thread::spawn(move || sender.send(round).unwrap());
            let mut ended = Vec::new();
            poll_fn(|cx| {
                while tasks.poll(cx, &mut ended).is_ready() {}
                if ended.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            assert_eq!(ended[0].1, Ok(round));
            thread.join().unwrap();
        }
        assert_eq!(tasks.slots.len(), 1);
    }
}
