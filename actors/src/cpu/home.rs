//! The home of requests: it puts them into the machine, remembers each until its last token, and records
//! how it went.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use crate::die::Placer;
use crate::env::Env;
use crate::fault::NoteKind;
use crate::launch::Phase;
use crate::message::{Claim, Msg, Prompt};
use crate::request::{Delivered, Delivery, ID, Outcome, RequestRecord, RequestSpec, Resubmitted};
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};
use crate::trace::Mark;
use crate::world::Shared;

use super::dues::Dues;
use super::open::{Open, Source};
use super::switch::Switching;

#[derive(Debug)]
pub struct Home {
    pub(super) cpu: u32,
    pub(super) source: Source,
    pub(super) open: BTreeMap<u64, Open>,
    pub(super) placer: Placer,
    /// Prefill roots that did not answer lately, until when they are passed over.
    pub(super) suspects: BTreeMap<Actor, Ps>,
    /// Dies of which was said that they are gone, and no more was heard.
    pub(super) gone: BTreeSet<Actor>,
    /// Prefill roots that were found not to answer, until they do.
    pub(super) silent: BTreeSet<Actor>,
    pub(super) timer_ps: Option<Ps>,
    pub(super) dues: Dues,
    pub(super) switch: Switching,
}

impl Home {
    pub fn new(cpu: u32, source: Source) -> Self {
        Self {
            cpu,
            source,
            open: BTreeMap::new(),
            placer: Placer::default(),
            suspects: BTreeMap::new(),
            gone: BTreeSet::new(),
            silent: BTreeSet::new(),
            timer_ps: None,
            dues: Dues::default(),
            switch: Switching::default(),
        }
    }

    /// When this home first has something to do.
    pub fn first_arrival_ps(&self) -> Option<Ps> {
        match &self.source {
            Source::Open(q) => q.front().map(|r| r.arrival_ps),
            Source::Closed { requests, streams } => {
                (!requests.is_empty() && !streams.is_empty()).then_some(0)
            }
        }
    }

    pub fn arrival(&mut self, env: &mut Env<'_, '_>) {
        for (spec, die) in self.source.due(env) {
            self.put_in(spec, die, env);
        }
    }

    /// A request from outside.
    pub fn submit(&mut self, spec: RequestSpec, env: &mut Env<'_, '_>) {
        self.put_in(spec, None, env);
    }

    /// Nobody waits for a request any more. The word follows the request from hand to hand: each message of it
    /// goes the way that the request went before.
    pub fn cancel(&mut self, request: u64, env: &mut Env<'_, '_>) {
        let Some(open) = self.open.get_mut(&request) else {
            return; // It ended first.
        };
        if std::mem::replace(&mut open.cancelling, true) {
            return;
        }
        let (name, holder) = (open.name(), open.holder);
        match holder {
            Some(holder) => env.control(holder, Msg::Cancel { request: name }),
            // Only the backlog has been asked for.
            None if env.shared.phase != Phase::Decode => {
                self.end(request, Outcome::Cancelled, env);
            }
            None => {}
        }
    }

    /// Who held a cancelled request has let go of it.
    pub fn cancelled(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if let Some(open) = self.current(request)
            && open.cancelling
        {
            self.end(request & ID, Outcome::Cancelled, env);
        }
    }

    /// The open request of which `request` is the present try.
    pub(super) fn current(&mut self, request: u64) -> Option<&mut Open> {
        self.open
            .get_mut(&(request & ID))
            .filter(|o| o.name() == request)
    }

    pub(super) fn put_in(
        &mut self,
        mut spec: RequestSpec,
        die: Option<Actor>,
        env: &mut Env<'_, '_>,
    ) {
        let now = env.now();
        if matches!(self.source, Source::Closed { .. }) {
            spec.arrival_ps = now;
        }
        env.offered();
        let id = spec.id;
        mark_arrived(&spec, env);
        let refusal = too_large(&spec, env.shared);
        self.open.insert(id, Open::new(spec, die, now));
        if let Some(why) = refusal {
            self.end(id, Outcome::Failed(why), env);
        } else {
            self.seek(id, env);
        }
    }

    /// Takes in a request whose client had turned to another CPU before.
    pub(super) fn take_in(&mut self, r: Resubmitted, env: &mut Env<'_, '_>) {
        let id = r.spec.id;
        let mut open = Open::new(r.spec, r.die, env.now());
        open.first_token_ps = r.first_token_ps;
        open.delivered = r.delivered;
        open.cached = r.cached;
        open.retries = r.retries;
        open.cancelling = r.cancelling;
        open.origin = r.origin;
        open.why = r.why;
        env.mark(Mark::Retried, id, 0);
        let refusal = too_large(&open.spec, env.shared);
        let cancelling = open.cancelling;
        self.open.insert(id, open);
        if cancelling {
            self.end(id, Outcome::Cancelled, env);
        } else if let Some(why) = refusal {
            self.end(id, Outcome::Failed(why), env);
        } else {
            self.seek(id, env);
        }
    }

    /// Looks for somebody to take a request.
    pub(super) fn seek(&mut self, id: u64, env: &mut Env<'_, '_>) {
        if self.waits_for_switch(id, env) {
            return;
        }
        if env.shared.phase == Phase::Decode {
            self.claim_decode(id, env);
        } else {
            self.open.get_mut(&id).expect("it is open").refused = 0;
            self.ask_prefill(id, env);
        }
    }

    /// Asks a few prefill groups, picked at random, for their backlog; those that did not answer lately are passed
    /// over as long as there are others.
    pub(super) fn ask_prefill(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let groups = &env.shared.layout.prefill;
        let n = groups.len() as u64;
        let choices = u64::from(env.shared.serving.placement.prefill_choices).clamp(1, n);
        let start = env.ctx.rng().below(n);
        let stride = 1 + env.ctx.rng().below((n / choices).max(1));
        let now = env.now();
        self.suspects.retain(|_, until| *until > now);
        let open = self.open.get_mut(&id).expect("it was just put in");
        open.backlog_awaited.clear();
        open.backlog_best = None;
        open.backlog_asked_ps = now;
        open.holder = None;
        (open.asked, open.waits) = (0, 0);
        open.due_ps = now + ps_from_s(env.shared.serving.recovery.reply_ms * 1e-3);
        let (request, due_ps) = (open.name(), open.due_ps);
        for i in 0..choices {
            let first = (start + i * stride) % n;
            let root = |k: u64| {
                env.shared
                    .die_actor(groups[((first + k) % n) as usize].root())
            };
            let to = (0..n)
                .map(root)
                .find(|r| !self.suspects.contains_key(r) && !open.backlog_awaited.contains(r))
                .unwrap_or_else(|| root(0));
            if !open.backlog_awaited.contains(&to) {
                open.backlog_asked = to;
                open.backlog_awaited.push(to);
                env.control(to, Msg::BacklogAsk { request });
            }
        }
        self.arm(id, due_ps, env);
    }

    pub fn backlog_reply(&mut self, from: Actor, request: u64, tokens: u64, env: &mut Env<'_, '_>) {
        if tokens != u64::MAX && self.silent.remove(&from) {
            let now = env.now();
            env.tally.note(now, from, NoteKind::Recovered);
        }
        let Some(open) = self.current(request) else {
            return;
        };
        let Some(i) = open.backlog_awaited.iter().position(|&r| r == from) else {
            return;
        };
        open.backlog_awaited.swap_remove(i);
        if open.backlog_best.is_none_or(|b| (tokens, from) < b) {
            open.backlog_best = Some((tokens, from));
        }
        if open.backlog_awaited.is_empty() {
            self.send_prompt(request & ID, env);
        }
    }

    /// Sends the prompt to the best of those that answered; false if none can take it now.
    pub(super) fn send_prompt(&mut self, id: u64, env: &mut Env<'_, '_>) -> bool {
        let cpu = self.cpu;
        let now = env.now();
        let open = self.open.get_mut(&id).expect("it is open");
        let best = open.backlog_best.take().filter(|b| b.0 != u64::MAX);
        let Some((_, root)) = best else {
            // All that answered are down: asked again after a pause.
            open.due_ps = now + ps_from_s(env.shared.serving.recovery.reply_ms * 1e-3);
            let due_ps = open.due_ps;
            self.arm(id, due_ps, env);
            return false;
        };
        open.holder = Some(root);
        open.due_ps = now + ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3);
        let due_ps = open.due_ps;
        let prompt = Prompt {
            request: open.name(),
            home: cpu,
            // What has been delivered is part of the prompt now.
            prompt_tokens: open.spec.prompt_tokens + open.delivered,
            output_tokens: open.spec.output_tokens - open.delivered,
            prefix: open.spec.prefix.clone(),
            delivered: open.delivered,
        };
        env.mark(Mark::Asked, id, 0);
        env.control(root, Msg::Prompt(Box::new(prompt)));
        self.arm(id, due_ps, env);
        true
    }

    /// The KV is in place somewhere: only a slot is needed.
    fn claim_decode(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let due_ps = env.now() + ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3);
        let home = self.cpu;
        let open = self.open.get_mut(&id).expect("it is open");
        open.due_ps = due_ps;
        (open.asked, open.waits) = (0, 0);
        let claim = Claim {
            request: open.name(),
            home,
            context: open.spec.prompt_tokens + open.delivered,
            left: open.spec.output_tokens - open.delivered,
            delivered: open.delivered,
            kv_in_place: true,
            token_ps: None,
        };
        // A stream leaves its die only when that is lost.
        let there = |die: &Actor| open.retries == 0 && !self.gone.contains(die);
        open.holder = open.die.filter(there);
        match open.holder {
            Some(die) => env.control(die, Msg::SlotClaim(Box::new(claim))),
            None => self.placer.start(claim, env),
        }
        self.arm(id, due_ps, env);
    }

    pub fn slot_reply(
        &mut self,
        from: Actor,
        request: u64,
        free: u32,
        waiting: u32,
        env: &mut Env<'_, '_>,
    ) {
        if let Some(die) = self.placer.reply(from, request, free, waiting, env) {
            self.claimed(request, die, env);
        }
    }

    /// A slot for a request has been claimed at a die, which has it from now on.
    pub(super) fn claimed(&mut self, request: u64, die: Actor, env: &mut Env<'_, '_>) {
        let due_ps = env.now() + ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3);
        if let Some(open) = self.current(request) {
            open.holder = Some(die);
            open.due_ps = due_ps;
            self.dues.set(due_ps, request & ID);
        }
    }

    /// A part speaks of a try: the open request, or the part is told that nobody waits for that try any more.
    fn spoken_of(&mut self, request: u64, env: &mut Env<'_, '_>) -> Option<&mut Open> {
        let from = env.from;
        self.gone.remove(&from);
        if self.current(request).is_none() {
            env.control(from, Msg::Release { request });
            return None;
        }
        let quiet_ps = ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3);
        let due_ps = env.now() + quiet_ps;
        if self.current(request)?.due_ps > due_ps {
            self.dues.set(due_ps, request & ID);
        }
        let open = self.current(request)?;
        open.due_ps = due_ps;
        (open.asked, open.waits) = (0, 0);
        if open.holder.replace(from) != Some(from) && open.cancelling {
            // It had gone on before the word came there.
            env.control(from, Msg::Cancel { request });
        }
        Some(open)
    }

    /// A decode die has a slot for a request.
    pub fn placed(&mut self, request: u64, env: &mut Env<'_, '_>) {
        self.spoken_of(request, env);
    }

    pub fn first_token(
        &mut self,
        request: u64,
        cached: u32,
        delivered: u32,
        started_ps: Ps,
        env: &mut Env<'_, '_>,
    ) {
        let now = env.now();
        let Some(open) = self.spoken_of(request, env) else {
            return;
        };
        if open.delivered != delivered {
            return; // It was late, and has been sent again.
        }
        let id = request & ID;
        open.cached = cached;
        if open.delivered == 0 {
            open.prefill_start_ps = started_ps;
            open.first_token_ps = now;
            env.mark(Mark::FirstToken, id, 1);
        }
        open.delivered += 1;
        open.seeking_ps = now;
        deliver(open, 1, env);
        if open.spec.output_tokens <= open.delivered || env.shared.phase == Phase::Prefill {
            self.end(id, Outcome::Completed, env);
        }
    }

    pub fn tokens(
        &mut self,
        request: u64,
        first: u32,
        count: u32,
        last: bool,
        env: &mut Env<'_, '_>,
    ) {
        let (now, from) = (env.now(), env.from);
        let Some(open) = self.spoken_of(request, env) else {
            return;
        };
        let id = request & ID;
        if first > open.delivered {
            // Tokens before these were lost on the way. Who has made the last one has forgotten them.
            if last {
                return self.retry(id, "tokens of it were lost on the way".into(), from, env);
            }
            let first = open.delivered;
            return env.control(from, Msg::Resend { request, first });
        }
        // Of tokens that come again, those are taken that had not come before.
        let Some(count) = (first + count).checked_sub(open.delivered) else {
            return;
        };
        if count == 0 {
            return;
        }
        if open.delivered == 0 {
            open.first_token_ps = now;
            env.mark(Mark::FirstToken, id, u64::from(count));
        } else if !last {
            env.mark(Mark::TokensHome, id, u64::from(count));
        }
        open.delivered += count;
        open.seeking_ps = now;
        deliver(open, count, env);
        if last {
            assert_eq!(
                open.delivered, open.spec.output_tokens,
                "request {id} ends with its last token"
            );
            self.end(id, Outcome::Completed, env);
        }
    }

    pub(super) fn end(&mut self, request: u64, outcome: Outcome, env: &mut Env<'_, '_>) {
        let open = self.open.remove(&request).expect("a request ends once");
        let outcome = if open.cancelling {
            Outcome::Cancelled
        } else {
            outcome
        };
        env.mark(
            Mark::Ended,
            request,
            u64::from(outcome == Outcome::Completed),
        );
        let record = RequestRecord {
            id: request,
            home: self.cpu,
            arrival_ps: open.spec.arrival_ps,
            prefill_start_ps: open.prefill_start_ps,
            first_token_ps: open.first_token_ps,
            end_ps: env.now(),
            prompt_tokens: open.spec.prompt_tokens,
            cached_tokens: open.cached,
            output_tokens: open.delivered,
            retries: open.retries,
            outcome,
        };
        env.ended(record);
        self.left(request, env);
        match open.origin {
            Some(origin) => env.control(origin, Msg::StreamFree { die: open.die }),
            None => self.next_of_stream(open.die, env),
        }
    }

    /// A stream of a closed loop puts in its next request.
    pub(super) fn next_of_stream(&mut self, die: Option<Actor>, env: &mut Env<'_, '_>) {
        if let Some(next) = self.source.next() {
            self.put_in(next, die, env);
        }
    }

    /// # Errors
    /// Says what is still open.
    pub fn check_idle(&self) -> Result<(), String> {
        match self.open.keys().next() {
            Some(id) => Err(format!(
                "{} requests open, request {id} among them",
                self.open.len()
            )),
            None if !self.placer.is_empty() => Err("a slot is still being looked for".into()),
            None => Ok(()),
        }
    }
}

impl Env<'_, '_> {
    /// A client puts in a request.
    pub(super) fn offered(&mut self) {
        self.tally.offered += 1;
        let progress = &self.shared.progress;
        progress.offered.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over.
    pub(super) fn ended(&mut self, record: RequestRecord) {
        self.shared.progress.ended.fetch_add(1, Ordering::Relaxed);
        if self.shared.live {
            self.tally.ended_live(record);
        } else {
            self.tally.ended(record);
        }
    }
}

/// A request has come in, here or at a CPU that is not there.
pub(super) fn mark_arrived(spec: &RequestSpec, env: &mut Env<'_, '_>) {
    let tokens = (u64::from(spec.output_tokens) << 32) | u64::from(spec.prompt_tokens);
    env.mark(Mark::Arrived, spec.id, tokens);
}

/// Hands tokens to the outside of a live machine.
fn deliver(open: &Open, count: u32, env: &mut Env<'_, '_>) {
    if env.shared.live && !open.cancelling {
        let what = Delivered::Tokens {
            count,
            by: env.from,
        };
        env.tally.deliveries.push(Delivery {
            request: open.spec.id,
            at_ps: env.now(),
            what,
        });
    }
}

/// Why a request can never be served, if so.
pub fn too_large(spec: &RequestSpec, shared: &Shared) -> Option<String> {
    let total = u64::from(spec.prompt_tokens) + u64::from(spec.output_tokens);
    if total > u64::from(shared.model.max_context) {
        return Some(format!(
            "context: {} prompt and {} output tokens are more than the {} of {}",
            spec.prompt_tokens, spec.output_tokens, shared.model.max_context, shared.model.name
        ));
    }
    if shared.phase != Phase::Prefill && total > shared.decode_kv_tokens {
        return Some(format!(
            "memory: KV of {total} tokens is more than the {} that fit beside the weights of a decode die",
            shared.decode_kv_tokens
        ));
    }
    None
}
