//! Slots and KV memory of a decode rank: who asks for a place, who waits for one, who gives it back.

use std::sync::Arc;

use super::DecodeRank;
use crate::env::Env;
use crate::experts::{Plan, of_layer};
use crate::message::{Claim, Msg};
use crate::runtime::Actor;
use crate::trace::Mark;

impl DecodeRank {
    pub fn slot_ask(&mut self, from: Actor, request: u64, env: &mut Env<'_, '_>) {
        if self.watch.out {
            let (free, waiting) = (0, u32::MAX);
            return env.control(
                from,
                Msg::SlotReply {
                    request,
                    free,
                    waiting,
                },
            );
        }
        let free = self.slots_max.saturating_sub(self.slots_used);
        let free = if self.kv_tokens_used < self.kv_tokens_max {
            free
        } else {
            0
        };
        env.control(
            from,
            Msg::SlotReply {
                request,
                free,
                waiting: self.waiting.len() as u32,
            },
        );
    }

    pub fn slot_claim(&mut self, from: Actor, claim: Claim, env: &mut Env<'_, '_>) {
        self.waiting.push_back((from, claim));
        self.grant_waiting(env);
    }

    pub(super) fn grant_waiting(&mut self, env: &mut Env<'_, '_>) {
        while let Some((_, claim)) = self.waiting.front() {
            let kv = u64::from(claim.context) + u64::from(claim.left);
            if kv > self.kv_tokens_max {
                let (_, claim) = self.waiting.pop_front().expect("it was just there");
                send_back(&claim, env);
                continue;
            }
            if self.slots_used >= self.slots_max || self.kv_tokens_used + kv > self.kv_tokens_max {
                return;
            }
            let (from, claim) = self.waiting.pop_front().expect("it was just there");
            self.slots_used += 1;
            self.kv_tokens_used += kv;
            env.mark(Mark::SlotGranted, claim.request, 0);
            if claim.kv_in_place {
                self.join(claim, env);
            } else {
                env.control(
                    from,
                    Msg::SlotGrant {
                        request: claim.request,
                    },
                );
                let home = env.shared.cpu_actor(claim.home);
                let request = claim.request;
                env.control(home, Msg::Placed { request });
                self.granted_ps.insert(request, env.now());
                self.granted.push(claim);
                self.watch_root(env);
            }
        }
    }

    pub fn kv_arrived(&mut self, request: u64, env: &mut Env<'_, '_>) {
        let Some(i) = self.granted.iter().position(|c| c.request == request) else {
            return; // Cancelled on the way, or started again elsewhere.
        };
        self.granted_ps.remove(&request);
        let claim = self.granted.swap_remove(i);
        env.mark(Mark::KvMoved, request, 0);
        self.join(claim, env);
    }

    /// Nobody waits for a request any more: its slot and its memory are free again. One that has just ended is not
    /// here: its home has its last tokens, or is about to.
    pub fn cancel(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if let Some(claim) = self.let_go(request) {
            let home = env.shared.cpu_actor(claim.home);
            env.control(home, Msg::Cancelled { request });
            self.grant_waiting(env);
        }
    }

    /// Its home has started a request again elsewhere.
    pub fn release(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if self.let_go(request).is_some() {
            self.grant_waiting(env);
        }
    }

    /// Tokens did not reach their home: they go with those of the next step.
    pub fn resend(&mut self, request: u64, first: u32) {
        let held = self.active.iter_mut().find(|a| a.claim.request == request);
        if let Some(a) = held.filter(|a| first < a.sent) {
            a.unsent += a.sent - first;
            a.sent = first;
        }
    }

    /// Whether a request is here.
    pub fn has(&self, request: u64) -> bool {
        !self.watch.out
            && (self.active.iter().any(|a| a.claim.request == request)
                || self.joining.iter().any(|(_, c)| c.request == request)
                || self.granted.iter().any(|c| c.request == request)
                || self.waiting.iter().any(|(_, c)| c.request == request))
    }

    /// Grants whose KV never came: who was to send it is gone.
    pub(in crate::die) fn drop_stale_grants(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        let patience = crate::time::ps_from_s(env.shared.serving.recovery.give_up_s) / 4;
        let stale: Vec<u64> = self
            .granted_ps
            .iter()
            .filter(|(_, at)| *at + patience <= now)
            .map(|(r, _)| *r)
            .collect();
        for request in stale {
            self.release(request, env);
        }
    }

    /// (requests, context tokens) that this rank has for the next step.
    pub(in crate::die) fn holds(&self) -> (u32, u64) {
        let active = self.active.iter().map(|a| u64::from(a.context));
        let joining = self.joining.iter().map(|(_, c)| u64::from(c.context));
        (
            (self.active.len() + self.joining.len()) as u32,
            active.chain(joining).sum(),
        )
    }

    /// The group's plans while ranks are missing, or none when all are there. Experts that are held beside those of the
    /// slots take memory from KV: requests that have no place any more, the latest first, go back to their homes.
    pub(in crate::die) fn shrink(&mut self, plans: Option<Arc<Vec<Plan>>>, env: &mut Env<'_, '_>) {
        let shared = env.shared;
        let rank = u32::from(self.rank);
        let layers = shared.model.moe_layers() + shared.model.mtp_layers;
        let beside = plans.as_ref().map_or(0, |plans| {
            let of = |layer: u32| of_layer(plans, layer).beside_of(rank).len();
            (0..layers).map(of).sum()
        });
        let tokens = (beside as f64 * shared.expert_bytes() / shared.kv_bytes_per_token).ceil();
        self.kv_tokens_max = shared.decode_kv_tokens.saturating_sub(tokens as u64);
        self.shrunk = plans;
        while self.kv_tokens_used > self.kv_tokens_max {
            let late = self.granted.last().or(self.joining.last().map(|(_, c)| c));
            let last = late.or(self.active.last().map(|a| &a.claim));
            let request = last.expect("who uses memory is here").request;
            let claim = self.let_go(request).expect("it was just there");
            send_back(&claim, env);
        }
    }

    fn let_go(&mut self, request: u64) -> Option<Claim> {
        self.granted_ps.remove(&request);
        let granted = self.granted.iter().position(|c| c.request == request);
        let held = granted.map(|i| self.granted.swap_remove(i));
        let held = held.or_else(|| {
            let i = self
                .joining
                .iter()
                .position(|(_, c)| c.request == request)?;
            Some(self.joining.swap_remove(i).1)
        });
        let held = held.or_else(|| {
            let i = self
                .active
                .iter()
                .position(|a| a.claim.request == request)?;
            Some(self.active.swap_remove(i).claim)
        });
        if let Some(claim) = held {
            self.slots_used -= 1;
            self.kv_tokens_used -= u64::from(claim.context) + u64::from(claim.left);
            return Some(claim);
        }
        let i = self
            .waiting
            .iter()
            .position(|(_, c)| c.request == request)?;
        self.waiting.remove(i).map(|(_, claim)| claim)
    }

    /// (slots in use, slots, tokens of KV memory in use, tokens there is memory for).
    pub fn occupancy(&self) -> (u32, u32, u64, u64) {
        (
            self.slots_used,
            self.slots_max,
            self.kv_tokens_used,
            self.kv_tokens_max,
        )
    }

    /// Requests that wait for a slot here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn join(&mut self, claim: Claim, env: &mut Env<'_, '_>) {
        self.joining.push((env.now(), claim));
        self.watch_root(env);
        if self.joining.len() == 1 && self.active.is_empty() {
            let root = self.root_actor(env);
            env.control(root, Msg::Wake { group: self.group });
        }
    }

    /// Everything given back: true at the end of every quiet run.
    ///
    /// # Errors
    /// Says what is still held.
    pub fn check_idle(&self) -> Result<(), String> {
        let held = [
            ("active requests", self.active.len() as u64),
            ("granted requests", self.granted.len() as u64),
            ("joining requests", self.joining.len() as u64),
            ("waiting claims", self.waiting.len() as u64),
            ("slots", u64::from(self.slots_used)),
            ("KV tokens", self.kv_tokens_used),
        ];
        match held.iter().find(|h| h.1 != 0) {
            Some((what, n)) => Err(format!("{n} {what} left")),
            None => Ok(()),
        }
    }
}

/// There is no memory for a request here: its home is to look elsewhere.
fn send_back(claim: &Claim, env: &mut Env<'_, '_>) {
    let home = env.shared.cpu_actor(claim.home);
    let request = claim.request;
    env.control(home, Msg::Refused { request });
}
