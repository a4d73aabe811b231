//! Every kind of message survives being bytes, so that a shard can live in another process; and no two kinds have the
//! same digest.

use supernode_actors::beats::Beat;
use supernode_actors::die::{Condition, Members, Watch};
use supernode_actors::experts::{ExpertMsg, ExpertState};
use supernode_actors::fabric::{Row, Sender, Shape, SourceCosts};
use supernode_actors::fault::{Change, Effect, Strike, Ways};
use supernode_actors::message::{
    BatchPart, BatchWork, BlockRead, Bulk, Claim, Copying, Handoff, Held, Inbound, Learned, Lookup,
    LookupReply, Msg, NodeStep, Plane, Prompt, ReadBlocks,
};
use supernode_actors::request::{Prefix, RequestSpec, Resubmitted};
use supernode_actors::runtime::codec::{decode, encode};

/// A number for each kind. No wildcard: a new kind does not compile until it has a sample below.
fn kind(msg: &Msg) -> usize {
    match msg {
        Msg::Taken => 0,
        Msg::Arrival => 1,
        Msg::BacklogReply { .. } => 2,
        Msg::FirstToken { .. } => 3,
        Msg::Tokens { .. } => 4,
        Msg::Lookup(_) => 5,
        Msg::ReadBlocks(_) => 6,
        Msg::WriteBlock { .. } => 7,
        Msg::SsdLoaded(_) => 8,
        Msg::BacklogAsk { .. } => 9,
        Msg::Prompt(_) => 10,
        Msg::LookupReply(_) => 11,
        Msg::Blocks { .. } => 12,
        Msg::BlockGone { .. } => 13,
        Msg::BatchEnd { .. } => 14,
        Msg::BatchDone { .. } => 15,
        Msg::Learned(_) => 16,
        Msg::Batch(_) => 17,
        Msg::Handoff(_) => 18,
        Msg::Computed { .. } => 19,
        Msg::Collected { .. } => 20,
        Msg::Landed { .. } => 21,
        Msg::SlotAsk { .. } => 22,
        Msg::SlotReply { .. } => 23,
        Msg::SlotClaim(_) => 24,
        Msg::SlotGrant { .. } => 25,
        Msg::Kv { .. } => 26,
        Msg::Wake { .. } => 27,
        Msg::StepStart { .. } => 28,
        Msg::AttentionDone { .. } => 29,
        Msg::ExpertsDone => 30,
        Msg::LayerDone => 31,
        Msg::SegmentDone => 32,
        Msg::StepEnd => 33,
        Msg::StepDone { .. } => 34,
        Msg::Inbound(_) => 35,
        Msg::Copy(_) => 36,
        Msg::Copied { .. } => 37,
        Msg::Fault(_) => 38,
        Msg::Changed(_) => 39,
        Msg::Unacked { .. } => 40,
        Msg::Submit(_) => 41,
        Msg::Cancel { .. } => 42,
        Msg::Cancelled { .. } => 43,
        Msg::Watch(_) => 44,
        Msg::Ping { .. } => 45,
        Msg::Pong { .. } => 46,
        Msg::Members(_) => 47,
        Msg::Joined { .. } => 48,
        Msg::Reset { .. } => 49,
        Msg::Hello { .. } => 50,
        Msg::Gone { .. } => 51,
        Msg::LoadAsk { .. } => 52,
        Msg::Loaded => 53,
        Msg::Ask { .. } => 54,
        Msg::Answer { .. } => 55,
        Msg::Placed { .. } => 56,
        Msg::Refused { .. } => 57,
        Msg::Release { .. } => 58,
        Msg::ClientsLeave => 59,
        Msg::Resubmit(_) => 60,
        Msg::StreamFree { .. } => 61,
        Msg::Unplaced { .. } => 62,
        Msg::Experts(_) => 63,
        Msg::Resend { .. } => 64,
        Msg::Late { .. } => 65,
        Msg::LoadModel { .. } => 66,
        Msg::WeightAsk { .. } => 67,
        Msg::WeightsComing { .. } => 68,
        Msg::WeightBlock { .. } => 69,
        Msg::WeightsIn => 70,
        Msg::StoreAsk { .. } => 71,
        Msg::StoreBlock { .. } => 72,
        Msg::StoreIn { .. } => 73,
        Msg::SwitchModel => 74,
        Msg::DrainOver => 75,
        Msg::SwitchOver => 76,
        Msg::Drained => 77,
        Msg::Switched => 78,
        Msg::NodeStep(_) => 79,
        Msg::NodeDone { .. } => 80,
        Msg::Beat(_) => 81,
    }
}
const KINDS: usize = 82;

/// Reads and SSD loads of the same blocks share a digest: one is what is left of the other after a wait.
const ALIKE: (usize, usize) = (6, 8);

fn samples() -> Vec<Msg> {
    let request = u64::MAX - 7;
    let prompt = Prompt {
        request,
        home: 191,
        prompt_tokens: 131_072,
        output_tokens: 1,
        prefix: Prefix::Blocks {
            block_tokens: 512,
            ids: Box::new([1, u64::MAX]),
        },
        delivered: 3,
    };
    let reads = ReadBlocks {
        request,
        blocks: vec![BlockRead {
            key: 1 << 63,
            index: 2,
            reader: 767,
        }],
        plane: Plane::Vpc,
    };
    let part = BatchPart {
        tokens: 8_192,
        attended_sum: 0.1 + 0.2,
        context_tokens: 1,
    };
    let learned = Learned {
        condition: Condition {
            microbatch: true,
            requests: 5,
            requests_max: 2,
            context_max: 1 << 40,
            faults: 1,
            experts: 7,
        },
        ratio: 1.0 / 3.0,
    };
    let claim = Claim {
        request,
        home: 1,
        context: 2,
        left: 3,
        delivered: 4,
        kv_in_place: true,
        token_ps: Some(5),
    };
    let inbound = Inbound {
        bytes: u64::MAX,
        tries: 0,
        plane: Plane::Rdma,
        read: true,
        tail_ps: 1,
        then: Msg::Kv { request },
    };
    vec![
        Msg::Taken,
        Msg::Arrival,
        Msg::Submit(Box::new(RequestSpec {
            id: request,
            arrival_ps: 5,
            prompt_tokens: 6,
            output_tokens: 7,
            prefix: Prefix::Cached { tokens: 3 },
        })),
        Msg::Cancel { request },
        Msg::Cancelled { request },
        Msg::BacklogReply { request, tokens: 9 },
        Msg::FirstToken {
            request,
            cached: 9,
            delivered: 0,
            started_ps: 4,
        },
        Msg::Tokens {
            request,
            from: 1,
            count: 2,
            last: true,
        },
        Msg::Lookup(Box::new(Lookup {
            request,
            keys: vec![(0, 5), (1, 6)],
        })),
        Msg::ReadBlocks(Box::new(reads.clone())),
        Msg::WriteBlock { key: 1, bytes: 2 },
        Msg::SsdLoaded(Box::new(reads)),
        Msg::BacklogAsk { request },
        Msg::Prompt(Box::new(prompt.clone())),
        Msg::LookupReply(Box::new(LookupReply {
            request,
            held: vec![0, 7],
        })),
        Msg::Blocks { request, blocks: 9 },
        Msg::BlockGone { request, index: 9 },
        Msg::BatchEnd { batch: 9 },
        Msg::BatchDone { batch: 9 },
        Msg::Learned(Box::new(learned)),
        Msg::Batch(Box::new(BatchWork {
            epoch: 2,
            drawn_ps: Some(7),
            batch: 9,
            parts: vec![part, BatchPart::default()],
            finishing: 2,
        })),
        Msg::Handoff(Box::new(Handoff {
            prompt,
            cached_tokens: 128,
            started_ps: 7,
            new_blocks: vec![1, 2],
        })),
        Msg::Computed { part: 1 },
        Msg::Collected {
            channel: 1,
            phase: 2,
        },
        Msg::Landed { part: 1 },
        Msg::SlotAsk { request },
        Msg::SlotReply {
            request,
            free: 1,
            waiting: 2,
        },
        Msg::SlotClaim(Box::new(claim)),
        Msg::SlotGrant { request },
        Msg::Kv { request },
        Msg::Wake { group: 1 },
        Msg::StepStart {
            epoch: 3,
            step: 1,
            microbatch: true,
            drawn_ps: Some(u64::MAX),
            experts: ExpertState {
                plan: 1,
                layers: 2,
                period: 3,
            },
        },
        Msg::Experts(Box::new(ExpertMsg::Load {
            round: 1,
            rank: 1,
            units: vec![1, 2],
        })),
        Msg::AttentionDone { part: 1 },
        Msg::ExpertsDone,
        Msg::LayerDone,
        Msg::SegmentDone,
        Msg::StepEnd,
        Msg::StepDone {
            step: 1,
            requests: 2,
            context_sum: 3,
            made: 4,
            duration_ps: 5,
        },
        Msg::NodeStep(NodeStep {
            epoch: 2,
            step: 1,
            started_ps: u64::MAX,
            ranks: 1 << 31,
            experts: ExpertState::default(),
        }),
        Msg::NodeDone {
            step: 1,
            made: 4,
            duration_ps: 5,
            held: Box::new([Held {
                rank: 767,
                requests: 2,
                context_sum: 3,
            }]),
        },
        Msg::Inbound(Box::new(inbound)),
        Msg::Copy(Copying {
            to: 1,
            bytes: 512,
            read: true,
        }),
        Msg::Copied { started_ps: 1 },
        Msg::Watch(Watch::Root),
        Msg::Ping { round: 3 },
        Msg::Pong {
            round: 3,
            epoch: 2,
            progress: 9,
        },
        Msg::Members(Box::new(Members {
            epoch: 4,
            root: 1,
            ranks: vec![1, 2, 7],
            plans: None,
        })),
        Msg::Joined {
            epoch: 4,
            requests: 1,
            context_sum: 5,
        },
        Msg::Reset { epoch: 4 },
        Msg::Hello { epoch: 4 },
        Msg::Gone { die: 4 },
        Msg::Beat(Beat::Here),
        Msg::LoadAsk { bytes: 4 },
        Msg::Loaded,
        Msg::Ask { request },
        Msg::Answer {
            request,
            held: true,
        },
        Msg::Placed { request },
        Msg::Unplaced { request, asked: 7 },
        Msg::Refused { request },
        Msg::Release { request },
        Msg::Resend { request, first: 3 },
        Msg::Late {
            from: 5,
            msg: Box::new(Msg::Loaded),
        },
        Msg::LoadModel { model: 1 },
        Msg::WeightAsk { key: 1, bytes: 2 },
        Msg::WeightsComing { key: 1 },
        Msg::WeightBlock { key: 1 },
        Msg::WeightsIn,
        Msg::StoreAsk { key: 1, bytes: 2 },
        Msg::StoreBlock {
            key: 1,
            bytes: 2,
            tail_ps: 3,
        },
        Msg::StoreIn { key: 1 },
        Msg::SwitchModel,
        Msg::DrainOver,
        Msg::SwitchOver,
        Msg::Drained,
        Msg::Switched,
        Msg::ClientsLeave,
        Msg::Resubmit(Box::new(Resubmitted {
            spec: RequestSpec {
                id: 3,
                arrival_ps: 5,
                prompt_tokens: 7,
                output_tokens: 9,
                prefix: Prefix::Unique,
            },
            first_token_ps: 1,
            delivered: 2,
            cached: 3,
            retries: 4,
            cancelling: true,
            hops: 5,
            left: 7,
            origin: Some(6),
            die: None,
            why: "node0/cpu1 did not answer".into(),
        })),
        Msg::StreamFree { die: Some(3) },
        Msg::Changed(Change::Restarted),
        Msg::Unacked {
            to: 9,
            inbound: Box::new(Inbound {
                bytes: 7,
                plane: Plane::Rdma,
                read: true,
                tries: 2,
                tail_ps: 5,
                then: Msg::Kv { request },
            }),
        },
        Msg::Fault(Strike {
            fault: 3,
            effect: Effect::Flap {
                period_ps: 1,
                up: 0.5,
            },
            ways: Ways::Out,
            begins: true,
        }),
    ]
}

#[test]
fn every_kind_of_message_survives_being_bytes() {
    let mut seen = vec![0; KINDS];
    for msg in samples() {
        seen[kind(&msg)] += 1;
        let bytes = encode(&msg).unwrap();
        assert_eq!(decode::<Msg>(&bytes).unwrap(), msg);
        assert!(
            decode::<Msg>(&bytes[..bytes.len() - 1]).is_err(),
            "{msg:?} cut short"
        );
    }
    assert_eq!(seen, vec![1; KINDS], "one sample of each kind");
}

#[test]
fn a_phase_survives_being_bytes() {
    let shape = Shape::new(vec![0; 3], vec![0, 1, 2], &[0; 3], 0, 1);
    let mut row = Row::default();
    let costs = SourceCosts::default();
    Sender::default().lay_out(&shape, 0, &costs, &[1u32, 0, 96], &mut row, |_, _, _| ());
    let bulk = Bulk {
        board: 6,
        channel: 1,
        phase: 116,
        source: 318,
        expected: 320,
        unit_bytes: 7_680,
        from_ps: 1,
        flags_from_ps: 1,
        flag_ps: 2,
        row,
    };
    assert_eq!(decode::<Bulk>(&encode(&bulk).unwrap()).unwrap(), bulk);
}

#[test]
fn kinds_differ_in_their_digest() {
    let all = samples();
    for a in &all {
        for b in &all {
            if kind(a) < kind(b) && (kind(a), kind(b)) != ALIKE {
                assert_ne!(a.digest(), b.digest(), "{a:?} and {b:?}");
            }
        }
    }
}
