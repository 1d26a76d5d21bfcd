//! A bounded queue from the async side to a thread: it refuses instead of waiting.

use crate::backend::StoreFuture;
use crate::error::StoreError;
use futures::future::FutureExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Answers one request.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// The sending side, bounded in requests and in bytes.
pub(super) struct Queue<T> {
    name: &'static str,
    sender: Mutex<Option<SyncSender<T>>>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// The bytes that one request takes in the queue, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<T: Send + 'static> Queue<T> {
    pub(super) fn new(name: &'static str, requests_max: usize, bytes_max: usize) -> (Self, Receiver<T>) {
        let (sender, receiver) = sync_channel(requests_max);
        let bytes = Arc::new(AtomicUsize::new(0));
        (Self { name, sender: Mutex::new(Some(sender)), bytes, bytes_max }, receiver)
    }

    /// Queues a request of so many bytes, or says `Busy` or `Closed` at once.
    pub(super) fn push(&self, bytes: usize, make: impl FnOnce(Room) -> T) -> Result<(), StoreError> {
        let busy = StoreError::Busy { queue: self.name };
        let room = self.reserve(bytes).ok_or_else(|| busy.clone())?;
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = sender.as_ref() else {
            return Err(StoreError::Closed);
        };
        sender.try_send(make(room)).map_err(|refused| match refused {
            TrySendError::Full(_) => busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }

    /// Queues a request without weight and waits for its answer.
    pub(super) fn ask<A: Send + 'static>(
        &self,
        make: impl FnOnce(Reply<A>) -> T + Send + 'static,
    ) -> StoreFuture<'_, A> {
        async move {
            let (reply, answer) = oneshot::channel();
            self.push(0, |_| make(reply))?;
            answer.await.map_err(|_| StoreError::Closed)?
        }
        .boxed()
    }

    /// Takes no more; the thread finishes what is queued and ends.
    pub(super) fn end(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// One request always fits into an empty queue, however large it is.
    fn reserve(&self, bytes: usize) -> Option<Room> {
        let fits = |used: usize| {
            let sum = used.checked_add(bytes)?;
            (used == 0 || sum <= self.bytes_max).then_some(sum)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Room { all: Arc::clone(&self.bytes), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_room_comes_back() {
        let (queue, receiver) = Queue::new("test", 2, 100);
        queue.push(90, |room| room).unwrap();
        assert!(matches!(queue.push(20, |room| room), Err(StoreError::Busy { queue: "test" })));
        queue.push(10, |room| room).unwrap();
        assert!(matches!(queue.push(0, |room| room), Err(StoreError::Busy { .. })), "two are the most");
        drop(receiver.recv());
        queue.push(80, |room| room).unwrap();
        queue.end();
        assert!(matches!(queue.push(0, |room| room), Err(StoreError::Closed)));
        assert_eq!(receiver.iter().count(), 2, "what was accepted is still there");
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
    }
}
