//! The home of requests: it puts them into the machine, remembers each until its last token, and records
//! how it went.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use crate::die::Placer;
use crate::env::Env;
use crate::launch::Phase;
use crate::message::{Claim, Msg, Prompt};
use crate::request::{Delivered, Delivery, Outcome, Prefix, RequestRecord, RequestSpec};
use crate::runtime::Actor;
use crate::time::Ps;
use crate::trace::Mark;
use crate::world::Shared;

/// A request that is in the machine.
#[derive(Debug)]
struct Open {
    spec: RequestSpec,
    first_token_ps: Ps,
    delivered: u32,
    cached: u32,
    prefill_start_ps: Ps,
    retries: u32,
    backlog_awaited: u32,
    backlog_best: Option<(u64, Actor)>,
    /// Who has the prompt, and who makes tokens once some have come.
    prefill: Option<Actor>,
    decoder: Option<Actor>,
    /// Nobody waits for it any more: it ends when who holds it has let go.
    cancelling: bool,
    /// Closed loop in the decode phase: the die that this stream of requests stays on.
    die: Option<Actor>,
}

/// How requests reach this home.
#[derive(Debug)]
pub enum Source {
    /// Each at its time.
    Open(VecDeque<RequestSpec>),
    /// So many streams, each putting in its next request when one has ended. In the decode phase each stream
    /// has a die of its own.
    Closed {
        requests: VecDeque<RequestSpec>,
        streams: Vec<Option<Actor>>,
    },
}

#[derive(Debug)]
pub struct Home {
    cpu: u32,
    source: Source,
    open: BTreeMap<u64, Open>,
    placer: Placer,
}

impl Home {
    pub fn new(cpu: u32, source: Source) -> Self {
        Self {
            cpu,
            source,
            open: BTreeMap::new(),
            placer: Placer::default(),
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
        let now = env.now();
        match &mut self.source {
            Source::Open(queue) => {
                let Some(spec) = queue.pop_front() else {
                    return;
                };
                if let Some(next) = queue.front() {
                    let at = next.arrival_ps.max(now);
                    env.at(at, Msg::Arrival);
                }
                self.put_in(spec, None, env);
            }
            Source::Closed { requests, streams } => {
                let first: Vec<_> = std::mem::take(streams)
                    .into_iter()
                    .map_while(|die| requests.pop_front().map(|spec| (spec, die)))
                    .collect();
                for (spec, die) in first {
                    self.put_in(spec, die, env);
                }
            }
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
        match open.decoder.or(open.prefill) {
            Some(holder) => env.control(holder, Msg::Cancel { request }),
            // Only the backlog has been asked for.
            None if env.shared.phase != Phase::Decode => {
                self.end(request, Outcome::Cancelled, env);
            }
            None => {}
        }
    }

    /// Who held a cancelled request has let go of it.
    pub fn cancelled(&mut self, request: u64, env: &mut Env<'_, '_>) {
        self.end(request, Outcome::Cancelled, env);
    }

    fn put_in(&mut self, mut spec: RequestSpec, die: Option<Actor>, env: &mut Env<'_, '_>) {
        let now = env.now();
        if matches!(self.source, Source::Closed { .. }) {
            spec.arrival_ps = now;
        }
        env.tally.offered += 1;
        env.shared.progress.offered.fetch_add(1, Ordering::Relaxed);
        let id = spec.id;
        let tokens = (u64::from(spec.output_tokens) << 32) | u64::from(spec.prompt_tokens);
        env.mark(Mark::Arrived, id, tokens);
        let refusal = too_large(&spec, env.shared);
        self.open.insert(
            id,
            Open {
                spec,
                first_token_ps: 0,
                delivered: 0,
                cached: 0,
                prefill_start_ps: 0,
                retries: 0,
                backlog_awaited: 0,
                backlog_best: None,
                prefill: None,
                decoder: None,
                cancelling: false,
                die,
            },
        );
        if let Some(why) = refusal {
            self.end(id, Outcome::Failed(why), env);
        } else if env.shared.phase == Phase::Decode {
            self.claim_decode(id, env);
        } else {
            self.ask_prefill(id, env);
        }
    }

    /// Asks a few prefill groups, picked at random, for their backlog.
    fn ask_prefill(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let groups = &env.shared.layout.prefill;
        let n = groups.len() as u64;
        let choices = u64::from(env.shared.serving.placement.prefill_choices).clamp(1, n);
        let start = env.ctx.rng().below(n);
        let stride = 1 + env.ctx.rng().below((n / choices).max(1));
        let open = self.open.get_mut(&id).expect("it was just put in");
        open.backlog_awaited = choices as u32;
        open.backlog_best = None;
        for i in 0..choices {
            let root = groups[((start + i * stride) % n) as usize].root();
            env.control(env.shared.die_actor(root), Msg::BacklogAsk { request: id });
        }
    }

    pub fn backlog_reply(&mut self, from: Actor, request: u64, tokens: u64, env: &mut Env<'_, '_>) {
        let Some(open) = self.open.get_mut(&request) else {
            return;
        };
        open.backlog_awaited -= 1;
        if open.backlog_best.is_none_or(|b| (tokens, from) < b) {
            open.backlog_best = Some((tokens, from));
        }
        if open.backlog_awaited > 0 {
            return;
        }
        let (_, root) = open.backlog_best.expect("an answer has come");
        open.prefill = Some(root);
        let prompt = Prompt {
            request,
            home: self.cpu,
            prompt_tokens: open.spec.prompt_tokens,
            output_tokens: open.spec.output_tokens,
            prefix: std::mem::replace(&mut open.spec.prefix, Prefix::Unique),
            delivered: open.delivered,
        };
        env.mark(Mark::Asked, request, 0);
        env.control(root, Msg::Prompt(Box::new(prompt)));
    }

    /// The KV is in place somewhere: only a slot is needed.
    fn claim_decode(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let open = &self.open[&id];
        let claim = Claim {
            request: id,
            home: self.cpu,
            context: open.spec.prompt_tokens,
            left: open.spec.output_tokens,
            delivered: 0,
            kv_in_place: true,
            token_ps: None,
        };
        match open.die {
            Some(die) => env.control(die, Msg::SlotClaim(Box::new(claim))),
            None => self.placer.start(claim, env),
        }
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

    pub fn first_token(
        &mut self,
        request: u64,
        cached: u32,
        started_ps: Ps,
        env: &mut Env<'_, '_>,
    ) {
        let now = env.now();
        let open = self
            .open
            .get_mut(&request)
            .expect("tokens come for requests that are open");
        open.cached = cached;
        open.prefill_start_ps = started_ps;
        open.first_token_ps = now;
        open.delivered += 1;
        env.mark(Mark::FirstToken, request, 1);
        deliver(open, 1, env);
        if open.spec.output_tokens <= 1 || env.shared.phase == Phase::Prefill {
            self.end(request, Outcome::Completed, env);
        }
    }

    pub fn tokens(
        &mut self,
        from: Actor,
        request: u64,
        first: u32,
        count: u32,
        last: bool,
        env: &mut Env<'_, '_>,
    ) {
        let now = env.now();
        let open = self
            .open
            .get_mut(&request)
            .expect("tokens come for requests that are open");
        assert_eq!(
            first, open.delivered,
            "tokens of request {request} arrive in order, none twice, none missing"
        );
        if open.delivered == 0 {
            open.first_token_ps = now;
            env.mark(Mark::FirstToken, request, u64::from(count));
        } else if !last {
            env.mark(Mark::TokensHome, request, u64::from(count));
        }
        open.delivered += count;
        deliver(open, count, env);
        if open.decoder.replace(from).is_none() && open.cancelling && !last {
            // It had left prefill before the word came there.
            env.control(from, Msg::Cancel { request });
        }
        if last {
            assert_eq!(
                open.delivered, open.spec.output_tokens,
                "request {request} ends with its last token"
            );
            self.end(request, Outcome::Completed, env);
        }
    }

    fn end(&mut self, request: u64, outcome: Outcome, env: &mut Env<'_, '_>) {
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
        env.shared.progress.ended.fetch_add(1, Ordering::Relaxed);
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
        if env.shared.live {
            env.tally.ended_live(record);
        } else {
            env.tally.ended(record);
        }
        if let Source::Closed { requests, .. } = &mut self.source
            && let Some(next) = requests.pop_front()
        {
            self.put_in(next, open.die, env);
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
