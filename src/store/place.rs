//! Where something lies: in a folder, or under a name in a bucket.

use std::fmt;
use std::path::{Path, PathBuf};

/// A path of this machine, or a name in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or folder.
    Local(PathBuf),
    /// An object, or a prefix of objects.
    S3(Location),
}

impl Place {
    /// Reads what somebody gave as a path: `s3://bucket/name` is a [`Location`].
    ///
    /// # Errors
    /// What is wrong with an `s3://` address, or the scheme that haul does not know.
    pub fn parse(path: &Path) -> Result<Place, String> {
        let Some(text) = path.to_str() else { return Ok(Place::Local(path.to_owned())) };
        match text.split_once("://") {
            Some(("s3", _)) => Location::parse(text).map(Place::S3),
            // `a://b` can be the name of a file, but is hardly ever meant as one.
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => Err(format!(
                "`{text}`: haul reads and writes files, folders and s3:// only (other URLs are \
                 never fetched)"
            )),
            _ => Ok(Place::Local(path.to_owned())),
        }
    }

    /// Whether both are the same folder: links are followed where they are there, and a prefix is
    /// one with and without the `/` at its end.
    #[must_use]
    pub fn is_same(&self, other: &Place) -> bool {
        let canonical = |path: &Path| path.canonicalize().ok();
        match (self, other) {
            (Place::Local(a), Place::Local(b)) => {
                a == b || canonical(a).is_some_and(|a| canonical(b) == Some(a))
            }
            (Place::S3(a), Place::S3(b)) => a.folder() == b.folder(),
            _ => false,
        }
    }

    /// The path, where it is one of this machine.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        match self {
            Place::Local(path) => Some(path),
            Place::S3(_) => None,
        }
    }

    /// The location, where it is in a bucket.
    #[must_use]
    pub fn s3(&self) -> Option<&Location> {
        match self {
            Place::Local(_) => None,
            Place::S3(location) => Some(location),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Local(path) => path.display().fmt(f),
            Place::S3(location) => location.fmt(f),
        }
    }
}

/// A name in a bucket: an object's key, or a prefix of keys. Nothing of it is normalised: `a//b`
/// and `a/../b` are what they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The bucket, or the ARN of an access point.
    pub bucket: String,
    /// The key or prefix; it may be empty.
    pub key: String,
}

impl Location {
    /// Reads `s3://bucket/key`. What looks escaped is not: `%2B` is three characters of the key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Location, String> {
        let rest =
            text.strip_prefix("s3://").ok_or_else(|| format!("`{text}` is no s3:// address"))?;
        // An access point's ARN has one slash, or a colon, before its name.
        let bucket = match rest.strip_prefix("arn:") {
            None => rest.split('/').next().unwrap_or_default(),
            Some(_) => {
                let name = rest.find("accesspoint").map(|at| at + "accesspoint".len() + 1);
                let end = name.and_then(|at| rest.get(at..)?.find('/').map(|slash| at + slash));
                &rest[..end.unwrap_or(rest.len())]
            }
        };
        let key = rest[bucket.len()..].strip_prefix('/').unwrap_or_default();
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._:/".contains(&b);
        if bucket.is_empty() || !bucket.bytes().all(fits) {
            return Err(format!("`{text}` names no bucket (s3://BUCKET/PREFIX)"));
        }
        if key.len() > 1024 {
            return Err(format!("`{text}`: the key has {} bytes, 1024 are allowed", key.len()));
        }
        Ok(Location { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// What keys of objects under this prefix are relative to: the prefix up to its last `/`.
    #[must_use]
    pub fn root(&self) -> Location {
        let end = self.key.rfind('/').map_or(0, |slash| slash + 1);
        Location { bucket: self.bucket.clone(), key: self.key[..end].to_owned() }
    }

    /// This name as that of a folder: with a `/` at its end, unless it is the whole bucket.
    #[must_use]
    pub fn folder(&self) -> Location {
        let slash = if self.key.is_empty() || self.key.ends_with('/') { "" } else { "/" };
        Location { bucket: self.bucket.clone(), key: format!("{}{slash}", self.key) }
    }

    /// The object of this name below the prefix; nothing comes between the two.
    #[must_use]
    pub fn join(&self, name: &str) -> Location {
        Location { bucket: self.bucket.clone(), key: format!("{}{name}", self.key) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> (String, String) {
        let location = Location::parse(text).unwrap();
        assert_eq!(location.to_string().trim_end_matches('/'), text.trim_end_matches('/'));
        (location.bucket, location.key)
    }

    #[test]
    fn addresses_are_taken_as_they_are() {
        let pair = |bucket: &str, key: &str| (bucket.to_owned(), key.to_owned());
        assert_eq!(at("s3://b"), pair("b", ""));
        assert_eq!(at("s3://b/"), pair("b", ""));
        assert_eq!(at("s3://b/a/"), pair("b", "a/"));
        assert_eq!(at("s3://b/a//../%2B+ü"), pair("b", "a//../%2B+ü"));
        assert_eq!(at("s3://b//a"), pair("b", "/a"));
        let arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint/name";
        assert_eq!(at(&format!("s3://{arn}/a/b")), pair(arn, "a/b"));
        assert_eq!(at(&format!("s3://{arn}")), pair(arn, ""));
        for wrong in ["s3://", "s3:///a", "s3://b c/a", "s3:/b/a"] {
            assert!(Location::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Location::parse(&format!("s3://b/{}", "x".repeat(1025))).is_err());
    }

    #[test]
    fn roots_and_folders() {
        let location = |key: &str| Location { bucket: "b".into(), key: key.into() };
        for (key, root, folder) in [
            ("", "", ""),
            ("a", "", "a/"),
            ("a/", "a/", "a/"),
            ("a/img_0", "a/", "a/img_0/"),
            ("a//", "a//", "a//"),
        ] {
            assert_eq!(location(key).root(), location(root), "{key}");
            assert_eq!(location(key).folder(), location(folder), "{key}");
        }
    }

    #[test]
    fn only_s3_is_a_url_that_haul_knows() {
        let place = |text: &str| Place::parse(Path::new(text));
        assert!(matches!(place("s3://b/a"), Ok(Place::S3(_))));
        assert!(matches!(place("a/b"), Ok(Place::Local(_))));
        assert!(matches!(place("/a:/b"), Ok(Place::Local(_))));
        for wrong in ["https://a/b.jpg", "gs://b/a", "file:///a", "s3://"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
