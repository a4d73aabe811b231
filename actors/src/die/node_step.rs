//! Drawn decode steps, a node at a time. Between the start and the end of a drawn step nothing happens on a die, and ranks of
//! a node hear of it at about the same time, so all that they do in it is done in one go when it is over: in the name
//! of each, from its own random stream and into its own meter. Where faults are about, each rank answers for itself.

use super::{Die, Part, Report};
use crate::env::Env;
use crate::layout::Role;
use crate::message::{Held, Msg, NodeStep};
use crate::runtime::{Actor, Ctx};
use crate::world::{World, env_of};

impl World {
    /// A drawn step is over on the node of `first`, for it and ranks after it.
    pub(crate) fn node_step(
        &mut self,
        first: Actor,
        root: Actor,
        step: &NodeStep,
        ctx: &mut Ctx<'_, Self>,
    ) {
        let shared = &*self.shared;
        let Role::Decode {
            group,
            rank: first_rank,
        } = shared.layout.roles[first as usize]
        else {
            unreachable!("decode ranks have decode steps")
        };
        let dies = &shared.layout.decode[usize::from(group)].dies;
        let (stream, faults) = (shared.streams_tokens(), shared.has_faults());
        let mut held = Vec::with_capacity(step.ranks.count_ones() as usize);
        let (mut made, mut duration_ps) = (0, 0);
        for i in (0..32u16).filter(|i| step.ranks >> i & 1 == 1) {
            let rank = first_rank + i;
            let index = dies[usize::from(rank)];
            let actor = shared.die_actor(index);
            // It would have heard of the step and of its end.
            self.meters[actor as usize].handled += 2;
            let die = self.dies[index as usize].as_mut();
            let die = die.expect("a node's dies are on one shard");
            let mut of_rank = ctx.of(actor);
            let mut env = env_of!(self, &mut of_rank, shared, root);
            let Some(report) = die.drawn_step(step, stream, faults, &mut env) else {
                continue;
            };
            made += report.made;
            duration_ps = report.duration_ps;
            held.push(Held {
                rank,
                requests: report.requests,
                context_sum: report.context_sum,
            });
        }
        if held.is_empty() {
            return;
        }
        self.tally.messages.control += held.len() as u64;
        let env = env_of!(self, ctx, shared, root);
        let latency_ps = env.control_latency_ps(first, root);
        let done = Msg::NodeDone {
            step: step.step,
            made,
            duration_ps,
            held: held.into(),
        };
        ctx.send_in(latency_ps, root, done);
    }
}

impl Die {
    /// This die's part in a drawn step. `None` if its root hears nothing, or hears it from this die itself.
    fn drawn_step(
        &mut self,
        step: &NodeStep,
        stream: bool,
        faults: bool,
        env: &mut Env<'_, '_>,
    ) -> Option<Report> {
        let Part::Decode(rank) = &mut self.part else {
            unreachable!("decode ranks have decode steps")
        };
        if !faults {
            return rank.drawn_step(step, stream, env);
        }
        // A fault may have struck since the step began.
        if self.body.is_crashed() {
            return None;
        }
        if self.body.is_stopped() {
            if rank.begin_drawn(step, env) {
                self.body.hold(env.ctx.me(), Msg::StepEnd);
            }
            return None;
        }
        let report = rank.drawn_step(step, stream, env)?;
        rank.report(report, env);
        None
    }
}
