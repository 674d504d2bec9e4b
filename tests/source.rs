//! Listing and reading a folder: byte order of full keys, from anywhere, and only what was planned.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use haul::store::{
    Class, Identity, IdentityKind, Key, LinkFault, Listed, LocalSource, Object, ReadError, Select,
    Skip, Source, SourceOptions,
};
use proptest::prelude::*;

struct All;

impl Select for All {
    fn file(&self, _: &Key) -> Result<(), Skip> {
        Ok(())
    }
    fn folder(&self, _: &Key) -> Result<(), Skip> {
        Ok(())
    }
}

fn keys(source: &LocalSource, after: Option<&Key>) -> Vec<String> {
    let keys = source.list(&All, after).unwrap().filter_map(|item| match item.unwrap() {
        Listed::Object(object) => Some(object.key.to_text().into_owned()),
        Listed::Skipped(_) => None,
    });
    keys.collect()
}

fn source(root: &Path) -> LocalSource {
    LocalSource::open(root, SourceOptions::default()).unwrap()
}

#[test]
fn a_folder_sorts_where_its_keys_fall() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a.jpg", "a/z.jpg", "a-b.jpg", "a0.jpg", "a/b/c.jpg", "B.jpg", "a!/x.jpg"] {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let listed = keys(&source(root.path()), None);
    assert_eq!(listed, ["B.jpg", "a!/x.jpg", "a-b.jpg", "a.jpg", "a/b/c.jpg", "a/z.jpg", "a0.jpg"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_tree_lists_in_byte_order_and_on_from_any_key(
        names in prop::collection::btree_set("[ab!0-]{1,2}(/[ab.0-]{1,2}b){0,3}", 1..40)
    ) {
        let root = tempfile::tempdir().unwrap();
        let mut made: Vec<PathBuf> = Vec::new();
        for name in &names {
            let path = root.path().join(name);
            // A name may be a file or a folder, not both.
            if fs::create_dir_all(path.parent().unwrap()).is_ok()
                && fs::OpenOptions::new().write(true).create_new(true).open(&path).is_ok() {
                made.push(path);
            }
        }
        let mut expected: Vec<String> = made.iter()
            .map(|path| path.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned()).collect();
        expected.sort();
        let source = source(root.path());
        prop_assert_eq!(&keys(&source, None), &expected);
        for (index, key) in expected.iter().enumerate() {
            prop_assert_eq!(&keys(&source, Some(&Key::from(key.as_str())))[..], &expected[index + 1..]);
        }
    }
}

fn object(source: &LocalSource, name: &str) -> Object {
    let listed = source.list(&All, None).unwrap().map(Result::unwrap);
    let mut objects = listed.filter_map(|listed| match listed {
        Listed::Object(object) => Some(object),
        Listed::Skipped(_) => None,
    });
    objects.find(|object| object.key == Key::from(name)).unwrap()
}

#[test]
fn only_what_was_planned_is_read() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.jpg");
    for identity in [IdentityKind::Mtime, IdentityKind::Size, IdentityKind::Sha256] {
        fs::write(&path, b"12345").unwrap();
        let options = SourceOptions { identity, ..SourceOptions::default() };
        let source = LocalSource::open(root.path(), options).unwrap();
        let planned = object(&source, "x.jpg");
        assert_eq!(source.read(&planned).unwrap(), b"12345");
        let time = fs::metadata(&path).unwrap().modified().unwrap();

        fs::write(&path, b"123456").unwrap();
        assert!(matches!(source.read(&planned), Err(ReadError::Changed)), "{identity:?}");

        fs::write(&path, b"54321").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(time + std::time::Duration::from_secs(5)).unwrap();
        let changed = matches!(source.read(&planned), Err(ReadError::Changed));
        assert_eq!(changed, identity != IdentityKind::Size, "{identity:?}");

        // A copied tree: other times, same contents.
        fs::write(&path, b"12345").unwrap();
        file.set_modified(time + std::time::Duration::from_secs(9)).unwrap();
        let same = source.read(&planned).is_ok();
        assert_eq!(same, identity != IdentityKind::Mtime, "{identity:?}");

        fs::remove_file(&path).unwrap();
        assert!(matches!(source.read(&planned), Err(ReadError::Gone)));
    }
}

#[test]
fn a_link_that_leaves_after_the_plan_is_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("inside"), b"12345").unwrap();
    fs::write(root.path().join("secret"), b"54321").unwrap();
    symlink("inside", photos.join("link.jpg")).unwrap();
    let options = SourceOptions { identity: IdentityKind::Size, ..SourceOptions::default() };
    let source = LocalSource::open(&photos, options).unwrap();
    let planned = object(&source, "link.jpg");
    assert_eq!(planned.identity, Identity::Size);
    assert_eq!(source.read(&planned).unwrap(), b"12345");
    fs::remove_file(photos.join("link.jpg")).unwrap();
    symlink("../secret", photos.join("link.jpg")).unwrap();
    assert!(matches!(source.read(&planned), Err(ReadError::Changed)));
}

#[test]
fn a_pipe_in_a_pictures_place_does_not_hold_us_up() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.jpg");
    fs::write(&path, b"12345").unwrap();
    let source = source(root.path());
    let planned = object(&source, "x.jpg");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(source.read(&planned), Err(ReadError::Changed)));
}

#[test]
fn the_output_below_the_input_is_not_listed() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("out")).unwrap();
    fs::write(root.path().join("out/seen.jpg"), b"1").unwrap();
    fs::write(root.path().join("x.jpg"), b"1").unwrap();
    let options =
        SourceOptions { avoid: vec![root.path().join("out")], ..SourceOptions::default() };
    let source = LocalSource::open(root.path(), options).unwrap();
    assert_eq!(keys(&source, None), ["x.jpg"]);
    assert!(source.vouches(Some(&Key::from("x.jpg"))));
    assert!(!source.vouches(Some(&Key::from("y.jpg"))));
}

#[test]
fn a_name_that_cannot_be_looked_at_does_not_stand_in_the_way_of_others() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let long = "x".repeat(300);
    symlink("loop.jpg", at("loop.jpg")).unwrap();
    fs::write(at("ok.jpg"), b"1").unwrap();
    let names = [long.as_str(), "loop.jpg", "ok.jpg", "ok.jpg/inner"];
    fs::write(at("l.txt"), names.join("\n")).unwrap();
    fs::write(at("t.csv"), format!("image\n{}", names.join("\n"))).unwrap();
    fs::write(at("m.json"), format!("[{{\"prefix\":\"./\"}},\"{}\"]", names.join("\",\"")))
        .unwrap();
    for list in ["l.txt", "t.csv", "m.json"] {
        let source = source(&at(list));
        assert_eq!(object(&source, &long).identity, Identity::Missing, "{list}");
        assert_eq!(object(&source, "ok.jpg/inner").identity, Identity::Missing, "{list}");
        let broken = Identity::Link(LinkFault::Broken);
        assert_eq!(object(&source, "loop.jpg").identity, broken, "{list}");
        assert_eq!(source.read(&object(&source, "ok.jpg")).unwrap(), b"1");
    }
}

#[test]
fn a_line_that_is_no_path_is_named() {
    let root = tempfile::tempdir().unwrap();
    let list = root.path().join("l.txt");
    for (name, expected) in [
        ("a\0b", "line 2 holds a NUL"),
        (&"x/".repeat(2100), "4200 bytes"),
        ("s3://bucket/x.jpg", "line 2 is a whole address, and names are relative to where"),
    ] {
        let text = format!("a.jpg\n{name}\n");
        fs::write(&list, &text).unwrap();
        let options = SourceOptions::default();
        let from_lines = LocalSource::from_lines(text.as_bytes(), root.path(), options.clone());
        for source in [LocalSource::open(&list, options), from_lines] {
            let error = source.unwrap_err();
            assert_eq!(error.class(), Class::Malformed);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
