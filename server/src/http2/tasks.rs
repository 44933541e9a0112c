//! Futures and streams that a connection's task polls: only those that were woken, and each can be dropped at any time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{
    Stream,
    future::BoxFuture,
    stream::{BoxStream, StreamExt as _},
    task::AtomicWaker,
};
use parking_lot::Mutex;

/// Where a future or a stream is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

pub struct Tasks<O> {
    slots: Vec<Slot<O>>,
    free: Vec<usize>,
    shared: Arc<Shared>,
    /// Those that are polled now; a buffer.
    woken: Vec<usize>,
}

enum Work<O> {
    Nothing,
    Once(BoxFuture<'static, O>),
    /// `is_asked`: for its next item.
    Items {
        stream: BoxStream<'static, O>,
        is_asked: bool,
    },
}

struct Slot<O> {
    work: Work<O>,
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

impl Shared {
    /// The task itself is running, and need not be woken.
    fn note(&self, bell: &Bell) {
        if !bell.has_rung.swap(true, Ordering::AcqRel) {
            self.woken.lock().push(bell.place);
        }
    }
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
        self.add_boxed(Box::pin(future))
    }

    /// The same with one that is in a box already.
    pub fn add_boxed(&mut self, future: BoxFuture<'static, O>) -> Place {
        self.put(Work::Once(future))
    }

    /// Takes a stream in, and asks for its first item. It keeps its place until it ends.
    pub fn add_items(&mut self, items: impl Stream<Item = O> + Send + 'static) -> Place {
        self.put(Work::Items { stream: Box::pin(items), is_asked: true })
    }

    /// Asks a stream for its next item.
    pub fn ask(&mut self, Place(place): Place) {
        let slot = &mut self.slots[place];
        if let Work::Items { is_asked, .. } = &mut slot.work {
            *is_asked = true;
            self.shared.note(&slot.bell);
        }
    }

    fn put(&mut self, work: Work<O>) -> Place {
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.slots.len();
            let bell = Arc::new(Bell { place, has_rung: AtomicBool::new(false), shared: self.shared.clone() });
            let waker = Waker::from(bell.clone());
            self.slots.push(Slot { work: Work::Nothing, bell, waker });
            place
        });
        let slot = &mut self.slots[place];
        slot.work = work;
        self.shared.note(&slot.bell);
        Place(place)
    }

    /// Drops what has not ended.
    pub fn remove(&mut self, Place(place): Place) {
        if !matches!(std::mem::replace(&mut self.slots[place].work, Work::Nothing), Work::Nothing) {
            self.free.push(place);
        }
    }

    /// Polls those that were woken, and gives what they came to into `results`. Pending when none was woken: the task is
    /// when one is.
    pub fn poll(&mut self, cx: &mut Context<'_>, results: &mut Vec<(Place, O)>) -> Poll<()> {
        self.shared.task.register(cx.waker());
        std::mem::swap(&mut *self.shared.woken.lock(), &mut self.woken);
        if self.woken.is_empty() {
            return Poll::Pending;
        }
        for place in self.woken.drain(..) {
            let slot = &mut self.slots[place];
            // Before it is polled: what wakes it from then on counts.
            slot.bell.has_rung.swap(false, Ordering::AcqRel);
            let cx = &mut Context::from_waker(&slot.waker);
            let result = match &mut slot.work {
                Work::Once(future) => future.as_mut().poll(cx).map(|output| (Some(output), true)),
                Work::Items { stream, is_asked } if *is_asked => stream.poll_next_unpin(cx).map(|item| {
                    *is_asked = false;
                    let has_ended = item.is_none();
                    (item, has_ended)
                }),
                // It was woken late, when another had its place or nobody, or nothing was asked of it.
                Work::Items { .. } | Work::Nothing => continue,
            };
            let Poll::Ready((output, has_ended)) = result else { continue };
            if has_ended {
                slot.work = Work::Nothing;
                self.free.push(place);
            }
            results.extend(output.map(|output| (Place(place), output)));
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
    async fn a_stream_gives_an_item_when_it_is_asked_and_keeps_its_place() {
        let mut tasks = Tasks::default();
        let place = tasks.add_items(futures::stream::iter([1, 2]));
        let mut results = Vec::new();
        let mut poll = |tasks: &mut Tasks<_>| {
            let waker = futures::task::noop_waker();
            while tasks.poll(&mut Context::from_waker(&waker), &mut results).is_ready() {}
            std::mem::take(&mut results)
        };
        assert_eq!(poll(&mut tasks), [(place, 1)]);
        assert_eq!(poll(&mut tasks), []);
        tasks.slots[place.0].waker.wake_by_ref();
        assert_eq!(poll(&mut tasks), [], "nobody asks");
        tasks.ask(place);
        assert_eq!(poll(&mut tasks), [(place, 2)]);
        assert_ne!(tasks.add_items(futures::stream::pending()), place);
        tasks.ask(place);
        assert_eq!(poll(&mut tasks), []);
        assert_eq!(tasks.add(std::future::ready(3)), place, "it has ended");
        assert_eq!(poll(&mut tasks), [(place, 3)]);
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
