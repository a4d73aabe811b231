//! A prefill rank: what it passes on to the root of its group, and the finished prompts it looks after until their KV is
//! at a decode die. Its share of each batch is in `prefill_batch.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::compute::PrefillTimes;
use crate::config::KvPlane;
use crate::env::Env;
use crate::launch::Phase;
use crate::message::{Claim, Handoff, Learned, LookupReply, Msg, Plane, Prompt};
use crate::runtime::Actor;
use crate::time::Ps;
use crate::trace::Mark;
use crate::world::Shared;

use super::blocks::cache_plane;
use super::placer::Placer;
use super::prefill_batch::Work;
use super::prefill_recovery::Life;
use super::prefill_root::PrefillRoot;

/// A die of a prefill group.
#[derive(Debug)]
pub struct PrefillRank {
    pub(super) group: u16,
    pub(super) rank: u16,
    pub(super) ranks: u32,
    pub(super) slots: usize,
    pub(super) work: Option<Work>,
    pub(super) vector_free_ps: Ps,
    /// Phase counters of the two channels, over all batches.
    pub(super) phases: [u32; 2],
    pub(super) counts: Vec<u32>,
    pub(super) by_slot: Vec<u32>,
    pub(super) served: Vec<u64>,
    pub(super) handoffs: BTreeMap<u64, Handoff>,
    /// The decode die that was asked to take each of them.
    pub(super) placer: Placer,
    pub root: Option<Box<PrefillRoot>>,
    /// This die's own operator times while a fault makes it slower.
    pub slowed: Option<Arc<PrefillTimes>>,
    pub(super) life: Life,
}

impl PrefillRank {
    pub fn new(group: u16, rank: u16, shared: &Shared) -> Self {
        let ranks = shared.layout.prefill[group as usize].ranks();
        let slots = shared
            .prefill_experts
            .as_ref()
            .map_or(1, |e| e.slots_per_rank) as usize;
        Self {
            group,
            rank,
            ranks,
            slots,
            work: None,
            vector_free_ps: 0,
            phases: [0; 2],
            counts: Vec::new(),
            by_slot: vec![0; ranks as usize * slots],
            served: Vec::new(),
            handoffs: BTreeMap::new(),
            placer: Placer::default(),
            root: (rank == 0).then(|| Box::new(PrefillRoot::new(group, shared))),
            slowed: None,
            life: Life::default(),
        }
    }

    pub fn group(&self) -> u16 {
        self.group
    }

    /// Tokens that this rank's experts got, by MoE layer.
    pub fn served(&self) -> &[u64] {
        &self.served
    }

    fn root(&mut self) -> &mut PrefillRoot {
        self.root
            .as_mut()
            .expect("prompts go to the root of a group")
    }

    pub fn backlog_ask(&mut self, from: Actor, request: u64, env: &mut Env<'_, '_>) {
        self.look_again(env);
        let root = self.root();
        // Down: as far back as can be.
        let tokens = if root.watch.down {
            u64::MAX
        } else {
            root.backlog()
        };
        env.control(from, Msg::BacklogReply { request, tokens });
    }

    pub fn prompt(&mut self, prompt: Prompt, env: &mut Env<'_, '_>) {
        self.root().prompt(prompt, env);
    }

    pub fn lookup_reply(&mut self, from: Actor, reply: LookupReply, env: &mut Env<'_, '_>) {
        self.root().lookup_reply(from, reply, env);
    }

    pub fn blocks(&mut self, request: u64, blocks: u32, env: &mut Env<'_, '_>) {
        match &mut self.root {
            Some(root) => root.blocks(request, blocks, env),
            None => self.tell_root(Msg::Blocks { request, blocks }, env),
        }
    }

    pub fn block_gone(&mut self, request: u64, index: u32, env: &mut Env<'_, '_>) {
        match &mut self.root {
            Some(root) => root.block_gone(request, index, env),
            None => self.tell_root(Msg::BlockGone { request, index }, env),
        }
    }

    fn tell_root(&self, msg: Msg, env: &mut Env<'_, '_>) {
        let root = env.shared.layout.prefill[self.group as usize].root();
        env.control(env.shared.die_actor(root), msg);
    }

    pub fn batch_done(&mut self, batch: u64, env: &mut Env<'_, '_>) {
        self.root().done(batch, env);
    }

    pub fn learned(&mut self, learned: &Learned) {
        self.root().learned(learned);
    }

    // ---- a finished prompt

    /// This die has a prompt's KV: its first token goes home, its new blocks to their owners, and a decode
    /// die is looked for.
    pub fn handoff(&mut self, h: Handoff, env: &mut Env<'_, '_>) {
        let shared = env.shared;
        env.mark(Mark::HandedOff, h.prompt.request, 0);
        let home = shared.cpu_actor(h.prompt.home);
        env.control(
            home,
            Msg::FirstToken {
                request: h.prompt.request,
                cached: h.cached_tokens,
                delivered: h.prompt.delivered,
                started_ps: h.started_ps,
            },
        );
        let suspects = self.root.as_ref().map(|r| &r.suspects);
        let usable = |c| !suspects.is_some_and(|s| s.contains_key(&shared.cpu_actor(c)));
        for &key in &h.new_blocks {
            if let Some(cpu) = shared.layout.ring.owner(key, usable) {
                let bytes = shared.block_bytes;
                let plane = cache_plane(shared.serving.cache.plane);
                env.transfer(
                    shared.cpu_actor(cpu),
                    bytes,
                    plane,
                    Msg::WriteBlock { key, bytes },
                );
            }
        }
        let p = &h.prompt;
        if p.output_tokens <= 1 || shared.phase == Phase::Prefill {
            return;
        }
        let claim = Claim {
            request: p.request,
            home: p.home,
            context: p.prompt_tokens + 1,
            left: p.output_tokens - 1,
            delivered: p.delivered + 1,
            kv_in_place: false,
            token_ps: Some(env.now()),
        };
        self.handoffs.insert(p.request, h);
        self.placer.start(claim, env);
    }

    pub fn slot_reply(
        &mut self,
        from: Actor,
        request: u64,
        free: u32,
        waiting: u32,
        env: &mut Env<'_, '_>,
    ) {
        self.placer.reply(from, request, free, waiting, env);
    }

    /// Nobody waits for a request any more: who has it here lets go of it. What has gone to decode is found there by
    /// its home when its next tokens come.
    pub fn cancel(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if let Some(root) = &mut self.root
            && root.cancel(request, env)
        {
            return;
        }
        let shared = env.shared;
        if let Some(h) = self.handoffs.remove(&request) {
            if self.placer.cancel(request) {
                env.control(shared.cpu_actor(h.prompt.home), Msg::Cancelled { request });
            } else if let Some(die) = self.placer.drop_request(request) {
                env.control(die, Msg::Cancel { request });
            }
            return;
        }
        let keeper = super::prefill_root::keeper(self.group, request, shared);
        if self.root.is_some() && keeper != env.ctx.me() {
            env.control(keeper, Msg::Cancel { request });
        }
    }

    /// A decode die has room: the KV goes there.
    pub fn slot_grant(&mut self, from: Actor, request: u64, env: &mut Env<'_, '_>) {
        let wanted = self.placer.granted(request, from);
        let Some(h) = self.handoffs.remove(&request).filter(|_| wanted) else {
            // Cancelled, and the word is on its way to who granted this; or placed elsewhere by now.
            return env.control(from, Msg::Release { request });
        };
        env.mark(Mark::GrantHeard, request, 0);
        let bytes = (f64::from(h.prompt.prompt_tokens) * env.shared.kv_bytes_per_token) as u64;
        let plane = match env.shared.serving.kv_transfer.plane {
            KvPlane::Rdma => Plane::Rdma,
            KvPlane::Ub => Plane::Ub,
            KvPlane::Vpc => Plane::Vpc,
        };
        env.transfer(from, bytes, plane, Msg::Kv { request });
    }

    /// # Errors
    /// Says what is still held.
    pub fn check_idle(&self) -> Result<(), String> {
        if self.work.is_some() || !self.handoffs.is_empty() || !self.placer.is_empty() {
            return Err(format!(
                "{} finished prompts left, batch running: {}",
                self.handoffs.len(),
                self.work.is_some()
            ));
        }
        self.root.as_ref().map_or(Ok(()), |r| r.check_idle())
    }
}
