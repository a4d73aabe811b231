//! Requests that are followed: the stages of each on a track of its own, one after the other without gaps, from its
//! arrival to its end.

use supernode_actors::layout::mix;
use supernode_actors::time::PS_PER_NS;
use supernode_actors::trace::{Mark, Record};

use super::events::{self, Key};
use super::packets::{BEGIN, END, Followed, INSTANT, Notes, Writer};

impl Writer {
    /// A request has come to a mark: the stage that ends there.
    pub(super) fn mark(&mut self, r: &Record, mark: Mark) {
        let (request, now) = (r.a, r.start_ps);
        if mark == Mark::Arrived {
            if now < self.window_ps.0 || now >= self.window_ps.1 {
                return;
            }
            if self.requests_track == 0 {
                self.requests_track = self.describe(0, "requests", None);
            }
            let track = self.describe(self.requests_track, &format!("request {request}"), None);
            self.followed.insert(
                request,
                Followed {
                    track,
                    arrived_ps: now,
                    since_ps: now,
                },
            );
            let home = self.address(r.actor);
            let named = Some((events::number(r.what), events::REQUEST));
            self.spans += 1;
            self.event(BEGIN, now, track, named, None, |n| {
                n.some(Key::StartSubPs, now % PS_PER_NS);
                n.uint(Key::Request, request);
                n.interned(Key::Actor, home);
                n.uint(Key::PromptTokens, r.b & 0xffff_ffff);
                n.uint(Key::OutputTokens, r.b >> 32);
            });
            return;
        }
        let Some(f) = self.followed.get_mut(&request) else {
            return;
        };
        let track = f.track;
        let since_ps = f.since_ps;
        let ttft_ps = now - f.arrived_ps;
        if !mark.beside() {
            f.since_ps = now;
        }
        let actor = self.address(r.actor);
        let flow = Some(mix(request ^ 0x7265_7175_6573_7400));
        let notes = |n: &mut Notes<'_>| {
            n.uint(Key::Request, request);
            n.interned(Key::Actor, actor);
            match mark {
                Mark::BlocksRead => n.uint(Key::Blocks, r.b),
                Mark::Batched => n.uint(Key::Run, r.b),
                Mark::Stepped => {
                    n.uint(Key::Step, r.b >> 32);
                    n.uint(Key::Tokens, r.b & 0xffff_ffff);
                }
                Mark::FirstToken | Mark::TokensHome => n.uint(Key::Tokens, r.b),
                Mark::Ended => n.uint(Key::Complete, r.b),
                _ => {}
            }
        };
        if mark.beside() {
            let named = Some((events::number(r.what), events::REQUEST));
            self.event(INSTANT, now, track, named, None, |n| {
                n.some(Key::StartSubPs, now % PS_PER_NS);
                notes(n);
                if mark == Mark::FirstToken {
                    n.uint(Key::TtftPs, ttft_ps);
                }
            });
            return;
        }
        self.span(track, r.what, (since_ps, now), flow, notes);
        if mark == Mark::Ended {
            self.event(END, now, track, None, None, |_| ());
            self.followed.remove(&request);
        }
    }
}
