//! Long listings of a bucket in little memory. `HAUL_SCALE_KEYS` says how long (200,000; by hand
//! 10,000,000).

#[path = "common/fake_s3.rs"]
mod fake_s3;

use std::time::Instant;

use fake_s3::{page, serve};
use haul::job::{Caps, Chain, Planner, Terms};
use haul::store::{Key, LocalStore, Location, S3Source, S3SourceOptions, Select, Skip, Source};

/// The keys of a generated bucket, in byte order, a hundred to a folder.
fn key(number: u64) -> String {
    format!("in/camera-{:06}/IMG_{number:09}.JPG", number / 100)
}

fn number(key: &str) -> u64 {
    key[key.len() - 13..key.len() - 4].parse().unwrap()
}

struct All;

impl Select for All {
    fn file(&self, _: &Key) -> Result<(), Skip> {
        Ok(())
    }
    fn folder(&self, _: &Key) -> Result<(), Skip> {
        Ok(())
    }
}

/// A line of /proc/self/status in MiB.
fn mib(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

#[test]
fn a_long_listing_takes_no_more_memory_than_a_short_one() {
    let keys: u64 =
        std::env::var("HAUL_SCALE_KEYS").map_or(200_000, |text| text.parse().expect("a number"));
    let s3 = serve(move |request| {
        let first = match (request.query("continuation-token"), request.query("start-after")) {
            (Some(token), _) => token.parse().unwrap(),
            (None, Some(after)) => number(after) + 1,
            (None, None) => 0,
        };
        let end = (first + 1000).min(keys);
        let object = |number| (key(number), 100_000 + number % 1000, format!("{number:032x}"));
        let objects: Vec<_> = (first..end).map(object).collect();
        page(&objects, (end < keys).then(|| end.to_string()).as_deref())
    });
    let prefix = Location::parse("s3://bucket/in/").unwrap();
    let source = S3Source::new(&s3, &prefix, S3SourceOptions::default());
    // A first listing warms up what every one needs.
    assert!(source.list(&All, None).unwrap().take(5000).all(|listed| listed.is_ok()));

    let start = Instant::now();
    let last = Key::from(&key(keys - 1)["in/".len()..]);
    assert_eq!(source.list(&All, Some(&last)).unwrap().count(), 0);
    assert_eq!(source.list(&All, None).unwrap().count() as u64, keys);
    println!("{keys} keys listed in {:.1} s", start.elapsed().as_secs_f64());

    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::new(dir.path(), "tmp");
    let caps = Caps { payload: 100_000_000, pictures: 100 };
    let terms =
        Terms { source: &source, select: &All, caps, limit: None, known: None, sample: None };
    let before = mib("VmHWM");
    let start = Instant::now();
    let mut planner = Planner::new(&store, terms);
    while planner.next_segment().unwrap().is_some() {}
    println!("planned in {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(planner.summary().pictures, keys);
    let mut chain = Chain::new(&store);
    while chain.next_segment().unwrap().is_some() {}
    assert_eq!(chain.summary(), planner.summary());
    assert_eq!(s3.traffic().retries(), 0);
    let (Some(before), Some(after)) = (before, mib("VmHWM")) else {
        println!("skipped: this system does not tell the peak memory of a process");
        return;
    };
    println!("peak memory {before} MiB before, {after} MiB after, the server's among it");
    // As a plan of a folder, and a few pages on their way.
    assert!(after < 128, "{after} MiB");
    assert!(after - before < 48, "{before} MiB before, {after} MiB after");
}
