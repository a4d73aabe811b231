//! Tells an HTTP thread that there is something in the mailboxes of its answers: once for all of a round, when the driver
//! has handed everything out. Readers are then woken by a task of their own thread. Waking each from the driver's thread
//! costs more, and has the driver wait while the first of them write.

use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// One for each HTTP thread.
#[derive(Debug, Default)]
pub struct Bell {
    /// Readers that find something when they look.
    waiting: Mutex<Vec<Waker>>,
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
                listener.wake_all();
            }
        }));
        bell
    }

    /// Has a reader woken the next time that it rings.
    pub fn wakes(&self, reader: Waker) {
        self.waiting.lock().push(reader);
    }

    pub fn ring(&self) {
        if !self.waiting.lock().is_empty() {
            self.rung.notify_one();
        }
    }

    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[test]
    fn readers_are_woken_when_it_rings_and_not_before() {
        actix_rt::System::new().block_on(async {
            let bell = Bell::on_this_thread();
            let looked = std::rc::Rc::new(std::cell::Cell::new(0));
            let reader = actix_rt::spawn({
                let (bell, looked) = (Arc::clone(&bell), looked.clone());
                poll_fn(move |cx| {
                    looked.set(looked.get() + 1);
                    if looked.get() == 2 {
                        return Poll::Ready(());
                    }
                    bell.wakes(cx.waker().clone());
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
}
