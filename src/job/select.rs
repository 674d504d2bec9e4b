//! Which names are planned, by name alone.

use std::ffi::OsStr;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::exit::JobError;
use super::spec::Spec;
use crate::store::{Key, Select, Skip};

/// Suffixes of pictures, in lower case.
const SUFFIXES: [&str; 10] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"];

fn is_picture(suffix: &OsStr) -> bool {
    SUFFIXES.contains(&suffix.to_string_lossy().to_lowercase().as_str())
}

/// Whether a name ends like a picture's.
#[must_use]
pub fn is_picture_name(path: &Path) -> bool {
    path.extension().is_some_and(is_picture)
}

/// The rule of a job: a picture's suffix, not hidden; `--exclude` wins over `--include`.
#[derive(Debug)]
pub struct Names {
    include: Option<GlobSet>,
    exclude: GlobSet,
    hidden: bool,
}

impl Names {
    /// Compiles the patterns. A pattern with a `/` is held against the key, others against the name.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming a pattern that is none.
    pub fn new(spec: &Spec) -> Result<Names, JobError> {
        let include = (!spec.include.is_empty()).then(|| patterns(&spec.include, "include"));
        Ok(Names {
            include: include.transpose()?,
            exclude: patterns(&spec.exclude, "exclude")?,
            hidden: spec.hidden,
        })
    }
}

fn patterns(texts: &[String], flag: &str) -> Result<GlobSet, JobError> {
    let mut set = GlobSetBuilder::new();
    for text in texts {
        let wrong = |error: globset::Error| {
            JobError::Usage(format!("--{flag} `{text}` is not a pattern: {}", error.kind()))
        };
        let whole = if text.contains('/') { text.clone() } else { format!("**/{text}") };
        set.add(GlobBuilder::new(&whole).literal_separator(true).build().map_err(wrong)?);
    }
    set.build().map_err(|error| JobError::Usage(format!("--{flag}: {error}")))
}

impl Select for Names {
    fn file(&self, key: &Key) -> Result<(), Skip> {
        let path = key.as_path();
        if self.exclude.is_match(path) {
            return Err(Skip::Excluded);
        }
        if !self.hidden && key.name().starts_with(b".") {
            return Err(Skip::Hidden);
        }
        let included = self.include.as_ref().map(|include| include.is_match(path));
        match path.extension() {
            None if included == Some(true) => Ok(()),
            None => Err(Skip::NoSuffix),
            Some(suffix) => {
                if !is_picture(suffix) {
                    Err(Skip::Foreign)
                } else if included == Some(false) {
                    Err(Skip::NotIncluded)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn folder(&self, key: &Key) -> Result<(), Skip> {
        if self.exclude.is_match(key.as_path()) {
            Err(Skip::Excluded)
        } else if !self.hidden && key.name().starts_with(b".") {
            Err(Skip::Hidden)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::settings::Settings;

    fn names(include: &[&str], exclude: &[&str], hidden: bool) -> Names {
        let owned = |texts: &[&str]| Some(texts.iter().map(|&t| t.to_owned()).collect());
        let settings = Settings {
            model: Some("/m".into()),
            input: Some("/i".into()),
            output: Some("/o".into()),
            include: owned(include),
            exclude: owned(exclude),
            hidden: Some(hidden),
            ..Settings::default()
        };
        Names::new(&Spec::new(settings).unwrap()).unwrap()
    }

    #[test]
    fn table() {
        use Skip::{Excluded, Foreign, Hidden, NoSuffix, NotIncluded};
        let plain = names(&[], &[], false);
        for (key, expected) in [
            ("a.jpg", Ok(())),
            ("A.JPEG", Ok(())),
            ("-x.png", Ok(())),
            ("a b/é\n.webp", Ok(())),
            ("x.jpg/inner.tif", Ok(())),
            (".a.jpg", Err(Hidden)),
            ("notes.txt", Err(Foreign)),
            ("a.jpg.bak", Err(Foreign)),
            ("README", Err(NoSuffix)),
        ] {
            assert_eq!(plain.file(&Key::from(key)), expected, "{key:?}");
        }
        assert_eq!(plain.folder(&Key::from("a/.git")), Err(Hidden));
        assert_eq!(names(&[], &[], true).file(&Key::from(".a.jpg")), Ok(()));

        let picky = names(&["cam1/**", "IMG*"], &["*_thumb.jpg", "old"], false);
        for (key, expected) in [
            ("cam1/a.jpg", Ok(())),
            ("cam1/x/y/a.jpg", Ok(())),
            ("cam2/a.jpg", Err(NotIncluded)),
            ("cam2/IMG_1", Ok(())),
            ("cam2/IMG_1.jpg", Ok(())),
            ("cam1/a_thumb.jpg", Err(Excluded)),
            ("cam1/notes.txt", Err(Foreign)),
        ] {
            assert_eq!(picky.file(&Key::from(key)), expected, "{key:?}");
        }
        assert_eq!(picky.folder(&Key::from("cam1/old")), Err(Excluded));
        assert!(names(&["*"], &[], false).file(&Key::from("d/README")).is_ok());
    }
}
