//! What the machine has made for one request and its client has not read yet. Bounded: tokens carry no content that
//! must be kept, so when a reader is slow the newest entries are joined, and it gets several tokens at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use supernode_actors::request::RequestRecord;
use supernode_actors::runtime::Actor;
use supernode_actors::time::Ps;

use super::bell::{Bell, Turn};

/// Entries before they are joined.
const ENTRIES_MOST: usize = 32;

/// Where and when a request entered the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub id: u64,
    pub arrival_ps: Ps,
    /// CPU index of its home.
    pub home: u32,
    /// How far the machine was behind the wall then, in microseconds.
    pub late_us: u32,
}

/// Tokens that reached the home together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub count: u32,
    pub at_ps: Ps,
    pub by: Actor,
    /// How far the machine was behind the wall when it gave them away, in microseconds.
    pub late_us: u32,
}

/// What a reader finds next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Tokens(Tokens),
    Ended(Box<RequestRecord>),
    /// The machine is gone.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    ticket: Option<Ticket>,
    tokens: VecDeque<Tokens>,
    end: Option<Next>,
    waker: Option<Waker>,
    /// Its first token has been put in.
    begun: bool,
}

impl State {
    /// First tokens come before others; of these each request has its place in every step.
    fn turn(&self, at_ps: Ps) -> Turn {
        match self.ticket {
            Some(ticket) if self.begun => Turn::InStep {
                at_ps,
                request: ticket.id,
            },
            _ => Turn::Now,
        }
    }
}

#[derive(Debug)]
pub struct Mailbox {
    state: Mutex<State>,
    /// Of the reader's thread.
    bell: Arc<Bell>,
}

impl Mailbox {
    pub fn new(bell: &Arc<Bell>) -> Self {
        Self {
            state: Mutex::default(),
            bell: Arc::clone(bell),
        }
    }

    /// What is put in is looked at once this has been rung.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    pub fn accepted(&self, ticket: Ticket) {
        self.state.lock().ticket = Some(ticket);
    }

    pub fn ticket(&self) -> Option<Ticket> {
        self.state.lock().ticket
    }

    pub fn put(&self, tokens: Tokens) {
        let mut s = self.state.lock();
        let turn = s.turn(tokens.at_ps);
        s.begun = true;
        if s.tokens.len() < ENTRIES_MOST {
            s.tokens.push_back(tokens);
        } else if let Some(last) = s.tokens.back_mut() {
            *last = Tokens {
                count: last.count + tokens.count,
                ..tokens
            };
        }
        self.wake(s, turn);
    }

    pub fn end(&self, record: Box<RequestRecord>) {
        let mut s = self.state.lock();
        let turn = s.turn(record.end_ps);
        s.end = Some(Next::Ended(record));
        self.wake(s, turn);
    }

    pub fn lost(&self) {
        let mut s = self.state.lock();
        s.end.get_or_insert(Next::Lost);
        self.wake(s, Turn::Now);
        self.bell.ring();
    }

    /// The next entry; after the end, the end again.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut s = self.state.lock();
        if let Some(tokens) = s.tokens.pop_front() {
            return Poll::Ready(Next::Tokens(tokens));
        }
        if let Some(end) = &s.end {
            return Poll::Ready(end.clone());
        }
        s.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Has the reader woken at the next ring, with the lock given back first.
    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>, turn: Turn) {
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            self.bell.wakes(turn, waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_gets_every_token_from_a_bounded_buffer() {
        let mailbox = Mailbox::new(&Arc::default());
        for at_ps in 0..10_000 {
            mailbox.put(Tokens {
                count: 2,
                at_ps,
                by: 1,
                late_us: 0,
            });
        }
        mailbox.lost();
        let (mut count, mut entries) = (0, 0);
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Next::Tokens(t)) = mailbox.poll(&mut cx) {
            count += t.count;
            entries += 1;
        }
        assert_eq!((count, entries), (20_000, ENTRIES_MOST));
        assert_eq!(mailbox.poll(&mut cx), Poll::Ready(Next::Lost));
    }
}
