//! What every store must do. A second store is added by calling [`suite`] with it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use haul::store::{LocalStore, PutNew, Store};

/// `make` gives an empty store; the second argument of a check is the same place opened again.
fn suite(make: &dyn Fn() -> (Arc<dyn Store>, Arc<dyn Store>)) {
    put_new_creates_once(make());
    replace_replaces(make());
    names_are_listed_in_byte_order(make());
    delete_forgives(make());
    of_many_writers_one_wins(make());
}

fn path(name: &str) -> &Path {
    Path::new(name)
}

fn put_new_creates_once((a, b): (Arc<dyn Store>, Arc<dyn Store>)) {
    assert_eq!(a.read(path("x/y.json")).unwrap(), None);
    assert_eq!(a.put_new(path("x/y.json"), b"one").unwrap(), PutNew::Created);
    assert_eq!(b.put_new(path("x/y.json"), b"two").unwrap(), PutNew::Exists);
    assert_eq!(b.put_new(path("x/y.json"), b"one").unwrap(), PutNew::Exists);
    assert_eq!(b.read(path("x/y.json")).unwrap().unwrap(), b"one");
    assert_eq!(a.put_new(path("empty"), b"").unwrap(), PutNew::Created);
    assert_eq!(a.read(path("empty")).unwrap().unwrap(), b"");
    // A name below a file is not there.
    assert_eq!(a.read(path("x/y.json/z")).unwrap(), None);
    assert!(a.put_new(path("x/y.json/z"), b"").is_err());
}

fn replace_replaces((a, b): (Arc<dyn Store>, Arc<dyn Store>)) {
    a.replace(path("deep/er/n"), b"long text").unwrap();
    b.replace(path("deep/er/n"), b"short").unwrap();
    assert_eq!(a.read(path("deep/er/n")).unwrap().unwrap(), b"short");
}

fn names_are_listed_in_byte_order((a, b): (Arc<dyn Store>, Arc<dyn Store>)) {
    assert!(a.list(path("f")).unwrap().is_empty());
    for name in ["f/b", "f/a", "f/B", "f/é", "f/a-", "g"] {
        a.put_new(path(name), b"").unwrap();
    }
    assert_eq!(b.list(path("f")).unwrap(), ["B", "a", "a-", "b", "é"]);
}

fn delete_forgives((a, b): (Arc<dyn Store>, Arc<dyn Store>)) {
    a.put_new(path("n"), b"1").unwrap();
    b.delete(&["n".into(), "no/such".into()]).unwrap();
    b.delete(&["n".into()]).unwrap();
    assert_eq!(a.put_new(path("n"), b"2").unwrap(), PutNew::Created);
}

fn of_many_writers_one_wins((a, b): (Arc<dyn Store>, Arc<dyn Store>)) {
    for round in 0..20 {
        let name = format!("race/{round}");
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0u8..4)
                .map(|writer| {
                    let (store, name) = (if writer % 2 == 0 { &a } else { &b }, &name);
                    scope.spawn(move || {
                        (writer, store.put_new(path(name), &[writer; 5000]).unwrap())
                    })
                })
                .collect();
            let ended = writers.into_iter().map(|writer| writer.join().unwrap());
            ended.filter(|(_, put)| *put == PutNew::Created).map(|(writer, _)| writer).collect()
        });
        assert_eq!(winners.len(), 1, "round {round}");
        assert!(a.read(path(&name)).unwrap().unwrap() == vec![winners[0]; 5000]);
    }
}

#[test]
fn a_local_folder() {
    let root = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    suite(&|| {
        next.set(next.get() + 1);
        let folder = root.path().join(format!("{}/out", next.get()));
        let open = || -> Arc<dyn Store> { Arc::new(LocalStore::new(&folder, "_manifest/tmp")) };
        (open(), open())
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
