//! Prompts of a prefill group that wait for a batch, first come first served.

use std::collections::{HashSet, VecDeque};

use super::prefill_root::Job;

/// Homes ask whether a prompt is here, the more often the longer the queue: what is in it is known by id as well.
#[derive(Debug, Default)]
pub struct PromptQueue {
    jobs: VecDeque<Job>,
    requests: HashSet<u64>,
}

impl PromptQueue {
    pub fn push(&mut self, job: Job) {
        self.requests.insert(job.prompt.request);
        self.jobs.push_back(job);
    }

    pub fn front_mut(&mut self) -> Option<&mut Job> {
        self.jobs.front_mut()
    }

    pub fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.requests.remove(&job.prompt.request);
        Some(job)
    }

    pub fn has(&self, request: u64) -> bool {
        self.requests.contains(&request)
    }

    /// Takes a prompt out of the middle.
    pub fn remove(&mut self, request: u64) -> Option<Job> {
        if !self.requests.remove(&request) {
            return None;
        }
        let at = self.jobs.iter().position(|j| j.prompt.request == request)?;
        self.jobs.remove(at)
    }

    /// All of them, in order; none is left.
    pub fn take(&mut self) -> VecDeque<Job> {
        std::mem::take(self).jobs
    }

    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}
