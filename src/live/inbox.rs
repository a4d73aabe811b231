//! Commands on their way to the driver. It waits for them in its sleep: a channel that spins and yields before it sleeps
//! gives its turn away, and on a busy computer the driver, which needs little time but at once, then waits for others to
//! have had theirs.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, TryRecvError};
use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
struct Doorbell {
    rung: Mutex<bool>,
    rings: Condvar,
}

/// Where commands are put in.
#[derive(Debug)]
pub struct Outbox<T> {
    commands: Sender<T>,
    door: Arc<Doorbell>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            door: Arc::clone(&self.door),
        }
    }
}

impl<T> Outbox<T> {
    /// # Errors
    /// The driver has ended; the command comes back.
    pub fn send(&self, command: T) -> Result<(), SendError<T>> {
        self.commands.send(command)?;
        *self.door.rung.lock() = true;
        self.door.rings.notify_one();
        Ok(())
    }
}

/// Where the driver takes them out.
#[derive(Debug)]
pub struct Inbox<T> {
    commands: Receiver<T>,
    door: Arc<Doorbell>,
}

pub fn inbox<T>() -> (Outbox<T>, Inbox<T>) {
    let (sender, commands) = crossbeam_channel::unbounded();
    let door = Arc::<Doorbell>::default();
    let outbox = Outbox {
        commands: sender,
        door: Arc::clone(&door),
    };
    (outbox, Inbox { commands, door })
}

impl<T> Inbox<T> {
    /// What is there already.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.commands.try_recv()
    }

    /// Waits for a command until then.
    ///
    /// # Errors
    /// None came, or none can come any more: that is noticed when the time is over.
    pub fn recv_deadline(&self, until: Instant) -> Result<T, RecvTimeoutError> {
        loop {
            match self.try_recv() {
                Ok(command) => return Ok(command),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let mut rung = self.door.rung.lock();
            if !*rung && self.door.rings.wait_until(&mut rung, until).timed_out() {
                return Err(RecvTimeoutError::Timeout);
            }
            *rung = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn every_command_arrives_from_any_thread() {
        let (outbox, inbox) = inbox();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let outbox = outbox.clone();
                scope.spawn(move || (0..1_000).for_each(|n| outbox.send((thread, n)).unwrap()));
            }
            drop(outbox);
            let mut next = [0; 4];
            for _ in 0..4_000 {
                let (thread, n) = inbox.recv_deadline(soon()).unwrap();
                assert_eq!(next[thread], n, "each sender's come in order");
                next[thread] += 1;
            }
        });
        assert_eq!(
            inbox.recv_deadline(soon()),
            Err(RecvTimeoutError::Disconnected)
        );
    }

    #[test]
    fn it_waits_no_longer_than_it_is_told() {
        let (_outbox, inbox) = inbox::<()>();
        let now = Instant::now();
        assert_eq!(inbox.recv_deadline(now), Err(RecvTimeoutError::Timeout));
        assert!(now.elapsed() < Duration::from_secs(10));
    }
}
