//! Ctrl-C: while a machine runs, the first one asks it to stop and report, the second ends the process at
//! once. Before and after a run the first one ends it. SIGTERM is taken the same way.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Exit code of a process that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// Listens from now on, on a thread of its own.
pub fn listen() -> Result<()> {
    let (ready, listening) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            actix_rt::System::new().block_on(async move {
                let kind = actix_rt::signal::unix::SignalKind::interrupt();
                let term = actix_rt::signal::unix::SignalKind::terminate();
                let streams = actix_rt::signal::unix::signal(kind)
                    .and_then(|i| Ok((i, actix_rt::signal::unix::signal(term)?)));
                let (mut interrupts, mut terms) = match streams {
                    Ok(streams) => streams,
                    Err(e) => {
                        let _ = ready.send(Err(e));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                loop {
                    std::future::poll_fn(|cx| {
                        if interrupts.poll_recv(cx).is_ready() || terms.poll_recv(cx).is_ready() {
                            std::task::Poll::Ready(())
                        } else {
                            std::task::Poll::Pending
                        }
                    })
                    .await;
                    if STATE
                        .compare_exchange(RUNNING, STOPPING, Ordering::SeqCst, Ordering::SeqCst)
                        .is_err()
                    {
                        std::process::exit(EXIT_CODE.into());
                    }
                }
            });
        });
    thread.map_err(|e| Error::failed(format!("cannot start the signal thread: {e}")))?;
    match listening.recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(Error::failed(format!("cannot listen for Ctrl-C: {e}"))),
        Err(_) => Err(Error::failed("cannot listen for Ctrl-C")),
    }
}

/// While this lives, Ctrl-C asks instead of ending the process.
pub struct Running(());

impl Running {
    pub fn new() -> Self {
        STATE.store(RUNNING, Ordering::SeqCst);
        Self(())
    }

    /// Ctrl-C was pressed.
    pub fn stop_asked(&self) -> bool {
        STATE.load(Ordering::Relaxed) == STOPPING
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
