//! A die's own weights: which blocks it still lacks, whom it has asked for them, and what its group does meanwhile.

use std::collections::BTreeMap;

use super::{Die, Part, Watch};
use crate::env::Env;
use crate::layout::Role;
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};
use crate::weights::{BlockName, Piece, WeightPlan};

/// A block on its way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    owner: Actor,
    bytes: u64,
    /// Asked after if nothing was heard by then.
    due_ps: Ps,
    asked: u32,
}

/// What a die knows of its weights.
#[derive(Debug, Default)]
pub struct Weights {
    model: u8,
    started_ps: Ps,
    /// The last one is asked for next.
    left: Vec<Piece>,
    asked: BTreeMap<u64, Asked>,
    /// Owners that did not answer lately, until when they are passed over.
    suspects: BTreeMap<Actor, Ps>,
    timer_ps: Option<Ps>,
    /// Homes that have no request of the model before any more (at rank 0 of a group).
    drained: u32,
}

fn plan<'a>(env: &Env<'a, '_>) -> &'a WeightPlan {
    let plan = env.shared.weights.as_ref();
    plan.expect("only who loads weights is sent them")
}

impl Weights {
    /// What it has read is lost, and nothing is on its way any more.
    pub fn forget(&mut self) {
        *self = Self {
            model: self.model,
            ..Self::default()
        };
    }

    fn is_loading(&self) -> bool {
        !(self.left.is_empty() && self.asked.is_empty())
    }

    fn begin(&mut self, die: u32, model: u8, env: &mut Env<'_, '_>) {
        let s = env.shared;
        let (experts, rank) = match s.layout.roles[die as usize] {
            Role::Idle => return,
            Role::Prefill { rank, .. } => (&s.prefill_experts, rank),
            Role::Decode { rank, .. } => (&s.decode_experts, rank),
        };
        let experts = experts.as_ref().expect("a group has experts");
        self.forget();
        self.model = model;
        self.started_ps = env.now();
        self.left = plan(env).image.of_rank(experts, u32::from(rank));
        // Each begins elsewhere, so that all do not ask one owner at once.
        let at = env.ctx.rng().below(self.left.len() as u64) as usize;
        self.left.rotate_left(at);
        self.ask_on(die, env);
    }

    /// Asks for as many blocks as may be under way.
    fn ask_on(&mut self, die: u32, env: &mut Env<'_, '_>) {
        let most = env.shared.serving.model_cache.reads_at_once as usize;
        let copy = plan(env).copy_of(&env.shared.layout, die);
        while self.asked.len() < most {
            let Some(Piece { block, bytes }) = self.left.pop() else {
                break;
            };
            let model = self.model;
            self.ask(BlockName { copy, model, block }, bytes, env);
        }
    }

    fn ask(&mut self, name: BlockName, bytes: u64, env: &mut Env<'_, '_>) {
        let now = env.now();
        self.suspects.retain(|_, until| *until > now);
        let s = env.shared;
        let usable = |c| !self.suspects.contains_key(&s.cpu_actor(c));
        let cpu = plan(env).owner(name, usable);
        let cpu = cpu.or_else(|| plan(env).owner(name, |_| true));
        let owner = s.cpu_actor(cpu.expect("no ring is empty"));
        let (key, due_ps) = (name.key(), now + quiet_ps(env));
        let asked = Asked {
            owner,
            bytes,
            due_ps,
            asked: 0,
        };
        self.asked.insert(key, asked);
        env.control(owner, Msg::WeightAsk { key, bytes });
        self.arm(due_ps, env);
    }

    fn arm(&mut self, due_ps: Ps, env: &mut Env<'_, '_>) {
        if self.timer_ps.is_none_or(|t| due_ps < t || t <= env.now()) {
            self.timer_ps = Some(due_ps);
            env.at(due_ps, Msg::Watch(Watch::Blocks));
        }
    }

    /// The owner has to fetch it first.
    fn coming(&mut self, from: Actor, key: u64, env: &Env<'_, '_>) {
        let due_ps = env.now() + quiet_ps(env);
        if let Some(a) = self.asked.get_mut(&key).filter(|a| a.owner == from) {
            (a.due_ps, a.asked) = (due_ps, 0);
        }
    }

    /// A block is here; whether it was the last.
    fn arrived(&mut self, die: u32, key: u64, env: &mut Env<'_, '_>) -> bool {
        let Some(a) = self.asked.remove(&key) else {
            return false; // Asked for twice, or of a life before.
        };
        env.tally.weights.pool_bytes += a.bytes;
        self.ask_on(die, env);
        let done = !self.is_loading();
        if done {
            let now = env.now();
            env.tally.weights.loads[usize::from(self.model)].add(self.started_ps, now);
        }
        done
    }

    /// Timer: asks again for what is late, in the end elsewhere.
    fn overdue(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        if self.timer_ps.is_none_or(|t| t > now) {
            return;
        }
        self.timer_ps = None;
        let r = &env.shared.serving.recovery;
        let (reply_ps, tries) = (ps_from_s(r.reply_ms * 1e-3), r.ping_tries);
        let suspect_ps = ps_from_s(r.suspect_ms * 1e-3);
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, a)| a.due_ps <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            let a = self.asked.get_mut(&key).expect("listed");
            let (owner, bytes) = (a.owner, a.bytes);
            if a.asked < tries {
                a.asked += 1;
                a.due_ps = now + reply_ps;
                env.control(owner, Msg::WeightAsk { key, bytes });
            } else {
                self.suspects.insert(owner, now + suspect_ps);
                self.ask(BlockName::of(key), bytes, env);
            }
        }
        if let Some(due) = self.asked.values().map(|a| a.due_ps).min() {
            self.arm(due.max(now + 1), env);
        }
    }
}

fn quiet_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3)
}

impl Die {
    /// Takes what is about its weights; gives back what is not.
    pub(super) fn about_weights(
        &mut self,
        from: Actor,
        msg: Msg,
        env: &mut Env<'_, '_>,
    ) -> Option<Msg> {
        match msg {
            Msg::LoadModel { model } => self.load_model(model, env),
            Msg::WeightsComing { key } => self.weights.coming(from, key, env),
            Msg::WeightBlock { key } => {
                if self.weights.arrived(self.index, key, env) {
                    match &mut self.part {
                        Part::Idle => {}
                        Part::Prefill(p) => p.has_weights(env),
                        Part::Decode(d) => d.has_weights(env),
                    }
                }
            }
            Msg::Watch(Watch::Blocks) => self.weights.overdue(env),
            Msg::Drained => self.drained(env),
            Msg::SwitchOver => {
                if self.weights.model == 0 {
                    self.load_model(1, env);
                }
            }
            other => return Some(other),
        }
        None
    }

    /// Weights are loaded into the place of those before; until they are there, the group rests.
    fn load_model(&mut self, model: u8, env: &mut Env<'_, '_>) {
        match &mut self.part {
            Part::Idle => return,
            Part::Prefill(p) => p.lacks_weights(model, env),
            Part::Decode(d) => d.lacks_weights(env),
        }
        self.weights.begin(self.index, model, env);
    }

    /// After a restart its memory is empty.
    pub(super) fn reload(&mut self, env: &mut Env<'_, '_>) {
        let model = self.weights.model.max(plan(env).model_at(env.now()));
        self.weights.begin(self.index, model, env);
    }

    /// A home has no request of the model before any more; when none has, the group switches, and says so.
    fn drained(&mut self, env: &mut Env<'_, '_>) {
        let s = env.shared;
        self.weights.drained += 1;
        if self.weights.model > 0 || (self.weights.drained as usize) < s.layout.homes.len() {
            return;
        }
        let group = match s.layout.roles[self.index as usize] {
            Role::Idle => return,
            Role::Prefill { group, .. } => &s.layout.prefill[usize::from(group)],
            Role::Decode { group, .. } => &s.layout.decode[usize::from(group)],
        };
        for &die in &group.dies {
            env.control(s.die_actor(die), Msg::LoadModel { model: 1 });
        }
        for &cpu in &s.layout.homes {
            env.control(s.cpu_actor(cpu), Msg::Switched);
        }
    }
}
