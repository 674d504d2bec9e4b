//! What a lease says: who holds it, how often it was renewed, and what follows from that.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Pace;
use crate::store::hex;

/// How far a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Its owner still looks whether others are in its way, and may give it back.
    Starting,
    /// Its owner works.
    Held,
    /// Anybody may have it.
    Released,
}

/// A process, told apart from all others that there are and were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    host: String,
    boot_id: String,
    pid_namespace: String,
    pid: u32,
    start_time: u64,
}

/// The content of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// Random; another one each time that a lease is taken.
    pub(super) nonce: String,
    /// One more with each renewal.
    pub(super) counter: u64,
    pub(super) state: State,
    #[serde(flatten)]
    owner: Owner,
    /// `all`, or `shard 2/3`.
    what: String,
    /// The version of haul.
    haul: String,
}

/// What may be done with a lease that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was given back.
    Released,
    /// Its owner is gone, or has not renewed it for so long that it counts as gone.
    Abandoned,
    /// It is another's.
    Held,
}

/// A lease that was read.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    /// Nothing where the bytes are no lease: a lock file that came with a copied folder.
    pub(super) claim: Option<Claim>,
    pub(super) tag: Option<String>,
    /// When the server says that it was written, in seconds since 1970.
    pub(super) modified: Option<i64>,
}

/// Since when each lease has been as it is, on our own clock. It is named by its key.
#[derive(Debug, Default)]
pub(super) struct Watches(HashMap<String, Watch>);

/// What a lease was found to be, since when, and whether it was something else before.
#[derive(Debug)]
struct Watch {
    bytes: Vec<u8>,
    since: Instant,
    changed: bool,
}

impl Owner {
    /// This process.
    pub(super) fn this() -> Owner {
        let pid = std::process::id();
        let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Owner {
            host: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
            boot_id: line("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            pid,
            start_time: read_stat(&line("/proc/self/stat")).map_or(0, |(_, start)| start),
        }
    }

    /// Whether `me` would see this process if it lived. The host's name is asked, too: copies of a
    /// running virtual machine have one boot id, though each has processes of its own.
    fn is_near(&self, me: &Owner) -> bool {
        let name = |owner: &Owner| {
            let Owner { host, boot_id, pid_namespace, .. } = owner.clone();
            (host, boot_id, pid_namespace)
        };
        let known = !me.boot_id.is_empty() && !me.pid_namespace.is_empty() && me.start_time > 0;
        known && name(self) == name(me)
    }

    /// Whether this process is one that `me` can say to be dead.
    fn is_dead(&self, me: &Owner) -> bool {
        self.is_near(me) && !lives(self.pid, self.start_time)
    }
}

/// Whether a process of this machine lives, for all that we can see.
fn lives(pid: u32, start_time: u64) -> bool {
    let Some(number) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else { return true };
    // Asked first: /proc may hide the processes of others, and what it hides is not dead.
    if kill(Pid::from_raw(number), None) == Err(Errno::ESRCH) {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match read_stat(&stat) {
        // A zombie does nothing any more.
        Some((state, start)) => start == start_time && !matches!(state, 'Z' | 'X'),
        None => true,
    }
}

/// State and start time of a `/proc/PID/stat`.
fn read_stat(text: &str) -> Option<(char, u64)> {
    // The name before may hold blanks and parentheses.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Claim {
    /// A new claim of this process.
    pub(super) fn new(owner: &Owner, shard: Option<(u32, u32)>) -> io::Result<Claim> {
        let mut nonce = [0u8; 16];
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut nonce))?;
        Ok(Claim {
            nonce: hex(&nonce),
            counter: 0,
            state: State::Starting,
            owner: owner.clone(),
            what: match shard {
                None => "all".to_owned(),
                Some((index, count)) => format!("shard {index}/{count}"),
            },
            haul: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// The next one of the same owner.
    pub(super) fn next(&self, state: State) -> Claim {
        Claim { counter: self.counter + 1, state, ..self.clone() }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a lease is JSON. This is a bug.");
        bytes.push(b'\n');
        bytes
    }

    /// Who it is, as the lock of a folder says it.
    pub(super) fn who(&self) -> String {
        let what = if self.what == "all" { String::new() } else { format!("{}, ", self.what) };
        format!("{what}process {} on host {}", self.owner.pid, self.owner.host)
    }
}

impl Found {
    pub(super) fn new(bytes: Vec<u8>, tag: Option<String>, modified: Option<i64>) -> Found {
        Found { claim: serde_json::from_slice(&bytes).ok(), bytes, tag, modified }
    }

    /// Whether it is of this claim, however often that was renewed.
    pub(super) fn is_of(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|there| there.nonce == claim.nonce)
    }

    /// What may be done with it. It has been the same for the time `unchanged`.
    pub(super) fn judge(&self, me: &Owner, unchanged: Duration, pace: Pace) -> Verdict {
        match &self.claim {
            Some(claim) if claim.state == State::Released => Verdict::Released,
            Some(claim) if claim.owner.is_dead(me) => Verdict::Abandoned,
            _ if unchanged >= pace.expiry() => Verdict::Abandoned,
            _ => Verdict::Held,
        }
    }

    /// Whether it looks as if its owner, whom we cannot see, renewed it no more. That is said by our
    /// clock and the server's, which may disagree, so it is a reason to watch it and no proof.
    pub(super) fn is_silent(&self, me: &Owner, pace: Pace) -> bool {
        if self.claim.as_ref().is_some_and(|claim| claim.owner.is_near(me)) {
            return false;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let most = i64::try_from(pace.renewal().as_secs() * 2).unwrap_or(0).max(1);
        self.modified.is_none_or(|then| !(-5..=most).contains(&now.saturating_sub(then)))
    }

    /// Who holds it, what is known of them, and what can be done if they are gone.
    pub(super) fn holder(&self, me: &Owner) -> String {
        let Some(claim) = &self.claim else {
            return "somebody (what lies there is not haul's lease: was a folder copied? \
                    --if-locked wait=1m takes it over if it does not change for 45 s)"
                .to_owned();
        };
        let who = claim.who();
        if claim.owner.is_near(me) {
            return who;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ago = self.modified.map_or(String::new(), |then| {
            let ago = i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_sub(then).max(0);
            format!(", which renewed its lease {ago} s ago")
        });
        format!(
            "{who}{ago} (if that is gone, --if-locked wait=1m takes over after 45 s without a \
             renewal)"
        )
    }
}

impl Watches {
    /// How long the lease at `key` has been what it was found to be, for certain: from the end of
    /// the first look to the beginning of the last.
    pub(super) fn unchanged(
        &mut self,
        key: &str,
        found: &Found,
        asked: Instant,
        answered: Instant,
    ) -> Duration {
        match self.0.get(key) {
            Some(watch) if watch.bytes == found.bytes => {
                asked.saturating_duration_since(watch.since)
            }
            before => {
                let changed = before.is_some();
                let watch = Watch { bytes: found.bytes.clone(), since: answered, changed };
                self.0.insert(key.to_owned(), watch);
                Duration::ZERO
            }
        }
    }

    /// Whether the lease at `key` has changed while it was watched.
    pub(super) fn has_changed(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|watch| watch.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace(1);

    fn found(claim: &Claim) -> Found {
        Found::new(claim.bytes(), None, None)
    }

    fn judge(claim: &Claim, seconds: u64) -> Verdict {
        found(claim).judge(&Owner::this(), Duration::from_secs(seconds), PACE)
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let claim = Claim::new(&Owner::this(), Some((2, 3))).unwrap().next(State::Held);
        assert_eq!(found(&claim).claim, Some(claim.clone()));
        assert!(found(&claim).is_of(&claim));
        assert!(!found(&claim).is_of(&Claim::new(&Owner::this(), None).unwrap()));
        let me = Owner::this();
        assert!(me.start_time > 0 && !me.boot_id.is_empty() && !me.pid_namespace.is_empty());
        assert_eq!(claim.who(), format!("shard 2/3, process {} on host {}", me.pid, me.host));
        // A later version may know more.
        let text = String::from_utf8(claim.bytes()).unwrap().replacen('{', "{\"more\":[1],", 1);
        assert_eq!(Found::new(text.into_bytes(), None, None).claim, Some(claim));
    }

    #[test]
    fn a_live_owner_has_it_until_it_stops_renewing() {
        let claim = Claim::new(&Owner::this(), None).unwrap().next(State::Held);
        assert_eq!(judge(&claim, 0), Verdict::Held, "our own other lease");
        assert_eq!(judge(&claim, 44), Verdict::Held);
        assert_eq!(judge(&claim, 45), Verdict::Abandoned);
        assert_eq!(judge(&claim.next(State::Released), 0), Verdict::Released);
    }

    #[test]
    fn a_dead_owner_is_known_on_its_own_machine_only() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut claim = Claim::new(&Owner::this(), None).unwrap().next(State::Held);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        claim.owner.pid = child.id();
        claim.owner.start_time = read_stat(&stat).unwrap().1;
        assert_eq!(judge(&claim, 0), Verdict::Held, "it lives");
        let mut reused = claim.clone();
        reused.owner.start_time -= 1;
        assert_eq!(judge(&reused, 0), Verdict::Abandoned, "the number is another's now");
        child.kill().unwrap();
        let start = Instant::now();
        // Before anybody has waited for it.
        while judge(&claim, 0) == Verdict::Held && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(judge(&claim, 0), Verdict::Abandoned);
        child.wait().unwrap();
        assert_eq!(judge(&claim, 0), Verdict::Abandoned);
        for change in [
            |owner: &mut Owner| owner.boot_id = "another".to_owned(),
            |owner: &mut Owner| owner.pid_namespace = "pid:[1]".to_owned(),
            |owner: &mut Owner| owner.host = "another".to_owned(),
        ] {
            let mut far = claim.clone();
            change(&mut far.owner);
            assert_eq!(judge(&far, 0), Verdict::Held);
        }
        // Where the system does not say who we are, nobody is near.
        let nobody = Owner { boot_id: String::new(), ..Owner::this() };
        claim.owner.boot_id = String::new();
        assert_eq!(found(&claim).judge(&nobody, Duration::ZERO, PACE), Verdict::Held);
    }

    #[test]
    fn what_is_no_lease_counts_as_held_for_a_while() {
        for bytes in ["", "process 12 on host x\n", "{}", "[1]", "\u{1}"] {
            let found = Found::new(bytes.as_bytes().to_vec(), None, None);
            let judge = |seconds| found.judge(&Owner::this(), Duration::from_secs(seconds), PACE);
            assert_eq!((judge(0), judge(45)), (Verdict::Held, Verdict::Abandoned), "{bytes:?}");
            assert!(found.holder(&Owner::this()).starts_with("somebody ("));
        }
    }

    #[test]
    fn a_holder_elsewhere_is_told_with_what_can_be_done() {
        let mut claim = Claim::new(&Owner::this(), None).unwrap();
        let me = Owner::this();
        assert_eq!(found(&claim).holder(&me), claim.who());
        claim.owner.boot_id = "another".to_owned();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let found = Found::new(claim.bytes(), None, Some(now as i64 - 7));
        let text = found.holder(&me);
        assert!(text.starts_with(&claim.who()), "{text}");
        assert!(text.contains("7 s ago") || text.contains("8 s ago"), "{text}");
        assert!(text.contains("--if-locked wait=1m"), "{text}");
    }

    #[test]
    fn time_counts_from_the_end_of_one_look_to_the_beginning_of_another() {
        let mut watches = Watches::default();
        let claim = Claim::new(&Owner::this(), None).unwrap();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut look = |claim: &Claim, asked, answered| {
            watches.unchanged("a", &found(claim), at(asked), at(answered)).as_secs()
        };
        assert_eq!(look(&claim, 0, 5), 0);
        assert_eq!(look(&claim, 3, 6), 0, "asked before the first answer");
        assert_eq!(look(&claim, 40, 50), 35);
        let next = claim.next(State::Held);
        assert_eq!(look(&next, 60, 61), 0);
        assert_eq!(look(&next, 71, 72), 10);
    }

    #[test]
    fn stat_is_read_behind_the_name() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(read_stat(stat), Some(('S', 4711)));
        assert_eq!(read_stat("12 (a"), None);
        assert_eq!(read_stat(""), None);
    }
}
