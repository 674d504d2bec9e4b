//! A server that speaks as much of S3 as leases need, and has the oddities that servers have.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use crate::store::s3::{S3, S3Options};
use crate::store::{Location, sha256};

/// What it does otherwise than AWS.
#[derive(Debug, Default)]
pub(super) struct Oddities {
    /// Compares entity tags without quotes only.
    pub(super) bare: AtomicBool,
    /// Answers writes without an entity tag.
    pub(super) tagless: AtomicBool,
    /// Makes every write, whatever is there.
    pub(super) ignores_free: AtomicBool,
    pub(super) ignores_match: AtomicBool,
    /// Answers 501 to writes with conditions.
    pub(super) knows_none: AtomicBool,
    /// Answers 403 to all.
    pub(super) denies: AtomicBool,
    /// Hangs up on all without doing anything.
    pub(super) away: AtomicBool,
    /// Says of all that it was written long ago.
    pub(super) old: AtomicBool,
    /// Does so many more writes and hangs up instead of answering.
    pub(super) loses: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    objects: Mutex<BTreeMap<String, (Vec<u8>, usize)>>,
    pub(super) odd: Oddities,
    pub(super) writes: AtomicUsize,
}

/// The server, and a connection to it.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) s3: S3,
    pub(super) at: Location,
    inner: Arc<Inner>,
}

impl std::ops::Deref for Fake {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Fake {
    pub(super) fn new() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Inner::default());
        let server = Arc::clone(&inner);
        // It ends with the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                std::thread::spawn(move || while server.answer(&stream).is_some() {});
            }
        });
        let options = S3Options { endpoint_url: Some(url), unsigned: true, ..S3Options::default() };
        let at = Location { bucket: "bucket".to_owned(), key: "out/".to_owned() };
        Fake { s3: S3::with(&options), at, inner }
    }
}

impl Inner {
    pub(super) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let objects = self.objects.lock().unwrap();
        objects.get(&format!("out/{name}")).map(|(bytes, _)| bytes.clone())
    }

    pub(super) fn set(&self, name: &str, bytes: Option<&[u8]>) {
        let mut objects = self.objects.lock().unwrap();
        let key = format!("out/{name}");
        match bytes {
            Some(bytes) => drop(objects.insert(key, (bytes.to_vec(), self.version()))),
            None => drop(objects.remove(&key)),
        }
    }

    fn version(&self) -> usize {
        self.writes.fetch_add(1, SeqCst)
    }

    /// Reads a request and answers it; nothing when the connection is over.
    fn answer(&self, mut stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        let (mut first, mut headers) = (String::new(), BTreeMap::new());
        while reader.read_line(&mut line).ok()? > 2 {
            match line.trim_end().split_once(": ") {
                Some((name, value)) if !first.is_empty() => {
                    headers.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                _ => first = line.trim_end().to_owned(),
            }
            line.clear();
        }
        let mut parts = first.split(' ');
        let (verb, target) = (parts.next()?, parts.next()?);
        let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if self.odd.away.load(SeqCst) {
            return None;
        }
        let (status, tag, body) = self.serve(verb, target, &headers, &body);
        let lost = || self.odd.loses.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if verb == "PUT" && status == 200 && lost().is_ok() {
            return None;
        }
        let mut head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", body.len());
        if let Some(tag) = tag {
            head.push_str(&format!("ETag: {tag}\r\n"));
            let ago = if self.odd.old.load(SeqCst) { 100 } else { 0 };
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let date = DateTime::from_secs(now as i64 - ago).fmt(DateTimeFormat::HttpDate);
            head.push_str(&format!("Last-Modified: {}\r\n", date.unwrap()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        stream.write_all(&body).ok()
    }

    fn serve(
        &self,
        verb: &str,
        target: &str,
        headers: &BTreeMap<String, String>,
        body: &[u8],
    ) -> (u16, Option<String>, Vec<u8>) {
        let error = |status: u16, code: &str| {
            (status, None, format!("<Error><Code>{code}</Code></Error>").into_bytes())
        };
        let odd = |flag: &AtomicBool| flag.load(SeqCst);
        if odd(&self.odd.denies) {
            return error(403, "AccessDenied");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = path.trim_start_matches("/bucket").trim_start_matches('/').to_owned();
        let mut objects = self.objects.lock().unwrap();
        let tag_of =
            |(bytes, version): &(Vec<u8>, usize)| format!("\"{}{version}\"", &sha256(bytes)[..8]);
        match verb {
            "GET" if query.contains("list-type=2") => {
                let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix="));
                let prefix = prefix.unwrap_or_default().replace("%2F", "/");
                let mut list = "<ListBucketResult>".to_owned();
                for key in objects.keys().filter(|key| key.starts_with(&prefix)) {
                    list.push_str(&format!("<Contents><Key>{key}</Key></Contents>"));
                }
                list.push_str("</ListBucketResult>");
                (200, None, list.into_bytes())
            }
            "GET" => match objects.get(&key) {
                None => error(404, "NoSuchKey"),
                Some(object) => (200, Some(tag_of(object)), object.0.clone()),
            },
            "PUT" => {
                let there = objects.get(&key).map(tag_of);
                let (free, tag) = (headers.contains_key("if-none-match"), headers.get("if-match"));
                if odd(&self.odd.knows_none) && (free || tag.is_some()) {
                    return error(501, "NotImplemented");
                }
                if free && there.is_some() && !odd(&self.odd.ignores_free) {
                    return error(412, "PreconditionFailed");
                }
                if let Some(tag) = tag.filter(|_| !odd(&self.odd.ignores_match)) {
                    let bare = there.as_ref().map(|tag| tag.trim_matches('"').to_owned());
                    match there {
                        None => return error(404, "NoSuchKey"),
                        Some(there) => {
                            if *tag != if odd(&self.odd.bare) { bare.unwrap() } else { there } {
                                return error(412, "PreconditionFailed");
                            }
                        }
                    }
                }
                let object = (body.to_vec(), self.version());
                let tag = (!odd(&self.odd.tagless)).then(|| tag_of(&object));
                objects.insert(key, object);
                (200, tag, Vec::new())
            }
            _ => error(405, "MethodNotAllowed"),
        }
    }
}
