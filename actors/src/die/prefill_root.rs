//! The root rank of a prefill group: its queue of prompts, the cache look-ups for them, and batches up to
//! the token budget. Prompts that do not fit are cut into chunks; chunks of one prompt follow each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::env::Env;
use crate::layout::mix;
use crate::message::{
    BatchPart, BatchWork, BlockRead, Handoff, Learned, Lookup, LookupReply, Msg, Prompt, ReadBlocks,
};
use crate::runtime::Actor;
use crate::tally::Stepped;
use crate::time::{Ps, ps_from_s};
use crate::trace::{Counter, Mark, Place, What};
use crate::world::Shared;

use super::blocks::{block_keys, cache_plane};
use super::calibrate::{Calibrator, Condition, Verdict};
use super::prefill_batch::load_of;
use super::prefill_recovery::GroupWatch;
use super::prompt_queue::PromptQueue;

/// A prompt in this group.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) prompt: Prompt,
    /// Keys of its full blocks, in order.
    pub(super) keys: Vec<u64>,
    pub(super) cached_tokens: u32,
    pub(super) cached_blocks: u32,
    /// Tokens computed so far.
    pub(super) computed: u32,
    /// When its first batch started.
    pub(super) started_ps: Option<Ps>,
    /// Nobody waits for it any more.
    pub(super) cancelled: bool,
    /// Its home has started it again elsewhere.
    pub(super) released: bool,
}

impl Job {
    pub(super) fn left(&self) -> u32 {
        self.prompt.prompt_tokens - self.cached_tokens - self.computed
    }
}

/// A prompt whose cached blocks are looked up or on their way.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) job: Job,
    /// Owners that have not said what they hold.
    pub(super) silent: BTreeSet<Actor>,
    pub(super) due_ps: Ps,
    pub(super) held: Vec<bool>,
    /// (owner, key) by block.
    pub(super) owners: Vec<Actor>,
    pub(super) blocks_awaited: u32,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) started_ps: Ps,
    pub(super) awaited: u32,
    pub(super) requests: u32,
    pub(super) new_tokens: u64,
    pub(super) finished: Vec<Job>,
    pub(super) condition: Condition,
    pub(super) estimate_ps: Ps,
    pub(super) drawn_ps: Option<Ps>,
}

#[derive(Debug)]
pub struct PrefillRoot {
    pub(super) group: u16,
    pub(super) budget: u64,
    pub(super) fetching: BTreeMap<u64, Fetch>,
    pub(super) queue: PromptQueue,
    /// Tokens of prompts here that are not computed yet, cached or not.
    pub(super) backlog: u64,
    pub(super) running: Option<Running>,
    pub(super) batches: u64,
    pub(super) calibrator: Calibrator,
    pub(super) watch: GroupWatch,
    /// Owners of blocks that did not answer lately, until when they are passed over.
    pub(super) suspects: BTreeMap<Actor, Ps>,
    pub(super) timer_ps: Option<Ps>,
    /// The model that is served, and ranks that lack its weights: no batch starts before they have them.
    pub(super) model: u8,
    pub(super) lacking: BTreeSet<u16>,
}

impl PrefillRoot {
    pub fn new(group: u16, shared: &Shared) -> Self {
        let p = &shared.serving.prefill;
        Self {
            group,
            budget: u64::from(p.batch_tokens_per_npu) * u64::from(p.npus_per_instance),
            fetching: BTreeMap::new(),
            queue: PromptQueue::default(),
            backlog: 0,
            running: None,
            batches: 0,
            calibrator: Calibrator::new(group, shared.layout.prefill.len()),
            watch: GroupWatch::default(),
            suspects: BTreeMap::new(),
            timer_ps: None,
            model: 0,
            lacking: BTreeSet::new(),
        }
    }

    pub fn backlog(&self) -> u64 {
        self.backlog
    }

    /// (prompts that wait for blocks or for a batch, prompts in the batch that runs).
    pub fn prompts(&self) -> (usize, u32) {
        let running = self.running.as_ref().map_or(0, |r| r.requests);
        (self.fetching.len() + self.queue.len(), running)
    }

    pub fn prompt(&mut self, prompt: Prompt, env: &mut Env<'_, '_>) {
        let request = prompt.request;
        if self.watch.down {
            let home = env.shared.cpu_actor(prompt.home);
            return env.control(home, Msg::Refused { request });
        }
        self.backlog += u64::from(prompt.prompt_tokens);
        env.mark(Mark::AtPrefill, request, 0);
        let keys = block_keys(&prompt, self.model, env.shared);
        let job = Job {
            prompt,
            keys,
            cached_tokens: 0,
            cached_blocks: 0,
            computed: 0,
            started_ps: None,
            cancelled: false,
            released: false,
        };
        if job.keys.is_empty() || env.shared.layout.ring.is_empty() {
            self.enqueue(job, env);
            return;
        }
        // One message to each owner, with all the keys that are its own.
        let mut by_owner: BTreeMap<Actor, Vec<(u32, u64)>> = BTreeMap::new();
        let mut owners = Vec::with_capacity(job.keys.len());
        let now = env.now();
        self.suspects.retain(|_, until| *until > now);
        for (i, &key) in job.keys.iter().enumerate() {
            let s = env.shared;
            let usable = |c| !self.suspects.contains_key(&s.cpu_actor(c));
            let Some(cpu) = s.layout.ring.owner(key, usable) else {
                return self.enqueue(job, env); // Nobody is left to ask.
            };
            let owner = env.shared.cpu_actor(cpu);
            owners.push(owner);
            by_owner.entry(owner).or_default().push((i as u32, key));
        }
        let held = vec![false; job.keys.len()];
        let silent = by_owner.keys().copied().collect();
        let due_ps = now + ps_from_s(env.shared.serving.recovery.reply_ms * 1e-3);
        env.tally.cache.lookup_blocks += job.keys.len() as u64;
        for (owner, keys) in by_owner {
            env.control(owner, Msg::Lookup(Box::new(Lookup { request, keys })));
        }
        self.fetching.insert(
            request,
            Fetch {
                job,
                silent,
                due_ps,
                held,
                owners,
                blocks_awaited: 0,
            },
        );
        self.arm_overdue(due_ps, env);
    }

    pub fn lookup_reply(&mut self, from: Actor, reply: LookupReply, env: &mut Env<'_, '_>) {
        let request = reply.request;
        let Some(f) = self.fetching.get_mut(&request) else {
            return; // It came too late.
        };
        if !f.silent.remove(&from) {
            return;
        }
        for i in reply.held {
            f.held[i as usize] = true;
        }
        if !f.silent.is_empty() {
            return;
        }
        env.mark(Mark::LookedUp, request, 0);
        // KV of a block is of use only with all blocks before it.
        let block = env.shared.serving.cache.block_tokens;
        let mut hits = f.held.iter().take_while(|h| **h).count() as u32;
        // The last token of a prompt is always computed: the first token comes from it.
        while hits > 0 && hits * block >= f.job.prompt.prompt_tokens {
            hits -= 1;
        }
        f.job.cached_blocks = hits;
        if hits == 0 {
            let f = self.fetching.remove(&request).expect("it was just there");
            self.enqueue(f.job, env);
            return;
        }
        f.blocks_awaited = hits;
        f.due_ps = env.now() + ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3);
        let due_ps = f.due_ps;
        // The dies of the group read them side by side.
        let dies = &env.shared.layout.prefill[self.group as usize].dies;
        let mut by_owner: BTreeMap<Actor, Vec<BlockRead>> = BTreeMap::new();
        for index in 0..hits {
            let reader = env.shared.die_actor(dies[index as usize % dies.len()]);
            let key = f.job.keys[index as usize];
            by_owner
                .entry(f.owners[index as usize])
                .or_default()
                .push(BlockRead { key, index, reader });
        }
        let plane = cache_plane(env.shared.serving.cache.plane);
        for (owner, blocks) in by_owner {
            env.control(
                owner,
                Msg::ReadBlocks(Box::new(ReadBlocks {
                    request,
                    blocks,
                    plane,
                })),
            );
        }
        self.arm_overdue(due_ps, env);
    }

    /// A block was evicted between look-up and read: it and what follows it are computed.
    pub fn block_gone(&mut self, request: u64, index: u32, env: &mut Env<'_, '_>) {
        let Some(f) = self.fetching.get_mut(&request) else {
            return;
        };
        f.job.cached_blocks = f.job.cached_blocks.min(index);
        self.blocks(request, 1, env);
    }

    /// Cached blocks are here.
    pub fn blocks(&mut self, request: u64, blocks: u32, env: &mut Env<'_, '_>) {
        let Some(f) = self.fetching.get_mut(&request) else {
            return; // They came too late, and are computed.
        };
        f.blocks_awaited -= blocks;
        f.due_ps = env.now() + ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3);
        if f.blocks_awaited == 0 {
            let f = self.fetching.remove(&request).expect("it was just there");
            let mut job = f.job;
            env.mark(Mark::BlocksRead, request, u64::from(job.cached_blocks));
            job.cached_tokens = job.cached_blocks * env.shared.serving.cache.block_tokens;
            env.tally.cache.hit_blocks += u64::from(job.cached_blocks);
            env.tally.cache.hit_tokens += u64::from(job.cached_tokens);
            self.backlog -= u64::from(job.cached_tokens);
            self.enqueue(job, env);
        }
    }

    /// Lets go of a prompt, at once where it waits, or when its blocks or its batch are in. False if it is not here.
    pub fn cancel(&mut self, request: u64, env: &mut Env<'_, '_>) -> bool {
        if let Some(f) = self.fetching.get_mut(&request) {
            f.job.cancelled = true;
            return true;
        }
        if let Some(job) = self.queue.remove(request) {
            self.drop_job(&job, env);
            return true;
        }
        let finishing = self.running.iter_mut().flat_map(|r| &mut r.finished);
        for job in finishing {
            if job.prompt.request == request {
                job.cancelled = true;
                return true;
            }
        }
        false
    }

    /// What is left of a cancelled prompt is no longer to be computed.
    fn drop_job(&mut self, job: &Job, env: &mut Env<'_, '_>) {
        self.backlog -= u64::from(job.left());
        confirm(job, env);
    }

    pub(super) fn enqueue(&mut self, job: Job, env: &mut Env<'_, '_>) {
        if job.cancelled {
            return self.drop_job(&job, env);
        }
        if job.released {
            self.backlog -= u64::from(job.left());
            return;
        }
        self.queue.push(job);
        env.counter(Counter::PromptQueue, self.queue.len() as u64);
        if self.running.is_none() {
            self.start(env);
        }
    }

    /// Forms a batch from the head of the queue and starts it.
    pub(super) fn start(&mut self, env: &mut Env<'_, '_>) {
        if self.queue.is_empty() || !self.lacking.is_empty() {
            return;
        }
        let now = env.now();
        let (mut tokens, mut attended, mut context, mut requests) = (0u64, 0.0, 0u64, 0u32);
        let mut finished = Vec::new();
        while tokens < self.budget {
            let Some(job) = self.queue.front_mut() else {
                break;
            };
            let n = u64::from(job.left()).min(self.budget - tokens);
            let before = u64::from(job.cached_tokens + job.computed);
            // Each new token attends to what is before it in the prompt, and to itself.
            attended += n as f64 * before as f64 + 0.5 * n as f64 * (n as f64 + 1.0);
            context += before;
            tokens += n;
            requests += 1;
            if job.computed == 0 {
                env.mark(Mark::Batched, job.prompt.request, self.batches + 1);
            }
            job.computed += n as u32;
            job.started_ps.get_or_insert(now);
            if job.left() == 0 {
                finished.push(self.queue.pop().expect("it was just there"));
            }
        }
        let parts = if env.shared.serving.prefill.microbatch {
            2
        } else {
            1
        };
        let part = |i: u64| BatchPart {
            tokens: tokens / parts + u64::from(i < tokens % parts),
            attended_sum: attended / parts as f64,
            context_tokens: context / parts,
        };
        let finishing = finished.len() as u32;
        let mut work = BatchWork {
            epoch: self.watch.epoch,
            drawn_ps: None,
            batch: self.batches + 1,
            parts: (0..parts).map(part).collect(),
            finishing,
        };
        self.batches += 1;
        let per_token = (attended / tokens as f64) as u64;
        let condition = Condition {
            microbatch: parts == 2,
            requests: tokens.min(u64::from(u32::MAX)) as u32,
            requests_max: 1,
            context_max: per_token,
            experts: 0,
            faults: env.shared.conditions().at(env.now()),
        };
        let estimate_ps = estimate_ps(&work, env.shared);
        let settling = env.shared.conditions().settles(env.now());
        let verdict = if env.shared.message_level() || settling {
            Verdict::Simulate
        } else {
            self.calibrator
                .decide(&condition, &env.shared.serving.fidelity, env.ctx.rng())
        };
        let scaled = |ratio: f64| (estimate_ps as f64 * ratio).round() as Ps;
        let (simulate, drawn_ps) = match verdict {
            Verdict::Simulate => (true, None),
            Verdict::Draw(r) => (false, Some(scaled(r))),
            Verdict::Check(r) => (true, Some(scaled(r))),
        };
        self.calibrator.simulated = simulate;
        let dies = &env.shared.layout.prefill[self.group as usize].dies;
        let id = work.batch;
        // A drawn batch stands for messages between all: where parts may be gone, all have their part in it.
        let to_all = simulate || env.shared.conditions().any_by(env.now());
        work.drawn_ps = drawn_ps.filter(|_| !simulate);
        self.running = Some(Running {
            id,
            started_ps: env.now(),
            awaited: if to_all { dies.len() as u32 } else { 1 },
            requests,
            new_tokens: tokens,
            finished,
            condition,
            estimate_ps,
            drawn_ps,
        });
        if to_all {
            for &die in dies {
                env.control(
                    env.shared.die_actor(die),
                    Msg::Batch(Box::new(work.clone())),
                );
            }
        } else {
            env.after(
                drawn_ps.expect("a drawn batch has a duration"),
                Msg::BatchEnd { batch: id },
            );
        }
    }

    /// A rank has finished the batch (or its drawn duration is over).
    pub fn done(&mut self, batch: u64, env: &mut Env<'_, '_>) {
        let Some(r) = self.running.as_mut().filter(|r| r.id == batch) else {
            return; // It was given up.
        };
        r.awaited -= 1;
        if r.awaited > 0 {
            return;
        }
        let r = self.running.take().expect("it was just there");
        let now = env.now();
        let duration = now - r.started_ps;
        env.meter().group_busy_ps += duration;
        let place = Place {
            run: r.id as u32,
            parts: 1,
            ..Place::default()
        };
        let drawn = u64::from(!self.calibrator.simulated);
        env.span(
            What::GroupBatch,
            r.started_ps,
            now,
            place,
            r.new_tokens,
            drawn,
        );
        env.counter(Counter::PromptQueue, self.queue.len() as u64);
        let steady = env.shared.conditions().were_steady(r.started_ps, now);
        let learnt = self.calibrator.ended(
            (&r.condition, steady),
            r.estimate_ps,
            r.drawn_ps,
            duration,
            &mut env.tally.fidelity,
        );
        if !env.shared.message_level() {
            let layers = &mut env.tally.prefill_layers;
            let id = (self.group, r.id as u32);
            let class = self.calibrator.class(&r.condition);
            layers.ended(id, class, self.calibrator.simulated);
        }
        if let Some(ratio) = learnt
            && !env.shared.message_level()
        {
            self.share(r.condition, ratio, env);
        }
        let full = r.new_tokens * 20 >= self.budget * 19;
        let batch = Stepped {
            group: self.group,
            started_ps: r.started_ps,
            ended_ps: now,
            requests: r.requests,
            tokens: r.new_tokens,
        };
        env.tally.prefill_batch(batch, full);
        self.backlog -= r.new_tokens;
        for job in r.finished {
            env.tally.cache.prompt_tokens += u64::from(job.prompt.prompt_tokens);
            if job.released {
                continue;
            }
            if job.cancelled {
                confirm(&job, env);
                continue;
            }
            env.mark(Mark::Computed, job.prompt.request, 0);
            let keeper = keeper(self.group, job.prompt.request, env.shared);
            let new_blocks = job.keys[job.cached_blocks as usize..].to_vec();
            let handoff = Handoff {
                prompt: job.prompt,
                cached_tokens: job.cached_tokens,
                started_ps: job.started_ps.expect("a batch has computed it"),
                new_blocks,
            };
            env.control(keeper, Msg::Handoff(Box::new(handoff)));
        }
        self.start(env);
    }

    /// All prefill groups have the same size and experts: what one has simulated, the others need not.
    fn share(&self, condition: Condition, ratio: f64, env: &mut Env<'_, '_>) {
        let shared = env.shared;
        for (group, other) in shared.layout.prefill.iter().enumerate() {
            if group != usize::from(self.group) {
                let to = shared.die_actor(other.dies[0]);
                env.bookkeeping(to, Msg::Learned(Box::new(Learned { condition, ratio })));
            }
        }
    }

    pub fn learned(&mut self, l: &Learned) {
        self.calibrator.learn(&l.condition, l.ratio);
    }

    /// # Errors
    /// Says what is still here.
    pub fn check_idle(&self) -> Result<(), String> {
        if self.fetching.is_empty()
            && self.queue.is_empty()
            && self.running.is_none()
            && self.backlog == 0
        {
            return Ok(());
        }
        Err(format!(
            "{} prompts being fetched, {} queued, {} tokens of backlog left",
            self.fetching.len(),
            self.queue.len(),
            self.backlog
        ))
    }
}

fn confirm(job: &Job, env: &mut Env<'_, '_>) {
    let (home, request) = (job.prompt.home, job.prompt.request);
    env.control(env.shared.cpu_actor(home), Msg::Cancelled { request });
}

/// The die of a group that looks after a finished prompt until decode has it.
pub fn keeper(group: u16, request: u64, shared: &Shared) -> Actor {
    let dies = &shared.layout.prefill[group as usize].dies;
    shared.die_actor(dies[(mix(request) % dies.len() as u64) as usize])
}

/// A batch's duration from the operators alone, one after the other.
fn estimate_ps(work: &BatchWork, shared: &Shared) -> Ps {
    let times = shared
        .prefill_times
        .as_ref()
        .expect("a prefill group has times");
    let m = &shared.model;
    let copies = u64::from(m.top_k + m.shared_experts);
    let mut total = 0;
    for part in &work.parts {
        let load = load_of(part, 0);
        let per_rank = part.tokens.div_ceil(u64::from(times.ranks));
        let slots = shared
            .prefill_experts
            .as_ref()
            .map_or(1, |e| e.slots_per_rank);
        let per_slot = vec![(per_rank * copies).div_ceil(u64::from(slots)) as u32; slots as usize];
        let attention = times.latents_ps(load) + times.heads_ps(load) + times.output_ps(load);
        let wire = |bytes: u64| shared.paths.npu_npu_write.between.per_byte.ps(bytes);
        let gather =
            wire((times.gather_bytes(load) + times.scatter_bytes(load)) * u64::from(times.ranks));
        let bytes =
            u64::from(super::decode::dispatch_bytes(shared) + super::decode::combine_bytes(shared));
        let moe = times.experts_ps(&per_slot) + wire(per_rank * copies * bytes);
        let fixed = crate::time::ps_from_us(
            2.0 * shared.cal.prefill.collective_startup_us
                + shared.cal.dispatch.startup_us
                + shared.cal.combine.startup_us,
        );
        total += Ps::from(m.layers) * (attention + gather + fixed)
            + Ps::from(m.moe_layers()) * moe
            + Ps::from(m.dense_layers) * times.dense_mlp_ps(load);
    }
    total + times.head_ps(work.finishing)
}
