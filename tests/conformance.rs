//! What every store must do. A second store is added by calling [`suite`] with it.
//!
//! The one on S3 needs a server: `scripts/servers/radosgw.sh` starts one, and says which variables
//! name it.

#[path = "common/s3.rs"]
mod s3;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use haul::store::{LocalStore, Owner, PutNew, S3Store, Store};

/// What stores may differ in.
#[derive(Clone, Copy)]
struct Traits {
    /// A name is a file or a folder and not both, and none has an empty segment.
    folders: bool,
    /// It says whose an object is.
    owners: bool,
    /// The longest name that it takes.
    longest: usize,
    /// How often the race for one name is run.
    races: usize,
}

/// One place, opened twice.
type Two = (Arc<dyn Store>, Arc<dyn Store>);

/// `make` gives an empty store; the second argument of a check is the same place opened again.
fn suite(make: &dyn Fn() -> Two, traits: Traits) {
    put_new_creates_once(make());
    names_below_names(make(), traits);
    replace_replaces(make());
    names_are_listed_in_byte_order(make());
    a_listing_is_of_one_folder(make());
    names_are_kept_as_they_are(make(), traits);
    delete_forgives(make());
    many_are_read_in_their_order(make());
    owners_are_kept(make(), traits);
    of_many_writers_one_wins(make(), traits);
}

fn path(name: &str) -> &Path {
    Path::new(name)
}

fn put_new_creates_once((a, b): Two) {
    assert_eq!(a.read(path("x/y.json")).unwrap(), None);
    assert_eq!(a.put_new(path("x/y.json"), b"one").unwrap(), PutNew::Created);
    assert_eq!(b.put_new(path("x/y.json"), b"two").unwrap(), PutNew::Exists);
    assert_eq!(b.put_new(path("x/y.json"), b"one").unwrap(), PutNew::Exists);
    assert_eq!(b.read(path("x/y.json")).unwrap().unwrap(), b"one");
    assert_eq!(a.put_new(path("empty"), b"").unwrap(), PutNew::Created);
    assert_eq!(b.put_new(path("empty"), b"").unwrap(), PutNew::Exists);
    assert_eq!(a.read(path("empty")).unwrap().unwrap(), b"");
    let large: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(a.put_new(path("large"), &large).unwrap(), PutNew::Created);
    assert!(b.read(path("large")).unwrap().unwrap() == large);
}

fn names_below_names((a, _): Two, traits: Traits) {
    a.put_new(path("x/y.json"), b"1").unwrap();
    assert_eq!(a.read(path("x/y.json/z")).unwrap(), None);
    assert_eq!(a.read(path("x")).ok().flatten(), None, "what lies above a name is none");
    let below = a.put_new(path("x/y.json/z"), b"2");
    if traits.folders {
        assert!(below.is_err());
    } else {
        assert_eq!(below.unwrap(), PutNew::Created);
        assert_eq!(a.read(path("x/y.json/z")).unwrap().unwrap(), b"2");
        assert_eq!(a.list(path("x")).unwrap(), ["y.json"]);
        assert_eq!(a.list(path("x/y.json")).unwrap(), ["z"]);
    }
    assert_eq!(a.read(path("x/y.json")).unwrap().unwrap(), b"1");
}

fn replace_replaces((a, b): Two) {
    a.replace(path("deep/er/n"), b"long text").unwrap();
    b.replace(path("deep/er/n"), b"short").unwrap();
    assert_eq!(a.read(path("deep/er/n")).unwrap().unwrap(), b"short");
    assert_eq!(a.put_new(path("deep/er/n"), b"new").unwrap(), PutNew::Exists);
}

fn names_are_listed_in_byte_order((a, b): Two) {
    assert!(a.list(path("f")).unwrap().is_empty());
    for name in ["f/b", "f/a", "f/B", "f/é", "f/a-", "g"] {
        a.put_new(path(name), b"").unwrap();
    }
    assert_eq!(b.list(path("f")).unwrap(), ["B", "a", "a-", "b", "é"]);
}

fn a_listing_is_of_one_folder((a, b): Two) {
    for name in ["f/a", "f/sub/x", "f/sub/y", "f/sub/deep/z", "f-x", "f0/b", "c"] {
        a.put_new(path(name), b"").unwrap();
    }
    let names = |folder: &str| b.list(path(folder)).unwrap();
    assert_eq!(names("f"), ["a", "sub"]);
    assert_eq!(names("f/sub"), ["deep", "x", "y"]);
    assert!(names("f/su").is_empty());
    let root: Vec<_> = names("").into_iter().filter(|name| !name.starts_with('_')).collect();
    assert_eq!(root, ["c", "f", "f-x", "f0"]);
    let many: Vec<String> = (0..1100).map(|number| format!("many/{number:05}")).collect();
    std::thread::scope(|scope| {
        for some in many.chunks(100) {
            scope.spawn(|| {
                some.iter().for_each(|name| {
                    a.put_new(path(name), b"").unwrap();
                })
            });
        }
    });
    let listed: Vec<_> = names("many").iter().map(|name| format!("many/{name}")).collect();
    assert_eq!(listed, many, "more than one page of S3");
}

fn names_are_kept_as_they_are((a, b): Two, traits: Traits) {
    let mut long = "0123456789/".repeat(200);
    long.truncate(traits.longest - 1);
    long.push('x');
    let mut names = vec![
        "a b",
        " ",
        "a+b",
        "a%2Bb",
        "100%",
        "%",
        "a&b<c>",
        "\"'`",
        "\\",
        "é",
        "e\u{301}",
        "\u{1f600}",
        "\u{1}",
        "a\nb",
        "~",
        "a?b=c&d",
        "#",
        ".hidden",
        "*",
        "a;b,c:d@e=f$g!h(i)[j]{k}|l^m",
        &long,
    ];
    if !traits.folders {
        names.extend(["a//b", "//", "a b/", "a b/c", "./x", "..", "../x"]);
    }
    for name in &names {
        assert_eq!(a.put_new(path(name), name.as_bytes()).unwrap(), PutNew::Created, "{name:?}");
    }
    for name in &names {
        assert_eq!(b.put_new(path(name), b"").unwrap(), PutNew::Exists, "{name:?}");
        let read = b.read(path(name)).unwrap();
        assert_eq!(read.as_deref(), Some(name.as_bytes()), "{name:?}");
    }
    let listed = b.list(path("")).unwrap();
    for name in names.iter().filter(|name| !name.contains('/')) {
        assert!(listed.contains(&(*name).to_owned()), "{name:?} in {listed:?}");
    }
    let all: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    a.delete(&all).unwrap();
    for name in &names {
        assert_eq!(b.read(path(name)).unwrap(), None, "{name:?}");
    }
}

fn delete_forgives((a, b): Two) {
    a.put_new(path("n"), b"1").unwrap();
    b.delete(&["n".into(), "no/such".into()]).unwrap();
    b.delete(&["n".into()]).unwrap();
    assert_eq!(a.read(path("n")).unwrap(), None);
    assert_eq!(a.put_new(path("n"), b"2").unwrap(), PutNew::Created);
    a.settle(path("")).unwrap();
    a.settle(path("no/such")).unwrap();
    a.clear_temporaries().unwrap();
    assert_eq!(b.read(path("n")).unwrap().unwrap(), b"2");
}

fn many_are_read_in_their_order((a, b): Two) {
    let names: Vec<PathBuf> = (0..100).map(|number| format!("m/{number}").into()).collect();
    for name in names.iter().step_by(2) {
        a.put_new(name, name.to_string_lossy().as_bytes()).unwrap();
    }
    let read: Vec<_> = b.read_each(&names).map(Result::unwrap).collect();
    let due: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            (number % 2 == 0).then(|| name.to_string_lossy().into_owned().into_bytes())
        })
        .collect();
    assert!(read == due);
    // Whoever has seen enough takes no more.
    assert_eq!(b.read_each(&names).take(3).count(), 3);
}

fn owners_are_kept((a, b): Two, traits: Traits) {
    assert_eq!(a.put_new_of(path("p"), b"1", "job-1").unwrap(), PutNew::Created);
    assert_eq!(b.put_new_of(path("p"), b"1", "job-2").unwrap(), PutNew::Exists);
    a.put_new(path("q"), b"1").unwrap();
    let owners = (b.owner(path("p")).unwrap(), b.owner(path("q")).unwrap());
    if traits.owners {
        assert_eq!(owners, (Owner::Job("job-1".to_owned()), Owner::Nobody));
    } else {
        assert_eq!(owners, (Owner::Unsaid, Owner::Unsaid));
    }
}

/// Of sixteen that write one name at the same moment one has created it, and whoever has not sees
/// the winner's bytes at once and whole.
fn of_many_writers_one_wins((a, b): Two, traits: Traits) {
    const WRITERS: u8 = 16;
    let start = Barrier::new(usize::from(WRITERS));
    let results: Vec<Vec<(bool, u8)>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, start) = (if writer % 2 == 0 { &a } else { &b }, &start);
                scope.spawn(move || {
                    let run = |round: usize| {
                        let name = format!("race/{round}");
                        start.wait();
                        let put = store.put_new(path(&name), &[writer; 5000]).unwrap();
                        let read = store.read(path(&name)).unwrap().expect("it exists");
                        assert!(read == vec![read[0]; 5000], "round {round}");
                        (put == PutNew::Created, read[0])
                    };
                    (0..traits.races).map(run).collect()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    for round in 0..traits.races {
        let ended: Vec<(bool, u8)> = results.iter().map(|rounds| rounds[round]).collect();
        let winners: Vec<u8> =
            (0..WRITERS).filter(|writer| ended[usize::from(*writer)].0).collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert!(ended.iter().all(|(_, seen)| *seen == winners[0]), "round {round}");
    }
}

#[test]
fn a_local_folder() {
    let root = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    let traits = Traits { folders: true, owners: false, longest: 1024, races: 50 };
    suite(
        &|| {
            next.set(next.get() + 1);
            let folder = root.path().join(format!("{}/out", next.get()));
            let open = || -> Arc<dyn Store> { Arc::new(LocalStore::new(&folder, "_manifest/tmp")) };
            (open(), open())
        },
        traits,
    );
}

#[test]
fn a_prefix_on_s3() {
    s3::with_bucket("a_prefix_on_s3", |bucket| {
        let next = std::cell::Cell::new(10);
        let make = || -> Two {
            next.set(next.get() + 1);
            let at = bucket.at(&format!("{}/out+% ü", next.get()));
            let open = || -> Arc<dyn Store> { Arc::new(S3Store::new(&bucket.s3(), &at)) };
            (open(), open())
        };
        let longest = 1024 - "11/out+% ü/".len();
        suite(&make, Traits { folders: false, owners: true, longest, races: 200 });
        // A whole bucket is a place, too.
        let store = S3Store::new(&bucket.s3(), &bucket.at(""));
        assert_eq!(store.put_new(path("top"), b"1").unwrap(), PutNew::Created);
        assert!(store.list(path("")).unwrap().contains(&"top".to_owned()));
    });
}

#[test]
fn drafts_are_cleared_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::new(root.path(), "_manifest/tmp");
    store.clear_temporaries().unwrap();
    store.put_new(path("kept"), b"1").unwrap();
    fs::write(root.path().join("_manifest/tmp/1-0"), b"half").unwrap();
    store.clear_temporaries().unwrap();
    assert_eq!(fs::read_dir(root.path().join("_manifest/tmp")).unwrap().count(), 0);
    assert_eq!(store.read(path("kept")).unwrap().unwrap(), b"1");
}
