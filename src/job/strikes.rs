//! Pictures that the process has died of: a local file of strikes, and who is left out for them.
//!
//! A strike is one line, the key of the picture whose worker died. The dying thread appends it
//! ([`CrashNote`]); only the next run reads it. No reader of results does.
//!
//! A dying thread can append to a file of this machine and to nothing else. So the strikes of a job
//! whose output is in a bucket lie in the user's folder for states, under the id of the job: a new
//! job has none, and one that goes on on another machine starts without them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{key_of, key_text};
use crate::pool::CrashNote;
use crate::store::{Key, Place, StoreError, sha256};

/// Its name in an output that is a folder.
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

/// Where the strikes of a job may be: in the first of these places that can be had.
fn places(output: &Place, job: &str) -> Vec<PathBuf> {
    match output {
        Place::Local(folder) => vec![folder.join(STRIKES)],
        Place::S3(_) => {
            // Whoever wrote job.json chose the id; its digest is a name and no path.
            let name = format!("strikes-{}.jsonl", &sha256(job.as_bytes())[..32]);
            states(|name| std::env::var_os(name)).iter().map(|folder| folder.join(&name)).collect()
        }
    }
}

/// The folders for states of this user.
fn states(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || Some(absolute("HOME")?.join(".local/state"));
    let state = absolute("XDG_STATE_HOME").or_else(home).map(|folder| folder.join("haul"));
    let user = nix::unistd::geteuid();
    state.into_iter().chain([std::env::temp_dir().join(format!("haul-{user}"))]).collect()
}

/// Makes a folder for states, if need be; it has to be ours: anybody may make one among temporary
/// files.
fn make_state(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let meta = folder.symlink_metadata()?;
    match meta.uid() == nix::unistd::geteuid().as_raw() && (meta.is_dir() || meta.is_symlink()) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's")),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

/// The pictures that the job of this id in `output` leaves out, for those who only look: nothing is
/// made, mended or locked.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn quarantined(output: &Place, job: &str) -> Result<BTreeSet<Key>, StoreError> {
    quarantined_at(&places(output, job))
}

fn quarantined_at(places: &[PathBuf]) -> Result<BTreeSet<Key>, StoreError> {
    let mut text = Vec::new();
    for path in places {
        match std::fs::read(path) {
            Err(error) if is_nowhere(&error, places) => {}
            read => {
                let fault = |error| StoreError::new("read the strike file", path, error);
                text = read.map_err(fault)?;
                break;
            }
        }
    }
    let (counts, _) = count(&text);
    Ok(counts.into_iter().filter(|&(_, count)| count >= OUT).map(|(key, _)| key).collect())
}

/// Forgets the strikes of a job whose output is in a bucket; of one in a folder, its manifest does.
///
/// # Errors
/// When the file is there and cannot be removed.
pub(super) fn forget(output: &Place, job: &str) -> Result<(), StoreError> {
    match output {
        Place::Local(_) => Ok(()),
        Place::S3(_) => forget_at(&places(output, job)),
    }
}

fn forget_at(places: &[PathBuf]) -> Result<(), StoreError> {
    for path in places {
        match std::fs::remove_file(path) {
            Err(error) if !is_nowhere(&error, places) => {
                return Err(StoreError::new("delete the strike file", path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether there is no such file of ours. What we may not look at is, where there are several
/// places, why another one was taken.
fn is_nowhere(error: &io::Error, places: &[PathBuf]) -> bool {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => true,
        io::ErrorKind::PermissionDenied => places.len() > 1,
        _ => false,
    }
}

/// The strikes of a job, and the file for more of them.
#[derive(Debug)]
pub(super) struct Strikes {
    path: PathBuf,
    file: Arc<File>,
    counts: BTreeMap<Key, u64>,
    unknown: u64,
    /// Why there is no file, where the job can do without.
    none: Option<String>,
}

impl Strikes {
    /// Opens the strikes of the job of this id in `output`, whose lock is held; `shared` where
    /// other shards may be at work too.
    ///
    /// # Errors
    /// When the file can be neither read nor made. A job in a bucket goes on without: its machine
    /// may have no place to write to.
    pub(super) fn open(output: &Place, job: &str, shared: bool) -> Result<Strikes, StoreError> {
        let opened = Strikes::open_at(places(output, job), output.local().is_none(), shared);
        match opened {
            Err(error) if output.local().is_none() => {
                let path = PathBuf::from("/dev/null");
                let fault = |error| StoreError::new("open the strike file", &path, error);
                let file = OpenOptions::new().append(true).open(&path).map_err(fault)?;
                let (counts, none) = (BTreeMap::new(), Some(error.to_string()));
                Ok(Strikes { file: Arc::new(file), path, counts, unknown: 0, none })
            }
            opened => opened,
        }
    }

    /// Opens them in the first place that can be had; `state`: folders for states, which are made.
    fn open_at(places: Vec<PathBuf>, state: bool, shared: bool) -> Result<Strikes, StoreError> {
        let mut opened = None;
        for path in places {
            let folder = path.parent().filter(|_| state);
            let file = folder.map_or(Ok(()), make_state).and_then(|()| open(&path));
            let is_open = file.is_ok();
            opened = Some((path, file));
            if is_open {
                break;
            }
        }
        let (path, file) = opened.expect("there is a place for strikes. This is a bug.");
        let fault = |error| StoreError::new("open the strike file", &path, error);
        let mut file = file.map_err(fault)?;
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
        Ok(Strikes { file: Arc::new(file), path, counts, unknown, none: None })
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
        if let Some(why) = &self.none {
            remarks.push(format!("{why}; a picture that haul dies of will not be left out"));
        }
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
        if self.none.is_none() && self.file.metadata().is_ok_and(|meta| meta.len() == 0) {
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

    fn place(dir: &tempfile::TempDir) -> Place {
        Place::Local(dir.path().to_owned())
    }

    #[test]
    fn strikes_of_a_bucket_lie_in_the_folder_for_states() {
        let states = |pairs: &[(&str, &str)]| {
            let value = |name: &str| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1);
            let folders = super::states(|name| value(name).map(OsString::from));
            let (last, others) = folders.split_last().unwrap();
            assert!(last.starts_with(std::env::temp_dir()), "{last:?}");
            others.to_vec()
        };
        let both = [("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(states(&both), [PathBuf::from("/x/haul")]);
        assert_eq!(states(&both[1..]), [PathBuf::from("/h/.local/state/haul")]);
        // The rules of these variables: a relative one counts for nothing.
        let relative = [("XDG_STATE_HOME", "x"), ("HOME", "/h")];
        assert_eq!(states(&relative), [PathBuf::from("/h/.local/state/haul")]);
        assert!(states(&[("HOME", "")]).is_empty());

        let s3 = Place::parse(Path::new("s3://bucket/out")).unwrap();
        let name = |job: &str| places(&s3, job)[0].file_name().unwrap().to_owned();
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
        assert_eq!(name("../../a").len(), name("a").len());
    }

    #[test]
    fn strikes_lie_in_the_first_place_that_can_be_had() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let places: Vec<PathBuf> =
            ["file/haul/s", "a/haul/s", "b/s"].map(|name| dir.path().join(name)).into();
        let open = |shared| Strikes::open_at(places.clone(), true, shared).unwrap();
        let key = Key::from("a.jpg");
        for round in 0..3 {
            let strikes = open(round == 1);
            assert_eq!(strikes.path, places[1]);
            assert_eq!(strikes.quarantined(&key), round >= 2);
            assert_eq!(quarantined_at(&places).unwrap().contains(&key), round >= 2);
            (&*strikes.file).write_all(strikes.note(&key).line()).unwrap();
        }
        forget_at(&places).unwrap();
        forget_at(&places).unwrap();
        assert!(quarantined_at(&places).unwrap().is_empty());
        let strikes = open(false);
        assert!(!strikes.quarantined(&key));
        strikes.tidy();
        assert!(!places[1].exists() && !places[2].exists());
        assert!(Strikes::open_at(places[..1].to_vec(), true, false).is_err());
    }

    #[test]
    fn a_folder_for_states_is_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        make_state(&folder).unwrap();
        make_state(&folder).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::write(dir.path().join("file"), b"").unwrap();
        assert!(make_state(&dir.path().join("file")).is_err());
        assert!(make_state(&dir.path().join("file/a")).is_err());
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
            assert!(make_state(&folder).unwrap_err().to_string().contains("another user's"));
        }
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
            let strikes = Strikes::open(&place(&dir), "job", false).unwrap();
            for (index, key) in keys.iter().enumerate() {
                let struck = if index == 4 { round } else { round * usize::from(index % 2 == 0) };
                assert_eq!(strikes.quarantined(key), struck >= 2, "{key} in round {round}");
            }
            let mut file = &*strikes.file;
            for key in keys.iter().step_by(2) {
                file.write_all(strikes.note(key).line()).unwrap();
            }
        }
        let strikes = Strikes::open(&place(&dir), "job", false).unwrap();
        strikes.tidy();
        assert_eq!(strikes.remarks().len(), 3);
        assert!(dir.path().join(STRIKES).exists(), "strikes are kept");
    }

    #[test]
    fn who_only_looks_sees_the_same_and_changes_nothing() {
        let text = b"{\"image\":\"a\"}\n{\"image\":\"b\"}\n{\"image\":\"a\"}\n{\"image\":\"b\"}";
        let dir = output(text);
        assert_eq!(quarantined(&place(&dir), "job").unwrap(), [Key::from("a")].into());
        assert_eq!(std::fs::read(dir.path().join(STRIKES)).unwrap(), text);
        std::fs::remove_file(dir.path().join(STRIKES)).unwrap();
        assert!(quarantined(&place(&dir), "job").unwrap().is_empty());
        assert!(!dir.path().join(STRIKES).exists());
    }

    #[test]
    fn a_torn_line_counts_for_nothing_and_hurts_no_later_one() {
        let whole = "{\"image\":\"a.jpg\"}\n";
        for torn in 0..whole.len() {
            let dir = output(&[whole.as_bytes(), &whole.as_bytes()[..torn]].concat());
            let strikes = Strikes::open(&place(&dir), "job", false).unwrap();
            let key = Key::from("a.jpg");
            assert!(!strikes.quarantined(&key), "torn at {torn}");
            assert!(strikes.remarks()[0].contains("once more"), "{:?}", strikes.remarks());
            (&*strikes.file).write_all(strikes.note(&key).line()).unwrap();
            assert!(
                Strikes::open(&place(&dir), "job", false).unwrap().quarantined(&key),
                "torn at {torn}"
            );

            // Beside other shards nothing is cut off.
            let dir = output(&[whole.as_bytes(), &whole.as_bytes()[..torn]].concat());
            let strikes = Strikes::open(&place(&dir), "job", true).unwrap();
            (&*strikes.file).write_all(strikes.note(&key).line()).unwrap();
            assert!(
                Strikes::open(&place(&dir), "job", true).unwrap().quarantined(&key),
                "torn at {torn}"
            );
            let kept = std::fs::read(dir.path().join(STRIKES)).unwrap();
            assert!(kept.starts_with(&[whole.as_bytes(), &whole.as_bytes()[..torn]].concat()));
        }
    }

    #[test]
    fn unknown_lines_are_passed_over_and_said() {
        let dir = output(b"{\"image\":\"a\"}\nwhat?\n{\"image\":7}\n\n{\"image\":\"a\",\"x\":1}\n");
        let strikes = Strikes::open(&place(&dir), "job", false).unwrap();
        assert!(strikes.quarantined(&Key::from("a")));
        assert!(strikes.remarks()[1].contains("2 lines are no strikes"), "{:?}", strikes.remarks());
    }

    #[test]
    fn an_empty_file_is_taken_away() {
        let dir = output(b"");
        Strikes::open(&place(&dir), "job", false).unwrap().tidy();
        assert!(!dir.path().join(STRIKES).exists());
    }
}
