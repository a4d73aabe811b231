//! A roll call: the root of a group, finding that work is late, asks its ranks whether they are there and how far they
//! have come. And what a die does that has to load weights.

use std::collections::BTreeSet;

use super::members::Watch;
use crate::env::Env;
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};

/// What a root knows of those who are late.
#[derive(Debug, Default)]
pub struct RollCall {
    /// A timer is set, or a call is under way.
    pub armed: bool,
    /// Somebody says that a rank is gone: all are asked, whether work is waited for or not.
    pub told: bool,
    /// Since when the work is waited for.
    pub since_ps: Ps,
    round: u32,
    answered: BTreeSet<u16>,
    progress: u64,
    progress_before: Option<u64>,
    tries: u32,
}

impl RollCall {
    /// Asks all of `ranks` anew.
    pub fn begin(&mut self) {
        self.round += 1;
        self.answered.clear();
        self.progress = 0;
        self.tries = 1;
    }

    /// Whether those who are missing are to be asked once more, `most` times in all.
    pub fn once_more(&mut self, most: u32) -> bool {
        let more = self.tries < most;
        self.tries += u32::from(more);
        more
    }

    /// Notes that a rank has answered; false if it was not asked.
    pub fn answer(&mut self, rank: u16, round: u32, progress: u64) -> bool {
        let new = round > 0 && round == self.round && self.answered.insert(rank);
        self.progress += if new { progress } else { 0 };
        new
    }

    /// Ranks that have not answered.
    pub fn missing(&self, ranks: impl IntoIterator<Item = u16>, own: u16) -> Vec<u16> {
        let silent = |r: &u16| *r != own && !self.answered.contains(r);
        ranks.into_iter().filter(silent).collect()
    }

    /// Whether any has got on since this was last asked.
    pub fn got_on(&mut self, own_progress: u64) -> bool {
        let progress = self.progress + own_progress;
        self.progress_before.replace(progress) != Some(progress)
    }

    /// Other work is waited for now.
    pub fn forget_progress(&mut self) {
        self.progress_before = None;
    }

    /// Asks these, and sets the time to look at their answers.
    pub fn ask(&self, dies: impl IntoIterator<Item = Actor>, env: &mut Env<'_, '_>) {
        let round = self.round;
        for to in dies {
            env.control(to, Msg::Ping { round });
        }
        env.after(ping_ps(env), Msg::Watch(Watch::StepAnswers));
    }
}

/// Nothing heard for so long: the other is asked whether it is there.
pub fn late_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.step_late_ms * 1e-3)
}

pub fn ping_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.ping_ms * 1e-3)
}

pub fn suspect_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.suspect_ms * 1e-3)
}

/// Tells all homes that a die is gone: they may have requests there.
pub fn tell_homes(die: Actor, env: &mut Env<'_, '_>) {
    let shared = env.shared;
    for &cpu in &shared.layout.homes {
        env.control(shared.cpu_actor(cpu), Msg::Gone { die });
    }
}

/// Asks a CPU, picked at random, for weights: the model cache is spread over all of them. If they have not come after
/// twice the time that it takes, another is asked.
pub fn ask_for_weights(bytes: u64, env: &mut Env<'_, '_>) {
    let s = env.shared;
    let cpus = u64::from(s.machine.cpu_count());
    let cpu = env.ctx.rng().below(cpus) as u32;
    env.control(s.cpu_actor(cpu), Msg::LoadAsk { bytes });
    let ps = s.paths.npu_cpu_read.between.per_byte.ps(bytes);
    env.after(4 * ps + late_ps(env), Msg::Watch(Watch::Weights));
}
