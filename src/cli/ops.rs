//! `supernode ops`: what each operator takes, beside what was published of it.

use super::output;
use super::scenario_args::ScenarioArgs;
use crate::error::Result;
use crate::ops::{self, Measured, Phases};

/// Show what each operator takes, beside what was published of it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Transfers, dispatch, combine and layers are measured on the machine of the scenario, from its actors
and their messages; products and attention are those of one die. Decode layers are for
decode.max_batch_per_npu requests of workload.prompt_tokens, prefill layers for a full batch.

Examples:
  supernode ops                                        the published table, and layers of the default layout
  supernode ops --ep 16,64,320 --tokens 8,48,128       other degrees of expert parallelism and batches
  supernode ops --set decode.max_batch_per_npu=8       a layer at a small batch
  supernode ops --set precision.dispatch=bf16          activations that are not quantised on the wire
  supernode ops --set operators.dispatch.startup_us=30 what one figure changes
  supernode ops --json                                 for programs"
)]
pub struct Args {
    #[command(flatten)]
    scenario: ScenarioArgs,

    /// Dies in expert parallelism, for dispatch and combine [default: those published that the machine has dies for]
    #[arg(
        allow_negative_numbers = true,
        long,
        value_name = "N,...",
        value_delimiter = ','
    )]
    ep: Option<Vec<u32>>,

    /// Tokens on each die, for dispatch and combine
    #[arg(allow_negative_numbers = true, long, value_name = "N,...", value_delimiter = ',', default_values_t = Phases::default().tokens,
          value_parser = clap::value_parser!(u32).range(1..=8_192))]
    tokens: Vec<u32>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let which = Phases {
        ep: args.ep.clone(),
        tokens: args.tokens.clone(),
    };
    let Measured { rows, left_out } = ops::measure(&args.scenario.load()?, &which)?;
    for what in left_out {
        output::note(&format!("left out: {what}"));
    }
    output::stdout(&if args.json {
        ops::to_json(&rows)
    } else {
        ops::to_table(&rows)
    })
}
