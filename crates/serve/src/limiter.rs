//! What a key may use per minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::keys::Key;

/// Remembers what keys have used. Every key has two buckets, of requests and of tokens, which hold a minute's worth and
/// fill steadily.
#[derive(Debug, Default)]
pub struct Limiter {
    buckets: Mutex<HashMap<i64, Buckets>>,
}

#[derive(Debug)]
struct Buckets {
    since: Instant,
    requests: f64,
    tokens: f64,
}

/// What a key has used up, and when it is worth trying again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// `requests` or `tokens`.
    pub what: &'static str,
    /// How many of them a minute.
    pub limit: u32,
    /// Until then.
    pub retry_after: Duration,
}

impl Limiter {
    /// Counts a request of `key`.
    ///
    /// # Errors
    /// It has used up its requests or its tokens.
    pub fn request(&self, key: &Key, now: Instant) -> Result<(), Exceeded> {
        self.with(key, now, |buckets| {
            for (what, limit, level) in [
                ("requests", key.requests_per_minute, buckets.requests - 1.0),
                ("tokens", key.tokens_per_minute, buckets.tokens),
            ] {
                if let Some(limit) = limit
                    && level < 0.0
                {
                    let seconds = -level / f64::from(limit.max(1)) * 60.0;
                    return Err(Exceeded {
                        what,
                        limit,
                        retry_after: Duration::from_secs_f64(seconds.min(3600.0)),
                    });
                }
            }
            if key.requests_per_minute.is_some() {
                buckets.requests -= 1.0;
            }
            Ok(())
        })
    }

    /// Counts tokens that `key` has used. They are known only afterwards, so the bucket may become less than empty.
    pub fn tokens(&self, key: &Key, tokens: usize, now: Instant) {
        if key.tokens_per_minute.is_some() {
            self.with(key, now, |buckets| buckets.tokens -= tokens as f64);
        }
    }

    fn with<R>(&self, key: &Key, now: Instant, work: impl FnOnce(&mut Buckets) -> R) -> R {
        let full = |limit: Option<u32>| f64::from(limit.unwrap_or(0));
        let (requests, tokens) = (full(key.requests_per_minute), full(key.tokens_per_minute));
        let mut all = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = all.entry(key.id).or_insert(Buckets { since: now, requests, tokens });
        let minutes = now.saturating_duration_since(buckets.since).as_secs_f64() / 60.0;
        buckets.since = now;
        buckets.requests = (buckets.requests + minutes * requests).min(requests);
        buckets.tokens = (buckets.tokens + minutes * tokens).min(tokens);
        work(buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(requests: Option<u32>, tokens: Option<u32>) -> Key {
        Key {
            id: 1,
            name: "k".into(),
            beginning: "strata-abcd".into(),
            created: 0,
            requests_per_minute: requests,
            tokens_per_minute: tokens,
        }
    }

    #[test]
    fn requests_come_back_steadily() {
        let (limiter, key, now) = (Limiter::default(), key(Some(30), None), Instant::now());
        for _ in 0..30 {
            limiter.request(&key, now).unwrap();
        }
        let exceeded = limiter.request(&key, now).unwrap_err();
        assert_eq!((exceeded.what, exceeded.limit), ("requests", 30));
        assert_eq!(exceeded.retry_after, Duration::from_secs(2));
        let later = now + exceeded.retry_after;
        limiter.request(&key, later).unwrap();
        assert!(limiter.request(&key, later).is_err());
    }

    #[test]
    fn tokens_are_paid_back_before_the_next_request() {
        let (limiter, key, now) = (Limiter::default(), key(None, Some(600)), Instant::now());
        limiter.request(&key, now).unwrap();
        limiter.tokens(&key, 900, now);
        let exceeded = limiter.request(&key, now).unwrap_err();
        assert_eq!((exceeded.what, exceeded.retry_after), ("tokens", Duration::from_secs(30)));
        limiter.request(&key, now + Duration::from_secs(31)).unwrap();
    }

    #[test]
    fn a_key_without_limits_is_never_turned_away() {
        let (limiter, key, now) = (Limiter::default(), key(None, None), Instant::now());
        limiter.tokens(&key, 1_000_000, now);
        for _ in 0..1000 {
            limiter.request(&key, now).unwrap();
        }
        // Nor is anything held against it.
        let limited = Key { requests_per_minute: Some(1), tokens_per_minute: Some(1), ..key };
        limiter.request(&limited, now + Duration::from_secs(60)).unwrap();
    }
}
