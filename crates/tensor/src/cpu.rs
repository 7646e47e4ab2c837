//! The processor: an instruction set and a fixed number of threads.

use std::ops::Range;
use std::sync::Arc;
use strata_kernels::Isa;
use strata_kernels::team::Team;

/// Multiply-adds for which a thread meets the others: some two microseconds, several times what a meeting of two threads takes.
const WORTH_A_MEETING: usize = 1 << 15;

/// Multiply-adds for which a thread gets several pieces of work.
const WORTH_SEVERAL_PIECES: usize = 1 << 21;

/// The CPU device. Cheap to clone; clones share their threads, which work for one caller at a time.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    team: Arc<Team>,
    /// Whether all work stays on the thread that asks for it.
    alone: bool,
}

impl Cpu {
    /// A device of `threads` threads (at least one, who asks included) that uses `isa`.
    ///
    /// # Errors
    /// Where the operating system refuses the threads.
    pub fn new(isa: Isa, threads: usize) -> std::io::Result<Cpu> {
        Ok(Cpu { isa, team: Arc::new(Team::new(threads.max(1))?), alone: false })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        if self.alone { 1 } else { self.team.members() }
    }

    /// The same device, all work of which stays on the thread that asks for it: for work that was shared out already.
    pub fn alone(&self) -> Cpu {
        Cpu { alone: true, ..self.clone() }
    }

    /// Runs `work` on every item, the items shared out among the caller and threads that look for more work a while before
    /// they sleep; returns when all are done. Item i of n goes to the same thread each time, if that is awake and has nothing
    /// else to do. What an item computes must not depend on the thread, so results are repeatable bit for bit.
    ///
    /// Inside an item, and while the threads work for another caller, the caller does everything alone. What an item panics
    /// with reaches the caller.
    pub fn for_each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync) {
        if self.alone { items.into_iter().for_each(work) } else { self.team.for_each(items, work) }
    }

    /// Like [`Cpu::for_each`], collecting one result per item in the items' order.
    pub fn map<T: Send, R: Send>(&self, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        self.for_each(items.into_iter().zip(&mut results).collect(), |(item, result)| {
            *result = Some(work(item));
        });
        results.into_iter().map(|result| result.expect("every item was worked on")).collect()
    }

    /// As [`Cpu::for_each`], for items that together are about `operations` multiply-adds: small ones are handed out several at
    /// a time, or not at all.
    pub fn for_each_of<T: Send>(
        &self,
        operations: usize,
        items: impl Iterator<Item = T>,
        work: impl Fn(T) + Sync,
    ) {
        if !self.worth_sharing(operations) {
            return items.for_each(work);
        }
        let all: Vec<T> = items.collect();
        let pieces = self.ranges_for(operations, all.len(), 1);
        let mut all = all.into_iter();
        let pieces: Vec<Vec<T>> =
            pieces.iter().map(|piece| all.by_ref().take(piece.len()).collect()).collect();
        self.for_each(pieces, |piece| piece.into_iter().for_each(&work));
    }

    /// Wakes the threads before work of `operations` multiply-adds.
    pub fn wake_for(&self, operations: usize) {
        if self.worth_sharing(operations) {
            self.team.wake();
        }
    }

    /// Cuts `0..n` into at most one range per thread, each but the last a multiple of `grain`.
    pub fn ranges(&self, n: usize, grain: usize) -> Vec<Range<usize>> {
        self.ranges_up_to(self.threads(), n, grain)
    }

    /// As [`Cpu::ranges`], for a piece of work of about `operations` multiply-adds: fewer ranges where a part would not be
    /// worth a meeting, several per thread where there is much to do, so that nobody waits long for a thread that was
    /// interrupted.
    pub fn ranges_for(&self, operations: usize, n: usize, grain: usize) -> Vec<Range<usize>> {
        let threads = self.threads();
        let parts = if threads == 1 {
            1
        } else if operations >= threads * WORTH_SEVERAL_PIECES {
            4 * threads
        } else {
            (operations / WORTH_A_MEETING).clamp(1, threads)
        };
        self.ranges_up_to(parts, n, grain)
    }

    /// Whether a piece of work of about `operations` multiply-adds is worth sharing out.
    pub fn worth_sharing(&self, operations: usize) -> bool {
        operations >= 2 * WORTH_A_MEETING && self.threads() > 1
    }

    /// Cuts `0..n` into at most `parts` ranges, each but the last a multiple of `grain`.
    pub(crate) fn ranges_up_to(&self, parts: usize, n: usize, grain: usize) -> Vec<Range<usize>> {
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
    fn results_come_in_the_order_of_the_items_however_they_are_shared_out() {
        for threads in 1..5 {
            let cpu = Cpu::new(Isa::best(), threads).unwrap();
            for n in [0, 1, 2, 3, 7, 100] {
                // The first items take longest, so that others are done before them.
                let squares = cpu.map((0..n).collect(), |i: usize| {
                    std::thread::sleep(std::time::Duration::from_micros(if i < 2 { 300 } else { 0 }));
                    i * i
                });
                assert_eq!(squares, (0..n).map(|i| i * i).collect::<Vec<_>>(), "{threads} threads");
            }
        }
    }

    #[test]
    fn callers_at_the_same_time_and_inside_an_item_get_all_their_results() {
        let cpu = Cpu::new(Isa::best(), 3).unwrap();
        let caller = || {
            let cpu = cpu.clone();
            move || {
                for _ in 0..100 {
                    let sums = cpu.map(vec![1, 2, 3], |i| cpu.map(vec![i; 4], |j| 2 * j).iter().sum::<i32>());
                    assert_eq!(sums, [8, 16, 24]);
                }
            }
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(caller()))));
    }

    #[test]
    fn alone_nothing_leaves_the_callers_thread() {
        let cpu = Cpu::new(Isa::best(), 3).unwrap().alone();
        let own = std::thread::current().id();
        assert!(cpu.map(vec![(); 50], |()| std::thread::current().id()).into_iter().all(|id| id == own));
        cpu.for_each_of(usize::MAX, 0..50, |_| assert_eq!(std::thread::current().id(), own));
        assert_eq!((cpu.threads(), cpu.ranges(10, 1).len()), (1, 1));
    }

    #[test]
    fn many_small_items_are_handed_out_several_at_a_time_each_once() {
        let cpu = Cpu::new(Isa::best(), 3).unwrap();
        for operations in [0, WORTH_A_MEETING, 2 * WORTH_A_MEETING, usize::MAX] {
            for n in [0, 1, 2, 1000] {
                let counts: Vec<_> = (0..n).map(|_| std::sync::atomic::AtomicUsize::new(0)).collect();
                cpu.for_each_of(operations, counts.iter(), |count| {
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                });
                assert!(counts.into_iter().all(|count| count.into_inner() == 1), "{operations}, {n}");
            }
        }
    }

    #[test]
    fn small_work_stays_in_one_piece_and_large_work_gets_several_for_each_thread() {
        let cpu = Cpu::new(Isa::best(), 3).unwrap();
        let pieces = |operations| cpu.ranges_for(operations, 1000, 1).len();
        assert_eq!(pieces(2 * WORTH_A_MEETING - 1), 1);
        assert_eq!(pieces(2 * WORTH_A_MEETING), 2);
        assert_eq!(pieces(3 * WORTH_SEVERAL_PIECES - 1), 3);
        assert_eq!(pieces(3 * WORTH_SEVERAL_PIECES), 12);
        assert!(cpu.worth_sharing(2 * WORTH_A_MEETING) && !cpu.worth_sharing(2 * WORTH_A_MEETING - 1));
    }

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
