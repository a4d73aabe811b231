//! Heartbeats. All dies and CPUs stand in one ring: after a die comes the one in its place on the next node, so that
//! neighbours are not lost together with a node. Each sends its next neighbour a beat in every period, and that one beats
//! back. Who misses some in a row, while one further on answers, says that the neighbour is gone to those whom that concerns,
//! and from then on watches the one after it. A part that hears nobody is itself cut off, and says nothing.
//!
//! As long as nothing has changed all beats would be answered, so that they are sent from each strike of a fault until
//! all have had the time to notice, at the times at which a machine that always did so would.

use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::fault::{Effect, NoteKind};
use crate::layout::{Layout, Role};
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};
use crate::world::Shared;

/// What neighbours say, and the timer that makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Beat {
    /// Timer: a period has passed.
    Due,
    /// Is anybody there?
    There,
    /// Yes.
    Here,
}

/// What a part knows of those after it on the ring.
#[derive(Debug, Default)]
pub struct Beats {
    /// From the next on; each but the last has missed a beat.
    watched: Vec<Watched>,
    due_ps: Option<Ps>,
}

#[derive(Debug)]
struct Watched {
    part: Actor,
    /// Beats in a row without an answer.
    missed: u32,
    heard: bool,
    gone: bool,
}

/// A time in which beats are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from_ps: Ps,
    pub until_ps: Ps,
    /// Who waits for a part that misses beats goes on until this.
    pub latest_ps: Ps,
}

impl Span {
    /// The time that it takes to find out about a strike at `from_ps`; `None` where nothing is kept from answering.
    pub fn after(from_ps: Ps, effect: Effect, shared: &Shared) -> Option<Self> {
        let turns_ps = match effect {
            Effect::Throttle(_) | Effect::HbmSlow(_) => return None,
            // It may be up at first.
            Effect::Flap { period_ps, .. } => period_ps,
            _ => 0,
        };
        let r = &shared.serving.recovery;
        let beats = u64::from(r.beats_missed) + 2;
        let walk = beats + u64::from(most_watched(shared));
        let until = |beats: u64| from_ps + turns_ps + beats * period_ps(shared);
        Some(Self {
            from_ps,
            until_ps: until(beats),
            latest_ps: until(walk),
        })
    }

    /// Adds a span to those of a run: with one that it touches it becomes one.
    pub fn add(spans: &mut Vec<Self>, span: Self) {
        let at = spans.partition_point(|s| s.from_ps <= span.from_ps);
        spans.insert(at, span);
        spans.dedup_by(|next, before| {
            let touches = next.from_ps <= before.until_ps;
            if touches {
                before.until_ps = before.until_ps.max(next.until_ps);
                before.latest_ps = before.latest_ps.max(next.latest_ps);
            }
            touches
        });
    }

    /// Whether beats that are sent in this time will be sent at `at_ps` too, as they are now.
    pub fn reaches(&self, at_ps: Ps, now: Ps, period_ps: Ps) -> bool {
        self.from_ps <= at_ps && at_ps.max(now) + period_ps <= self.until_ps
    }
}

pub fn period_ps(shared: &Shared) -> Ps {
    ps_from_s(shared.serving.recovery.beat_ms * 1e-3).max(1)
}

/// Parts that one looks past at most: as many as could be lost with their nodes.
fn most_watched(shared: &Shared) -> u32 {
    let m = &shared.machine;
    (m.node_count() + m.dies_per_node() + m.cpus_per_node()).min(parts(shared) - 1)
}

fn parts(shared: &Shared) -> u32 {
    shared.machine.die_count() + shared.machine.cpu_count()
}

/// The next part on the ring.
fn next(part: Actor, shared: &Shared) -> Actor {
    let m = &shared.machine;
    let (dies, cpus) = (m.dies_per_node(), m.cpus_per_node());
    let (node, place) = match shared.is_die(part) {
        true => (part / dies, part % dies),
        false => {
            let cpu = shared.cpu_index(part);
            (cpu / cpus, dies + cpu % cpus)
        }
    };
    let round = u32::from(node + 1 == m.node_count());
    let (node, place) = ((node + 1) % m.node_count(), (place + round) % (dies + cpus));
    match place.checked_sub(dies) {
        None => shared.die_actor(node * dies + place),
        Some(cpu) => shared.cpu_actor(node * cpus + cpu),
    }
}

/// The first beat of a part from `at_ps` on: parts beat in turn, all within a period.
pub fn first_beat_ps(part: Actor, at_ps: Ps, shared: &Shared) -> Ps {
    let period = period_ps(shared);
    let phase = period / Ps::from(parts(shared)) * Ps::from(part);
    phase + at_ps.saturating_sub(phase).div_ceil(period) * period
}

impl Beats {
    pub fn handle(&mut self, from: Actor, beat: Beat, env: &mut Env<'_, '_>) {
        match beat {
            Beat::Due => self.due(env),
            Beat::There => env.control(from, Msg::Beat(Beat::Here)),
            Beat::Here => {
                if let Some(w) = self.watched.iter_mut().find(|w| w.part == from) {
                    w.heard = true;
                }
            }
        }
    }

    /// This part begins a new life.
    pub fn begin(&mut self, env: &mut Env<'_, '_>) {
        *self = Self::default();
        self.set_timer(env);
    }

    /// The next beat, unless there is nothing to find out.
    fn set_timer(&self, env: &mut Env<'_, '_>) {
        let shared = env.shared;
        let at = first_beat_ps(env.ctx.me(), env.now() + 1, shared);
        let waits = self.watched.iter().any(|w| w.missed > 0 && !w.gone);
        let spans = shared.beats.read().expect("no writer panics");
        let sent = |s: &Span| {
            let until = if waits { s.latest_ps } else { s.until_ps };
            (s.from_ps..=until).contains(&at)
        };
        if spans.iter().any(sent) {
            drop(spans);
            env.at(at, Msg::Beat(Beat::Due));
        }
    }

    fn due(&mut self, env: &mut Env<'_, '_>) {
        if self.due_ps.replace(env.now()) == Some(env.now()) {
            return;
        }
        let me = env.ctx.me();
        for w in &mut self.watched {
            w.missed = if w.heard { 0 } else { w.missed + 1 };
            if w.heard && std::mem::take(&mut w.gone) {
                back(w.part, env);
            }
        }
        let answers = self.watched.iter().position(|w| w.heard);
        match answers {
            Some(nearest) => {
                self.watched.truncate(nearest + 1);
                self.say_who_is_gone(env);
            }
            None if self.watched.len() < most_watched(env.shared) as usize => {
                let last = self.watched.last().map_or(me, |w| w.part);
                self.watched.push(Watched {
                    part: next(last, env.shared),
                    missed: 0,
                    heard: false,
                    gone: false,
                });
            }
            None => {}
        }
        for w in &mut self.watched {
            w.heard = false;
            env.control(w.part, Msg::Beat(Beat::There));
        }
        self.set_timer(env);
    }

    fn say_who_is_gone(&mut self, env: &mut Env<'_, '_>) {
        let most = env.shared.serving.recovery.beats_missed;
        for w in &mut self.watched {
            if w.missed >= most && !std::mem::replace(&mut w.gone, true) {
                gone(w.part, env);
            }
        }
    }
}

/// A neighbour is gone: those who work with it are told, who ask it themselves. Where nobody could, that is that.
fn gone(part: Actor, env: &mut Env<'_, '_>) {
    let layout: &Layout = &env.shared.layout;
    let now = env.now();
    let die = part;
    let Some(role) = layout.roles.get(part as usize) else {
        env.tally.note(now, part, NoteKind::Noticed);
        for group in &layout.prefill {
            env.control(env.shared.die_actor(group.root()), Msg::Gone { die });
        }
        return;
    };
    match *role {
        Role::Idle => {
            // No work was waiting for it.
            env.tally.note(now, part, NoteKind::Noticed);
            env.tally.note(now, part, NoteKind::Recovered);
        }
        Role::Prefill { rank: 0, .. } => {
            env.tally.note(now, part, NoteKind::Noticed);
            crate::die::tell_homes(die, env);
        }
        Role::Prefill { group, .. } => {
            let root = layout.prefill[usize::from(group)].root();
            env.control(env.shared.die_actor(root), Msg::Gone { die });
        }
        Role::Decode { group, .. } => {
            for &other in &layout.decode[usize::from(group)].dies {
                let to = env.shared.die_actor(other);
                if to != part {
                    env.control(to, Msg::Gone { die });
                }
            }
        }
    }
}

/// A part that was gone answers. A die that serves says itself when it can do so again.
fn back(part: Actor, env: &mut Env<'_, '_>) {
    if !env.shared.is_die(part) {
        let now = env.now();
        env.tally.note(now, part, NoteKind::Recovered);
    }
}
