//! Who is next: clients take turns, and each client's requests keep their order.

use std::collections::{HashMap, VecDeque};

use super::Job;

/// Requests that wait, by client.
#[derive(Default)]
pub(super) struct Queue {
    waiting: HashMap<u64, VecDeque<Job>>,
    /// Clients with something waiting, the next one first.
    turns: VecDeque<u64>,
}

impl Queue {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Adds a request behind those of the same client.
    pub fn push(&mut self, job: Job) {
        let client = job.request.client;
        let jobs = self.waiting.entry(client).or_default();
        if jobs.is_empty() {
            self.turns.push_back(client);
        }
        jobs.push_back(job);
    }

    /// The next request that `fits`. Where the next one does not, nobody overtakes it: it would wait forever.
    pub fn pop(&mut self, fits: impl FnOnce(&Job) -> bool) -> Option<Job> {
        let client = *self.turns.front()?;
        let jobs = self.waiting.get_mut(&client)?;
        if !fits(jobs.front()?) {
            return None;
        }
        self.turns.pop_front();
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        job
    }

    /// Takes out all requests for which `gone` holds.
    pub fn remove(&mut self, mut gone: impl FnMut(&Job) -> bool) -> Vec<Job> {
        let mut removed = Vec::new();
        for jobs in self.waiting.values_mut() {
            if jobs.iter().any(&mut gone) {
                let (out, stay): (VecDeque<Job>, VecDeque<Job>) = jobs.drain(..).partition(&mut gone);
                removed.extend(out);
                *jobs = stay;
            }
        }
        if !removed.is_empty() {
            self.waiting.retain(|_, jobs| !jobs.is_empty());
            self.turns.retain(|client| self.waiting.contains_key(client));
        }
        removed
    }
}
