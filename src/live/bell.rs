//! Tells an HTTP thread that there is something in the mailboxes of its answers: once for all of a round, when the driver
//! has handed everything out. Readers are then woken by a task of their own thread. Waking each from the driver's thread
//! costs more, and has the driver wait while the first of them write.
//!
//! All streams of a decode group get their tokens at one time, and it takes tens of milliseconds to write those of thousands.
//! So readers are woken a few at a time, between which the thread turns to what else has come: requests, and first tokens,
//! which go first. The others are woken in the same order at every step: each waits about as long as at the last one, and
//! its client sees the gap that the machine computed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use supernode_actors::time::{PS_PER_MS, Ps};
use tokio::sync::Notify;

/// Readers that are woken before the thread turns to what else there is.
const READERS_AT_ONCE: usize = 16;
/// What reaches homes within so long belongs to one step, though more than one round may hand it out.
const STEP_PS: Ps = 2 * PS_PER_MS;

/// When a reader is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Before others.
    Now,
    /// Where its request stands among those of the step.
    InStep { at_ps: Ps, request: u64 },
}

/// Readers that find something when they look.
#[derive(Debug, Default)]
struct Waiting {
    first: VecDeque<Waker>,
    /// By step and request.
    later: BTreeMap<(Ps, u64), Waker>,
    /// When the latest step began.
    step_ps: Ps,
    /// Some have come since it last rang.
    more: bool,
}

impl Waiting {
    fn add(&mut self, turn: Turn, reader: Waker) {
        self.more = true;
        match turn {
            Turn::Now => self.first.push_back(reader),
            Turn::InStep { at_ps, request } => {
                if at_ps > self.step_ps + STEP_PS {
                    self.step_ps = at_ps;
                }
                // A reader that is there already is the same one.
                self.later.insert((self.step_ps, request), reader);
            }
        }
    }

    fn next(&mut self) -> Option<Waker> {
        let first = self.first.pop_front();
        first.or_else(|| self.later.pop_first().map(|(_, reader)| reader))
    }
}

/// One for each HTTP thread.
#[derive(Debug, Default)]
pub struct Bell {
    waiting: Mutex<Waiting>,
    rung: Notify,
}

impl Bell {
    /// One that this thread listens to, as long as its tasks run.
    pub fn on_this_thread() -> Arc<Self> {
        let bell = Arc::new(Self::default());
        let listener = Arc::clone(&bell);
        drop(actix_rt::spawn(async move {
            loop {
                listener.rung.notified().await;
                while listener.wake_some() {
                    // Those that were woken have their turn, and whatever else has come in meanwhile.
                    actix_rt::task::yield_now().await;
                }
            }
        }));
        bell
    }

    /// Has a reader woken the next time that it rings.
    pub fn wakes(&self, turn: Turn, reader: Waker) {
        self.waiting.lock().add(turn, reader);
    }

    pub fn ring(&self) {
        if std::mem::take(&mut self.waiting.lock().more) {
            self.rung.notify_one();
        }
    }

    /// Wakes those that come next. False if there were none.
    fn wake_some(&self) -> bool {
        let readers: Vec<Waker> = {
            let mut waiting = self.waiting.lock();
            let next = std::iter::from_fn(|| waiting.next());
            next.take(READERS_AT_ONCE).collect()
        };
        let any = !readers.is_empty();
        readers.into_iter().for_each(Waker::wake);
        any
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use super::*;

    #[test]
    fn readers_are_woken_when_it_rings_and_not_before() {
        actix_rt::System::new().block_on(async {
            let bell = Bell::on_this_thread();
            let looked = Rc::new(Cell::new(0));
            let reader = actix_rt::spawn({
                let (bell, looked) = (Arc::clone(&bell), looked.clone());
                poll_fn(move |cx| {
                    looked.set(looked.get() + 1);
                    if looked.get() == 2 {
                        return Poll::Ready(());
                    }
                    bell.wakes(Turn::Now, cx.waker().clone());
                    Poll::Pending
                })
            });
            for _ in 0..10 {
                actix_rt::task::yield_now().await;
            }
            assert_eq!(looked.get(), 1);
            bell.ring();
            reader.await.unwrap();
        });
    }

    /// Wakes 100 readers of one step, which come in another order than that of their requests and in two rounds, and
    /// one more with a first token once the first of them has looked.
    #[test]
    fn readers_have_their_places_in_a_step_and_first_tokens_go_first() {
        actix_rt::System::new().block_on(async {
            let bell = Bell::on_this_thread();
            let order = Rc::new(RefCell::new(Vec::new()));
            let reader = |turn: Turn, name: u64| {
                let (bell, order) = (Arc::clone(&bell), order.clone());
                let mut waits = false;
                actix_rt::spawn(poll_fn(move |cx| {
                    if !waits {
                        waits = true;
                        bell.wakes(turn, cx.waker().clone());
                        return Poll::Pending;
                    }
                    order.borrow_mut().push(name);
                    Poll::Ready(())
                }))
            };
            let mut readers = Vec::new();
            for half in [50..100, 0..50] {
                for request in half.rev() {
                    let at_ps = 5 * PS_PER_MS + request;
                    readers.push(reader(Turn::InStep { at_ps, request }, request));
                }
            }
            while order.borrow().is_empty() {
                actix_rt::task::yield_now().await;
                bell.ring();
            }
            readers.push(reader(Turn::Now, 1_000));
            for reader in readers {
                reader.await.unwrap();
            }
            let mut order = order.take();
            let first = order.iter().position(|name| *name == 1_000).unwrap();
            assert!(first < 4 * READERS_AT_ONCE, "{order:?}");
            order.remove(first);
            assert!(order.is_sorted(), "{order:?}");
        });
    }
}
