//! Long plans in little memory. `HAUL_SCALE_KEYS` says how long (200,000; by hand 10,000,000).

use std::time::Instant;

use haul::job::{Caps, Chain, Drift, Planner, Terms, drift};
use haul::store::{
    Identity, Key, Listed, Listing, LocalStore, Object, ReadError, Select, Skip, Source, StoreError,
};

/// So many keys in byte order, made as they are listed, a hundred to a folder.
#[derive(Debug)]
struct Generated(u64);

fn key(number: u64) -> Key {
    Key::from(format!("camera-{:06}/IMG_{number:09}.JPG", number / 100).as_str())
}

fn number(key: &Key) -> u64 {
    let text = std::str::from_utf8(key.as_bytes()).unwrap();
    text[text.len() - 13..text.len() - 4].parse().unwrap()
}

impl Source for Generated {
    fn list<'a>(
        &'a self,
        _: &'a dyn Select,
        after: Option<&Key>,
    ) -> Result<Listing<'a>, StoreError> {
        let first = after.map_or(0, |after| number(after) + 1);
        Ok(Box::new((first..self.0).map(|number| {
            let identity = Identity::Mtime(1_700_000_000_000_000_000 + number as i64);
            Ok(Listed::Object(Object {
                size: 100_000 + number % 1000,
                identity,
                ..object(key(number))
            }))
        })))
    }
    fn read(&self, _: &Object) -> Result<Vec<u8>, ReadError> {
        Err(ReadError::Gone)
    }
    fn vouches(&self, _: Option<&Key>) -> bool {
        true
    }
    fn root(&self) -> String {
        "generated".into()
    }
    fn describe(&self) -> String {
        "generated keys".into()
    }
}

fn object(key: Key) -> Object {
    Object { key, size: 0, identity: Identity::Size, meta: None }
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
fn a_long_plan_takes_no_more_memory_than_a_short_one() {
    let keys =
        std::env::var("HAUL_SCALE_KEYS").map_or(200_000, |text| text.parse().expect("a number"));
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::new(dir.path(), "tmp");
    let source = Generated(keys);
    let caps = Caps { payload: 100_000_000, pictures: 100 };
    let terms =
        Terms { source: &source, select: &All, caps, limit: None, known: None, sample: None };
    let before = mib("VmHWM");

    let start = Instant::now();
    let mut planner = Planner::new(&store, terms);
    while planner.next_segment().unwrap().is_some() {}
    let summary = planner.summary().clone();
    println!(
        "{} keys in {} segments: planned in {:.1} s",
        summary.pictures,
        summary.segments,
        start.elapsed().as_secs_f64()
    );
    assert_eq!(summary.pictures, keys);
    assert_eq!(summary.batches, keys.div_ceil(100));

    let start = Instant::now();
    let mut chain = Chain::new(&store);
    let mut read = 0;
    while let Some(segment) = chain.next_segment().unwrap() {
        read += segment.pictures();
    }
    assert_eq!((read, chain.summary()), (keys, &summary));
    println!("read back in {:.1} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    assert_eq!(drift(&store, terms).unwrap(), Drift::default());
    println!("compared with a new listing in {:.1} s", start.elapsed().as_secs_f64());

    let files = std::fs::read_dir(dir.path().join("_manifest")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("{:.1} MB on disk, {:.1} bytes a key", bytes as f64 / 1e6, bytes as f64 / keys as f64);
    let (Some(before), Some(after)) = (before, mib("VmHWM")) else {
        println!("skipped: this system does not tell the peak memory of a process");
        return;
    };
    println!("peak memory {before} MiB before, {after} MiB after");
    // A segment of 6,400 pictures, its text and its values, some of them twice.
    assert!(after - before < 48, "{before} MiB before, {after} MiB after");
}
