//! How much time an event has left.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Deadlines before this one, 2010-01-01 in milliseconds since 1970, are no times of day: there was
/// no Lambda. `cargo lambda watch` sends 600000 and means ten minutes.
const FIRST: u64 = 1_262_304_000_000;

/// What is kept for telling that the time is over: Lambda ends the process at the deadline.
const MARGIN: Duration = Duration::from_millis(200);

/// When an event's work must have ended, if Lambda says `deadline` (milliseconds since 1970) at
/// `now`.
pub(super) fn of(deadline: u64, now: SystemTime) -> Instant {
    Instant::now() + work_time(deadline, now)
}

fn work_time(deadline: u64, now: SystemTime) -> Duration {
    let left = match deadline < FIRST {
        true => Duration::from_millis(deadline),
        false => {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            Duration::from_millis(deadline).saturating_sub(now)
        }
    };
    left.saturating_sub(MARGIN.min(left / 4))
}

/// For how long from now something may go on that may take `limit`.
pub(super) fn within(deadline: Instant, limit: Duration) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_times_of_day_or_what_an_emulator_says() {
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_000);
        let left = |deadline| work_time(deadline, now).as_millis();
        assert_eq!(left(1_700_000_003_000), 2_800);
        assert_eq!(left(1_700_000_000_100), 75, "a short time keeps a quarter, not all of it");
        assert_eq!(left(1_699_999_999_000), 0, "it is over");
        assert_eq!(left(600_000), 599_800, "ten minutes, and not 1970");
        assert_eq!(left(0), 0);
    }
}
