use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;

use super::fake::Fake;
use super::*;

/// A renewal each half a second; trusted for 1.25 s, stale after 2 s, abandoned after 2.25 s.
const PACE: u32 = 20;

fn lease(fake: &Fake, shard: Option<(u32, u32)>, patience: u64) -> Result<Lease, LockError> {
    Lease::acquire_at_pace(&fake.s3, &fake.at, shard, Duration::from_secs(patience), PACE)
}

fn whole(fake: &Fake) -> Lease {
    lease(fake, None, 0).unwrap()
}

fn held(lease: Result<Lease, LockError>) -> String {
    match lease {
        Err(LockError::Held(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn lost(lease: &Lease) -> String {
    match lease.check() {
        Err(LockError::Lost(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn claim(fake: &Fake, name: &str) -> Claim {
    serde_json::from_slice(&fake.get(name).unwrap()).unwrap()
}

fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// A claim with some fields changed, as JSON.
fn altered(claim: &Claim, fields: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let mut value = serde_json::to_value(claim).unwrap();
    fields.iter().for_each(|(name, field)| value[name] = field.clone());
    serde_json::to_vec(&value).unwrap()
}

/// The lease of a run on another machine, which nobody renews.
fn foreign(shard: Option<(u32, u32)>) -> Vec<u8> {
    let claim = Claim::new(&Owner::this(), shard).unwrap().next(State::Held);
    altered(&claim, &[("boot_id", "another".into()), ("host", "far".into()), ("pid", 7.into())])
}

/// A process that ends when the test does.
struct Neighbour(Child);

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The lease of a process of this machine, and that process.
fn neighbour(shard: Option<(u32, u32)>, state: State) -> (Vec<u8>, Neighbour) {
    let child = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn().unwrap();
    let child = Neighbour(child);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.0.id())).unwrap();
    let start: u64 = stat.rsplit(')').next().unwrap().split(' ').nth(20).unwrap().parse().unwrap();
    let claim = Claim::new(&Owner::this(), shard).unwrap().next(state);
    (altered(&claim, &[("pid", child.0.id().into()), ("start_time", start.into())]), child)
}

fn kill(child: Neighbour) {
    drop(child);
}

#[test]
fn a_lease_is_renewed_until_it_is_given_back_and_then_no_more() {
    let fake = Fake::new();
    let lease = whole(&fake);
    let first = claim(&fake, WHOLE);
    assert_eq!((first.state, first.counter), (State::Held, 1));
    sleep(1.7);
    let later = claim(&fake, WHOLE);
    assert_eq!(later.nonce, first.nonce);
    assert!((1..=4).contains(&(later.counter - first.counter)), "{later:?}");
    lease.check().unwrap();
    assert!(held(super::tests::lease(&fake, None, 0)).starts_with("process "));
    drop(lease);
    let released = fake.get(WHOLE).unwrap();
    assert_eq!(claim(&fake, WHOLE).state, State::Released);
    sleep(1.2);
    assert_eq!(fake.get(WHOLE).unwrap(), released);
    let next = whole(&fake);
    assert_ne!(claim(&fake, WHOLE).nonce, first.nonce);
    next.check().unwrap();
}

#[test]
fn tags_are_sent_as_the_server_wants_them() {
    for (bare, tagless) in [(true, false), (false, true), (true, true)] {
        let fake = Fake::new();
        fake.odd.bare.store(bare, SeqCst);
        fake.odd.tagless.store(tagless, SeqCst);
        let lease = whole(&fake);
        assert_eq!(fake.s3.0.bare_tags.load(SeqCst), bare);
        sleep(1.4);
        lease.check().unwrap();
        assert!(claim(&fake, WHOLE).counter >= 3);
        drop(lease);
        assert_eq!(claim(&fake, WHOLE).state, State::Released);
        whole(&fake).check().unwrap();
    }
}

#[test]
fn a_server_that_ignores_conditions_is_refused() {
    type Case = (fn(&Fake), &'static str);
    let cases: [Case; 3] = [
        (|fake| fake.odd.ignores_free.store(true, SeqCst), "ignores If-None-Match"),
        (|fake| fake.odd.ignores_match.store(true, SeqCst), "ignores If-Match"),
        (|fake| fake.odd.knows_none.store(true, SeqCst), "does not know conditional writes"),
    ];
    for (make_odd, words) in cases {
        let fake = Fake::new();
        make_odd(&fake);
        let error = lease(&fake, None, 0).unwrap_err();
        assert!(matches!(error, LockError::Unguarded(_)), "{error:?}");
        let text = error.to_string();
        for word in [words, "http://127.0.0.1", "--no-lock", "s3://bucket/out/_manifest/lock"] {
            assert!(text.contains(word), "{text}");
        }
        // Nothing is left that looks held.
        let left = fake.get(WHOLE).map(|_| claim(&fake, WHOLE).state);
        assert!(matches!(left, None | Some(State::Released)), "{left:?}");
    }
}

#[test]
fn a_lost_answer_is_not_a_lost_lease() {
    let fake = Fake::new();
    fake.odd.loses.store(1, SeqCst);
    let lease = whole(&fake);
    let nonce = claim(&fake, WHOLE).nonce;
    for _ in 0..3 {
        fake.odd.loses.store(1, SeqCst);
        sleep(0.7);
        lease.check().unwrap();
    }
    assert_eq!(claim(&fake, WHOLE).nonce, nonce);
    assert!(fake.s3.traffic().answers_lost > 0, "{:?}", fake.s3.traffic());
    fake.odd.loses.store(1, SeqCst);
    drop(lease);
    assert_eq!(claim(&fake, WHOLE).state, State::Released);
    // Over the released one, too.
    fake.odd.loses.store(1, SeqCst);
    whole(&fake).check().unwrap();
}

#[test]
fn renewals_wait_for_no_other_requests() {
    let fake = Fake::new();
    let lease = whole(&fake);
    let counter = claim(&fake, WHOLE).counter;
    let passes: Vec<_> =
        (0..crate::store::s3::gate::WIDEST).map(|_| fake.s3.0.gate.enter_at_once()).collect();
    sleep(1.7);
    lease.check().unwrap();
    assert!(claim(&fake, WHOLE).counter > counter);
    drop(passes);
}

#[test]
fn a_lease_of_another_is_lost_and_left_alone() {
    let fake = Fake::new();
    let lease = whole(&fake);
    fake.set(WHOLE, Some(&foreign(None)));
    sleep(0.8);
    let text = lost(&lease);
    assert!(text.contains("taken over by process 7 on host far"), "{text}");
    assert!(text.contains("s3://bucket/out/_manifest/lock"), "{text}");
    lost(&lease);
    let there = fake.get(WHOLE);
    drop(lease);
    assert_eq!(fake.get(WHOLE), there);
}

#[test]
fn a_deleted_lease_is_lost() {
    let fake = Fake::new();
    let lease = lease(&fake, Some((2, 3)), 0).unwrap();
    fake.set("_manifest/locks/0000002-of-0000003", None);
    sleep(0.8);
    assert!(lost(&lease).contains("was deleted"));
    drop(lease);
    assert_eq!(fake.get("_manifest/locks/0000002-of-0000003"), None);
}

#[test]
fn a_check_asks_anew_after_a_while_without_renewal() {
    let fake = Fake::new();
    let lease = whole(&fake);
    let counter = claim(&fake, WHOLE).counter;
    fake.odd.denies.store(true, SeqCst);
    sleep(1.0);
    lease.check().unwrap();
    sleep(1.4);
    let error = lease.check().unwrap_err();
    assert!(matches!(error, LockError::Store(_)), "{error:?}");
    assert!(error.to_string().contains("s3:PutObject"), "{error}");
    assert_eq!(claim(&fake, WHOLE).counter, counter);
    // It is not lost for that.
    fake.odd.denies.store(false, SeqCst);
    lease.check().unwrap();
    assert!(claim(&fake, WHOLE).counter > counter);
    // A server that hangs up is waited for.
    fake.odd.away.store(true, SeqCst);
    sleep(2.1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sleep(0.5);
            fake.odd.away.store(false, SeqCst);
        });
        lease.check().unwrap();
    });
    // One that stays away does not keep a run from ending.
    fake.odd.away.store(true, SeqCst);
    let start = Instant::now();
    drop(lease);
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[test]
fn a_foreign_lease_is_held_until_it_has_been_the_same_for_long() {
    let fake = Fake::new();
    for there in [foreign(None), b"process 12 on host x\n".to_vec()] {
        fake.set(WHOLE, Some(&there));
        let writes = fake.writes.load(SeqCst);
        assert!(held(lease(&fake, None, 0)).contains("--if-locked wait=1m"));
        assert_eq!(fake.writes.load(SeqCst), writes);
        let start = Instant::now();
        let lease = lease(&fake, None, 6).unwrap();
        let waited = start.elapsed().as_secs_f64();
        assert!((2.25..6.0).contains(&waited), "{waited}");
        lease.check().unwrap();
    }
    // One that is renewed stays the other's.
    fake.set(WHOLE, Some(&foreign(None)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..8 {
                sleep(0.5);
                fake.set(WHOLE, Some(&foreign(None)));
            }
        });
        held(lease(&fake, None, 3));
    });
}

#[test]
fn who_looks_gone_is_watched_whatever_the_patience() {
    let fake = Fake::new();
    fake.odd.old.store(true, SeqCst);
    for (there, shard) in [(foreign(None), None), (foreign(None), Some((1, 2)))] {
        fake.set(WHOLE, Some(&there));
        let start = Instant::now();
        let lease = lease(&fake, shard, 0).unwrap();
        let waited = start.elapsed().as_secs_f64();
        assert!((2.25..6.0).contains(&waited), "{waited}");
        lease.check().unwrap();
    }
    // One that only looks so, because the clocks disagree, is seen to be renewed.
    fake.set(WHOLE, Some(&foreign(None)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..4 {
                sleep(0.5);
                fake.set(WHOLE, Some(&foreign(None)));
            }
        });
        let start = Instant::now();
        held(lease(&fake, None, 0));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
}

#[test]
fn what_was_given_back_is_not_ours_any_more() {
    let fake = Fake::new();
    let lease = whole(&fake);
    lease.give_back();
    assert_eq!(claim(&fake, WHOLE).state, State::Released);
    assert!(lost(&lease).contains("was given back"));
    sleep(1.5);
    lease.give_back();
    drop(lease);
    assert_eq!(claim(&fake, WHOLE).state, State::Released);
    whole(&fake).check().unwrap();
}

#[test]
fn what_a_dead_process_held_is_had_at_once() {
    let fake = Fake::new();
    let (bytes, child) = neighbour(None, State::Held);
    fake.set(WHOLE, Some(&bytes));
    // Without a hint about other machines.
    let text = held(lease(&fake, None, 0));
    assert!(text.starts_with(&format!("process {} on host ", child.0.id())), "{text}");
    assert!(!text.contains('('), "{text}");
    kill(child);
    let lease = whole(&fake);
    lease.check().unwrap();
}

#[test]
fn dead_rivals_are_cleared_away() {
    let fake = Fake::new();
    let name = "_manifest/locks/0000001-of-0000002";
    let (bytes, child) = neighbour(Some((1, 2)), State::Held);
    fake.set(name, Some(&bytes));
    let mine = |shard| lease(&fake, shard, 0);
    assert!(held(mine(None)).starts_with("shard 1/2, process "));
    assert!(held(mine(Some((1, 3)))).starts_with("shard 1/2, process "));
    assert_eq!(claim(&fake, WHOLE).state, State::Released, "it was given back");
    mine(Some((2, 2))).unwrap();
    kill(child);
    mine(Some((1, 3))).unwrap();
    assert_eq!(claim(&fake, name).state, State::Released);

    let (bytes, child) = neighbour(None, State::Held);
    fake.set(WHOLE, Some(&bytes));
    assert!(held(mine(Some((1, 2)))).starts_with("process "));
    kill(child);
    mine(Some((1, 2))).unwrap();
    assert_eq!(claim(&fake, WHOLE).state, State::Released);
}

#[test]
fn a_rival_that_stopped_renewing_notices_that_others_went_on() {
    let fake = Fake::new();
    let stopped = lease(&fake, Some((1, 2)), 0).unwrap();
    let name = "_manifest/locks/0000001-of-0000002";
    // What is there does not change, as if its process were stopped.
    stopped.grip.pause();
    let start = Instant::now();
    let whole = lease(&fake, None, 6).unwrap();
    assert!(start.elapsed() > Duration::from_millis(2250));
    whole.check().unwrap();
    assert_eq!(claim(&fake, name).state, State::Released);
    lost(&stopped);
}

#[test]
fn shards_exclude_all_but_each_other() {
    let fake = Fake::new();
    // At the usual pace, at which no lease is abandoned while a test runs.
    let patient =
        |shard, seconds| Lease::acquire(&fake.s3, &fake.at, shard, Duration::from_secs(seconds));
    let mine = |shard| patient(shard, 0);
    let whole = mine(None).unwrap();
    assert!(whole.is_whole());
    assert!(held(mine(Some((1, 3)))).starts_with("process "));
    drop(whole);
    let two = mine(Some((2, 3))).unwrap();
    let three = mine(Some((3, 3))).unwrap();
    assert!(!two.is_whole());
    assert!(held(mine(Some((3, 3)))).starts_with("shard 3/3, process "));
    assert!(held(mine(Some((1, 2)))).starts_with("shard 2/3, process "));
    assert!(held(mine(Some((1, 4)))).starts_with("shard 2/3, process "));
    assert!(held(mine(None)).starts_with("shard 2/3, process "));
    drop(two);
    assert!(held(mine(None)).starts_with("shard 3/3, process "));
    // Who waits gets in when the last one leaves.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| patient(None, 20).unwrap());
        sleep(0.5);
        drop(three);
        waits.join().unwrap().check().unwrap();
    });
    mine(Some((1, 4))).unwrap();
}

#[test]
fn of_those_that_start_together_one_kind_goes_on() {
    let every = [None, Some((1, 2)), Some((2, 2)), Some((1, 3)), Some((2, 3)), Some((3, 3))];
    let start = |fake: &Fake, shard| Lease::acquire(&fake.s3, &fake.at, shard, Duration::ZERO);
    for round in 0..4 {
        let fake = Fake::new();
        let had: Vec<_> = std::thread::scope(|scope| {
            let fake = &fake;
            let some = every.iter().skip(usize::from(round % 2 == 0));
            let starts: Vec<_> =
                some.map(|shard| (shard, scope.spawn(|| start(fake, *shard)))).collect();
            let ended = starts.into_iter().map(|(shard, start)| (*shard, start.join().unwrap()));
            ended.collect()
        });
        let mut kinds = Vec::new();
        for (shard, lease) in &had {
            match lease {
                Ok(lease) => {
                    lease.check().unwrap();
                    kinds.push(shard.map(|(_, count)| count));
                }
                Err(LockError::Held(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(!kinds.is_empty(), "all gave up: {had:?}");
        let first = kinds[0];
        assert!(kinds.iter().all(|kind| *kind == first), "{had:?}");
        assert_eq!(kinds.len(), first.map_or(1, |count| count as usize), "{had:?}");
    }
}

#[test]
fn names_of_leases_are_read_however_they_are_padded() {
    assert_eq!(shard_of("0000002-of-0000003"), Some((2, 3)));
    assert_eq!(shard_of("2-of-3"), Some((2, 3)));
    for wrong in ["", "2", "0-of-3", "4-of-3", "-of-3", "2-of-", "+2-of-3", "2-of-3.json"] {
        assert_eq!(shard_of(wrong), None, "{wrong}");
    }
}
