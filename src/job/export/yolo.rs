//! YOLO txt: `a/b.jpg` becomes `a/b.txt`, with a line `class cx cy w h score` for each detection,
//! normalised to the picture. A picture without detections has an empty file. Names stay below the
//! target and apart, whatever the keys are.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::super::exit::JobError;
use super::super::survey::Survey;
use super::{Exported, lines};
use crate::store::{Key, StoreError, name_of};

pub(super) fn export(survey: &Survey, to: &Path) -> Result<Exported, JobError> {
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        let to = to.display();
        return Err(JobError::Usage(format!("`{to}` is not empty; give the labels a new folder")));
    }
    let mut exported = Exported::default();
    lines(survey, |line| {
        let key = line.key().map_err(JobError::Damaged)?;
        let (Some(detections), Some(width), Some(height)) =
            (line.detections, line.width, line.height)
        else {
            exported.failed += 1;
            return Ok(());
        };
        exported.pictures += 1;
        let (width, height) = (f64::from(width), f64::from(height));
        let mut text = String::new();
        for found in &detections {
            exported.detections += 1;
            let [x1, y1, x2, y2] = found.bbox;
            let (cx, cy) = ((x1 + x2) / 2.0 / width, (y1 + y2) / 2.0 / height);
            let (w, h) = ((x2 - x1) / width, (y2 - y1) / height);
            let (class, score) = (found.class, found.score);
            text.push_str(&format!("{class} {cx:.6} {cy:.6} {w:.6} {h:.6} {score}\n"));
        }
        put(to, &key, text.as_bytes())?;
        Ok(())
    })?;
    Ok(exported)
}

/// Writes a picture's file. Where `a.jpg` has taken `a.txt`, `a.png` gets `a.png.txt`.
fn put(to: &Path, key: &Key, text: &[u8]) -> Result<(), JobError> {
    let long = to.join(name_of(key, ".txt"));
    // In plan order, `a.png` comes before the `a.png.jpg` that would like its long name.
    let short = long.with_extension("").with_extension("txt");
    for path in [short, long] {
        let fault = |error| StoreError::new("write", &path, error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fault)?;
        }
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fault(error).into()),
            Ok(mut file) => return Ok(file.write_all(text).map_err(fault)?),
        }
    }
    Err(JobError::Usage(format!("two pictures would share the label file of `{key}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_differ_in_suffix_only_keep_apart() {
        let dir = tempfile::tempdir().unwrap();
        for (key, text) in [("a/b.jpg", "1"), ("a/b.png", "2"), ("a/b.c.jpg", "3")] {
            put(dir.path(), &Key::from(key), text.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("a/b.txt"), read("a/b.png.txt"), read("a/b.c.txt")),
            ("1".into(), "2".into(), "3".into())
        );
    }

    #[test]
    fn odd_keys_stay_inside_and_apart() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("a/b");
        let long = "l".repeat(300);
        let mut keys = vec![
            "..",
            "../../x.jpg",
            "./x.jpg",
            "/etc/x.jpg",
            "/x.jpg",
            "x.jpg",
            "a//b.jpg",
            "a/b.jpg",
            "a/b.png",
            "a/b.png.jpg",
            "a/b.txt/c.jpg",
            "a/b.png.txt/c.jpg",
            "a/",
            "a",
            "",
            ".",
            "%2E.jpg",
            "%2E/x.jpg",
            "\u{1}.jpg",
            "%01.jpg",
            "\0.jpg",
            ".jpg",
            ".jpg.jpg",
            &long,
        ];
        keys.sort_unstable();
        for key in &keys {
            put(&to, &Key::from(*key), key.as_bytes()).unwrap_or_else(|e| panic!("{key:?}: {e}"));
        }
        let (mut folders, mut found) = (vec![home.path().to_owned()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    assert!(path.starts_with(&to), "{path:?}");
                    found.push(fs::read_to_string(path).unwrap());
                }
            }
        }
        found.sort_unstable();
        assert_eq!(found, keys);
    }
}
