//! The names of everything in a trace: events, categories, annotations. Written once at the start of a file, and
//! referred to by number after that; the numbers are the places in the tables here, so a change of order is a new
//! version of the format.

use supernode_actors::trace::{Class, Counter, Mark, Stage, What};

/// Categories, for filters in the UI and in SQL.
pub const CATEGORIES: [&str; 6] = ["decode", "prefill", "wire", "request", "fault", "flag"];
pub const DECODE: usize = 0;
pub const PREFILL: usize = 1;
pub const WIRE: usize = 2;
pub const REQUEST: usize = 3;
pub const FAULT: usize = 4;
pub const FLAG: usize = 5;

/// Annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Duration in picoseconds: timestamps are whole nanoseconds.
    Ps,
    /// Picoseconds that the start lies after its nanosecond.
    StartSubPs,
    /// Step of a decode group, or batch of a prefill group.
    Run,
    Layer,
    Microbatch,
    WaitedFor,
    /// Time from the start of the stage until the wait was over, in picoseconds.
    WaitedPs,
    Expert,
    ExpertTokens,
    Tokens,
    Bytes,
    Messages,
    HeldUpBy,
    Requests,
    Drawn,
    Request,
    Actor,
    PromptTokens,
    OutputTokens,
    Blocks,
    Step,
    Complete,
    Fault,
    Effect,
    TtftPs,
}

pub const KEYS: [&str; 25] = [
    "ps",
    "start_sub_ps",
    "run",
    "layer",
    "microbatch",
    "waited_for",
    "waited_ps",
    "expert",
    "expert_tokens",
    "tokens",
    "bytes",
    "messages",
    "held_up_by",
    "requests",
    "drawn",
    "request",
    "actor",
    "prompt_tokens",
    "output_tokens",
    "blocks",
    "step",
    "complete",
    "fault",
    "effect",
    "ttft_ps",
];

/// Every kind of event, in the order of its number.
pub fn all() -> Vec<What> {
    let mut all: Vec<What> = Stage::ALL.into_iter().map(What::Stage).collect();
    all.extend(Stage::ALL.into_iter().map(What::Send));
    all.extend([
        What::Step,
        What::GroupStep,
        What::Batch,
        What::GroupBatch,
        What::TransferOut,
        What::TransferIn,
        What::PhaseOut,
        What::PhaseIn,
        What::Fault,
    ]);
    all.extend(Mark::ALL.into_iter().map(What::Mark));
    all
}

/// Events that only trace files have: a flag leaving the rank that was waited for, and reaching the one that waited.
pub const EXTRA: [&str; 2] = ["flag_out", "flag_in"];

/// Number of an event's name, from 1.
pub fn number(what: What) -> u64 {
    let first_after_sends = 2 * Stage::COUNT;
    let n = match what {
        What::Stage(s) => s as usize,
        What::Send(s) => Stage::COUNT + s as usize,
        What::Step => first_after_sends,
        What::GroupStep => first_after_sends + 1,
        What::Batch => first_after_sends + 2,
        What::GroupBatch => first_after_sends + 3,
        What::TransferOut => first_after_sends + 4,
        What::TransferIn => first_after_sends + 5,
        What::PhaseOut => first_after_sends + 6,
        What::PhaseIn => first_after_sends + 7,
        What::Fault | What::FaultOver => first_after_sends + 8,
        What::Mark(m) => first_after_sends + 9 + m as usize,
        What::Counter(_) | What::Uplinks => first_after_sends + 9 + Mark::ALL.len() + EXTRA.len(),
    };
    n as u64 + 1
}

/// Number of the `i`th extra event.
pub fn extra(i: usize) -> u64 {
    number(What::Mark(Mark::Arrived)) + (Mark::ALL.len() + i) as u64
}

pub fn name(what: What) -> String {
    match what {
        What::Stage(s) => s.name().into(),
        What::Send(s) => format!("send {}", s.name()),
        What::Step => "step".into(),
        What::GroupStep => "group step".into(),
        What::Batch => "batch".into(),
        What::GroupBatch => "group batch".into(),
        What::TransferOut => "transfer out".into(),
        What::TransferIn => "transfer in".into(),
        What::PhaseOut => "messages out".into(),
        What::PhaseIn => "messages in".into(),
        What::Fault | What::FaultOver => "fault".into(),
        What::Uplinks => "across L1-L2 links".into(),
        What::Mark(m) => m.stage().into(),
        What::Counter(c) => counter(c).0.into(),
    }
}

pub fn category(what: What) -> usize {
    match what {
        What::Stage(s) | What::Send(s) if s.is_decode() => DECODE,
        What::Stage(_) | What::Send(_) => PREFILL,
        What::Step | What::GroupStep | What::Counter(_) => DECODE,
        What::Batch | What::GroupBatch => PREFILL,
        What::TransferOut | What::TransferIn | What::PhaseOut | What::PhaseIn => WIRE,
        What::Uplinks => WIRE,
        What::Mark(_) => REQUEST,
        What::Fault | What::FaultOver => FAULT,
    }
}

/// Name of a counter's track, and what it counts.
pub fn counter(c: Counter) -> (&'static str, &'static str) {
    match c {
        Counter::BatchSize => ("batch size", "requests"),
        Counter::KvTokens => ("KV memory", "tokens"),
        Counter::QueueDepth => ("claims waiting", "requests"),
        Counter::PromptQueue => ("prompts waiting", "requests"),
    }
}

/// Names from this number on are given as the file goes: effects of faults.
pub const GIVEN: u64 = 1_000;

/// A fault's effect in words, from the kind and amount of its record.
pub fn effect(kind: u64, how_much: u64) -> String {
    let share = f64::from_bits(how_much);
    let us = how_much as f64 / 1e6;
    match kind {
        0 => format!("slow x{share}"),
        1 => format!("delay {us}us"),
        2 => format!("jitter {us}us"),
        3 => format!("loss {}%", share * 100.0),
        4 => "flap".into(),
        5 => "down".into(),
        6 => format!("throttle x{share}"),
        7 => format!("hbm_slow x{share}"),
        8 => "hang".into(),
        _ => "crash".into(),
    }
}

/// A stage that ends when others have done their part.
pub fn collects(what: What) -> bool {
    matches!(what, What::Stage(s) if s.class() == Class::Transfer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_said_as_in_plans() {
        use supernode_actors::fault::Effect as E;
        let said = |e: E| {
            let (kind, how_much) = e.code();
            effect(kind, how_much)
        };
        let all = [
            (E::Slow(0.3), "slow x0.3"),
            (E::Delay(5_000_000), "delay 5us"),
            (E::Loss(0.02), "loss 2%"),
            (E::Down, "down"),
            (E::Throttle(0.5), "throttle x0.5"),
            (E::HbmSlow(0.5), "hbm_slow x0.5"),
            (E::Hang, "hang"),
            (E::Crash, "crash"),
        ];
        for (e, text) in all {
            assert_eq!(said(e), text);
            assert!(text.starts_with(e.word()));
        }
    }

    #[test]
    fn numbers_are_places_in_the_table() {
        for (i, what) in all().into_iter().enumerate() {
            assert_eq!(number(what), i as u64 + 1, "{what:?}");
        }
        assert_eq!(extra(0), all().len() as u64 + 1);
        assert!(extra(EXTRA.len()) < GIVEN);
        assert_eq!(KEYS[Key::TtftPs as usize], "ttft_ps");
        assert_eq!(KEYS[Key::HeldUpBy as usize], "held_up_by");
        for (i, m) in Mark::ALL.into_iter().enumerate() {
            assert_eq!(m as usize, i);
        }
    }
}
