//! How many handshakes are begun at a time, and whose is next.
//!
//! When a proxy comes back, thousands dial it at once. If all handshakes ran side by side, each would take as long as all
//! of them, and none would end before its client gives up. So only some run, and the others wait for their turn: in order
//! while that helps, the newest first once the oldest have waited so long that their clients are about to leave.

use crate::stream::Rewind;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncRead;
use tokio::sync::oneshot;

/// A client that has waited for so long may give up before its handshake is done: it comes behind those who are new.
const HOPEFUL: Duration = Duration::from_secs(10);
/// Nobody waits longer: whoever dials has given up by then.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A turn ends after this, whatever happens: whoever is silent holds up nobody.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Lets so many through at a time. Clones share it.
#[derive(Clone)]
pub struct Turnstile(Arc<Mutex<Line>>);

/// Somebody's turn. It is the next one's when this is dropped.
struct Turn(Option<Turnstile>);

struct Line {
    free: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    since: Instant,
    called: oneshot::Sender<Turn>,
}

impl Line {
    fn next(&mut self, now: Instant) -> Option<Waiting> {
        let waited = now.saturating_duration_since(self.waiting.front()?.since);
        if waited < HOPEFUL { self.waiting.pop_front() } else { self.waiting.pop_back() }
    }
}

impl Turnstile {
    /// For `at_a_time` at a time.
    pub fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Mutex::new(Line { free: at_a_time, waiting: VecDeque::new() })))
    }

    /// Does `work` with a connection when its turn has come.
    ///
    /// # Errors
    /// When the other side leaves before, or its turn does not come in half a minute.
    pub async fn pass<S, F>(
        &self,
        mut stream: Rewind<S>,
        work: impl FnOnce(Rewind<S>) -> F,
    ) -> io::Result<F::Output>
    where
        S: AsyncRead + Unpin,
        F: Future,
    {
        let turn = tokio::select! {
            biased;
            turn = self.turn() => turn,
            error = stream.left() => return Err(error),
            () = tokio::time::sleep(WAIT_MAX) => return Err(io::ErrorKind::TimedOut.into()),
        };
        let mut work = std::pin::pin!(work(stream));
        tokio::select! {
            biased;
            output = work.as_mut() => return Ok(output),
            () = tokio::time::sleep(TURN_MAX) => drop(turn),
        }
        Ok(work.await)
    }

    async fn turn(&self) -> Turn {
        let called = {
            let mut line = self.lock();
            if let Some(free) = line.free.checked_sub(1) {
                line.free = free;
                return Turn(Some(self.clone()));
            }
            let (caller, called) = oneshot::channel();
            line.waiting.push_back(Waiting { since: Instant::now(), called: caller });
            called
        };
        // Whoever waits is called in the end, or the turnstile is gone with all who use it.
        called.await.unwrap_or(Turn(None))
    }

    /// A turn has ended: calls the next one that still waits.
    fn give_back(self, now: Instant) {
        loop {
            let next = {
                let mut line = self.lock();
                match line.next(now) {
                    Some(next) => next,
                    None => {
                        line.free += 1;
                        return;
                    }
                }
            };
            match next.called.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                Err(mut refused) => drop(refused.0.take()),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turnstile) = self.0.take() {
            turnstile.give_back(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::FutureExt as _;
    use tokio::io::{AsyncWriteExt as _, duplex};

    fn turns(turnstile: &Turnstile, count: usize) -> Vec<std::pin::Pin<Box<impl Future<Output = Turn>>>> {
        let waits = (0..count).map(|_| {
            let mut wait = Box::pin(turnstile.turn());
            assert!(wait.as_mut().now_or_never().is_none());
            wait
        });
        waits.collect()
    }

    #[tokio::test]
    async fn a_turns_go_round_in_order_and_no_turn_is_lost_with_who_leaves() {
        let turnstile = Turnstile::new(1);
        let first = turnstile.turn().now_or_never().expect("it is free");
        let mut waits = turns(&turnstile, 4);
        drop(waits.remove(0));
        drop(first);
        // The second was called, and leaves before it notices.
        drop(waits.remove(0));
        let third = waits[0].as_mut().now_or_never().expect("its turn");
        assert!(waits[1].as_mut().now_or_never().is_none());
        drop(third);
        drop(waits[1].as_mut().now_or_never().expect("its turn"));
        drop(waits);
        let line = turnstile.lock();
        assert_eq!((line.free, line.waiting.len()), (1, 0));
    }

    #[tokio::test]
    async fn a_those_who_wait_too_long_come_behind_the_newest() {
        let turnstile = Turnstile::new(0);
        let mut waits = turns(&turnstile, 3);
        let now = Instant::now() + HOPEFUL;
        turnstile.clone().give_back(now);
        assert!(waits[0].as_mut().now_or_never().is_none());
        let newest = waits[2].as_mut().now_or_never().expect("its turn");
        turnstile.clone().give_back(Instant::now());
        let oldest = waits[0].as_mut().now_or_never().expect("in order again");
        drop((newest, oldest));
        assert!(waits[1].as_mut().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn g_nobody_waits_for_his_turn_for_ever() {
        let turnstile = Turnstile::new(0);
        let (near, _far) = duplex(100);
        let waits = turnstile.pass(Rewind::new(Bytes::new(), near), |_| async {});
        assert_eq!(waits.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        // It is not called any more, so that its turn goes to the next one.
        turnstile.clone().give_back(Instant::now());
        assert!(turnstile.turn().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_who_is_silent_holds_up_nobody_and_who_leaves_costs_nothing() {
        let turnstile = Turnstile::new(1);
        let stream = || {
            let (near, far) = duplex(100);
            (Rewind::new(Bytes::from_static(b"hello"), near), far)
        };
        let (silent, _far) = stream();
        let hangs = turnstile.pass(silent, |_| std::future::pending::<()>());
        let (leaving, far) = stream();
        drop(far);
        let leaves = turnstile.pass(leaving, |_| async { panic!("nobody is there") });
        let (honest, mut far) = stream();
        far.write_all(b" there").await.unwrap();
        let serves = turnstile.pass(honest, |mut stream| async move {
            let mut all = vec![0; 11];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut all).await.unwrap();
            all
        });
        tokio::select! {
            biased;
            _ = hangs => panic!("it is silent"),
            (left, served) = async { tokio::join!(leaves, serves) } => {
                assert!(left.is_err());
                assert_eq!(served.unwrap(), b"hello there");
            }
        }
    }
}
