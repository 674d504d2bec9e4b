//! Files that are named after keys: inside their folder, and apart, whatever the keys are.
//!
//! A key of S3 is any text: `../x`, `/etc/x`, `a//b`, a segment of a thousand bytes. What a file
//! system takes as it is stays as it is. Other segments begin with `%`, and so do no others:
//!
//! | segment | becomes |
//! | --- | --- |
//! | empty | `%` |
//! | `.`, `..` | `%2E`, `%2E%2E` |
//! | begins with `%`, has control characters, or is a folder that ends as the files do | its first byte, control characters and `%` as `%` and two digits; of such a folder the last byte too |
//! | longer than a name may be | `%~`, its SHA-256, `~`, its beginning, `~` |

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::hash::sha256;
use super::key::Key;

/// The longest name that every file system in use takes.
const LONGEST: usize = 255;
/// How much of a longer one is kept, for people.
const KEPT: usize = 100;

/// Where the annotated copy of a picture goes: `<key>.annotated.jpg`.
#[must_use]
pub fn annotated_name(key: &Key) -> PathBuf {
    name_of(key, ".annotated.jpg")
}

/// The key as a relative path of a file, with `suffix` after it. Different keys have different
/// ones, and none of them needs a folder where another has its file.
#[must_use]
pub fn name_of(key: &Key, suffix: &str) -> PathBuf {
    let mut name: Vec<u8> = Vec::with_capacity(key.as_bytes().len() + suffix.len() + 16);
    let mut segments = key.as_bytes().split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        match segments.peek() {
            Some(_) => {
                let ends = segment.ends_with(suffix.as_bytes());
                name.extend(escaped(segment, ends, LONGEST));
                name.push(b'/');
            }
            None => name.extend(escaped(segment, false, LONGEST - suffix.len())),
        }
    }
    name.extend(suffix.as_bytes());
    PathBuf::from(OsString::from_vec(name))
}

/// A segment as a name of at most `room` bytes; with `last`, its last byte must not stay.
fn escaped(segment: &[u8], last: bool, room: usize) -> Vec<u8> {
    let dots = matches!(segment, b"." | b"..");
    let odd = segment.first().is_none_or(|&first| first == b'%')
        || segment.iter().any(u8::is_ascii_control);
    let mut name = Vec::with_capacity(segment.len());
    if segment.is_empty() {
        name.push(b'%');
    }
    for (index, &byte) in segment.iter().enumerate() {
        let own = dots
            || (odd || last) && (index == 0 || byte == b'%' || byte.is_ascii_control())
            || last && index + 1 == segment.len();
        match own {
            true => name.extend(format!("%{byte:02X}").bytes()),
            false => name.push(byte),
        }
    }
    if name.len() > room {
        // Not through the middle of a character.
        let cut = (0..=KEPT).rev().find(|&at| name[at] & 0xC0 != 0x80).unwrap_or(KEPT);
        let whole = sha256(segment);
        name = [b"%~", whole.as_bytes(), b"~", &name[..cut], b"~"].concat();
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    fn name(key: &[u8]) -> Vec<u8> {
        annotated_name(&Key::new(key)).into_os_string().into_vec()
    }

    #[test]
    fn names_are_what_they_are() {
        let long = "l".repeat(242);
        let whole = sha256(long.as_bytes());
        let short = format!("%~{whole}~{}~", "l".repeat(100));
        for (key, expected) in [
            ("a/b.jpg", "a/b.jpg"),
            (".a/..b/c..jpg", ".a/..b/c..jpg"),
            ("ü \\:*?\"<>|&$(x)'.jpg", "ü \\:*?\"<>|&$(x)'.jpg"),
            ("50%/a%20b.jpg", "50%/a%20b.jpg"),
            (&long[1..], &long[1..]),
            ("../../x.jpg", "%2E%2E/%2E%2E/x.jpg"),
            ("./a", "%2E/a"),
            ("/etc/x", "%/etc/x"),
            ("a//b", "a/%/b"),
            ("a/", "a/%"),
            ("", "%"),
            ("%41/%", "%2541/%25"),
            ("%a%b", "%25a%25b"),
            ("a\u{1}b%", "%61%01b%25"),
            ("a\0", "%61%00"),
            ("\n/\u{7f}", "%0A/%7F"),
            ("a.annotated.jpg", "a.annotated.jpg"),
            ("a.annotated.jpg/b", "%61.annotated.jp%67/b"),
            (".annotated.jpg/b", "%2Eannotated.jp%67/b"),
            (&long, &short),
            (&format!("{long}/{long}"), &format!("{long}/{short}")),
        ] {
            let found = String::from_utf8(name(key.as_bytes())).unwrap();
            assert_eq!(found, format!("{expected}.annotated.jpg"), "{key:?}");
        }
        // A character is not cut in two, and what is no text stays what it is.
        let long = format!("{}{}", "l".repeat(99), "ü".repeat(100));
        assert!(String::from_utf8(name(long.as_bytes())).unwrap().contains("lll~."));
        assert_eq!(name(b"\xff\x80"), b"\xff\x80.annotated.jpg");
        name(&[0x80; 300]);
    }

    /// Keys that are alike, and odd.
    fn keys() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
        let some = |all: &'static [&'static str]| proptest::sample::select(all);
        let word = some(&[
            "",
            ".",
            "..",
            "%",
            "%2E",
            "%25",
            "2E",
            "a",
            "b",
            "/",
            "/",
            "/",
            "\u{1}",
            "%01",
            "\0",
            ".jpg",
            ".png",
            ".txt",
            ".annotated.jpg",
            "%61",
            "%67",
            "%74",
            ".tx",
            "~",
            "%~",
            "ü",
        ]);
        let long = (some(&["l", "%", "ü", ".", "\n"]), 80usize..300)
            .prop_map(|(text, times)| text.repeat(times));
        let part = prop_oneof![12 => word.prop_map(str::to_owned), 1 => long];
        let key = proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat().into());
        let any = proptest::collection::vec(any::<u8>(), 0..6);
        proptest::collection::btree_set(prop_oneof![9 => key, 1 => any], 1..40)
    }

    proptest! {
        #[test]
        fn names_stay_inside_and_apart(keys in keys()) {
            for suffix in [".annotated.jpg", ".txt"] {
                let mut files = BTreeMap::new();
                for key in &keys {
                    let name = name_of(&Key::new(&**key), suffix);
                    let parts: Vec<_> = name.components().collect();
                    prop_assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))));
                    // Nothing is lost on the way to a file system.
                    let whole: PathBuf = parts.iter().collect();
                    prop_assert_eq!(whole.as_os_str(), name.as_os_str());
                    for part in &parts {
                        prop_assert!(part.as_os_str().len() <= LONGEST);
                    }
                    let bytes = name.as_os_str().as_encoded_bytes();
                    prop_assert!(!bytes.iter().any(u8::is_ascii_control));
                    prop_assert_eq!(files.insert(name.clone(), key), None, "{:?}", name);
                }
                // No file is where another needs a folder.
                for name in files.keys() {
                    for folder in name.ancestors().skip(1) {
                        prop_assert!(!files.contains_key(folder), "{:?} and {:?}", folder, name);
                    }
                }
            }
        }
    }
}
