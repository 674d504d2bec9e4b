//! What goes wrong on the way to a bucket: what is asked again, what is not, and what comes of it.
//!
//! The scenarios of a table run side by side, since most of their time is pauses.

#[path = "common/fake_s3.rs"]
mod fake_s3;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use fake_s3::{Request, Response, Seen, script, serve, start};
use haul::store::{
    Class, Identity, Location, Object, Owner, PutNew, ReadError, S3, S3Options, S3Source,
    S3SourceOptions, S3Store, Source, Store, hex,
};
use md5::{Digest as _, Md5};

/// A picture, and its tag.
const BYTES: &[u8] = b"0123456789";

fn tag_of(bytes: &[u8]) -> String {
    format!("\"{}\"", hex(&Md5::digest(bytes)))
}

fn object(key: &str, size: usize, tag: Option<&str>) -> Object {
    let tag = tag.map(|tag| Identity::Etag(tag.trim_matches('"').to_owned()));
    let identity = tag.unwrap_or(Identity::Size);
    Object { key: key.into(), size: size as u64, identity, meta: None }
}

fn planned() -> Object {
    object("x.jpg", BYTES.len(), Some(&tag_of(BYTES)))
}

fn place() -> Location {
    Location::parse("s3://bucket/").unwrap()
}

fn source(s3: &S3) -> S3Source {
    S3Source::new(s3, &place(), S3SourceOptions::default())
}

fn whole() -> Response {
    Response::new(200, BYTES).with("ETag", &tag_of(BYTES))
}

fn error(status: u16, code: &str) -> Response {
    Response::error(status, code)
}

fn empty(status: u16) -> Response {
    Response::new(status, "")
}

/// What a scenario is to come to, besides its result.
struct Due<'a> {
    seen: &'a [&'a str],
    retried: Retried,
}

impl Due<'_> {
    fn check(&self, name: &str, s3: &S3, seen: &Seen) {
        assert_eq!(*seen.lock().unwrap(), self.seen, "{name}");
        let retried: BTreeMap<_, _> =
            self.retried.iter().map(|&(kind, count)| (kind.to_owned(), count)).collect();
        let traffic = s3.traffic();
        assert_eq!(traffic.retried, retried, "{name}");
        assert_eq!(traffic.requests, self.seen.len() as u64, "{name}");
    }
}

/// Runs all of them at once; whatever fails is said at the end.
fn side_by_side<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| run(case));
        }
    });
}

/// How often something was asked again, and why.
type Retried = &'static [(&'static str, u64)];

type Put =
    (&'static str, Vec<Response>, Result<PutNew, Class>, &'static [&'static str], Retried, u64);

#[test]
fn a_write_is_done_once_whatever_is_answered() {
    let done = || empty(200).with("ETag", "\"new\"");
    let there = || error(412, "PreconditionFailed");
    let others = || Response::new(200, "of another job").with("ETag", "\"other\"");
    let lost = Response::hang_up;
    let rest = Response::new(206, &BYTES[4..]).with("Content-Range", "bytes 4-9/10");
    let created = Ok(PutNew::Created);
    let exists = Ok(PutNew::Exists);
    let (one, two): (&[&str], &[&str]) = (&["PUT free"], &["PUT free"; 2]);
    let settled: &[&str] = &["PUT free", "PUT free", "GET"];
    let mut cases: Vec<Put> = vec![
        ("done", vec![done()], created, one, &[], 0),
        // It may have been ours.
        ("lost", vec![lost(), there(), whole()], created, settled, &[("connection lost", 1)], 1),
        ("other", vec![lost(), there(), others()], exists, settled, &[("connection lost", 1)], 0),
        (
            "ill, but done",
            vec![error(500, "InternalError"), there(), whole()],
            created,
            settled,
            &[("server error", 1)],
            1,
        ),
        (
            "slow, but done",
            vec![empty(503), there(), whole()],
            created,
            settled,
            &[("slow down", 1)],
            1,
        ),
        (
            "gone again",
            vec![lost(), there(), error(404, "NoSuchKey")],
            exists,
            settled,
            &[("connection lost", 1)],
            0,
        ),
        (
            "the settling, too, goes wrong once",
            vec![lost(), there(), whole().cut(4), rest],
            created,
            &["PUT free", "PUT free", "GET", "GET 4- if \"781e5e245d69b566979b86e28d23f2c7\""],
            &[("connection lost", 2)],
            1,
        ),
        // Nobody asks what is there.
        ("there", vec![there()], exists, one, &[], 0),
        (
            "another was first",
            vec![error(409, "ConditionalRequestConflict"), there()],
            exists,
            two,
            &[("conflict", 1)],
            0,
        ),
    ];
    // What passes.
    let passing: [(&str, Response, Retried); 14] = [
        ("500", error(500, "InternalError"), &[("server error", 1)]),
        ("500, empty", empty(500), &[("server error", 1)]),
        ("502", Response::new(502, "<html>Bad Gateway</html>"), &[("server error", 1)]),
        ("504", empty(504), &[("server error", 1)]),
        ("503", error(503, "SlowDown"), &[("slow down", 1)]),
        ("503, empty", empty(503), &[("slow down", 1)]),
        ("429", empty(429), &[("slow down", 1)]),
        ("400, timeout", error(400, "RequestTimeout"), &[("timeout", 1)]),
        ("408", empty(408), &[("timeout", 1)]),
        ("409", error(409, "ConditionalRequestConflict"), &[("conflict", 1)]),
        ("409, aborted", error(409, "OperationAborted"), &[("conflict", 1)]),
        ("400, digest", error(400, "BadDigest"), &[("broken body", 1)]),
        ("closed", lost(), &[("connection lost", 1)]),
        ("broken off", error(500, "InternalError").cut(9), &[("server error", 1)]),
    ];
    for (name, answer, retried) in passing {
        cases.push((name, vec![answer, done()], created, two, retried, 0));
    }
    // What does not.
    for (name, answer, class) in [
        ("denied", error(403, "AccessDenied"), Class::Denied),
        ("403, empty", empty(403), Class::Denied),
        ("401", empty(401), Class::Denied),
        ("key", error(403, "InvalidAccessKeyId"), Class::Denied),
        ("signature", error(403, "SignatureDoesNotMatch"), Class::Denied),
        ("bucket", error(404, "NoSuchBucket"), Class::Denied),
        ("region", error(301, "PermanentRedirect"), Class::Denied),
        ("region, too", error(400, "AuthorizationHeaderMalformed"), Class::Denied),
        ("no idea", error(400, "SomethingNew"), Class::Transient),
        ("501", error(501, "NotImplemented"), Class::Transient),
        ("quota", error(403, "QuotaExceeded"), Class::Full),
        ("507", empty(507), Class::Full),
        ("disk", error(507, "XMinioStorageFull"), Class::Full),
    ] {
        cases.push((name, vec![answer], Err(class), one, &[], 0));
    }
    // Without it the job cannot go on, so it is tried longer than a picture is.
    let mut long = vec![error(500, "InternalError"); 11];
    long.push(done());
    cases.push(("long", long, created, &["PUT free"; 12], &[("server error", 11)], 0));
    side_by_side(&cases, |(name, answers, expected, seen, retried, lost)| {
        let (s3, asked) = script(answers.clone());
        let put = S3Store::new(&s3, &place()).put_new(Path::new("part"), BYTES);
        match (put, expected) {
            (Ok(put), Ok(expected)) => assert_eq!(put, *expected, "{name}"),
            (Err(error), Err(class)) => {
                assert_eq!(error.class(), *class, "{name}: {error}");
            }
            (put, _) => panic!("{name}: {put:?}"),
        }
        Due { seen, retried }.check(name, &s3, &asked);
        assert_eq!(s3.traffic().answers_lost, *lost, "{name}");
    });
}

#[test]
fn what_is_replaced_is_sent_again() {
    let (s3, seen) = script(vec![Response::hang_up(), empty(200)]);
    S3Store::new(&s3, &place()).replace(Path::new("state.json"), BYTES).unwrap();
    Due { seen: &["PUT"; 2], retried: &[("connection lost", 1)] }.check("replace", &s3, &seen);
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let got = bodies.clone();
    let s3 = serve(move |request| {
        got.lock().unwrap().push(request.body.clone());
        if got.lock().unwrap().len() < 2 { empty(503) } else { empty(200) }
    });
    S3Store::new(&s3, &place()).replace(Path::new("state.json"), BYTES).unwrap();
    assert_eq!(*bodies.lock().unwrap(), [BYTES, BYTES]);
}

type Read = (
    &'static str,
    Object,
    Vec<Response>,
    fn(&Result<Vec<u8>, ReadError>) -> bool,
    &'static [&'static str],
    Retried,
);

#[test]
fn a_reading_goes_on_with_the_version_that_it_began_with() {
    const FIRST: &str = "GET if \"781e5e245d69b566979b86e28d23f2c7\"";
    const REST: &str = "GET 4- if \"781e5e245d69b566979b86e28d23f2c7\"";
    const LOST: Retried = &[("connection lost", 1)];
    const BROKEN: Retried = &[("broken body", 1)];
    let tag = tag_of(BYTES);
    assert!(FIRST.ends_with(&tag));
    let rest = |from: usize| {
        Response::new(206, &BYTES[from..])
            .with("ETag", &tag)
            .with("Content-Range", &format!("bytes {from}-9/10"))
    };
    let bare = || Response::new(200, BYTES);
    let by_size = || object("x.jpg", BYTES.len(), None);
    let right = |read: &Result<Vec<u8>, ReadError>| read.as_deref().is_ok_and(|b| b == BYTES);
    let changed = |read: &Result<_, ReadError>| matches!(read, Err(ReadError::Changed));
    let cases: Vec<Read> = vec![
        ("whole", planned(), vec![whole()], right, &[FIRST], &[]),
        ("cut", planned(), vec![whole().cut(4), rest(4)], right, &[FIRST, REST], LOST),
        (
            "cut before its first byte",
            planned(),
            vec![whole().cut(0), whole()],
            right,
            &[FIRST, FIRST],
            LOST,
        ),
        (
            "cut twice",
            planned(),
            vec![whole().cut(4), rest(4).cut(3), rest(7)],
            right,
            &[FIRST, REST, "GET 7- if \"781e5e245d69b566979b86e28d23f2c7\""],
            &[("connection lost", 2)],
        ),
        (
            "cut, then written to",
            planned(),
            vec![whole().cut(4), error(412, "PreconditionFailed")],
            changed,
            &[FIRST, REST],
            LOST,
        ),
        ("without tags", by_size(), vec![bare().cut(4), bare()], right, &["GET"; 2], LOST),
        ("by size", by_size(), vec![whole().cut(4), rest(4)], right, &["GET", REST], LOST),
        (
            "ranges are not known",
            planned(),
            vec![whole().cut(4), whole(), whole()],
            right,
            &[FIRST, REST, FIRST],
            &[("broken body", 1), ("connection lost", 1)],
        ),
        (
            "another range",
            planned(),
            vec![whole().cut(4), rest(5), whole()],
            right,
            &[FIRST, REST, FIRST],
            &[("broken body", 1), ("connection lost", 1)],
        ),
        (
            "all there but the end",
            planned(),
            vec![whole().unfinished(), whole()],
            right,
            &[FIRST, FIRST],
            LOST,
        ),
        ("shorter", by_size(), vec![Response::new(200, "0123")], changed, &["GET"], &[]),
        ("longer", by_size(), vec![Response::new(200, "0123456789a")], changed, &["GET"], &[]),
        (
            "shorter, it turns out",
            by_size(),
            vec![Response::new(200, "0123").until_closed(), whole()],
            right,
            &["GET", "GET"],
            BROKEN,
        ),
        (
            "longer, it turns out",
            by_size(),
            vec![Response::new(200, "0123456789a").until_closed(), whole()],
            right,
            &["GET", "GET"],
            BROKEN,
        ),
        (
            "not what its checksum says",
            by_size(),
            vec![Response::new(200, BYTES).with("x-amz-checksum-crc32", "AAAAAA=="), bare()],
            right,
            &["GET", "GET"],
            BROKEN,
        ),
        (
            "not what its tag says",
            planned(),
            vec![Response::new(200, "0123456788").with("ETag", &tag), whole()],
            right,
            &[FIRST, FIRST],
            &[("checksum", 1)],
        ),
        (
            "ill",
            planned(),
            vec![error(500, "InternalError"), empty(503), Response::hang_up(), whole()],
            right,
            &[FIRST; 4],
            &[("connection lost", 1), ("server error", 1), ("slow down", 1)],
        ),
        (
            "silent in the middle",
            planned(),
            vec![
                Response::new(200, "").with("ETag", &tag).written_by(10, |stream| {
                    let _ = stream.write_all(&BYTES[..4]);
                    std::thread::sleep(Duration::from_secs(60));
                }),
                rest(4),
            ],
            right,
            &[FIRST, REST],
            LOST,
        ),
        ("changed", planned(), vec![error(412, "PreconditionFailed")], changed, &[FIRST], &[]),
        (
            "gone",
            planned(),
            vec![error(404, "NoSuchKey")],
            |read| matches!(read, Err(ReadError::Gone)),
            &[FIRST],
            &[],
        ),
        (
            "denied",
            planned(),
            vec![error(403, "AccessDenied")],
            |read| matches!(read, Err(ReadError::Denied)),
            &[FIRST],
            &[],
        ),
        (
            "archived",
            planned(),
            vec![error(403, "InvalidObjectState")],
            |read| matches!(read, Err(ReadError::Archived)),
            &[FIRST],
            &[],
        ),
        (
            "of another key",
            planned(),
            vec![error(400, "InvalidRequest")],
            |read| matches!(read, Err(ReadError::Unreadable)),
            &[FIRST],
            &[],
        ),
    ];
    side_by_side(&cases, |(name, object, answers, is, seen, retried)| {
        let (s3, asked) = script(answers.clone());
        let read = source(&s3).read(object);
        assert!(is(&read), "{name}: {read:?}");
        Due { seen, retried }.check(name, &s3, &asked);
    });
}

/// Nobody knows how long a record is, so that only its range says which bytes these are.
#[test]
fn a_record_is_read_whole_or_not_at_all() {
    let lost = || whole().cut(4);
    let rest = |from: usize| {
        Response::new(206, &BYTES[from..])
            .with("ETag", &tag_of(BYTES))
            .with("Content-Range", &format!("bytes {from}-9/10"))
    };
    let cases: [(&str, Vec<Response>, Retried); 4] = [
        ("the rest", vec![lost(), rest(4)], &[("connection lost", 1)]),
        (
            "ranges are not known",
            vec![lost(), whole(), whole()],
            &[("broken body", 1), ("connection lost", 1)],
        ),
        (
            "another range",
            vec![lost(), rest(5), whole()],
            &[("broken body", 1), ("connection lost", 1)],
        ),
        (
            "silence about the range",
            vec![lost(), Response::new(206, &BYTES[4..]), whole()],
            &[("broken body", 1), ("connection lost", 1)],
        ),
    ];
    side_by_side(&cases, |(name, answers, retried)| {
        let (s3, _) = script(answers.clone());
        let read = S3Store::new(&s3, &place()).read(Path::new("record.json"));
        assert_eq!(read.unwrap().as_deref(), Some(BYTES), "{name}");
        let retried = retried.iter().map(|&(kind, count)| (kind.to_owned(), count));
        assert_eq!(s3.traffic().retried, retried.collect(), "{name}");
    });
}

/// 17 MiB that differ everywhere.
fn large() -> Vec<u8> {
    (0..17u32 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// The part of an object that is asked for.
fn piece(bytes: &[u8], request: &Request) -> (usize, Response) {
    let range = request.header("range").unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let said = format!("bytes {first}-{last}/{}", bytes.len());
    (first, Response::new(206, &bytes[first..=last]).with("Content-Range", &said))
}

const MIB: usize = 1 << 20;

#[test]
fn a_large_object_is_read_in_pieces_of_one_version() {
    let bytes = Arc::new(large());
    let tag = tag_of(&bytes);
    let planned = object("x.jpg", bytes.len(), Some(&tag));
    let (seen, is_first) = (Seen::default(), AtomicBool::new(true));
    let (asked, all, its) = (seen.clone(), bytes.clone(), tag.clone());
    let s3 = serve(move |request| {
        asked.lock().unwrap().push(request.brief());
        let (first, answer) = piece(&all, request);
        let answer = answer.with("ETag", &its);
        let fails = first == 8 * MIB && is_first.swap(false, SeqCst);
        if fails { answer.cut(MIB) } else { answer }
    });
    assert!(source(&s3).read(&planned).unwrap() == *bytes);
    assert_eq!(s3.traffic().retried, BTreeMap::from([("connection lost".to_owned(), 1)]));
    assert_eq!(s3.traffic().bytes_read, bytes.len() as u64);
    let mut seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    // How much of the piece came before it broke off, the system decides.
    let again = seen.pop().unwrap();
    assert!(again.ends_with(&format!("-16777215 if {tag}")), "{again}");
    assert!(!again.starts_with("GET 8388608-"), "{again}");
    seen.sort();
    let ranges = ["0-8388607", "16777216-17825791", "8388608-16777215"];
    assert_eq!(seen, ranges.map(|range| format!("GET {range} if {tag}")));

    // Another version: the other pieces are not waited for.
    let (closed, ends) = mpsc::channel();
    let closed = Mutex::new(closed);
    let s3 = serve(move |request| {
        let (first, answer) = piece(&bytes, request);
        if first == 8 * MIB {
            std::thread::sleep(Duration::from_millis(200));
            return error(412, "PreconditionFailed");
        }
        answer.with("ETag", &tag).written_by(8 * MIB, drip(closed.lock().unwrap().clone()))
    });
    assert!(matches!(source(&s3).read(&planned), Err(ReadError::Changed)));
    for _ in 0..2 {
        ends.recv_timeout(Duration::from_secs(10)).expect("the other pieces end");
    }
}

/// Writes a little now and then until the other side has enough, and says so.
fn drip(closed: mpsc::Sender<()>) -> impl Fn(&mut std::net::TcpStream) + Send + Sync {
    let closed = Mutex::new(closed);
    move |stream| {
        while stream.write_all(b"some").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = closed.lock().unwrap().send(());
    }
}

#[test]
fn a_reading_that_nobody_waits_for_ends() {
    for size in [MIB, 20 * MIB] {
        let (began, begins) = mpsc::channel();
        let (closed, ends) = mpsc::channel();
        let (began, closed) = (Mutex::new(began), Mutex::new(closed));
        let s3 = serve(move |_| {
            began.lock().unwrap().send(()).unwrap();
            let closed = closed.lock().unwrap().clone();
            Response::new(206, "").with("ETag", "\"t\"").written_by(MIB, drip(closed))
        });
        let source = source(&s3);
        let planned = object("x.jpg", size, Some("t"));
        // More than may be under way: some have not begun.
        let readings: Vec<_> = (0..40).map(|_| source.begin(&planned)).collect();
        for _ in 0..32 {
            begins.recv_timeout(Duration::from_secs(10)).expect("so many begin");
        }
        drop(readings);
        for _ in 0..32 {
            ends.recv_timeout(Duration::from_secs(10)).expect("all of them end");
        }
        // Some may have begun when the first ones ended; and others may again.
        for () in begins.try_iter() {
            ends.recv_timeout(Duration::from_secs(10)).expect("those end, too");
        }
        let reading = source.begin(&planned);
        begins.recv_timeout(Duration::from_secs(10)).expect("there is room");
        drop(reading);
    }
}

#[test]
fn who_is_asked_to_slow_down_does_and_comes_back() {
    const READS: usize = 1200;
    /// The answers from here on are no.
    const NO: std::ops::Range<usize> = 100..130;
    let under_way = AtomicUsize::new(0);
    let (count, widths) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let seen = widths.clone();
    let s3 = serve(move |_| {
        seen.lock().unwrap().push(under_way.fetch_add(1, SeqCst) + 1);
        std::thread::sleep(Duration::from_millis(50));
        under_way.fetch_sub(1, SeqCst);
        match NO.contains(&count.fetch_add(1, SeqCst)) {
            true => error(503, "SlowDown"),
            false => whole(),
        }
    });
    let source = source(&s3);
    let readings: Vec<_> = (0..READS).map(|_| source.begin(&planned())).collect();
    for reading in readings {
        assert_eq!(reading.wait().unwrap(), BYTES);
    }
    let traffic = s3.traffic();
    assert_eq!(traffic.retried, BTreeMap::from([("slow down".to_owned(), 30)]));
    assert!((1..=16).contains(&traffic.throttled_to), "{}", traffic.throttled_to);
    let widths = widths.lock().unwrap();
    let widest = |range: std::ops::Range<usize>| *widths[range].iter().max().unwrap();
    assert_eq!(widths.len(), READS + 30);
    assert_eq!(widest(0..NO.start), 32);
    // What was under way then was.
    let narrow = widest(NO.end + 40..NO.end + 100);
    assert!(narrow < 24, "{narrow}");
    let last = widest(READS - 200..READS);
    assert!(last > narrow + 3, "{narrow}, then {last}");
}

fn unsigned(url: String) -> S3 {
    S3::with(&S3Options { endpoint_url: Some(url), unsigned: true, ..S3Options::default() })
}

#[test]
fn a_server_that_never_answered_is_given_up_soon() {
    // Nothing is served on that port.
    let refused = || "http://127.0.0.1:1".to_owned();
    let hangs_up = || start(usize::MAX, |_| Response::hang_up());
    let once = || start(1, |_| whole().with("Connection", "close"));
    // The address, what it is called, whether it answers once.
    let cases = [
        (refused(), "no connection", false),
        (hangs_up(), "connection lost", false),
        (once(), "no connection", true),
    ];
    side_by_side(&cases, |(url, kind, answers)| {
        let s3 = unsigned(url.clone());
        let source = source(&s3);
        if *answers {
            source.read(&planned()).unwrap();
        }
        let start = Instant::now();
        let error = match source.read(&planned()) {
            Err(ReadError::Store(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(error.class(), Class::Transient, "{error}");
        let tries = if *answers { 10 } else { 4 };
        assert!(error.to_string().contains(&format!("tried {tries} times")), "{error}");
        assert_eq!(error.to_string().contains("--endpoint-url"), *kind == "no connection");
        assert_eq!(s3.traffic().retried, BTreeMap::from([((*kind).to_owned(), tries - 1)]));
        assert!(*answers || start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    });
}

#[test]
fn an_owner_that_may_not_be_looked_at_is_said_to_be_what_it_is() {
    let owner = |answers| {
        let (s3, seen) = script(answers);
        (S3Store::new(&s3, &place()).owner(Path::new("a.jpg.txt")), seen)
    };
    let (job, _) = owner(vec![empty(200).with("x-amz-meta-haul-job", "j")]);
    assert_eq!(job.unwrap(), Owner::Job("j".to_owned()));
    for (status, code, class) in [
        (403, "SignatureDoesNotMatch", Class::Denied),
        (403, "AccessDenied", Class::Denied),
        (400, "InvalidToken", Class::Denied),
        (400, "SomethingNew", Class::Transient),
    ] {
        let (error, seen) = owner(vec![empty(status), Response::error(status, code)]);
        let error = error.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains(code), "{error}");
        assert_eq!(*seen.lock().unwrap(), ["HEAD", "GET 0-0"]);
    }
    // Credentials that have expired are looked for anew by the reading.
    let one = Response::new(206, "x").with("Content-Range", "bytes 0-0/9");
    let head = empty(200).with("x-amz-meta-haul-job", "j");
    let (job, seen) = owner(vec![empty(400), error(400, "ExpiredToken"), one, head]);
    assert_eq!(job.unwrap(), Owner::Job("j".to_owned()));
    assert_eq!(*seen.lock().unwrap(), ["HEAD", "GET 0-0", "GET 0-0", "HEAD"]);
}

/// Runs `body`, which is all of the test of that name, in a process that finds no credentials but
/// those of the file that it is given: a process must not change its own variables.
fn with_credentials(test: &str, body: impl FnOnce(&Path)) {
    if let Some(file) = std::env::var_os("HAUL_TEST_CREDENTIALS") {
        return body(Path::new(&file));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let mut again = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"AWS_") {
            again.env_remove(name);
        }
    }
    let again = again
        .args([test, "--exact", "--nocapture"])
        .env("HAUL_TEST_CREDENTIALS", &file)
        .env("AWS_SHARED_CREDENTIALS_FILE", &file)
        .env("AWS_CONFIG_FILE", folder.path().join("none"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    let errors = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && text.contains("1 passed"), "{test}: {text}{errors}");
}

fn signed(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> S3 {
    let url = start(usize::MAX, answer);
    S3::with(&S3Options { endpoint_url: Some(url), ..S3Options::default() })
}

fn keep(file: &Path, key: &str) {
    let text = format!(
        "[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n\
         aws_session_token = token\n"
    );
    fs::write(file, text).unwrap();
}

#[test]
fn expired_credentials_are_looked_for_anew() {
    with_credentials("expired_credentials_are_looked_for_anew", |file| {
        let said = file.with_extension("json");
        let tell = |key: &str| {
            let text = format!(
                r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"s","SessionToken":"t"}}"#
            );
            fs::write(file.with_extension("json"), text).unwrap();
        };
        for process in [false, true] {
            match process {
                false => keep(file, "OLD"),
                true => {
                    tell("OLD");
                    let text = format!("[default]\ncredential_process = cat {}\n", said.display());
                    fs::write(file, text).unwrap();
                }
            }
            let (file, said, seen) = (file.to_owned(), said.clone(), Seen::default());
            let asked = seen.clone();
            let s3 = signed(move |request| {
                let signature = request.header("authorization").unwrap();
                let (_, rest) = signature.split_once("Credential=").unwrap();
                let key = rest.split('/').next().unwrap().to_owned();
                asked.lock().unwrap().push(key.clone());
                if key == "NEW" {
                    return whole();
                }
                match process {
                    false => keep(&file, "NEW"),
                    true => {
                        let text = fs::read_to_string(&said).unwrap().replace("OLD", "NEW");
                        fs::write(&said, text).unwrap();
                    }
                }
                error(400, "ExpiredToken")
            });
            assert_eq!(source(&s3).read(&planned()).unwrap(), BYTES);
            assert_eq!(source(&s3).read(&planned()).unwrap(), BYTES);
            assert_eq!(*seen.lock().unwrap(), ["OLD", "NEW", "NEW"]);
            assert_eq!(s3.traffic().retried["expired credentials"], 1);
        }
        // Nobody has newer ones.
        keep(file, "OLD");
        let s3 = signed(|_| error(400, "ExpiredToken"));
        match source(&s3).read(&planned()) {
            Err(ReadError::Store(error)) => {
                assert_eq!(error.class(), Class::Denied, "{error}");
                assert!(error.to_string().contains("get new ones"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(s3.traffic().requests, 4);
        // Nobody has any.
        fs::write(file, "").unwrap();
        let s3 = signed(|_| whole());
        match source(&s3).read(&planned()) {
            Err(ReadError::Store(error)) => assert_eq!(error.class(), Class::Denied, "{error}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn the_clock_of_the_server_is_believed() {
    const AHEAD: i64 = 3 * 3600;
    with_credentials("the_clock_of_the_server_is_believed", |file| {
        keep(file, "KEY");
        let ahead = Arc::new(Mutex::new(Vec::new()));
        let asked = ahead.clone();
        let s3 = signed(move |request| {
            let now = DateTime::from(SystemTime::now()).secs();
            let said = request.header("x-amz-date").unwrap();
            let (day, time) = (&said[..8], &said[9..15]);
            let said = format!(
                "{}-{}-{}T{}:{}:{}Z",
                &day[..4],
                &day[4..6],
                &day[6..],
                &time[..2],
                &time[2..4],
                &time[4..]
            );
            let signed = DateTime::from_str(&said, Format::DateTime).unwrap().secs() - now;
            asked.lock().unwrap().push(signed);
            let theirs = DateTime::from_secs(now + AHEAD).fmt(Format::HttpDate).unwrap();
            match (signed - AHEAD).abs() < 900 {
                true => whole().with("Date", &theirs),
                false => error(403, "RequestTimeTooSkewed").with("Date", &theirs),
            }
        });
        assert_eq!(source(&s3).read(&planned()).unwrap(), BYTES);
        assert_eq!(source(&s3).read(&planned()).unwrap(), BYTES);
        assert_eq!(s3.traffic().retried, BTreeMap::from([("clock skew".to_owned(), 1)]));
        let ahead = ahead.lock().unwrap();
        assert_eq!(ahead.len(), 3);
        for (signed, due) in ahead.iter().zip([0, AHEAD, AHEAD]) {
            assert!((signed - due).abs() < 60, "{ahead:?}");
        }
        // A server that does not say what time it is.
        let s3 = signed(|_| error(403, "RequestTimeTooSkewed"));
        assert!(matches!(source(&s3).read(&planned()), Err(ReadError::Store(_))));
        assert_eq!(s3.traffic().requests, 1);
    });
}

/// What is said with each request, besides what it is for.
#[test]
fn requests_say_who_pays_how_to_encrypt_and_who_asks() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let url = start(usize::MAX, move |request| {
        let said = |name: &str| request.header(name).unwrap_or("-").to_owned();
        let names = [
            "x-amz-request-payer",
            "x-amz-server-side-encryption",
            "x-amz-server-side-encryption-aws-kms-key-id",
            "x-amz-meta-haul-job",
            "if-none-match",
            "authorization",
        ];
        let agent = said("x-amz-user-agent");
        assert!(agent.contains("app/haul-"), "{agent}");
        let said = names.map(said).join(" ");
        seen.lock().unwrap().push(format!("{} {said}", request.method));
        empty(200).with("ETag", "\"tag\"")
    });
    let s3 = S3::with(&S3Options {
        endpoint_url: Some(url),
        region: Some("us-east-1".into()),
        unsigned: true,
        request_payer: true,
        sse: Some("aws:kms".into()),
        sse_kms_key_id: Some("alias/key".into()),
        ..S3Options::default()
    });
    let store = S3Store::new(&s3, &place());
    store.put_new_of(Path::new("part"), BYTES, "job-1").unwrap();
    store.read(Path::new("part")).unwrap();
    store.delete(&["part".into()]).unwrap();
    let expected = [
        "PUT requester aws:kms alias/key job-1 * -",
        "GET requester - - - - -",
        "DELETE requester - - - - -",
    ];
    assert_eq!(*heads.lock().unwrap(), expected);
}
