//! One waker for everybody who waits for a stream: its reader, its writer, and the task that keeps it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seat {
    Reader,
    Writer,
    Keeper,
}

#[derive(Default)]
pub(crate) struct Wakers(Mutex<[Option<Waker>; 3]>);

impl Wakers {
    /// Wakes this one too from now on.
    pub(crate) fn register(&self, seat: Seat, cx: &Context<'_>) {
        let mut seats = self.lock();
        let Some(taken) = seats.get_mut(seat as usize) else { return };
        if !taken.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *taken = Some(cx.waker().clone());
        }
    }

    /// Wakes one of them.
    pub(crate) fn wake_one(&self, seat: Seat) {
        let waker = self.lock().get(seat as usize).cloned().flatten();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes all of them.
    pub(crate) fn wake_all(&self) {
        let seats = self.lock().clone();
        let mut woken: Option<Waker> = None;
        for waker in seats.into_iter().flatten() {
            // Reader and writer are one task as a rule.
            if woken.as_ref().is_some_and(|before| before.will_wake(&waker)) {
                continue;
            }
            waker.wake_by_ref();
            woken = Some(waker);
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Waker>; 3]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}
