//! The threads of the engine. Its pieces of work take microseconds, such as one matrix product of one token, to milliseconds, such
//! as one of a training step: so they wait for each other on a shared word for a while before they sleep, because waking a
//! sleeping thread takes longer than a small piece.

use std::any::Any;
use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a helper looks for more work before it sleeps: longer than what is between two pieces of work in decoding (the choice
/// of a token) and in training (what one thread does alone).
const LOOKS: Duration = Duration::from_micros(200);
/// Turns of the waiting loop between two looks at the clock, and after which others may have the core.
const TURNS: usize = 64;

/// A caller and helpers that share out items. Helpers that are asleep or busy elsewhere are not waited for: whoever
/// is there takes the items, so a team never makes its caller slower than alone.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    /// Held by the caller whose work is being done.
    turn: Mutex<()>,
    helpers: Vec<std::thread::JoinHandle<()>>,
}

/// A piece of work: called with the number of the member who takes part.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// Items that are one member's unless another comes before.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Share {
    /// The next item that nobody has begun.
    fn take(&self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < self.end)
    }

    /// The same for another member's share: looking first spares it a write to what is taken.
    fn take_of_another(&self) -> Option<usize> {
        (self.next.load(Ordering::Relaxed) < self.end).then(|| self.take()).flatten()
    }
}

/// Items that are moved out one by one. Those that nobody took, after a panic, are never dropped.
struct Items<T>(Vec<ManuallyDrop<T>>);

// SAFETY: what is shared is the right to take items that can be sent, each by one thread.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    /// # Safety
    /// Nobody takes the same item twice.
    unsafe fn take(&self, index: usize) -> T {
        // SAFETY: the item is there, and by the caller's contract still.
        ManuallyDrop::into_inner(unsafe { std::ptr::read(&self.0[index]) })
    }
}

/// What a call is made of: one line of the cache, which goes from core to core once.
#[repr(align(64))]
struct Call {
    /// Twice the number of pieces of work so far, plus one while the last is open, in the upper half; in the lower
    /// half how many helpers are inside.
    state: AtomicU64,
    /// The work. Written only while it is closed and nobody is inside, read only by those who came in while it was open.
    work: UnsafeCell<Option<Work<'static>>>,
    /// Members that there are items for; the others stay outside. Whoever reads that of another piece of work finds nothing to do
    /// there, or is missed at this one.
    seats: AtomicUsize,
}

struct Shared {
    call: Call,
    /// What the first helper that failed panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    ended: AtomicBool,
}

// SAFETY: `work` follows the rules at its declaration, which make every write happen alone; what it points to is
// `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; a reference to something `Sync` can be sent.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.call.state).finish_non_exhaustive()
    }
}

const OPEN: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;

impl Team {
    /// A team of `members`, the caller and one helper less than that.
    ///
    /// # Errors
    /// Where the operating system refuses a thread.
    pub fn new(members: usize) -> std::io::Result<Team> {
        let shared = Arc::new(Shared {
            call: Call { state: AtomicU64::new(0), work: UnsafeCell::new(None), seats: AtomicUsize::new(0) },
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let mut team = Team { shared, turn: Mutex::new(()), helpers: Vec::new() };
        for member in 1..members {
            let shared = team.shared.clone();
            let thread = std::thread::Builder::new().name(format!("strata-team-{member}"));
            team.helpers.push(thread.spawn(move || shared.help(member))?);
        }
        Ok(team)
    }

    /// The caller and its helpers.
    pub fn members(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Wakes the helpers that sleep, where work will come in a moment.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Calls `work` on every item once and returns when all are done. Member m begins with the m-th share of
    /// the items, and finds the same in its caches the next time; who has done his own takes what others have not
    /// begun. Where the team is at work for another caller, this one does everything alone.
    pub fn for_each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync) {
        let alone = |items: Vec<T>| items.into_iter().for_each(&work);
        if items.len() < 2 || self.helpers.is_empty() {
            return alone(items);
        }
        // A poisoned turn is one whose work panicked, which was told to its caller.
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(std::sync::TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return alone(items),
        };
        let count = self.members().min(items.len());
        let start = |member: usize| member * items.len() / count;
        let shares: Vec<Share> = (0..count)
            .map(|member| Share { next: AtomicUsize::new(start(member)), end: start(member + 1) })
            .collect();
        // Not behind locks: neighbours would wait for each other's line of the cache.
        let items = Items(items.into_iter().map(ManuallyDrop::new).collect());
        self.shared.run(items.0.len(), &|member| {
            // SAFETY: shares do not overlap, and count each number once.
            let done = |index| work(unsafe { items.take(index) });
            let (before, from) = shares.split_at(member.min(count));
            let (own, after) = from.split_at(from.len().min(1));
            own.iter().flat_map(|share| std::iter::from_fn(|| share.take())).for_each(done);
            let others = after.iter().chain(before);
            others.flat_map(|share| std::iter::from_fn(|| share.take_of_another())).for_each(done);
        });
        drop(turn);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.ring();
        for helper in self.helpers.drain(..) {
            // A helper catches what its work throws, so it ends without a panic.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// Does the work, of so many `items`, together with all helpers that come in time. The caller holds the team's turn.
    fn run(&self, items: usize, work: Work<'_>) {
        // SAFETY: the reference is used only by helpers inside, and this function returns (or unwinds) only after
        // it was closed and the last of them has left.
        let lasting = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: it is closed and nobody who came in while it was open is inside: the call before waited for that, and there is
        // one at a time.
        unsafe { *self.call.work.get() = Some(lasting) };
        self.call.seats.store(items, Ordering::Relaxed);
        self.call.state.fetch_add(OPEN, Ordering::SeqCst);
        self.wake();
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        self.call.state.fetch_add(OPEN, Ordering::SeqCst);
        let mut turns = 0;
        while self.call.state.load(Ordering::Acquire) & INSIDE > 0 {
            wait(&mut turns);
        }
        let theirs = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.ring();
        }
    }

    fn ring(&self) {
        // With the lock: a helper between its last look and its sleep would miss the bell.
        drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
        self.bell.notify_all();
    }

    /// The life of a helper.
    fn help(&self, member: usize) {
        let mut done = 0;
        loop {
            let Some(seen) = self.await_work(done) else { return };
            if member >= self.call.seats.load(Ordering::Relaxed) {
                done = seen & !INSIDE;
                continue;
            }
            let state = self.call.state.fetch_add(1, Ordering::SeqCst);
            if state & OPEN == 0 {
                // It was closed in the meantime.
                self.call.state.fetch_sub(1, Ordering::Release);
                continue;
            }
            done = state & !INSIDE;
            // SAFETY: it was open when this helper came in, so nobody writes, and the work lives until it has left.
            let work = unsafe { *self.call.work.get() };
            if let Some(work) = work
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(member)))
            {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.call.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// The state once there is open work that is not `done`; `None` when the team ends.
    fn await_work(&self, done: u64) -> Option<u64> {
        let new = |state: u64| state & OPEN != 0 && state & !INSIDE != done;
        let (mut turns, mut since) = (0, None);
        loop {
            let state = self.call.state.load(Ordering::SeqCst);
            if new(state) {
                return Some(state);
            }
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
            wait(&mut turns);
            if turns.is_multiple_of(TURNS) && since.get_or_insert_with(Instant::now).elapsed() >= LOOKS {
                let bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                if !new(self.call.state.load(Ordering::SeqCst)) && !self.ended.load(Ordering::SeqCst) {
                    // Woken without need, it looks around for a while and goes back to sleep.
                    drop(self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner));
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                since = None;
            }
        }
    }
}

/// One turn of a waiting loop: the core's other uses come first, but only after a while.
fn wait(turns: &mut usize) {
    *turns += 1;
    if (*turns).is_multiple_of(TURNS) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_for_any_number_of_members_and_items() {
        for members in 1..5 {
            let team = Team::new(members).unwrap();
            assert_eq!(team.members(), members);
            for round in 0..300 {
                let counts: Vec<AtomicUsize> = (0..round % 17).map(|_| AtomicUsize::new(0)).collect();
                team.for_each(counts.iter().collect(), |count| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{members}, {round}");
                if round % 100 == 0 {
                    // Long enough for the helpers to fall asleep.
                    std::thread::sleep(5 * LOOKS);
                }
            }
        }
    }

    #[test]
    fn items_are_borrowed_and_written_by_all_members() {
        let team = Team::new(3).unwrap();
        for _ in 0..1000 {
            let mut data = vec![0; 1000];
            team.for_each(data.chunks_mut(100).collect(), |piece| piece.fill(7));
            assert_eq!(data, vec![7; 1000]);
        }
    }

    #[test]
    fn callers_at_the_same_time_and_calls_inside_work_are_served() {
        let team = Team::new(3).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.for_each(vec![1, 2, 3], |outer| {
                            team.for_each(vec![outer; 4], |n| {
                                total.fetch_add(n, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 200 * 4 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for guilty in 0..8 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.for_each((0..8).collect(), |item| assert_ne!(item, guilty));
            }));
            assert!(result.is_err());
        }
        let sum = AtomicUsize::new(0);
        team.for_each((0..8).collect(), |item| {
            sum.fetch_add(item, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
