//! The processor: an instruction set and a fixed number of threads.

use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use strata_kernels::Isa;
use strata_kernels::team::Team;

/// Multiply-adds for which a thread is woken: some fifty microseconds, several times what waking costs (measured in a
/// virtual machine, where a thread that sleeps is woken by an interrupt through the host).
const WORTH_A_THREAD: usize = 1 << 21;

/// Multiply-adds for which a team meets: some two microseconds, several times what a meeting takes.
const WORTH_A_MEETING: usize = 1 << 15;

/// The CPU device. Cheap to clone; clones share one pool of threads.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<rayon::ThreadPool>,
    team: Arc<Team>,
    /// Whether all work stays on the thread that asks for it.
    alone: bool,
}

impl Cpu {
    /// A device of `threads` threads (at least one) that uses `isa`.
    ///
    /// # Errors
    /// Where the operating system refuses the threads.
    pub fn new(isa: Isa, threads: usize) -> std::io::Result<Cpu> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|i| format!("strata-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        let team = Team::new(threads.max(1))?;
        Ok(Cpu { isa, pool: Arc::new(pool), team: Arc::new(team), alone: false })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        if self.alone { 1 } else { self.pool.current_num_threads() }
    }

    /// The same device, all work of which stays on the thread that asks for it: for work that was shared out already.
    pub fn alone(&self) -> Cpu {
        Cpu { alone: true, ..self.clone() }
    }

    /// Runs `work` on a thread of the pool: calls of [`Cpu::for_each`] inside it do not pay for entering the pool.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.alone { work() } else { self.pool.install(work) }
    }

    /// Runs `work` on every item, the items shared out among the threads; returns when all are done.
    /// What an item computes must not depend on the thread, so results are repeatable bit for bit.
    pub fn for_each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync + Send) {
        match items.len() {
            1 => items.into_iter().for_each(work),
            _ if self.alone => items.into_iter().for_each(work),
            _ => self.pool.install(|| items.into_par_iter().with_max_len(1).for_each(work)),
        }
    }

    /// Like [`Cpu::for_each`] for pieces of work of microseconds, done by the caller and threads that look for more
    /// work a while before they sleep. Item i of n goes to the same thread each time, if that is awake.
    pub fn for_each_small<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync + Send) {
        if self.alone { items.into_iter().for_each(work) } else { self.team.for_each(items, work) }
    }

    /// Wakes the threads of [`Cpu::for_each_small`] before work of `operations` multiply-adds.
    pub fn wake_for(&self, operations: usize) {
        if self.threads() > 1 && operations >= 2 * WORTH_A_MEETING {
            self.team.wake();
        }
    }

    /// As [`Cpu::ranges_for`], for [`Cpu::for_each_small`]. Large work gets several ranges per thread, so that nobody
    /// waits long for a thread that was interrupted.
    pub fn small_ranges(&self, operations: usize, n: usize, grain: usize) -> Vec<Range<usize>> {
        let threads = self.threads();
        let parts = if threads == 1 {
            1
        } else if operations >= threads * WORTH_A_THREAD {
            4 * threads
        } else {
            (operations / WORTH_A_MEETING).clamp(1, threads)
        };
        self.ranges_up_to(parts, n, grain)
    }

    /// Like [`Cpu::for_each`], collecting one result per item in the items' order.
    pub fn map<T: Send, R: Send>(&self, items: Vec<T>, work: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
        if self.alone {
            return items.into_iter().map(work).collect();
        }
        self.pool.install(|| items.into_par_iter().with_max_len(1).map(work).collect())
    }

    /// Cuts `0..n` into at most one range per thread, each but the last a multiple of `grain`.
    pub fn ranges(&self, n: usize, grain: usize) -> Vec<Range<usize>> {
        self.ranges_up_to(self.threads(), n, grain)
    }

    /// As [`Cpu::ranges`], for a piece of work of about `operations` multiply-adds: fewer ranges where a part
    /// would not be worth a thread.
    pub fn ranges_for(&self, operations: usize, n: usize, grain: usize) -> Vec<Range<usize>> {
        self.ranges_up_to((operations / WORTH_A_THREAD).clamp(1, self.threads()), n, grain)
    }

    /// Whether a piece of work of about `operations` multiply-adds is worth sharing out.
    pub fn worth_sharing(&self, operations: usize) -> bool {
        operations >= 2 * WORTH_A_THREAD && self.threads() > 1
    }

    fn ranges_up_to(&self, parts: usize, n: usize, grain: usize) -> Vec<Range<usize>> {
        let share = n.div_ceil(parts).next_multiple_of(grain).max(1);
        (0..n).step_by(share).map(|start| start..n.min(start + share)).collect()
    }
}

/// Cuts a row-major buffer at the row ranges: one writable piece per range.
pub(crate) fn rows_mut<'a, T>(
    mut data: &'a mut [T],
    width: usize,
    ranges: &[Range<usize>],
) -> Vec<&'a mut [T]> {
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (piece, rest) = data.split_at_mut(range.len() * width);
        pieces.push(piece);
        data = rest;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_once_for_any_thread_count() {
        for threads in 1..5 {
            let cpu = Cpu::new(Isa::best(), threads).unwrap();
            assert_eq!(cpu.threads(), threads);
            for n in 0..50 {
                let ranges = cpu.ranges(n, 4);
                assert!(ranges.len() <= threads);
                assert_eq!(ranges.into_iter().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            }
        }
    }
}
