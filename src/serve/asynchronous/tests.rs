//! The worker with entries as an earlier server may have left them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::entry::{Asked, Decision, Entry, State, Target, now};
use super::queue::Queue;
use super::{AsyncConfig, AsyncDoor};
use crate::job::{Inference, Settings};
use crate::serve::endpoint::{Endpoint, EndpointConfig};
use crate::store::{Roots, S3Options};

struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        Rig { dir: tempfile::tempdir().unwrap() }
    }

    fn output(&self) -> String {
        self.dir.path().join("out").to_str().unwrap().to_owned()
    }

    fn entry(&self, state: State) -> Entry {
        let target = |name: &str| Target { place: self.output(), name: name.to_owned() };
        Entry {
            inference_id: "one".to_owned(),
            asked: Asked { ttl: 60, timeout: 60, ..Asked::default() },
            digest: String::new(),
            output: target("one.out"),
            failure: target("one-error.out"),
            received: now() - 30_000,
            begun: None,
            ended: None,
            attempts: 0,
            faults: 0,
            deaths: 0,
            state,
        }
    }

    /// Leaves an entry in the queue, and has a server go on with it to its end.
    async fn settled(&self, entry: Entry, outcome: Option<&'static [u8]>) -> Entry {
        let state = self.dir.path().join("state");
        let queue = Queue::open(&state).unwrap();
        let left = queue.change(move |tables| {
            let number = tables.accept(&entry, None)?;
            if let Some(bytes) = outcome {
                tables.decide(number, &entry, bytes)?;
            }
            Ok(number)
        });
        let number = left.await.unwrap();
        queue.close();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/model/shapes.safetensors");
        let settings = Settings { model: Some(model), workers: Some(1), ..Settings::default() };
        let config = EndpointConfig {
            name: "shapes".to_owned(),
            inference: Inference::new(settings).unwrap(),
            s3: S3Options::default(),
            most_requests: 4,
            most_bytes: 1 << 20,
        };
        let endpoint = Endpoint::new(config, Roots::open(&[], &S3Options::default()).unwrap());
        let config = AsyncConfig {
            output: self.output(),
            failure: self.output(),
            state,
            concurrency: 2,
            most_queued: 10,
            most_bytes: 1 << 20,
            notify_success: Vec::new(),
            notify_error: Vec::new(),
            notify_response: false,
            retention: Duration::from_secs(3600),
            region: "r".to_owned(),
        };
        let door = AsyncDoor::start(endpoint, config).await.unwrap();
        let queue: Arc<Queue> = door.0.queue.clone();
        let ended = async {
            loop {
                let entry = queue.look(move |tables| tables.entry(number)).await.unwrap().unwrap();
                if matches!(entry.state, State::Ended(_)) {
                    return entry;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
        door.stop(Duration::from_secs(5)).await;
        door.close();
        ended
    }

    fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = std::fs::read_dir(self.output())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect();
        all.sort();
        all
    }

    /// The one failure there is; its code.
    fn failure(&self) -> String {
        let objects = self.objects();
        assert_eq!(objects.len(), 1, "{objects:?}");
        assert_eq!(objects[0].0, "one-error.out");
        let said: Value = serde_json::from_slice(&objects[0].1).unwrap();
        said["error"]["code"].as_str().unwrap().to_owned()
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

#[test]
fn what_was_not_begun_in_time_fails() {
    let rig = Rig::new();
    let entry = Entry { received: now() - 61_000, ..rig.entry(State::Queued) };
    let ended = wait(rig.settled(entry, None));
    assert_eq!((ended.status(), ended.attempts), ("Failed", 0));
    assert_eq!(rig.failure(), "expired");
}

#[test]
fn what_kills_the_server_again_and_again_fails() {
    let rig = Rig::new();
    let entry = Entry { deaths: 2, attempts: 3, ..rig.entry(State::InProgress) };
    let ended = wait(rig.settled(entry, None));
    assert_eq!((ended.status(), ended.deaths), ("Failed", 3));
    assert_eq!(rig.failure(), "died");
}

#[test]
fn what_was_begun_is_begun_again() {
    let rig = Rig::new();
    let location = Some("none.jpg".to_owned());
    let mut entry = Entry { attempts: 1, begun: Some(1), ..rig.entry(State::InProgress) };
    entry.asked.location = location;
    // It had begun, so it does not expire.
    entry.received = now() - 100_000;
    let ended = wait(rig.settled(entry, None));
    assert_eq!((ended.deaths, ended.attempts), (1, 2));
    assert_eq!(rig.failure(), "outside");
}

#[test]
fn what_was_decided_is_only_published() {
    let decided = || State::Decided(Decision::Completed { content_type: "text/plain".into() });
    // Before it was published, and after.
    for published in [false, true] {
        let rig = Rig::new();
        if published {
            std::fs::create_dir(rig.output()).unwrap();
            std::fs::write(Path::new(&rig.output()).join("one.out"), b"result").unwrap();
        }
        let ended = wait(rig.settled(rig.entry(decided()), Some(b"result")));
        assert_eq!((ended.status(), ended.attempts), ("Completed", 0));
        assert_eq!(rig.objects(), [("one.out".to_owned(), b"result".to_vec())]);
    }
}
