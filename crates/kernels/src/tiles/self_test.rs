//! Proving AMX before it is used: CPUID, XCR0, permission, and a trial in a child process, because a
//! processor or hypervisor that only claims to have tiles answers with SIGILL or wrong numbers.

use std::fmt;

/// What went wrong when tile instructions were tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SelfTestFailure {
    /// The trial died of this signal.
    Signal(i32),
    /// The trial ended with wrong numbers.
    Wrong(Check),
    /// The trial could not be carried out; the error number of the operating system.
    NotRun(i32),
    /// The trial ended with an exit code that means nothing here.
    Unexplained(i32),
}

/// The parts of the trial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Products of a block of 2 × 2 tiles, which uses all 8 tile registers.
    Product2x2,
    /// Products of a block of 1 × 2 tiles.
    Product1x2,
    /// Sums that continue from memory.
    Accumulate,
    /// All 8 tile registers after the thread slept, so that the kernel had to keep them.
    Sleep,
}

impl Check {
    const ALL: [Check; 4] = [Check::Product2x2, Check::Product1x2, Check::Accumulate, Check::Sleep];
}

impl fmt::Display for SelfTestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SelfTestFailure::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "tile instructions ended in {name}"),
                None => write!(f, "tile instructions ended in signal {number}"),
            },
            SelfTestFailure::Wrong(check) => f.write_str(match check {
                Check::Product2x2 => "a product of 2 x 2 tiles has wrong values",
                Check::Product1x2 => "a product of 1 x 2 tiles has wrong values",
                Check::Accumulate => "a product added to earlier sums has wrong values",
                Check::Sleep => "tiles lost their values while the thread slept",
            }),
            SelfTestFailure::NotRun(errno) => {
                write!(f, "no child process for it: {}", std::io::Error::from_raw_os_error(*errno))
            }
            SelfTestFailure::Unexplained(code) => write!(f, "its child process ended with code {code}"),
        }
    }
}

#[cfg(unix)]
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        libc::SIGILL => "an illegal instruction (SIGILL)",
        libc::SIGSEGV => "a memory fault (SIGSEGV)",
        libc::SIGBUS => "a bus error (SIGBUS)",
        libc::SIGFPE => "an arithmetic fault (SIGFPE)",
        libc::SIGALRM => "no answer within its time (SIGALRM)",
        _ => return None,
    })
}

#[cfg(not(unix))]
fn signal_name(_number: i32) -> Option<&'static str> {
    None
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use linux::detect;

/// AMX is reached through Linux alone so far.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) fn detect() -> crate::isa::AmxStatus {
    crate::isa::AmxStatus::NotBuiltIn
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux;
