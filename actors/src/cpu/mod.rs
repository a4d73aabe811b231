//! A CPU: the home of the requests that land on it, and the owner of its share of the pooled KV cache.

mod dues;
mod home;
mod lru;
mod open;
mod recovery;
mod store;
mod switch;
mod weights;

pub use home::Home;
pub use open::Source;
pub use store::Store;
pub use weights::WeightStore;

use crate::beats::Beats;
use crate::env::Env;
use crate::fault::{Body, Change, NoteKind};
use crate::message::{Msg, Plane};
use crate::runtime::Actor;
use crate::time::ps_from_s;

/// A CPU actor.
#[derive(Debug)]
pub struct Cpu {
    pub index: u32,
    pub home: Home,
    pub store: Store,
    pub weights: WeightStore,
    /// What faults leave of it.
    pub body: Body,
    pub(crate) beats: Beats,
}

impl Cpu {
    pub fn handle(&mut self, from: Actor, msg: Msg, env: &mut Env<'_, '_>) {
        match msg {
            // Home of requests.
            // Clients, who come whether the CPU is there or not.
            Msg::Arrival if self.body.is_stopped() => self.home.arrival_elsewhere(env),
            Msg::Submit(spec) if self.body.is_stopped() => {
                self.home.submit_elsewhere(*spec, None, env);
            }
            Msg::Resubmit(r) => self.home.resubmitted(*r, self.body.is_stopped(), env),
            Msg::StreamFree { die } => self.home.stream_free(die, self.body.is_stopped(), env),
            Msg::ClientsLeave => {
                if self.body.is_stopped() {
                    self.home.leave(env);
                }
            }
            // What became of its requests.
            Msg::Watch(_) => self.home.overdue(env),
            Msg::Placed { request } => self.home.placed(request, env),
            Msg::Refused { request } => self.home.refused(from, request, env),
            Msg::Unplaced { request, asked } => self.home.unplaced(request, asked, env),
            Msg::Answer { request, held } => self.home.answer(from, request, held, env),
            Msg::Beat(beat) => self.beats.handle(from, beat, env),
            Msg::Gone { die } => self.home.gone(die, env),
            Msg::LoadAsk { bytes } => env.transfer(from, bytes, Plane::Ub, Msg::Loaded),
            Msg::Arrival => self.home.arrival(env),
            Msg::BacklogReply { request, tokens } => {
                self.home.backlog_reply(from, request, tokens, env)
            }
            Msg::FirstToken {
                request,
                cached,
                delivered,
                started_ps,
            } => self
                .home
                .first_token(request, cached, delivered, started_ps, env),
            Msg::Tokens {
                request,
                from: first,
                count,
                last,
            } => self.home.tokens(request, first, count, last, env),
            Msg::Submit(spec) => self.home.submit(*spec, env),
            Msg::Cancel { request } => self.home.cancel(request, env),
            Msg::Cancelled { request } => self.home.cancelled(request, env),
            Msg::SlotReply {
                request,
                free,
                waiting,
            } => self.home.slot_reply(from, request, free, waiting, env),
            // Owner of KV blocks.
            Msg::Lookup(lookup) => self.store.lookup(from, *lookup, env),
            Msg::ReadBlocks(read) => self.store.read(*read, env),
            Msg::SsdLoaded(read) => self.store.loaded(*read, env),
            Msg::WriteBlock { key, bytes } => self.store.write(key, bytes, env),
            // Owner of blocks of weights.
            Msg::WeightAsk { key, bytes } => self.weights.ask(from, key, bytes, env),
            Msg::StoreBlock {
                key,
                bytes,
                tail_ps,
            } => self.weights.arriving(key, bytes, tail_ps, env),
            Msg::StoreIn { key } => self.weights.arrived(key, env),
            // Another model.
            Msg::SwitchModel => self.home.switch(env),
            Msg::DrainOver => self.home.drain_over(env),
            Msg::Switched => self.home.group_switched(env),
            Msg::SwitchOver => self.home.switch_over(env),
            Msg::Changed(change) => self.changed(change, env),
            other => unreachable!("a CPU does not take {other:?}"),
        }
    }

    /// A fault strikes this CPU, or is over.
    fn changed(&mut self, change: Change, env: &mut Env<'_, '_>) {
        let me = env.ctx.me();
        env.fabric.hosts.slow(me, self.body.pace());
        match change {
            Change::Pace => {}
            Change::Crashed => {
                self.store.forget();
                self.weights.forget();
                self.home.forget();
                self.clients_wait(env);
            }
            Change::Hung => self.clients_wait(env),
            Change::Resumed => self.back(env),
            Change::Restarted => {
                self.back(env);
                self.home.reconnect(env);
                self.beats.begin(env);
            }
        }
    }

    /// It answers again.
    fn back(&self, env: &mut Env<'_, '_>) {
        let (now, me) = (env.now(), env.ctx.me());
        env.tally.note(now, me, NoteKind::Recovered);
    }

    /// Clients wait for an answer for a while, and then turn to another CPU.
    fn clients_wait(&mut self, env: &mut Env<'_, '_>) {
        let wait_ps = ps_from_s(env.shared.serving.recovery.client_ms * 1e-3);
        env.after(wait_ps, Msg::ClientsLeave);
    }
}
