//! A CPU: the home of the requests that land on it, and the owner of its share of the pooled KV cache.

mod home;
mod lru;
mod store;

pub use home::{Home, Source};
pub use store::Store;

use crate::env::Env;
use crate::fault::{Body, Change};
use crate::message::Msg;
use crate::runtime::Actor;

/// A CPU actor.
#[derive(Debug)]
pub struct Cpu {
    pub index: u32,
    pub home: Home,
    pub store: Store,
    /// What faults leave of it.
    pub body: Body,
}

impl Cpu {
    pub fn handle(&mut self, from: Actor, msg: Msg, env: &mut Env<'_, '_>) {
        match msg {
            // Home of requests.
            Msg::Arrival => self.home.arrival(env),
            Msg::BacklogReply { request, tokens } => {
                self.home.backlog_reply(from, request, tokens, env)
            }
            Msg::FirstToken {
                request,
                cached,
                started_ps,
            } => self.home.first_token(request, cached, started_ps, env),
            Msg::Tokens {
                request,
                from: first,
                count,
                last,
            } => self.home.tokens(from, request, first, count, last, env),
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
            Msg::Changed(change) => self.changed(change, env),
            other => unreachable!("a CPU does not take {other:?}"),
        }
    }

    /// A fault strikes this CPU, or is over.
    fn changed(&mut self, _change: Change, _env: &mut Env<'_, '_>) {}
}
