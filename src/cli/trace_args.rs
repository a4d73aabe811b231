//! The options that say what of a run is traced.

use std::path::PathBuf;

use supernode_actors::time::{Ps, ps_from_s};

use crate::error::{Error, Result};
use crate::scenario::duration_s;
use crate::trace::{TraceOptions, said};

/// What is traced, and where to.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// Write a trace to this file, for the Perfetto UI and `supernode trace`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Spans of actors that this address or pattern selects, such as 'node12/**' [default: all]
    #[arg(long, value_name = "GLOB")]
    trace_match: Option<String>,

    /// Spans in this stretch of virtual time, and requests that arrive in it, such as 2s..2.2s
    #[arg(allow_negative_numbers = true, long, value_name = "FROM..TO", value_parser = window)]
    trace_window: Option<(Ps, Ps)>,

    /// Share of the requests that are followed, such as 1% [default: 100% with --trace, 1% with --out alone]
    #[arg(allow_negative_numbers = true, long, value_name = "SHARE", value_parser = said::share)]
    trace_requests: Option<f64>,

    /// Stop writing spans of actors when the file has this size, such as 500MB; requests are followed to their end
    /// [default: 1GB with --trace, 64MB with --out alone]
    #[arg(allow_negative_numbers = true, long, value_name = "SIZE", value_parser = said::size)]
    trace_limit: Option<u64>,
}

impl TraceArgs {
    fn says_what(&self) -> bool {
        self.trace_match.is_some()
            || self.trace_window.is_some()
            || self.trace_requests.is_some()
            || self.trace_limit.is_some()
    }

    /// What is to be traced; `kept`: into the directory of a kept run, if nothing else is said.
    ///
    /// # Errors
    /// When something is said of a trace, and there is none.
    pub fn options(&self, kept: bool) -> Result<Option<TraceOptions>> {
        if self.trace.is_none() && !kept {
            return match self.says_what() {
                true => Err(Error::user(
                    "--trace-match, --trace-window, --trace-requests and --trace-limit say what is traced: add --trace FILE or --out DIR",
                )),
                false => Ok(None),
            };
        }
        let asked = self.trace.is_some() || self.says_what();
        let (from_ps, until_ps) = self.trace_window.unwrap_or((0, Ps::MAX));
        Ok(Some(TraceOptions {
            pattern: self.trace_match.clone(),
            from_ps,
            until_ps,
            requests: self
                .trace_requests
                .unwrap_or(if asked { 1.0 } else { 0.01 }),
            bytes_max: self
                .trace_limit
                .unwrap_or(if asked { 1_000_000_000 } else { 64_000_000 }),
        }))
    }
}

fn window(text: &str) -> std::result::Result<(Ps, Ps), String> {
    let expected = "expected two times such as 2s..2.2s";
    let (from, to) = text.split_once("..").ok_or(expected)?;
    let ps = |t: &str, default: Ps| match t.trim() {
        "" => Ok(default),
        "0" => Ok(0),
        t => duration_s(t).map(ps_from_s),
    };
    let (from, to) = (ps(from, 0)?, ps(to, Ps::MAX)?);
    if from >= to {
        return Err(format!("it ends before it begins; {expected}"));
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_as_people_write_them() {
        assert_eq!(
            window("2s..2.2s"),
            Ok((2_000_000_000_000, 2_200_000_000_000))
        );
        assert_eq!(window("..100ms"), Ok((0, 100_000_000_000)));
        assert_eq!(window("1s..").map(|w| w.1), Ok(Ps::MAX));
        assert!(window("3s").is_err() && window("3s..2s").is_err() && window("a..b").is_err());
    }
}
