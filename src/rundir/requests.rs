//! `requests.csv`: every request that ended, by id.

use std::io::Write;

use serde::{Deserialize, Serialize};
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_topology::Machine;

use super::lines;

/// One request. Times are virtual, in picoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestRow {
    pub id: u64,
    /// Address of its home.
    pub home: String,
    pub arrival_ps: u64,
    /// 0 if no token reached the home.
    pub first_token_ps: u64,
    pub end_ps: u64,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub output_tokens: u32,
    pub retries: u32,
    /// "completed", "cancelled", or why it failed.
    pub outcome: String,
}

pub fn write(
    out: &mut impl Write,
    machine: &Machine,
    records: &[RequestRecord],
) -> std::io::Result<()> {
    let row = |r: &RequestRecord| RequestRow {
        id: r.id,
        home: machine.address(machine.cpu(r.home)),
        arrival_ps: r.arrival_ps,
        first_token_ps: r.first_token_ps,
        end_ps: r.end_ps,
        prompt_tokens: r.prompt_tokens,
        cached_tokens: r.cached_tokens,
        output_tokens: r.output_tokens,
        retries: r.retries,
        outcome: match &r.outcome {
            Outcome::Completed => "completed".into(),
            Outcome::Failed(why) => why.clone(),
            Outcome::Cancelled => "cancelled".into(),
        },
    };
    lines::write(out, records.iter().map(row))
}
