//! Who gets how much of the memory budget.

use super::exit::JobError;

/// The default budget, unless all workers need more.
const DEFAULT: u64 = 384 << 20;

/// Where the default rule decides: pictures fetched ahead, …
const AHEAD: u64 = 64 << 20;

/// … and a large photograph (24 megapixels) for each worker but the oldest picture's, which has the
/// reserve; without it such folders are decoded one by one …
const PHOTOGRAPH: u64 = 256 << 20;

/// … but no more than this for both, however many cores there are.
const MOST_AHEAD: u64 = 2 << 30;

/// What a job needs, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// The weights, shared by all workers.
    pub weights: u64,
    /// Working memory of one worker for the largest input.
    pub arena: u64,
    /// Pictures on their way to devices, where the engine has some.
    pub slots: u64,
    /// Lines of the mini-batches that may be open at once.
    pub parts: u64,
    /// The largest picture allowed: file and pixels.
    pub picture: u64,
}

/// A budget, divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The whole.
    pub budget: u64,
    /// Workers that fit.
    pub workers: usize,
    /// For all pictures in flight.
    pub free: u64,
    /// For the oldest picture in flight alone.
    pub reserve: u64,
    /// Something to tell the user, once.
    pub note: Option<String>,
}

impl Shares {
    /// Bytes of files that may be on their way at once. Not all that is free, or decoders that are
    /// not at the oldest picture would have to wait.
    pub(super) fn most_ahead(&self) -> u64 {
        AHEAD.min(self.free / 2)
    }
}

/// Divides `budget` (or the default) for up to `workers` workers.
///
/// # Errors
/// [`JobError::Usage`] naming the need when not even one worker fits.
pub(super) fn divide(
    budget: Option<u64>,
    workers: usize,
    needs: Needs,
) -> Result<Shares, JobError> {
    let fixed = needs.weights + needs.slots + needs.parts + needs.picture;
    let wanted = fixed + needs.arena * workers as u64;
    let ahead = (AHEAD + PHOTOGRAPH * (workers as u64 - 1)).min(MOST_AHEAD);
    let budget = budget.unwrap_or_else(|| DEFAULT.max(wanted + ahead));
    let Some(left) = budget.checked_sub(fixed + needs.arena) else {
        let (slots, batch) = match needs.slots {
            0 => (String::new(), ""),
            slots => (format!("pictures for the devices {}, ", mib(slots)), "--batch, "),
        };
        return Err(JobError::Usage(format!(
            "--memory-budget is {} and one worker needs {}: weights {}, working memory {}, {slots}open \
             parts {}, and {} for the largest picture allowed (raise the budget, or lower {batch}\
             --max-picture-memory, --imgsz or --max-images)",
            mib(budget),
            mib(fixed + needs.arena),
            mib(needs.weights),
            mib(needs.arena),
            mib(needs.parts),
            mib(needs.picture),
        )));
    };
    let more = left.checked_div(needs.arena).unwrap_or(u64::MAX);
    let fitting = usize::try_from(more).unwrap_or(usize::MAX).saturating_add(1).min(workers);
    let note = (fitting < workers).then(|| {
        format!(
            "the memory budget of {} has room for {fitting} of {workers} workers; {} would do for all",
            mib(budget),
            mib(wanted),
        )
    });
    let free = left - needs.arena * (fitting as u64 - 1);
    Ok(Shares { budget, workers: fitting, free, reserve: needs.picture, note })
}

/// Bytes in MiB, for people.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The most memory this process has held so far (VmHWM), in bytes, where the system tells.
#[must_use]
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs =
        Needs { weights: 10 << 20, arena: 50 << 20, slots: 0, parts: 6 << 20, picture: 100 << 20 };

    /// A device's: 128 slots, and workers that only decode and letterbox.
    const DEVICE: Needs = Needs { weights: 100 << 20, arena: 12 << 20, slots: 150 << 20, ..NEEDS };

    #[test]
    fn the_default_fits_all_workers() {
        assert_eq!(divide(None, 1, NEEDS).unwrap().budget, 384 << 20);
        assert_eq!(divide(None, 2, NEEDS).unwrap().free, (64 + 256) << 20);
        let many = divide(None, 64, NEEDS).unwrap();
        assert_eq!((many.workers, many.note), (64, None));
    }

    #[test]
    fn too_little_for_all_means_fewer_workers_said_once() {
        let shares = divide(Some(220 << 20), 4, NEEDS).unwrap();
        assert_eq!((shares.workers, shares.free, shares.reserve), (2, 4 << 20, 100 << 20));
        assert!(shares.note.unwrap().contains("room for 2 of 4 workers; 316 MiB would do"));
        assert_eq!(divide(Some(166 << 20), 4, NEEDS).unwrap().workers, 1);
    }

    #[test]
    fn too_little_for_one_names_the_need() {
        let error = divide(Some(165 << 20), 4, NEEDS).unwrap_err().to_string();
        assert!(error.contains("is 165 MiB and one worker needs 166 MiB"), "{error}");
    }

    #[test]
    fn what_is_on_its_way_to_devices_counts_once() {
        // Everything that is fixed, 12 MiB for each worker, files ahead, a photograph for each worker
        // but one.
        let shares = divide(None, 16, DEVICE).unwrap();
        assert_eq!(shares.budget, (356 + 16 * 12 + 2048) << 20);
        assert_eq!((shares.workers, shares.free, shares.note), (16, 2048 << 20, None));
        assert_eq!(divide(None, 1, DEVICE).unwrap().free, 64 << 20);
        let tight = divide(Some(400 << 20), 16, DEVICE).unwrap();
        assert_eq!((tight.workers, tight.free), (3, 8 << 20));
        let error = divide(Some(367 << 20), 16, DEVICE).unwrap_err().to_string();
        assert!(error.contains("one worker needs 368 MiB"), "{error}");
        assert!(error.contains("pictures for the devices 150 MiB, open parts"), "{error}");
        assert!(error.contains("lower --batch, --max-picture-memory"), "{error}");
        let error = divide(Some(1), 1, NEEDS).unwrap_err().to_string();
        assert!(!error.contains("devices") && !error.contains("--batch"), "{error}");
    }

    #[test]
    fn the_peak_is_known_on_linux() {
        assert!(peak().unwrap() > 1 << 20);
    }
}
