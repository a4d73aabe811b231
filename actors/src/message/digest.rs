//! What of a message enters the digest of a run.

use super::Msg;
use crate::layout::mix;

impl Msg {
    /// A hash of the content, for the event digest.
    pub fn digest(&self) -> u64 {
        let m = |kind: u64, a: u64, b: u64| mix(kind ^ mix(a ^ mix(b)));
        match self {
            Msg::Taken => m(0, 0, 0),
            Msg::Arrival => m(1, 0, 0),
            Msg::BacklogReply { request, tokens } => m(3, *request, *tokens),
            Msg::FirstToken {
                request, cached, ..
            } => m(4, *request, u64::from(*cached)),
            Msg::Tokens {
                request,
                from,
                count,
                last,
            } => m(
                5,
                *request,
                (u64::from(*from) << 32) | (u64::from(*count) << 1) | u64::from(*last),
            ),
            Msg::Lookup(l) => m(7, l.request, l.keys.iter().fold(0, |a, k| mix(a ^ k.1))),
            Msg::ReadBlocks(r) | Msg::SsdLoaded(r) => {
                m(8, r.request, r.blocks.iter().fold(0, |a, b| mix(a ^ b.key)))
            }
            Msg::WriteBlock { key, bytes } => m(9, *key, *bytes),
            Msg::BacklogAsk { request } => m(10, *request, 0),
            Msg::Prompt(p) => m(11, p.request, u64::from(p.prompt_tokens)),
            Msg::LookupReply(l) => m(
                12,
                l.request,
                l.held.iter().fold(0, |a, k| mix(a ^ u64::from(*k))),
            ),
            Msg::Blocks { request, blocks } => m(13, *request, u64::from(*blocks)),
            Msg::BlockGone { request, index } => m(35, *request, u64::from(*index)),
            Msg::BatchEnd { batch } => m(14, *batch, 0),
            Msg::BatchDone { batch } => m(15, *batch, 0),
            Msg::Learned(l) => m(38, l.ratio.to_bits(), u64::from(l.condition.requests)),
            Msg::Batch(w) => m(
                16,
                w.batch,
                w.parts
                    .iter()
                    .fold(u64::from(w.epoch) ^ w.drawn_ps.unwrap_or(0), |a, p| {
                        mix(a ^ p.tokens)
                    }),
            ),
            Msg::Handoff(h) => m(17, h.prompt.request, u64::from(h.cached_tokens)),
            Msg::Computed { part } => m(18, u64::from(*part), 0),
            Msg::Collected { channel, phase } => m(19, u64::from(*channel), u64::from(*phase)),
            Msg::Landed { part } => m(34, u64::from(*part), 0),
            Msg::SlotAsk { request } => m(20, *request, 0),
            Msg::SlotReply {
                request,
                free,
                waiting,
            } => m(21, *request, (u64::from(*free) << 32) | u64::from(*waiting)),
            Msg::SlotClaim(c) => m(22, c.request, u64::from(c.context)),
            Msg::SlotGrant { request } => m(23, *request, 0),
            Msg::Kv { request } => m(24, *request, 0),
            Msg::Wake { group } => m(25, u64::from(*group), 0),
            Msg::StepStart {
                epoch,
                step,
                microbatch,
                drawn_ps,
                experts,
            } => m(
                26,
                (u64::from(*step) << 1) | u64::from(*microbatch) | (u64::from(*epoch) << 40),
                drawn_ps.unwrap_or(0) ^ experts.digest().rotate_left(7),
            ),
            Msg::Experts(e) => m(46, e.digest(), 0),
            Msg::AttentionDone { part } => m(27, u64::from(*part), 0),
            Msg::ExpertsDone => m(28, 0, 0),
            Msg::LayerDone => m(29, 0, 0),
            Msg::SegmentDone => m(30, 0, 0),
            Msg::StepEnd => m(31, 0, 0),
            Msg::StepDone {
                step,
                requests,
                context_sum,
                made,
                duration_ps,
            } => m(
                32,
                (u64::from(*step) << 32) | u64::from(*requests),
                u64::from(*made) ^ context_sum ^ duration_ps.rotate_left(32),
            ),
            Msg::NodeStep(s) => m(
                104,
                (u64::from(s.step) << 32) | u64::from(s.ranks),
                s.started_ps ^ s.experts.digest().rotate_left(7) ^ (u64::from(s.epoch) << 40),
            ),
            Msg::NodeDone {
                step,
                made,
                duration_ps,
                held,
            } => m(
                105,
                (u64::from(*step) << 32) | u64::from(*made),
                held.iter().fold(*duration_ps, |a, h| {
                    let requests = (u64::from(h.rank) << 48) ^ (u64::from(h.requests) << 24);
                    mix(a ^ requests ^ h.context_sum)
                }),
            ),
            Msg::Changed(c) => m(41, *c as u64, 0),
            Msg::Fault(s) => m(39, s.digest(), 0),
            Msg::Copy(c) => m(36, c.bytes, (u64::from(c.to) << 1) | u64::from(c.read)),
            Msg::Copied { started_ps } => m(37, *started_ps, 0),
            Msg::Watch(w) => m(50, *w as u64, 0),
            Msg::Ping { round } => m(51, u64::from(*round), 0),
            Msg::Pong {
                round,
                epoch,
                progress,
            } => m(52, (u64::from(*round) << 32) | u64::from(*epoch), *progress),
            Msg::Members(g) => m(
                53,
                (u64::from(g.epoch) << 32) | u64::from(g.root),
                g.ranks.iter().fold(0, |a, r| mix(a ^ u64::from(*r))),
            ),
            Msg::Joined {
                epoch,
                requests,
                context_sum,
            } => m(
                54,
                (u64::from(*epoch) << 32) | u64::from(*requests),
                *context_sum,
            ),
            Msg::Reset { epoch } => m(55, u64::from(*epoch), 0),
            Msg::Hello { epoch } => m(56, u64::from(*epoch), 0),
            Msg::Beat(b) => m(106, *b as u64, 0),
            Msg::Gone { die } => m(57, u64::from(*die), 0),
            Msg::LoadModel { model } => m(91, u64::from(*model), 0),
            Msg::WeightAsk { key, bytes } => m(92, *key, *bytes),
            Msg::WeightsComing { key } => m(93, *key, 0),
            Msg::WeightBlock { key } => m(94, *key, 0),
            Msg::WeightsIn => m(95, 0, 0),
            Msg::StoreAsk { key, bytes } => m(96, *key, *bytes),
            Msg::StoreBlock {
                key,
                bytes,
                tail_ps,
            } => m(97, *key, bytes ^ tail_ps.rotate_left(32)),
            Msg::StoreIn { key } => m(98, *key, 0),
            Msg::SwitchModel => m(99, 0, 0),
            Msg::DrainOver => m(100, 0, 0),
            Msg::SwitchOver => m(101, 0, 0),
            Msg::Drained => m(102, 0, 0),
            Msg::Switched => m(103, 0, 0),
            Msg::LoadAsk { bytes } => m(58, *bytes, 0),
            Msg::Loaded => m(59, 0, 0),
            Msg::Ask { request } => m(60, *request, 0),
            Msg::Answer { request, held } => m(61, *request, u64::from(*held)),
            Msg::Placed { request } => m(62, *request, 0),
            Msg::Refused { request } => m(63, *request, 0),
            Msg::Unplaced { request, asked } => m(68, *request, u64::from(*asked)),
            Msg::Release { request } => m(64, *request, 0),
            Msg::Resend { request, first } => m(71, *request, u64::from(*first)),
            Msg::ClientsLeave => m(65, 0, 0),
            Msg::Resubmit(r) => m(66, r.spec.id, u64::from(r.delivered)),
            Msg::StreamFree { die } => m(67, u64::from(die.unwrap_or(u32::MAX)), 0),
            Msg::Unacked { to, inbound } => m(40, u64::from(*to), inbound.then.digest()),
            Msg::Late { from, msg } => m(72, u64::from(*from), msg.digest()),
            Msg::Submit(s) => m(
                60,
                s.id,
                (u64::from(s.prompt_tokens) << 32) | u64::from(s.output_tokens),
            ),
            Msg::Cancel { request } => m(69, *request, 0),
            Msg::Cancelled { request } => m(70, *request, 0),
            Msg::Inbound(i) => m(33, i.bytes ^ i.tail_ps.rotate_left(32), i.then.digest()),
        }
    }
}
