//! Making a workload in Mooncake's format: sessions of several turns over a few applications, so that prompts
//! share prefixes the way real traffic does (system prompt, then the conversation so far).

use std::collections::BinaryHeap;
use std::io::{self, Write};

use super::draw::Draw;
use super::mooncake::BLOCK_TOKENS;

/// Traffic that can be generated. Figures are assumed, in the range of the published traces (Mooncake FAST'25,
/// Azure 2023, ServeGen): they are a workload to try things on, not a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Chat over documents: long prompts that grow turn by turn, answers of a few hundred tokens.
    Conversation,
    /// Code completion: long shared context, many quick turns, short outputs.
    Code,
    /// Reasoning: short questions, thousands of output tokens.
    Reasoning,
}

/// What the profiles differ in; lengths are log-normal in tokens.
struct Shape {
    apps: u64,
    system_tokens: (u32, u32),
    /// First message (with whatever is attached to it): mean, cv.
    opening: (f64, f64),
    /// Later messages.
    message: (f64, f64),
    output: (f64, f64),
    output_max: u32,
    turns_mean: f64,
    /// Pause between an answer's start and the next question, in seconds.
    pause_s: f64,
    prompt_max: u32,
}

impl Profile {
    fn shape(self) -> Shape {
        match self {
            Self::Conversation => Shape {
                apps: 12,
                system_tokens: (200, 2_400),
                opening: (5_500.0, 1.6),
                message: (900.0, 1.8),
                output: (350.0, 0.8),
                output_max: 2_000,
                turns_mean: 3.0,
                pause_s: 15.0,
                prompt_max: 100_000,
            },
            Self::Code => Shape {
                apps: 30,
                system_tokens: (500, 6_000),
                opening: (9_000.0, 1.0),
                message: (300.0, 1.5),
                output: (60.0, 1.2),
                output_max: 1_000,
                turns_mean: 8.0,
                pause_s: 4.0,
                prompt_max: 64_000,
            },
            Self::Reasoning => Shape {
                apps: 6,
                system_tokens: (20, 600),
                opening: (700.0, 2.2),
                message: (250.0, 1.5),
                output: (1_500.0, 1.1),
                output_max: 16_000,
                turns_mean: 1.6,
                pause_s: 40.0,
                prompt_max: 32_000,
            },
        }
    }
}

/// How much to generate.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub profile: Profile,
    pub seed: u64,
    pub requests: u64,
    pub rate_per_s: f64,
}

/// A conversation under way.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    /// Due time of its next turn, first in the order (reversed, because heaps give the largest first), then
    /// its number.
    due_us: std::cmp::Reverse<u64>,
    number: std::cmp::Reverse<u64>,
    /// Tokens so far, of prompts and answers.
    tokens: u32,
    /// Ids of its full blocks.
    blocks: Vec<u64>,
}

impl Ord for Session {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due_us, self.number).cmp(&(other.due_us, other.number))
    }
}

impl PartialOrd for Session {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Writes `recipe.requests` lines.
///
/// Sessions start at a rate that makes `rate_per_s` requests with their later turns; those that were already
/// going on when the trace starts are there from its first second, so that the rate holds throughout.
pub fn generate(recipe: &Recipe, out: &mut dyn Write) -> io::Result<()> {
    let shape = recipe.profile.shape();
    let mut draw = Draw::new(recipe.seed, 0x4745_4e00);
    let mut next_id = 0u64;
    let mut fresh = |n: usize| {
        let first = next_id;
        next_id += n as u64;
        (first..next_id).collect::<Vec<u64>>()
    };
    let apps: Vec<(u32, Vec<u64>)> = (0..shape.apps)
        .map(|_| {
            let (min, max) = shape.system_tokens;
            let tokens = min + draw.below(u64::from(max - min)) as u32;
            (tokens, fresh((tokens / BLOCK_TOKENS) as usize))
        })
        .collect();
    let more = 1.0 - 1.0 / shape.turns_mean;
    let sessions_per_s = recipe.rate_per_s / shape.turns_mean;
    let mut going: BinaryHeap<Session> = BinaryHeap::new();
    let mut number = 0u64;
    let mut start = |due_us: u64, draw: &mut Draw| {
        // Popular applications get most of the sessions.
        let app = (draw.below(shape.apps)).min(draw.below(shape.apps));
        let (tokens, blocks) = &apps[app as usize];
        number += 1;
        Session {
            due_us: std::cmp::Reverse(due_us),
            number: std::cmp::Reverse(number),
            tokens: *tokens,
            blocks: blocks.clone(),
        }
    };
    // Going on at the start: each session has another turn due with probability `more` after each one.
    let waiting = (recipe.rate_per_s * more * shape.pause_s).round() as u64;
    for _ in 0..waiting {
        let due_us = (draw.exponential(shape.pause_s) * 1e6) as u64;
        let mut session = start(due_us, &mut draw);
        session.tokens += draw.lognormal(shape.opening.0, shape.opening.1) as u32
            + draw.lognormal(shape.output.0, shape.output.1) as u32;
        session.tokens = session.tokens.min(shape.prompt_max);
        going.push(session);
    }
    let mut next_start_us = (draw.exponential(1.0 / sessions_per_s) * 1e6) as u64;
    for _ in 0..recipe.requests {
        let (mut session, message) = match going.peek() {
            Some(first) if first.due_us.0 < next_start_us => {
                let Some(session) = going.pop() else { break };
                (session, shape.message)
            }
            _ => {
                let session = start(next_start_us, &mut draw);
                next_start_us += (draw.exponential(1.0 / sessions_per_s) * 1e6) as u64;
                (session, shape.opening)
            }
        };
        let at_us = session.due_us.0;
        let asked = draw
            .lognormal(message.0, message.1)
            .clamp(1.0, f64::from(shape.prompt_max)) as u32;
        session.tokens = (session.tokens + asked).min(shape.prompt_max);
        let output =
            (draw.lognormal(shape.output.0, shape.output.1) as u32).clamp(1, shape.output_max);
        let full = (session.tokens / BLOCK_TOKENS) as usize;
        if full > session.blocks.len() {
            let ids = fresh(full - session.blocks.len());
            session.blocks.extend(ids);
        }
        write!(
            out,
            "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": {output}, \"hash_ids\": [",
            at_us / 1_000,
            session.tokens
        )?;
        // The block under way ends differently in each turn, so its id is never seen again.
        let partial = if session.tokens % BLOCK_TOKENS > 0 {
            fresh(1)
        } else {
            Vec::new()
        };
        for (i, id) in session.blocks.iter().chain(&partial).enumerate() {
            write!(out, "{}{id}", if i == 0 { "" } else { ", " })?;
        }
        writeln!(out, "]}}")?;
        if session.tokens < shape.prompt_max && draw.unit() < more {
            session.tokens = (session.tokens + output).min(shape.prompt_max);
            session.due_us.0 = at_us + (draw.exponential(shape.pause_s) * 1e6) as u64 + 1;
            going.push(session);
        }
    }
    Ok(())
}
