//! A source that answers late: its readings are ahead of the work, and nothing else is different.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::binary::{model, parts, testdata};
use haul::job::{Exit, Mode, Opened, Report, Settings, Spec, Terminal, Verbosity, open, run};
use haul::store::{Key, Listing, Object, ReadError, Reading, Select, Source, StoreError};

/// A folder that is so far away.
#[derive(Debug)]
struct Far {
    below: Arc<dyn Source>,
    late: Duration,
    ahead: usize,
    most: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
}

impl Source for Far {
    fn list<'a>(
        &'a self,
        select: &'a dyn Select,
        after: Option<&Key>,
    ) -> Result<Listing<'a>, StoreError> {
        self.below.list(select, after)
    }
    fn read(&self, object: &Object) -> Result<Vec<u8>, ReadError> {
        self.begin(object).wait()
    }
    fn begin(&self, object: &Object) -> Reading {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let (below, object) = (self.below.clone(), object.clone());
        let (there, under_way) = (Instant::now() + self.late, self.under_way.clone());
        Reading::under_way(move || {
            std::thread::sleep(there.saturating_duration_since(Instant::now()));
            under_way.fetch_sub(1, Ordering::SeqCst);
            below.read(&object)
        })
    }
    fn ahead(&self) -> usize {
        self.ahead
    }
    fn vouches(&self, witness: Option<&Key>) -> bool {
        self.below.vouches(witness)
    }
    fn root(&self) -> String {
        self.below.root()
    }
    fn describe(&self) -> String {
        self.below.describe()
    }
}

/// Runs a job on pictures that are `late`; gives its report and the most readings at once.
fn far(photos: &Path, out: &Path, late: Duration, ahead: usize) -> (Report, usize) {
    let settings = Settings {
        model: Some(model()),
        input: Some(photos.to_str().expect("a name").into()),
        output: Some(out.to_str().expect("a name").into()),
        imgsz: Some(64),
        workers: Some(2),
        max_images: Some(7),
        ..Settings::default()
    };
    let spec = Spec::new(settings).expect("settings");
    let mut terminal = Terminal::new(Verbosity::Silent);
    let Opened::Job(mut session) = open(spec, Mode::Run, &terminal).expect("a job") else {
        panic!("no job");
    };
    let most = Arc::new(AtomicUsize::new(0));
    session.source = Arc::new(Far {
        below: session.source.clone(),
        late,
        ahead,
        most: most.clone(),
        under_way: Arc::default(),
    });
    let outcome = run(*session, &crossbeam_channel::never(), &mut terminal).expect("it runs");
    assert_eq!(outcome.exit, Exit::SomeFailed, "{:?}", outcome.error);
    (outcome.report, most.load(Ordering::SeqCst))
}

#[test]
fn readings_ahead_hide_how_far_away_the_pictures_are() {
    let root = tempfile::tempdir().expect("a folder");
    let photos = root.path().join("photos");
    std::fs::create_dir(&photos).expect("a folder");
    let pictures = ["pictures/balloons.jpg", "forms/png-apng.png", "forms/jpeg-444.jpg"];
    for n in 0..90 {
        let mut bytes = std::fs::read(testdata(pictures[n % 3])).expect("a picture");
        if n == 40 {
            bytes.truncate(30);
        }
        std::fs::write(
            photos.join(format!("{n:02}.x{}", if n % 3 == 1 { ".png" } else { ".jpg" })),
            bytes,
        )
        .expect("written");
    }
    let late = Duration::from_millis(25);
    let out = |name: &str| root.path().join(name);
    let (near, one) = far(&photos, &out("near"), Duration::ZERO, 1);
    let (slow, alone) = far(&photos, &out("slow"), late, 1);
    let (fast, most) = far(&photos, &out("fast"), late, 24);
    assert_eq!((one, alone), (1, 1));
    // Over the ends of mini-batches, but not over what the source wants.
    assert!(7 < most && most <= 24, "{most} at once");
    for (name, report) in [("near", &near), ("slow", &slow), ("fast", &fast)] {
        println!(
            "{name}: {:.2} s, fetch {:.2} s, workers waited {:.1} %",
            report.seconds,
            report.stages.fetch,
            100.0 * report.waiting
        );
        assert_eq!((report.ok, report.failed), (89, 1));
        assert!(parts(&out(name)) == parts(&out("near")), "{name}");
    }
    // Each picture's wait is paid in full, or several share one.
    assert!(slow.stages.fetch > 90.0 * 0.025, "{:?}", slow.stages);
    assert!(fast.stages.fetch < slow.stages.fetch / 2.0, "{:?}", fast.stages);
    assert!(slow.waiting > 0.1, "{}", slow.waiting);
}
