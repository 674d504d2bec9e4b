//! The worker with entries as an earlier server may have left them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use serde_json::Value;
use tower::ServiceExt as _;

use super::entry::{Asked, Decision, Entry, State, Target, now};
use super::queue::Queue;
use super::{AsyncConfig, AsyncDoor, router};
use crate::job::{Inference, Settings};
use crate::serve::endpoint::{Endpoint, EndpointConfig};
use crate::serve::http::{App, DoorConfig};
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

    /// Leaves an entry in the queue; gives its number.
    async fn leave(&self, entry: Entry, outcome: Option<&'static [u8]>) -> u64 {
        let queue = Queue::open(&self.dir.path().join("state")).unwrap();
        let left = queue.change(move |tables| {
            let number = tables.accept(&entry, None)?;
            if let Some(bytes) = outcome {
                tables.decide(number, &entry, bytes)?;
            }
            Ok(number)
        });
        let number = left.await.unwrap();
        queue.close();
        number
    }

    /// Leaves an entry in the queue, and has a server go on with it to its end.
    async fn settled(&self, entry: Entry, outcome: Option<&'static [u8]>) -> Entry {
        let number = self.leave(entry, outcome).await;
        let (_, door) = self.door(2).await;
        let ended = ended(&door, number).await;
        door.stop(Duration::from_secs(5)).await;
        door.close();
        ended
    }

    /// A server, so much at once.
    async fn door(&self, concurrency: usize) -> (App, AsyncDoor) {
        let state = self.dir.path().join("state");
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
            concurrency,
            most_queued: 10,
            most_bytes: 1 << 20,
            notify_success: Vec::new(),
            notify_error: Vec::new(),
            notify_response: false,
            retention: Duration::from_secs(3600),
            region: "r".to_owned(),
        };
        let timeout = Duration::from_secs(60);
        let doors = DoorConfig { most_bytes: 1 << 20, timeout, throttles: false };
        let door = AsyncDoor::start(endpoint.clone(), config).await.unwrap();
        (App { endpoint, doors }, door)
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

/// How a request ended; waits for that.
async fn ended(door: &AsyncDoor, number: u64) -> Entry {
    let queue: Arc<Queue> = door.0.queue.clone();
    let ended = async {
        loop {
            let entry = queue.look(move |tables| tables.entry(number)).await.unwrap();
            if let Some(entry) = entry
                && matches!(entry.state, State::Ended(_))
            {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap()
}

fn completed() -> State {
    State::Decided(Decision::Completed { content_type: "text/plain".into() })
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
    // Before it was published, and after.
    for published in [false, true] {
        let rig = Rig::new();
        if published {
            std::fs::create_dir(rig.output()).unwrap();
            std::fs::write(Path::new(&rig.output()).join("one.out"), b"result").unwrap();
        }
        let ended = wait(rig.settled(rig.entry(completed()), Some(b"result")));
        assert_eq!((ended.status(), ended.attempts), ("Completed", 0));
        assert_eq!(rig.objects(), [("one.out".to_owned(), b"result".to_vec())]);
    }
}

#[test]
fn what_a_stop_cut_off_killed_nobody() {
    let rig = Rig::new();
    wait(async {
        let entry = Entry { deaths: 2, attempts: 3, ..rig.entry(State::InProgress) };
        let number = rig.leave(entry, None).await;
        // A server was told to stop, and then to do so at once.
        let queue = Queue::open(&rig.dir.path().join("state")).unwrap();
        queue.change(|tables| tables.stopping(true)).await.unwrap();
        queue.close();
        let (_, door) = rig.door(2).await;
        assert_eq!(ended(&door, number).await.deaths, 2);
        door.stop(Duration::from_secs(5)).await;
        door.close();
        // This one has put back what was left.
        assert_ne!(rig.failure(), "died");
    });
}

#[test]
fn a_place_that_cannot_be_written_to_keeps_nobody_else() {
    let rig = Rig::new();
    let broken = rig.dir.path().join("broken");
    std::fs::write(&broken, b"no folder").unwrap();
    wait(async {
        let elsewhere =
            Target { place: broken.to_str().unwrap().to_owned(), name: "one.out".to_owned() };
        let first = Entry { output: elsewhere, ..rig.entry(completed()) };
        let first = rig.leave(first, Some(b"first")).await;
        let mut second = Entry { inference_id: "two".to_owned(), ..rig.entry(completed()) };
        second.output.name = "two.out".to_owned();
        second.failure.name = "two-error.out".to_owned();
        let second = rig.leave(second, Some(b"second")).await;
        // One slot for both.
        let (_, door) = rig.door(1).await;
        assert_eq!(ended(&door, second).await.status(), "Completed");
        assert!(!door.is_idle() && !broken.join("one.out").exists());
        // Nobody is in progress, so nobody is waited for.
        let stopping = door.stop(Duration::from_secs(3600));
        tokio::time::timeout(Duration::from_secs(60), stopping).await.unwrap();
        door.close();

        let (_, door) = rig.door(1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::fs::remove_file(&broken).unwrap();
        assert_eq!(ended(&door, first).await.status(), "Completed");
        assert_eq!(std::fs::read(broken.join("one.out")).unwrap(), b"first");
        door.stop(Duration::from_secs(5)).await;
        door.close();
    });
}

#[test]
fn a_failure_has_an_object_also_where_its_name_is_taken() {
    let rig = Rig::new();
    std::fs::create_dir(rig.output()).unwrap();
    std::fs::write(Path::new(&rig.output()).join("one-error.out"), b"mine").unwrap();
    let entry = Entry { received: now() - 61_000, ..rig.entry(State::Queued) };
    let ended = wait(rig.settled(entry, None));
    assert_eq!(ended.status(), "Failed");
    let objects = rig.objects();
    assert_eq!(objects.len(), 2, "{objects:?}");
    assert!(objects.contains(&("one-error.out".to_owned(), b"mine".to_vec())));
    assert!(std::fs::read_to_string(ended.failure.location()).unwrap().contains("expired"));
    assert!(ended.failure.name.ends_with("-error.out") && ended.failure.name != "one-error.out");
}

#[test]
fn what_is_on_disk_is_done_also_when_its_client_has_gone() {
    let rig = Rig::new();
    wait(async {
        let (app, door) = rig.door(1).await;
        let queue = door.0.queue.clone();
        let name = format!("/endpoints/{}/async-invocations", app.endpoint.name());
        let routes = router(app, Some(&door));
        // What a server does at its start is through, …
        tokio::time::sleep(Duration::from_millis(100)).await;
        queue.look(|_| Ok(())).await.unwrap();
        // … and the queue does not go on until it is told to.
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let (there, here) = std::sync::mpsc::channel::<()>();
        let holding = tokio::spawn({
            let queue = queue.clone();
            async move {
                let hold = queue.look(move |_| {
                    there.send(()).unwrap();
                    let _ = held.recv();
                    Ok(())
                });
                hold.await.unwrap();
            }
        });
        while here.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let request = Request::post(&name)
            .header("content-type", "image/jpeg")
            .header("x-amzn-sagemaker-inference-id", "gone")
            .body(Body::from("no picture"))
            .unwrap();
        let sent = async {
            while queue.waiting() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            answer = routes.oneshot(request) => panic!("it was answered: {answer:?}"),
            () = sent => {}
        }
        // The client has hung up: what answered it is no more.
        go_on.send(()).unwrap();
        holding.await.unwrap();
        let number = queue.look(|tables| tables.named("gone")).await.unwrap();
        assert_eq!(ended(&door, number.unwrap()).await.status(), "Failed");
        assert_eq!(rig.objects().len(), 1);
        assert!(door.is_idle());
        door.stop(Duration::from_secs(5)).await;
        door.close();
    });
}
