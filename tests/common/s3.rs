//! A real S3 server for tests, where one is named (`scripts/servers/radosgw.sh` starts one).

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::sync::atomic::{AtomicU32, Ordering};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::EncodingType;
use aws_sdk_s3::{Client, Config};
use aws_smithy_http_client::tls;
use haul::store::{Location, S3, S3Options};
use percent_encoding::percent_decode_str;

/// A bucket of its own, which is emptied and deleted at the end.
pub(crate) struct Bucket {
    pub(crate) name: String,
    client: Client,
    runtime: tokio::runtime::Runtime,
    endpoint: String,
    region: String,
    key: String,
    secret: String,
}

fn said(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Runs `body`, which is all of the test of that name, with a new bucket on the server that
/// `HAUL_TEST_S3_ENDPOINT` names; without one it says so and the test passes.
pub(crate) fn with_bucket(test: &str, body: impl FnOnce(&Bucket)) {
    let Some(bucket) = Bucket::new() else { return };
    let (key, secret) = (&bucket.key, &bucket.secret);
    // haul finds credentials where AWS's tools do, and a process must not change its own variables.
    if said("AWS_ACCESS_KEY_ID").as_ref() != Some(key) {
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env_remove("AWS_SESSION_TOKEN")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&again.stdout);
        // Its last lines look like ours.
        let said = text.lines().filter(|line| !line.starts_with("test ") && !line.is_empty());
        said.for_each(|line| println!("| {line}"));
        let errors = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success() && text.contains("1 passed"), "{test}: {errors}");
        return;
    }
    body(&bucket);
}

impl Bucket {
    /// A new bucket on the server that `HAUL_TEST_S3_ENDPOINT` names; without one it says so.
    pub(crate) fn new() -> Option<Bucket> {
        let Some(endpoint) = said("HAUL_TEST_S3_ENDPOINT") else {
            println!("skipped: HAUL_TEST_S3_ENDPOINT is not set");
            return None;
        };
        let need = |name: &str| said(name).unwrap_or_else(|| panic!("{name} is not set"));
        let (key, secret) = (need("HAUL_TEST_S3_KEY"), need("HAUL_TEST_S3_SECRET"));
        let region = said("HAUL_TEST_S3_REGION").unwrap_or_else(|| "us-east-1".to_owned());
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(&endpoint)
            .region(Region::new(region.clone()))
            .force_path_style(true)
            .credentials_provider(Credentials::new(&key, &secret, None, None, "test"))
            .build();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let bucket = Bucket {
            name: format!("haul-test-{}-{number}", std::process::id()),
            client: Client::from_conf(config),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            endpoint,
            region,
            key,
            secret,
        };
        bucket.wait(bucket.client.create_bucket().bucket(&bucket.name).send()).unwrap();
        Some(bucket)
    }

    /// What tells another process of this server.
    pub(crate) fn variables(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL_S3", &self.endpoint),
            ("AWS_REGION", &self.region),
            ("AWS_ACCESS_KEY_ID", &self.key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// haul's options for this server.
    pub(crate) fn options(&self) -> S3Options {
        S3Options {
            endpoint_url: Some(self.endpoint.clone()),
            region: Some(self.region.clone()),
            ..S3Options::default()
        }
    }

    /// haul's connection to this server.
    pub(crate) fn s3(&self) -> S3 {
        S3::with(&self.options())
    }

    /// A prefix or key in this bucket.
    pub(crate) fn at(&self, key: &str) -> Location {
        Location { bucket: self.name.clone(), key: key.to_owned() }
    }

    /// Puts an object.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let body = ByteStream::from(bytes.to_vec());
        let put = self.client.put_object().bucket(&self.name).key(key).body(body);
        self.wait(put.send()).unwrap();
    }

    /// Puts an object that says to which job it belongs.
    pub(crate) fn put_of(&self, key: &str, bytes: &[u8], job: &str) {
        let body = ByteStream::from(bytes.to_vec());
        let put = self.client.put_object().bucket(&self.name).key(key).body(body);
        self.wait(put.metadata("haul-job", job).send()).unwrap();
    }

    /// What an object holds, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.wait(async {
            match self.client.get_object().bucket(&self.name).key(key).send().await {
                Ok(object) => Some(object.body.collect().await.unwrap().to_vec()),
                Err(error) if error.as_service_error().is_some_and(|e| e.is_no_such_key()) => None,
                Err(error) => panic!("{key}: {error:?}"),
            }
        })
    }

    /// All keys that begin with a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.wait(async {
            let mut keys = Vec::new();
            let mut token = None;
            loop {
                // Not every key can be said in XML.
                let list = self.client.list_objects_v2().encoding_type(EncodingType::Url);
                let list = list.bucket(&self.name).prefix(prefix).set_continuation_token(token);
                let page = list.send().await.unwrap();
                keys.extend(page.contents().iter().filter_map(|one| one.key()).map(|key| {
                    let key = key.replace('+', " ");
                    percent_decode_str(&key).decode_utf8().unwrap().into_owned()
                }));
                token = page.next_continuation_token;
                if token.is_none() {
                    return keys;
                }
            }
        })
    }

    /// Puts many objects, several at a time.
    pub(crate) fn put_all(&self, keys: &[String]) {
        for some in keys.chunks(16) {
            self.wait(async {
                let puts: Vec<_> = some
                    .iter()
                    .map(|key| {
                        let body = ByteStream::from(key.clone().into_bytes());
                        let put = self.client.put_object().bucket(&self.name).key(key).body(body);
                        tokio::spawn(put.send())
                    })
                    .collect();
                for put in puts {
                    put.await.unwrap().unwrap();
                }
            });
        }
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, key: &str) {
        let delete = self.client.delete_object().bucket(&self.name).key(key);
        self.wait(delete.send()).unwrap();
    }

    /// Lets everybody list the bucket and read what begins with a prefix.
    pub(crate) fn open_to_all(&self, prefix: &str) {
        let name = &self.name;
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[
            {{"Effect":"Allow","Principal":"*","Action":"s3:ListBucket","Resource":"arn:aws:s3:::{name}"}},
            {{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::{name}/{prefix}*"}}]}}"#
        );
        let put = self.client.put_bucket_policy().bucket(name).policy(policy);
        self.wait(put.send()).unwrap();
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.keys("").iter().for_each(|key| self.delete(key));
        self.wait(self.client.delete_bucket().bucket(&self.name).send()).unwrap();
    }
}
