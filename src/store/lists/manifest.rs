//! SageMaker's ManifestFile, an array in JSON.
//!
//! It is read as a stream with a bound on the bytes of each name; what is wrong is said with the
//! number of the element.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};

use super::{LONGEST_ITEM, Names, has_suffix, malformed, too_long};
use crate::store::{Location, Place, StoreError};

const MANIFEST_FORM: &str = r#"a manifest is [{"prefix": "photos/"}, "a.jpg", "b/c.jpg"]"#;

/// Whether a file is a manifest, by its suffix.
#[must_use]
pub fn is_manifest(path: &Path) -> bool {
    has_suffix(path, &["json", "manifest"])
}

/// Fails where a text in quotes is too long, so that a quote that is never closed does not take the
/// whole file into memory. Whatever a manifest holds that is long is between two quotes.
struct Bounded<R> {
    inner: R,
    since: u64,
    escaped: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        for &byte in &buffer[..count] {
            self.since = if byte == b'"' && !self.escaped { 0 } else { self.since + 1 };
            self.escaped = byte == b'\\' && !self.escaped;
            if self.since > LONGEST_ITEM {
                return Err(too_long());
            }
        }
        Ok(count)
    }
}

/// Where a manifest's names lie: everything up to the prefix's last `/`, and what comes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Prefix {
    pub(in crate::store) root: Place,
    stem: String,
}

impl Prefix {
    /// The prefix of a manifest that lies in `folder`.
    fn of(text: &str, folder: &Place) -> Result<Prefix, String> {
        if text.starts_with("s3://") {
            let at = Location::parse(text)?;
            let root = at.root();
            let stem = at.key[root.key.len()..].to_owned();
            return Ok(Prefix { root: Place::S3(root), stem });
        }
        let path = match (text.split_once("://"), folder) {
            (None, _) => text,
            (Some(("file", path)), Place::Local(_)) if path.starts_with('/') => path,
            (Some(("file", _)), Place::Local(_)) => {
                return Err(format!("the prefix `{text}` names a host; write file:///path"));
            }
            // Whoever may write to the bucket need not have a say about files of this machine.
            (Some(("file", _)), Place::S3(_)) => {
                return Err(format!(
                    "the prefix `{text}` is of this machine, and the manifest is in a bucket"
                ));
            }
            (Some((scheme, _)), _) => {
                return Err(format!(
                    "the prefix `{text}` is a URL of `{scheme}`; it is a folder, relative to the \
                     manifest, or file:///path, or s3://BUCKET/PREFIX"
                ));
            }
        };
        if path.is_empty() {
            return Err("the prefix is empty (./ is the manifest's own folder)".to_owned());
        }
        if path.contains('\0') {
            return Err("the prefix holds a NUL, which no name can".to_owned());
        }
        let (above, stem) = match path.rfind('/') {
            None => ("", path),
            Some(at) => path.split_at(at + 1),
        };
        let root = match folder {
            Place::Local(folder) => {
                let root = folder.join(above);
                if !root.is_dir() {
                    return Err(format!(
                        "the prefix `{text}` lies in no folder: {}",
                        root.display()
                    ));
                }
                Place::Local(root)
            }
            Place::S3(_) if path.starts_with('/') => {
                return Err(format!(
                    "the prefix `{text}` begins with `/`, and the manifest is in a bucket \
                     (s3://BUCKET/PREFIX is meant, or one relative to the manifest)"
                ));
            }
            Place::S3(folder) => Place::S3(folder.join(above.trim_start_matches("./"))),
        };
        Ok(Prefix { root, stem: stem.to_owned() })
    }

    /// AWS's rule is concatenation, so a prefix need not end in a `/`.
    fn key(&self, suffix: &str) -> Result<Vec<u8>, String> {
        let key = format!("{}{suffix}", self.stem);
        match self.root {
            Place::Local(_) => match Names::Paths.key(key.as_bytes())? {
                [b'/', ..] => Err("begins with `/`, as the end of its prefix does".to_owned()),
                key => Ok(key.to_vec()),
            },
            Place::S3(_) => Names::Keys.key(key.as_bytes()).map(<[u8]>::to_vec),
        }
    }
}

/// Reads a ManifestFile whose prefix is relative to `folder`; gives each key to `take`.
///
/// # Errors
/// What is wrong with it, with the number of the element; the first one is the prefix.
pub(super) fn read_manifest(
    text: impl Read,
    path: &Path,
    folder: &Place,
    mut take: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<Prefix, StoreError> {
    let fault = |error| StoreError::new("read the list", path, error);
    let mut reader = BufReader::new(Bounded { inner: text, since: 0, escaped: false });
    let first = first_byte(&mut reader).map_err(fault)?;
    if first != Some(b'[') {
        let start = reader.fill_buf().map_err(fault)?;
        let has = |name: &[u8]| memchr::memmem::find(start, name).is_some();
        return Err(malformed(
            path,
            if first == Some(b'{') && has(b"\"source-ref\"") {
                format!(
                    "this is an AugmentedManifestFile (JSON Lines with source-ref), which neither \
                     SageMaker's transform jobs nor haul take; {MANIFEST_FORM}, and a .csv file \
                     carries other columns along"
                )
            } else {
                format!("it does not begin with `[`; {MANIFEST_FORM}")
            },
        ));
    }
    let mut at = 1;
    let mut json = serde_json::Deserializer::from_reader(reader);
    let elements = Elements { folder, at: &mut at, take: &mut take };
    let read = json.deserialize_seq(elements).and_then(|prefix| json.end().map(|()| prefix));
    read.map_err(|error| match error.io_error_kind() {
        Some(io::ErrorKind::InvalidData) | None => {
            malformed(path, format!("element {at}: {error}"))
        }
        Some(_) => fault(error.into()),
    })
}

/// Looks at the first byte behind a byte order mark and blanks.
fn first_byte(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    if reader.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
        reader.consume(3);
    }
    loop {
        let buffer = reader.fill_buf()?;
        let blanks = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        match buffer.get(blanks).copied() {
            Some(byte) => {
                reader.consume(blanks);
                return Ok(Some(byte));
            }
            None if buffer.is_empty() => return Ok(None),
            None => reader.consume(blanks),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "the object {\"prefix\": …}")]
struct PrefixElement {
    prefix: String,
}

struct Elements<'a, F> {
    folder: &'a Place,
    at: &'a mut u64,
    take: &'a mut F,
}

impl<'de, F: FnMut(Vec<u8>) -> io::Result<()>> Visitor<'de> for Elements<'_, F> {
    type Value = Prefix;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Prefix, A::Error> {
        let first: Option<PrefixElement> = elements.next_element()?;
        let first = first.ok_or_else(|| A::Error::custom("the prefix is missing"))?;
        let prefix = Prefix::of(&first.prefix, self.folder).map_err(A::Error::custom)?;
        loop {
            *self.at += 1;
            let Some(suffix) = elements.next_element::<String>()? else { return Ok(prefix) };
            let wrong = |what: String| {
                A::Error::custom(format!(
                    "`{}` {what}",
                    suffix.escape_debug().take(80).collect::<String>()
                ))
            };
            let key = prefix.key(&suffix).map_err(wrong)?;
            (self.take)(key)
                .map_err(|error| A::Error::custom(format!("cannot sort it: {error}")))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &[u8]) -> Result<(String, Vec<String>), String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("photos")).unwrap();
        let mut keys = Vec::new();
        let folder = Place::Local(dir.path().to_owned());
        let prefix = read_manifest(text, Path::new("m.json"), &folder, |key| {
            keys.push(String::from_utf8(key).unwrap());
            Ok(())
        })
        .map_err(|error| {
            assert_eq!(error.class(), crate::store::Class::Malformed);
            error.to_string()
        })?;
        let root = prefix.root.to_string();
        let root = root.strip_prefix(&format!("{}/", dir.path().display())).unwrap_or(&root);
        Ok((root.to_owned(), keys))
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_uri_is_prefix_and_suffix_in_a_row() {
        let cases: [(&str, &str, &[&str]); 9] = [
            (r#"[{"prefix":"photos/"}, "b.jpg", "a/c.jpg"]"#, "photos/", &["b.jpg", "a/c.jpg"]),
            (r#"[{"prefix":"photos/2026-"}, "01.jpg"]"#, "photos/", &["2026-01.jpg"]),
            (r#"[{"prefix":"photos"}, "/a.jpg"]"#, "", &["photos/a.jpg"]),
            (r#"[{"prefix":"./"}, "./a.jpg", "é.jpg"]"#, "./", &["a.jpg", "é.jpg"]),
            (r#"[{"prefix":"photos/a.jpg"}, ""]"#, "photos/", &["a.jpg"]),
            ("\u{feff} \n[{\"prefix\":\"photos/\"}]", "photos/", &[]),
            (r#"[{"prefix":"s3://b/a/c-"}, "/x", "./y"]"#, "s3://b/a/", &["c-/x", "c-./y"]),
            (r#"[{"prefix":"s3://b"}, "/x", "./y"]"#, "s3://b/", &["/x", "./y"]),
            (r#"[{"prefix":"s3://b/a//"}, "../x"]"#, "s3://b/a//", &["../x"]),
        ];
        for (text, root, expected) in cases {
            let (got, keys) = manifest(text.as_bytes()).unwrap();
            assert_eq!((got.as_str(), keys), (root, owned(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_named_with_its_element() {
        let long = format!(r#"[{{"prefix":"photos/"}}, "{}"]"#, "x".repeat(5000));
        let open = format!(r#"[{{"prefix":"photos/"}}, "a", "{}"#, "x".repeat(1 << 20));
        let cases = [
            ("", "does not begin with `["),
            ("a.jpg\nb.jpg", "does not begin with `["),
            (r#"{"source-ref":"s3://b/a.jpg"}"#, "AugmentedManifestFile"),
            (r#"{"prefix":"photos/"}"#, "does not begin with `["),
            ("[]", "element 1: the prefix is missing"),
            (r#"["a.jpg"]"#, "element 1: invalid type: string \"a.jpg\", expected the object"),
            (r#"[{"prefx":"photos/"}]"#, "element 1: unknown field `prefx`"),
            (r#"[{"prefix":"s3://"}, "x"]"#, "element 1: `s3://` names no bucket"),
            (r#"[{"prefix":"https://host/a/"}]"#, "a URL of `https`"),
            (r#"[{"prefix":"file://host/a/"}]"#, "names a host"),
            (r#"[{"prefix":""}]"#, "the prefix is empty"),
            (r#"[{"prefix":"nowhere/"}]"#, "lies in no folder"),
            (r#"[{"prefix":"photos/"}, "a", 5]"#, "element 3: invalid type: integer `5`"),
            (r#"[{"prefix":"photos/"}, ["a"]]"#, "element 2: invalid type: sequence"),
            (r#"[{"prefix":"photos/"}, "a", ""]"#, "element 3: `` names nothing"),
            (r#"[{"prefix":"photos/"}, "/etc/x"]"#, "element 2: `/etc/x` begins with `/`"),
            (r#"[{"prefix":"photos/"}, "a\u0000"]"#, "holds a NUL"),
            (r#"[{"prefix":"photos/"}, "s3://b/x"]"#, "element 2: `s3://b/x` is a whole address"),
            (&long, "has 5000 bytes"),
            (&open, "element 3: more than 262144 bytes"),
            (r#"[{"prefix":"photos/"}, "a" "b"]"#, "element 3: expected `,` or `]`"),
            (r#"[{"prefix":"photos/"}, "a"] []"#, "trailing characters"),
            (r#"[{"prefix":"photos/"}, "a","#, "element 3: EOF"),
        ];
        for (text, expected) in cases {
            let error = manifest(text.as_bytes()).unwrap_err();
            let start: String = text.chars().take(60).collect();
            assert!(error.contains(expected), "{start}: {error} should contain {expected}");
        }
        assert!(
            manifest(b"[{\"prefix\":\"photos/\"}, \"\xff\"]").unwrap_err().contains("element 2")
        );
    }
}
