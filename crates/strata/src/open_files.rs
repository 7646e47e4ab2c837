//! How many files this process may have open; a connection is one.

/// Files besides connections: the log, the database, models that are being read.
const OTHERS: u64 = 64;

/// Allows as many open files as so many connections need, as far as the system lets this process. Returns how many connections there may be
/// then, where these are fewer.
#[cfg(unix)]
pub fn allow(connections: u64) -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = connections.saturating_add(OTHERS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if enough(current) {
        return None;
    }
    let raised = if enough(maximum) { Some(needed) } else { maximum };
    let allowed = match setrlimit(Resource::Nofile, Rlimit { current: raised, maximum }) {
        Ok(()) => raised,
        Err(_) => current,
    };
    (!enough(allowed)).then(|| allowed.unwrap_or(0).saturating_sub(OTHERS))
}

/// Nothing is known of such a limit.
#[cfg(not(unix))]
pub fn allow(_: u64) -> Option<u64> {
    None
}
