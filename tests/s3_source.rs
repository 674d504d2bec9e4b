//! Listing and reading a bucket: every key that there can be, and only what was planned.

#[path = "common/fake_s3.rs"]
mod fake_s3;
#[path = "common/s3.rs"]
mod s3;

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fake_s3::{Response, page, serve};
use haul::store::{
    Class, Identity, IdentityKind, Key, Listed, Location, Object, Place, ReadError, S3, S3Options,
    S3Source, S3SourceOptions, Select, Skip, Source, SourceOptions, StoreError, open_input,
};

struct All;

impl Select for All {
    fn file(&self, _: &Key) -> Result<(), Skip> {
        Ok(())
    }
    fn folder(&self, _: &Key) -> Result<(), Skip> {
        Ok(())
    }
}

/// No dots in front, and no folder named `old`.
struct Picky;

impl Select for Picky {
    fn file(&self, key: &Key) -> Result<(), Skip> {
        if key.name().starts_with(b".") { Err(Skip::Hidden) } else { Ok(()) }
    }
    fn folder(&self, key: &Key) -> Result<(), Skip> {
        assert!(!key.as_bytes().ends_with(b"/"), "{key}");
        if key.name() == b"old" { Err(Skip::Excluded) } else { self.file(key) }
    }
}

fn listed(source: &dyn Source, select: &dyn Select, after: Option<&Key>) -> Vec<Listed> {
    source.list(select, after).unwrap().map(Result::unwrap).collect()
}

fn objects(source: &dyn Source, after: Option<&Key>) -> Vec<Object> {
    let listed = listed(source, &All, after).into_iter();
    let objects = listed.filter_map(|listed| match listed {
        Listed::Object(object) => Some(object),
        Listed::Skipped(_) => None,
    });
    objects.collect()
}

fn keys(source: &dyn Source, after: Option<&Key>) -> Vec<String> {
    objects(source, after).iter().map(|object| object.key.to_text().into_owned()).collect()
}

fn skips(source: &dyn Source, select: &dyn Select) -> Vec<Skip> {
    let mut skips: Vec<Skip> = listed(source, select, None)
        .into_iter()
        .filter_map(|listed| match listed {
            Listed::Object(_) => None,
            Listed::Skipped(reason) => Some(reason),
        })
        .collect();
    skips.sort_unstable();
    skips
}

fn plain(s3: &S3, at: &Location) -> S3Source {
    S3Source::new(s3, at, S3SourceOptions::default())
}

fn one(source: &dyn Source, key: &str) -> Object {
    objects(source, None).into_iter().find(|object| object.key == Key::from(key)).unwrap()
}

#[test]
fn keys_are_what_they_are() {
    s3::with_bucket("keys_are_what_they_are", |bucket| {
        let mut odd: Vec<String> = [
            "a",
            "a/b",
            "a//b",
            "/",
            "//",
            "/x.jpg",
            "a/../../x.jpg",
            "../../x.jpg",
            "./x.jpg",
            "%",
            "%2B",
            "a+b",
            "a b",
            " ",
            " a ",
            "\u{1}",
            "a\u{1f}b",
            "tab\t",
            "line\nfeed",
            "cr\r",
            "\u{7f}",
            "é",
            "e\u{301}",
            "\u{1f600}.jpg",
            "a&amp;b<c>",
            "\"q\"",
            "'",
            "?a=b&c",
            "#",
            "~",
            "*",
            "\\",
            "a:b",
            "dir/",
            "dir/ending/",
            "{}",
            "\u{fffd}",
            "\u{ffff}",
            "a-",
            "a.jpg",
            "a0",
        ]
        .iter()
        .map(|&key| key.to_owned())
        .collect();
        let long = |unit: &str| {
            let mut key = unit.repeat(1021 / unit.len());
            key.push_str(&"x".repeat(1021 - key.len()));
            key
        };
        odd.extend([long("y"), long("%"), long("ü"), long("+/")]);
        let full: Vec<String> = odd.iter().map(|key| format!("in/{key}")).collect();
        assert!(full.iter().any(|key| key.len() == 1024));
        bucket.put_all(&full);
        bucket.put("other", b"");
        bucket.put("in/", b"");
        bucket.put("in/marker/", b"");
        odd.sort_unstable();

        let source = plain(&bucket.s3(), &bucket.at("in/"));
        assert_eq!(source.root(), format!("s3://{}/in/", bucket.name));
        let all = objects(&source, None);
        let names: Vec<_> = all.iter().map(|object| object.key.to_text().into_owned()).collect();
        assert_eq!(names, odd);
        assert_eq!(skips(&source, &All), [Skip::Marker, Skip::Marker]);
        let readings: Vec<_> = all.iter().map(|object| source.begin(object)).collect();
        for (object, reading) in all.iter().zip(readings) {
            let bytes = reading.wait().unwrap_or_else(|error| panic!("{}: {error}", object.key));
            assert_eq!(bytes, format!("in/{}", object.key.to_text()).as_bytes());
            assert!(matches!(&object.identity, Identity::Etag(tag) if !tag.contains('"')));
        }
        for (index, object) in all.iter().enumerate() {
            assert_eq!(keys(&source, Some(&object.key)), odd[index + 1..], "after {}", object.key);
        }
        assert!(source.vouches(Some(&all[0].key)));

        // A prefix need not end where a name does, and a bucket is one, too.
        let inside = plain(&bucket.s3(), &bucket.at("in/a"));
        let begin_so: Vec<_> = odd.iter().filter(|key| key.starts_with('a')).cloned().collect();
        assert_eq!(keys(&inside, None), begin_so);
        assert_eq!(inside.read(&one(&inside, "a/b")).unwrap(), b"in/a/b");
        let whole = plain(&bucket.s3(), &bucket.at(""));
        assert_eq!(objects(&whole, None).len(), odd.len() + 1);
        assert_eq!(bucket.s3().traffic().retries(), 0);

        // What was listed before, in a file as retry writes it.
        let mut file = tempfile::tempfile().unwrap();
        for key in &odd {
            write!(file, "{key}\0{}\0", if key == "a" { r#"{"site":"A"}"# } else { "" }).unwrap();
        }
        write!(file, "zz-gone\0\0").unwrap();
        let again =
            S3Source::from_keys(&bucket.s3(), file, true, &bucket.at("in/"), Default::default());
        let mut found = objects(&again, None);
        assert_eq!(found.pop().unwrap().identity, Identity::Missing);
        let with_meta = found.iter_mut().find(|object| object.key == Key::from("a")).unwrap();
        assert_eq!(with_meta.meta.take().as_deref(), Some(r#"{"site":"A"}"#));
        assert_eq!(found, all);
    });
}

#[test]
fn names_are_chosen_as_in_a_folder() {
    s3::with_bucket("names_are_chosen_as_in_a_folder", |bucket| {
        let names = [
            "a.jpg",
            ".b.jpg",
            ".c/d.jpg",
            ".c/e.jpg",
            "f/.g/h/i.jpg",
            "f/old/a.jpg",
            "f/old/b/c.jpg",
            "old",
            "out/part-0",
            "out/sub/x.jpg",
            "out-other/y.jpg",
        ];
        bucket.put_all(&names.map(|name| format!("in/{name}")));
        let options =
            S3SourceOptions { avoid: vec![bucket.at("in/out")], ..S3SourceOptions::default() };
        let source = S3Source::new(&bucket.s3(), &bucket.at("in/"), options);
        let chosen: Vec<_> = listed(&source, &Picky, None)
            .into_iter()
            .filter_map(|listed| match listed {
                Listed::Object(object) => Some(object.key.to_text().into_owned()),
                Listed::Skipped(_) => None,
            })
            .collect();
        assert_eq!(chosen, ["a.jpg", "old", "out-other/y.jpg"]);
        use Skip::{Excluded, Hidden, Output};
        let due = [Hidden, Hidden, Hidden, Hidden, Excluded, Excluded, Output, Output];
        assert_eq!(skips(&source, &Picky), due);
    });
}

#[test]
fn only_what_was_planned_is_read() {
    s3::with_bucket("only_what_was_planned_is_read", |bucket| {
        let s3 = bucket.s3();
        for identity in [IdentityKind::Mtime, IdentityKind::Size] {
            bucket.put("in/x.jpg", b"12345");
            bucket.put("in/y.jpg", b"");
            let options = S3SourceOptions { identity, ..S3SourceOptions::default() };
            let source = S3Source::new(&s3, &bucket.at("in/"), options);
            let (planned, empty) = (one(&source, "x.jpg"), one(&source, "y.jpg"));
            assert_eq!(source.read(&planned).unwrap(), b"12345");
            assert_eq!(source.read(&empty).unwrap(), b"");
            // The same bytes anew are the same.
            bucket.put("in/x.jpg", b"12345");
            assert_eq!(source.read(&planned).unwrap(), b"12345");
            bucket.put("in/x.jpg", b"54321");
            let changed = matches!(source.read(&planned), Err(ReadError::Changed));
            assert_eq!(changed, identity == IdentityKind::Mtime, "{identity:?}");
            bucket.put("in/x.jpg", b"123456");
            assert!(matches!(source.read(&planned), Err(ReadError::Changed)), "{identity:?}");
            bucket.delete("in/x.jpg");
            assert!(matches!(source.read(&planned), Err(ReadError::Gone)), "{identity:?}");
            assert!(source.vouches(Some(&empty.key)), "an empty object can be read");
            assert!(!source.vouches(Some(&planned.key)));
            assert!(source.vouches(None));
        }
        assert_eq!(s3.traffic().retries(), 0);

        let nowhere = Location { bucket: format!("{}-no", bucket.name), key: String::new() };
        let source = plain(&s3, &nowhere);
        let error = source.list(&All, None).unwrap().next().unwrap().unwrap_err();
        assert_eq!(error.class(), Class::Denied, "{error}");
        assert!(error.to_string().contains("is its name right"), "{error}");
        let object = Object { key: "x".into(), size: 1, identity: Identity::Size, meta: None };
        assert!(matches!(source.read(&object), Err(ReadError::Store(_))));
        assert!(!source.vouches(None));
    });
}

#[test]
fn large_objects_come_in_pieces() {
    s3::with_bucket("large_objects_come_in_pieces", |bucket| {
        let bytes: Vec<u8> = (0..(37 << 20) + 1234u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        bucket.put("large.jpg", &bytes);
        let source = plain(&bucket.s3(), &bucket.at(""));
        let planned = one(&source, "large.jpg");
        assert_eq!(planned.size, bytes.len() as u64);
        assert!(source.read(&planned).unwrap() == bytes);
        assert!(bucket.s3().traffic().requests >= 5);
        bucket.put("large.jpg", &bytes[1..]);
        assert!(matches!(source.read(&planned), Err(ReadError::Changed)));
    });
}

#[test]
fn what_is_not_ours_to_read_is_denied() {
    s3::with_bucket("what_is_not_ours_to_read_is_denied", |bucket| {
        bucket.put("open/a.jpg", b"12345");
        bucket.put("closed/b.jpg", b"12345");
        bucket.put("open/l.lst", b"a.jpg\n");
        bucket.put(
            "open/m.json",
            format!(
                r#"[{{"prefix":"s3://{}/"}},"closed/b.jpg","open/a.jpg","open/no"]"#,
                bucket.name
            )
            .as_bytes(),
        );
        bucket.open_to_all("open/");
        let nobody = S3::with(&S3Options { unsigned: true, ..bucket.options() });
        let source = plain(&nobody, &bucket.at(""));
        let (open, closed) = (one(&source, "open/a.jpg"), one(&source, "closed/b.jpg"));
        assert_eq!(source.read(&open).unwrap(), b"12345");
        assert!(matches!(source.read(&closed), Err(ReadError::Denied)));
        assert!(source.vouches(Some(&open.key)));
        assert!(!source.vouches(Some(&closed.key)));
        // In a list it is planned, and refused when it is read.
        let at = Place::S3(bucket.at("open/m.json"));
        let list = open_input(&at, &nobody, SourceOptions::default(), Default::default()).unwrap();
        let found = objects(&*list, None);
        let identities: Vec<_> = found.iter().map(|object| &object.identity).collect();
        assert_eq!(identities, [&Identity::Size, &open.identity, &Identity::Missing]);
        assert!(matches!(list.read(&found[0]), Err(ReadError::Denied)));
        assert_eq!(list.read(&found[1]).unwrap(), b"12345");
    });
}

fn open(s3: &S3, input: &Place) -> Result<Arc<dyn Source>, StoreError> {
    open_input(input, s3, SourceOptions::default(), S3SourceOptions::default())
}

#[test]
fn lists_name_objects_wherever_they_lie() {
    s3::with_bucket("lists_name_objects_wherever_they_lie", |bucket| {
        let s3 = bucket.s3();
        let names = ["a.jpg", "b/c.jpg", "b//+ %.jpg", "noext", ".hidden"];
        bucket.put_all(&names.map(|name| format!("set/{name}")));
        bucket.put("set/folder/", b"");
        let lines =
            "b/c.jpg\r\na.jpg\nnoext\n\nb//+ %.jpg\n.hidden\na.jpg\nnot/there.jpg\nfolder/\n";
        let long = "x".repeat(1100);
        bucket.put("set/l.txt", format!("\u{feff}{lines}{long}\n").as_bytes());
        bucket.put("set/t.csv", b"site,image\nA,b/c.jpg\nB,a.jpg\n");
        let manifest =
            |prefix: &str| format!(r#"[{{"prefix":"{prefix}"}},"c.jpg","/+ %.jpg","x"]"#);
        bucket.put("set/m.json", manifest("b/").as_bytes());
        let absolute = manifest(&format!("s3://{}/set/b/", bucket.name));
        bucket.put("elsewhere/m.manifest", absolute.as_bytes());
        let at = |key: &str| Place::S3(bucket.at(key));

        let list = open(&s3, &at("set/l.txt")).unwrap();
        let due =
            [".hidden", "a.jpg", "b//+ %.jpg", "b/c.jpg", "noext", "not/there.jpg", long.as_str()];
        assert_eq!(keys(&*list, None), due);
        assert_eq!(skips(&*list, &Picky), [Skip::Folder, Skip::Duplicate]);
        assert_eq!(list.root(), format!("s3://{}/set/", bucket.name));
        assert!(list.describe().ends_with("/set/l.txt"));
        for (index, object) in objects(&*list, None).iter().enumerate() {
            assert_eq!(keys(&*list, Some(&object.key)), due[index + 1..]);
            match object.key.to_text().as_ref() {
                "not/there.jpg" => assert_eq!(object.identity, Identity::Missing),
                key if key == long => assert_eq!(object.identity, Identity::Missing),
                key => assert_eq!(list.read(object).unwrap(), format!("set/{key}").as_bytes()),
            }
        }
        // As the prefix has it.
        let prefix = plain(&s3, &bucket.at("set/"));
        assert_eq!(one(&*list, "b//+ %.jpg"), one(&prefix, "b//+ %.jpg"));
        assert!(list.vouches(Some(&Key::from("a.jpg"))));
        assert!(!list.vouches(Some(&Key::from("not/there.jpg"))));

        let table = open(&s3, &at("set/t.csv")).unwrap();
        let meta: Vec<_> =
            objects(&*table, None).into_iter().map(|object| object.meta.unwrap()).collect();
        assert_eq!(
            meta.iter().map(|meta| &**meta).collect::<Vec<_>>(),
            [r#"{"site":"B"}"#, r#"{"site":"A"}"#]
        );

        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("m.json");
        fs::write(&local, &absolute).unwrap();
        for place in [at("set/m.json"), at("elsewhere/m.manifest"), Place::Local(local)] {
            let list = open(&s3, &place).unwrap();
            assert_eq!(list.root(), format!("s3://{}/set/b/", bucket.name));
            assert_eq!(keys(&*list, None), ["/+ %.jpg", "c.jpg", "x"]);
            assert_eq!(list.read(&objects(&*list, None)[1]).unwrap(), b"set/b/c.jpg");
            assert_eq!(objects(&*list, None)[2].identity, Identity::Missing);
        }

        // A prefix that only looks like a list is a prefix.
        bucket.put("looks/x.txt/a.jpg", b"1");
        assert_eq!(keys(&*open(&s3, &at("looks/x.txt")).unwrap(), None), ["x.txt/a.jpg"]);
        for (text, expected) in [
            ("[{\"prefix\":\"file:///etc/\"},\"passwd\"]", "is of this machine"),
            ("[{\"prefix\":\"/etc/\"},\"passwd\"]", "begins with `/`"),
            ("[{\"prefix\":\"s3://\"},\"x\"]", "names no bucket"),
            ("a.jpg", "does not begin with `[`"),
        ] {
            bucket.put("set/wrong.json", text.as_bytes());
            let error = open(&s3, &at("set/wrong.json")).unwrap_err();
            assert_eq!(error.class(), Class::Malformed);
            assert!(error.to_string().contains(expected), "{error}");
        }
    });
}

fn tag_of(bytes: &[u8]) -> String {
    use md5::Digest as _;
    haul::store::hex(&md5::Md5::digest(bytes))
}

fn picture(size: u64, tag: &str) -> Object {
    let identity = Identity::Etag(tag.to_owned());
    Object { key: "x.jpg".into(), size, identity, meta: None }
}

fn bucket() -> Location {
    Location::parse("s3://bucket/").unwrap()
}

#[test]
fn a_listing_out_of_order_is_refused() {
    for (second, expected) in [("a", "in byte order"), ("b", "in byte order"), ("x", "")] {
        let s3 = serve(move |request| {
            let object = |key: &str| (key.to_owned(), 1, "t".to_owned());
            match request.query("continuation-token") {
                None => page(&[object("a!"), object("b")], Some("more")),
                Some(_) => page(&[object(second)], None),
            }
        });
        let source = plain(&s3, &bucket());
        let mut listed = source.list(&All, None).unwrap().skip(2);
        let last = listed.next().unwrap();
        if expected.is_empty() {
            last.unwrap();
        } else {
            let error = last.unwrap_err();
            assert_eq!(error.class(), Class::Malformed);
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(listed.next().is_none());
    }
}

#[test]
fn a_key_that_is_no_text_is_planned_and_cannot_be_read() {
    let s3 = serve(|_| {
        let text = "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>\
            <Contents><Key>a%FFb</Key><Size>1</Size></Contents>\
            <Contents><Key>c</Key><Size>1</Size><ETag>\"\"</ETag></Contents></ListBucketResult>";
        Response::new(200, text)
    });
    let source = plain(&s3, &bucket());
    let found = objects(&source, None);
    assert_eq!(found[0].key, Key::new(*b"a\xffb"));
    assert!(matches!(source.read(&found[0]), Err(ReadError::Unreadable)));
    assert!(!source.vouches(Some(&found[0].key)));
    // No tag, or an empty one, identifies nothing.
    assert!(found.iter().all(|object| object.identity == Identity::Size));
    assert_eq!(keys(&source, Some(&found[0].key)), ["c"]);
}

#[test]
fn bytes_are_held_against_a_tag_that_is_a_digest() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let s3 = serve(move |request| {
        let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
        assert_eq!(request.header("if-match"), Some(&*format!("\"{}\"", tag_of(b"12345"))));
        Response::new(200, if is_first { "12344" } else { "12345" })
            .with("ETag", &format!("\"{}\"", tag_of(b"12345")))
    });
    let source = plain(&s3, &bucket());
    let planned = picture(5, &tag_of(b"12345"));
    assert_eq!(source.read(&planned).unwrap(), b"12345");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(s3.traffic().retried["checksum"], 1);
}

#[test]
fn tags_that_are_no_digests_are_found_out_once() {
    for (header, requests) in [(None, [2, 1]), (Some("aws:kms"), [1, 1])] {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let tag = tag_of(b"something else");
        let s3 = serve(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            let answer = Response::new(200, "12345")
                .with("ETag", &format!("\"{}\"", tag_of(b"something else")));
            match header {
                Some(kind) => answer.with("x-amz-server-side-encryption", kind),
                None => answer,
            }
        });
        let source = plain(&s3, &bucket());
        for due in requests {
            assert_eq!(source.read(&picture(5, &tag)).unwrap(), b"12345");
            assert_eq!(asked.swap(0, Ordering::Relaxed), due);
        }
    }
}

#[test]
fn answers_about_an_object_and_answers_about_the_store_are_told_apart() {
    type Read = fn(&ReadError) -> bool;
    let cases: [(u16, &str, Read); 9] = [
        (404, "NoSuchKey", |error| matches!(error, ReadError::Gone)),
        (412, "PreconditionFailed", |error| matches!(error, ReadError::Changed)),
        (403, "AccessDenied", |error| matches!(error, ReadError::Denied)),
        (403, "InvalidObjectState", |error| matches!(error, ReadError::Archived)),
        (400, "InvalidRequest", |error| matches!(error, ReadError::Unreadable)),
        (404, "NoSuchBucket", |error| matches!(error, ReadError::Store(_))),
        (403, "InvalidAccessKeyId", |error| matches!(error, ReadError::Store(_))),
        (403, "SignatureDoesNotMatch", |error| matches!(error, ReadError::Store(_))),
        (301, "PermanentRedirect", |error| matches!(error, ReadError::Store(_))),
    ];
    for (status, code, is) in cases {
        let s3 = serve(move |_| Response::error(status, code));
        let source = plain(&s3, &bucket());
        let error = source.read(&picture(5, "tag")).unwrap_err();
        assert!(is(&error), "{code}: {error:?}");
        assert!(!source.vouches(None), "{code}");
    }
}

#[test]
fn a_list_of_whole_addresses_is_refused() {
    for (name, text, expected) in [
        ("l.txt", "a.jpg\ns3://bucket/b.jpg\n", "line 2 is a whole address"),
        ("t.csv", "key\ns3://bucket/b.jpg\n", "row 2 in column `key` is a whole address"),
    ] {
        let s3 = serve(move |_| Response::new(200, text));
        let at = Location::parse(&format!("s3://bucket/{name}")).unwrap();
        let error = S3Source::open(&s3, &at, S3SourceOptions::default()).unwrap_err();
        assert_eq!(error.class(), Class::Malformed);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("relative to where the list lies"), "{error}");
    }
}

/// An answer to HEAD says only 403: a wrong secret must not plan every picture as denied.
#[test]
fn a_list_that_nobody_may_look_at_is_no_plan() {
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("m.json");
    fs::write(&local, r#"[{"prefix":"s3://bucket/"},"x.jpg"]"#).unwrap();
    for (code, planned) in [("AccessDenied", true), ("SignatureDoesNotMatch", false)] {
        let s3 = serve(move |_| Response::error(403, code));
        let list = open(&s3, &Place::Local(local.clone())).unwrap();
        let listed = list.list(&All, None).unwrap().next().unwrap();
        match listed {
            Ok(Listed::Object(object)) => assert!(planned && object.identity == Identity::Size),
            Ok(Listed::Skipped(reason)) => panic!("{reason:?}"),
            Err(error) => assert!(!planned && error.class() == Class::Denied, "{error}"),
        }
    }
    let options = S3SourceOptions { identity: IdentityKind::Sha256, ..S3SourceOptions::default() };
    let s3 = serve(|_| Response::error(403, "AccessDenied"));
    let error =
        open_input(&Place::Local(local), &s3, SourceOptions::default(), options).unwrap_err();
    assert!(error.to_string().contains("--identity is etag or size"), "{error}");
}
