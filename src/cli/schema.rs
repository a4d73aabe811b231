//! `supernode schema`: the JSON Schema of scenario files, for editors and for whoever writes them by hand.

use super::output;
use crate::error::Result;
use crate::scenario;

/// Print the JSON Schema of scenario files
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  supernode schema > scenario.schema.json

Editors that know TOML schemas then complete keys and show what they mean:
  #:schema ./scenario.schema.json     as the first line of a scenario")]
pub struct Args {
    /// Print the keys with their defaults as a scenario file instead
    #[arg(long)]
    defaults: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.defaults {
        let text = toml::to_string_pretty(&scenario::Scenario::default()).map_err(|e| {
            crate::error::Error::failed(format!("cannot write the defaults as TOML: {e}"))
        })?;
        return output::stdout(&text);
    }
    output::stdout(&format!("{:#}\n", scenario::schema()))
}
