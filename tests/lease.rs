//! Leases on a real server: that of `HAUL_TEST_S3_ENDPOINT`, with the other variables that
//! `scripts/servers/radosgw.sh` prints. Without it, each test says so and passes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use haul::store::{Lease, Location, LockError, S3, S3Options, S3Store, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A renewal each two thirds of a second; abandoned after three.
const PACE: u32 = 15;

/// The bucket, made once.
const BUCKET: &str = "haul-lease-tests";

/// What is to be held by the process that [`holder`] is.
const HOLD: &str = "HAUL_TEST_LEASE_OF";

/// This binary again, for one of its tests, with the keys where S3's tools look for them: a process
/// cannot well change its own variables.
fn again(test: &str) -> Command {
    let variable = |name: &str| std::env::var(format!("HAUL_TEST_S3_{name}")).ok();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--include-ignored"]);
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    for (name, value) in [
        ("AWS_ENDPOINT_URL_S3", variable("ENDPOINT")),
        ("AWS_REGION", variable("REGION")),
        ("AWS_ACCESS_KEY_ID", variable("KEY")),
        ("AWS_SECRET_ACCESS_KEY", variable("SECRET")),
    ] {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// Runs a test if there is a server, in a process of its own.
fn with_server(name: &str, test: impl FnOnce(&S3)) {
    const INSIDE: &str = "HAUL_TEST_LEASE_INSIDE";
    if std::env::var_os("HAUL_TEST_S3_ENDPOINT").is_none() {
        println!("skipped: HAUL_TEST_S3_ENDPOINT is not set");
        return;
    }
    if std::env::var_os(INSIDE).is_none() {
        let status = again(name).env(INSIDE, "1").status().unwrap();
        assert!(status.success(), "{name}: {status}");
        return;
    }
    make_bucket();
    test(&S3::with(&S3Options::default()));
}

fn make_bucket() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(http);
        let config = aws_sdk_s3::config::Builder::from(&config.load().await).force_path_style(true);
        let client = aws_sdk_s3::Client::from_conf(config.build());
        // It may be there already.
        let made = client.create_bucket().bucket(BUCKET).send().await;
        if let Err(error) = made {
            let error = error.into_service_error();
            assert!(
                error.is_bucket_already_owned_by_you() || error.is_bucket_already_exists(),
                "{error:?}"
            );
        }
    });
}

/// A prefix that nobody has used.
fn prefix() -> Location {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let key = format!("{now}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Location { bucket: BUCKET.to_owned(), key }
}

fn acquire(
    s3: &S3,
    at: &Location,
    shard: Option<(u32, u32)>,
    seconds: u64,
) -> Result<Lease, LockError> {
    Lease::acquire_at_pace(s3, at, shard, Duration::from_secs(seconds), PACE)
}

fn held(lease: Result<Lease, LockError>) -> String {
    match lease {
        Err(LockError::Held(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn there(s3: &S3, at: &Location) -> serde_json::Value {
    let bytes = S3Store::new(s3, at).read("_manifest/lock".as_ref()).unwrap().unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// A process that holds the lease of a whole run; its output comes line by line.
fn start_holder(at: &Location) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child =
        again("holder").env(HOLD, at.to_string()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("it is held")), "the holder has ended");
    (child, lines)
}

#[test]
#[ignore = "a process that other tests start"]
fn holder() {
    let Ok(prefix) = std::env::var(HOLD) else { return };
    let s3 = S3::with(&S3Options::default());
    let lease = acquire(&s3, &Location::parse(&prefix).unwrap(), None, 0).unwrap();
    println!("it is held");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if let Err(error) = lease.check() {
            println!("{error}");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_of_sixteen_that_race_has_it() {
    with_server("one_of_sixteen_that_race_has_it", |s3| {
        for _ in 0..8 {
            let (at, barrier) = (prefix(), Barrier::new(16));
            let had: Vec<_> = std::thread::scope(|scope| {
                let race = || {
                    barrier.wait();
                    acquire(s3, &at, None, 0)
                };
                let racers: Vec<_> = (0..16).map(|_| scope.spawn(race)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            let (had, others): (Vec<_>, Vec<_>) = had.into_iter().partition(Result::is_ok);
            assert_eq!(had.len(), 1, "{others:?}");
            had[0].as_ref().unwrap().check().unwrap();
            others.into_iter().for_each(|other| drop(held(other)));
        }
    });
}

#[test]
fn it_is_renewed_given_back_and_had_again() {
    with_server("it_is_renewed_given_back_and_had_again", |s3| {
        let at = prefix();
        let lease = acquire(s3, &at, None, 0).unwrap();
        let first = there(s3, &at);
        assert!(held(acquire(s3, &at, None, 0)).starts_with("process "));
        std::thread::sleep(Duration::from_millis(2500));
        lease.check().unwrap();
        let later = there(s3, &at);
        assert_eq!(first["nonce"], later["nonce"]);
        let renewals = later["counter"].as_u64().unwrap() - first["counter"].as_u64().unwrap();
        assert!((1..=4).contains(&renewals), "{renewals}");
        drop(lease);
        assert_eq!(there(s3, &at)["state"], "released");
        acquire(s3, &at, None, 0).unwrap().check().unwrap();
    });
}

#[test]
fn a_killed_run_is_followed_at_once() {
    with_server("a_killed_run_is_followed_at_once", |s3| {
        let at = prefix();
        let (mut child, _lines) = start_holder(&at);
        let text = held(acquire(s3, &at, None, 0));
        assert!(text.starts_with(&format!("process {} on host ", child.id())), "{text}");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        let start = Instant::now();
        while there(s3, &at)["pid"] == child.id() {
            match acquire(s3, &at, None, 0) {
                Ok(lease) => lease.check().unwrap(),
                // It takes the kernel a moment.
                Err(_) => assert!(start.elapsed() < Duration::from_secs(2)),
            }
        }
        child.wait().unwrap();
    });
}

#[test]
fn a_stopped_run_notices_that_another_has_followed() {
    with_server("a_stopped_run_notices_that_another_has_followed", |s3| {
        let at = prefix();
        let (mut child, lines) = start_holder(&at);
        let number = Pid::from_raw(child.id() as i32);
        kill(number, Signal::SIGSTOP).unwrap();
        let start = Instant::now();
        let lease = acquire(s3, &at, None, 20).unwrap();
        let waited = start.elapsed().as_secs_f64();
        assert!((2.0..15.0).contains(&waited), "{waited}");
        kill(number, Signal::SIGCONT).unwrap();
        let said: Vec<_> = lines.collect();
        let words = format!("was taken over by process {} on host ", std::process::id());
        assert!(said.iter().any(|line| line.contains(&words)), "{said:?}");
        assert!(child.wait().unwrap().success());
        lease.check().unwrap();
    });
}

#[test]
fn one_elsewhere_is_waited_for() {
    with_server("one_elsewhere_is_waited_for", |s3| {
        let at = prefix();
        drop(acquire(s3, &at, None, 0).unwrap());
        let mut far = there(s3, &at);
        (far["boot_id"], far["host"]) = ("another".into(), "far".into());
        (far["pid"], far["state"]) = (7.into(), "held".into());
        let bytes = serde_json::to_vec(&far).unwrap();
        S3Store::new(s3, &at).replace("_manifest/lock".as_ref(), &bytes).unwrap();
        let text = held(Lease::acquire(s3, &at, None, Duration::ZERO));
        assert!(text.starts_with("process 7 on host far, which renewed its lease "), "{text}");
        assert!(text.contains("--if-locked wait=1m"), "{text}");
        held(acquire(s3, &at, None, 1));
        let start = Instant::now();
        acquire(s3, &at, None, 20).unwrap().check().unwrap();
        assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    });
}

#[test]
fn shards_exclude_all_but_each_other() {
    with_server("shards_exclude_all_but_each_other", |s3| {
        let at = prefix();
        let mine = |shard| Lease::acquire(s3, &at, shard, Duration::ZERO);
        let whole = mine(None).unwrap();
        assert!(held(mine(Some((1, 3)))).starts_with("process "));
        drop(whole);
        let two = mine(Some((2, 3))).unwrap();
        let three = mine(Some((3, 3))).unwrap();
        assert!(held(mine(Some((3, 3)))).starts_with("shard 3/3, process "));
        assert!(held(mine(Some((1, 2)))).starts_with("shard 2/3, process "));
        assert!(held(mine(None)).starts_with("shard 2/3, process "));
        drop((two, three));
        mine(None).unwrap();
        mine(Some((1, 4))).unwrap();
    });
}

#[test]
fn of_those_that_start_together_one_kind_goes_on() {
    with_server("of_those_that_start_together_one_kind_goes_on", |s3| {
        let every = [None, Some((1, 2)), Some((2, 2)), Some((1, 3)), Some((2, 3)), Some((3, 3))];
        for round in 0..6 {
            let some = &every[round % 2..];
            let (at, barrier) = (prefix(), Barrier::new(some.len()));
            let had: Vec<_> = std::thread::scope(|scope| {
                let (at, barrier) = (&at, &barrier);
                let start = |shard| {
                    scope.spawn(move || {
                        barrier.wait();
                        Lease::acquire(s3, at, shard, Duration::ZERO)
                    })
                };
                let starts: Vec<_> = some.iter().map(|shard| start(*shard)).collect();
                starts.into_iter().map(|start| start.join().unwrap()).collect()
            });
            let counts = some.iter().map(|shard| shard.map(|(_, count)| count));
            let kinds: Vec<_> =
                counts.zip(&had).filter(|(_, had)| had.is_ok()).map(|(count, _)| count).collect();
            assert!(!kinds.is_empty(), "all gave up: {had:?}");
            assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{had:?}");
            assert_eq!(kinds.len(), kinds[0].map_or(1, |count| count as usize), "{had:?}");
            had.into_iter().filter(Result::is_err).for_each(|other| drop(held(other)));
        }
    });
}
