//! Pictures that the process has died of: a local file of strikes, and who is left out for them.
//!
//! A strike is one line, the key of the picture whose worker died. The dying thread appends it
//! ([`CrashNote`]); only the next run reads it. No reader of results does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{key_of, key_text};
use crate::pool::CrashNote;
use crate::store::{Key, StoreError};

/// Its name in an output that is a folder. It has to be a file of this machine: a dying thread can
/// append to no other.
pub(super) const STRIKES: &str = "_manifest/strikes.jsonl";

/// A picture with so many strikes is not tried again: one death may be anybody's fault.
const OUT: u64 = 2;

#[derive(Serialize, Deserialize)]
struct Strike {
    image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_b64: Option<String>,
}

/// Strikes by picture, and how many lines are none. A last line without its end counts for nothing.
fn count(text: &[u8]) -> (BTreeMap<Key, u64>, u64) {
    let (mut counts, mut unknown) = (BTreeMap::new(), 0);
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    for line in text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let strike = serde_json::from_slice::<Strike>(line).ok();
        match strike.and_then(|strike| key_of(strike.image, strike.image_b64).ok()) {
            Some(key) => *counts.entry(key).or_default() += 1,
            None => unknown += 1,
        }
    }
    (counts, unknown)
}

/// The pictures that the job in `output` leaves out, for those who only look: nothing is made,
/// mended or locked.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn quarantined(output: &Path) -> Result<BTreeSet<Key>, StoreError> {
    let path = output.join(STRIKES);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read.map_err(|error| StoreError::new("read the strike file", &path, error))?,
    };
    let (counts, _) = count(&text);
    Ok(counts.into_iter().filter(|&(_, count)| count >= OUT).map(|(key, _)| key).collect())
}

/// The strikes of a job, and the file for more of them.
#[derive(Debug)]
pub(super) struct Strikes {
    path: PathBuf,
    file: Arc<File>,
    counts: BTreeMap<Key, u64>,
    unknown: u64,
}

impl Strikes {
    /// Opens the strikes of the job in `output`, whose lock is held; `shared` where other shards
    /// may be at work too.
    ///
    /// # Errors
    /// When the file can be neither read nor made.
    pub(super) fn open(output: &Path, shared: bool) -> Result<Strikes, StoreError> {
        let path = output.join(STRIKES);
        let fault = |error| StoreError::new("open the strike file", &path, error);
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(fault)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(fault)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if whole < text.len() {
            // A torn line would run into the next one. Behind it there may be another's by now.
            match shared {
                false => file.set_len(whole as u64).map_err(fault)?,
                // A full disk must be able to resume; then the next strike may be lost.
                true => drop(file.write_all(b"\n")),
            }
        }
        let (counts, unknown) = count(&text[..whole]);
        Ok(Strikes { file: Arc::new(file), path, counts, unknown })
    }

    /// Whether a picture is left out.
    pub(super) fn quarantined(&self, key: &Key) -> bool {
        self.counts.get(key).is_some_and(|&count| count >= OUT)
    }

    /// What a worker carries while it is at work on a picture.
    pub(super) fn note(&self, key: &Key) -> CrashNote {
        let (image, image_b64) = key_text(key);
        let mut line = serde_json::to_vec(&Strike { image, image_b64 })
            .expect("a strike is JSON. This is a bug.");
        line.push(b'\n');
        CrashNote::new(line, self.file.clone())
    }

    /// What a person should know before the work begins.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = self
            .counts
            .iter()
            .map(|(key, &count)| match count {
                0..OUT => format!("an earlier run died at work on `{key}`; it is tried once more"),
                _ => {
                    format!("earlier runs died at work on `{key}`; it is left out (`quarantined`)")
                }
            })
            .collect();
        if self.unknown > 0 {
            remarks.push(format!(
                "`{}`: {} lines are no strikes of haul, and are passed over",
                self.path.display(),
                self.unknown
            ));
        }
        remarks
    }

    /// Takes away a file in which nothing is, at the end of a run that nobody else works beside: a
    /// thread that dies may write into it until then.
    pub(super) fn tidy(&self) {
        if self.file.metadata().is_ok_and(|meta| meta.len() == 0) {
            // An empty one means the same as none.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("_manifest")).unwrap();
        std::fs::write(dir.path().join(STRIKES), text).unwrap();
        dir
    }

    #[test]
    fn two_strikes_are_out_and_any_key_is_its_own() {
        let dir = output(b"");
        let keys: Vec<Key> =
            [&b"a.jpg"[..], b"d/a.jpg", b"\xff.jpg", b"\xfe.jpg", b"new\nline\".jpg"]
                .into_iter()
                .map(Key::new)
                .collect();
        for round in 0..3 {
            let strikes = Strikes::open(dir.path(), false).unwrap();
            for (index, key) in keys.iter().enumerate() {
                let struck = if index == 4 { round } else { round * usize::from(index % 2 == 0) };
                assert_eq!(strikes.quarantined(key), struck >= 2, "{key} in round {round}");
            }
            let mut file = &*strikes.file;
            for key in keys.iter().step_by(2) {
                file.write_all(strikes.note(key).line()).unwrap();
            }
        }
        let strikes = Strikes::open(dir.path(), false).unwrap();
        strikes.tidy();
        assert_eq!(strikes.remarks().len(), 3);
        assert!(dir.path().join(STRIKES).exists(), "strikes are kept");
    }

    #[test]
    fn who_only_looks_sees_the_same_and_changes_nothing() {
        let text = b"{\"image\":\"a\"}\n{\"image\":\"b\"}\n{\"image\":\"a\"}\n{\"image\":\"b\"}";
        let dir = output(text);
        assert_eq!(quarantined(dir.path()).unwrap(), [Key::from("a")].into());
        assert_eq!(std::fs::read(dir.path().join(STRIKES)).unwrap(), text);
        std::fs::remove_file(dir.path().join(STRIKES)).unwrap();
        assert!(quarantined(dir.path()).unwrap().is_empty());
        assert!(!dir.path().join(STRIKES).exists());
    }

    #[test]
    fn a_torn_line_counts_for_nothing_and_hurts_no_later_one() {
        let whole = "{\"image\":\"a.jpg\"}\n";
        for torn in 0..whole.len() {
            let dir = output(&[whole.as_bytes(), &whole.as_bytes()[..torn]].concat());
            let strikes = Strikes::open(dir.path(), false).unwrap();
            let key = Key::from("a.jpg");
            assert!(!strikes.quarantined(&key), "torn at {torn}");
            assert!(strikes.remarks()[0].contains("once more"), "{:?}", strikes.remarks());
            (&*strikes.file).write_all(strikes.note(&key).line()).unwrap();
            assert!(Strikes::open(dir.path(), false).unwrap().quarantined(&key), "torn at {torn}");

            // Beside other shards nothing is cut off.
            let dir = output(&[whole.as_bytes(), &whole.as_bytes()[..torn]].concat());
            let strikes = Strikes::open(dir.path(), true).unwrap();
            (&*strikes.file).write_all(strikes.note(&key).line()).unwrap();
            assert!(Strikes::open(dir.path(), true).unwrap().quarantined(&key), "torn at {torn}");
            let kept = std::fs::read(dir.path().join(STRIKES)).unwrap();
            assert!(kept.starts_with(&[whole.as_bytes(), &whole.as_bytes()[..torn]].concat()));
        }
    }

    #[test]
    fn unknown_lines_are_passed_over_and_said() {
        let dir = output(b"{\"image\":\"a\"}\nwhat?\n{\"image\":7}\n\n{\"image\":\"a\",\"x\":1}\n");
        let strikes = Strikes::open(dir.path(), false).unwrap();
        assert!(strikes.quarantined(&Key::from("a")));
        assert!(strikes.remarks()[1].contains("2 lines are no strikes"), "{:?}", strikes.remarks());
    }

    #[test]
    fn an_empty_file_is_taken_away() {
        let dir = output(b"");
        Strikes::open(dir.path(), false).unwrap().tidy();
        assert!(!dir.path().join(STRIKES).exists());
    }
}
