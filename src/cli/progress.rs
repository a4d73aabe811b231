//! The progress bar of a run: virtual time, requests ended, events, and an estimate of the rest. It is drawn on
//! standard error, and only where that is a terminal.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};
use supernode_actors::launch::Progress;
use supernode_actors::time::s_from_ps;

use crate::report::count;

pub struct Bar(Option<ProgressBar>);

impl Bar {
    pub fn new(quiet: bool, requests: u64) -> Self {
        if quiet || !stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(requests);
        let style = ProgressStyle::with_template(
            "{bar:30} {human_pos}/{human_len} requests  {msg}  {elapsed} gone, {eta} to go",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(Some(bar))
    }

    pub fn show(&self, p: &Progress) {
        if let Self(Some(bar)) = self {
            if p.total > 0 {
                bar.set_length(p.total);
            }
            bar.set_position(p.ended);
            bar.set_message(format!(
                "{:.1} s virtual  {} events",
                s_from_ps(p.now_ps),
                count(p.events)
            ));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Self(Some(bar)) = self {
            bar.finish_and_clear();
        }
    }
}
