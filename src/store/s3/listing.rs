//! Keys under a prefix, page by page, the next page on its way while one is worked on.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc::{Receiver, channel};

use super::client::S3;
use super::fault::{Fault, Kind};
use crate::store::Location;

/// Pages that are fetched before somebody wants them.
const PAGES_AHEAD: usize = 2;

/// One object of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The whole key, from the root of the bucket.
    pub(super) key: Vec<u8>,
    pub(super) size: u64,
    /// Without quotes; nothing where the server gives none.
    pub(super) etag: Option<String>,
}

/// Up to a thousand objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// With a delimiter: what several keys have in common up to it, the delimiter with it.
    pub(super) prefixes: Vec<Vec<u8>>,
}

/// What is listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Want {
    /// Only keys after this one (the whole key).
    pub(super) after: Option<String>,
    /// Put together what has a `/` after the prefix.
    pub(super) folders: bool,
    /// So many objects are enough.
    pub(super) most: Option<i32>,
}

/// The pages of a listing.
pub(super) struct Pages(Receiver<Result<Page, Fault>>);

impl Iterator for Pages {
    type Item = Result<Page, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.blocking_recv()
    }
}

impl S3 {
    /// Lists what begins with a prefix. Whoever drops the pages ends it.
    pub(super) fn list(&self, prefix: &Location, want: Want) -> Pages {
        let (sender, receiver) = channel(PAGES_AHEAD);
        let (s3, prefix) = (self.clone(), prefix.clone());
        drop(self.start(async move {
            let mut token: Option<String> = None;
            loop {
                let page = s3.page(&prefix, &want, token.take()).await;
                let next = page.as_ref().ok().and_then(|(_, next)| next.clone());
                if sender.send(page.map(|(page, _)| page)).await.is_err() || next.is_none() {
                    return;
                }
                token = next;
            }
        }));
        Pages(receiver)
    }

    async fn page(
        &self,
        prefix: &Location,
        want: &Want,
        token: Option<String>,
    ) -> Result<(Page, Option<String>), Fault> {
        let mut tries = self.tries();
        loop {
            let client = self.client().await;
            let request = client
                .list_objects_v2()
                .bucket(&prefix.bucket)
                .prefix(&prefix.key)
                .encoding_type(EncodingType::Url)
                .set_delimiter(want.folders.then(|| "/".to_owned()))
                .set_start_after(want.after.clone().filter(|_| token.is_none()))
                .set_continuation_token(token.clone())
                .set_max_keys(want.most)
                .set_request_payer(self.payer());
            let pass = self.0.gate.enter().await;
            self.asked();
            let sent = request.send().await;
            drop(pass);
            match sent {
                Ok(output) => {
                    self.answered();
                    let next = output
                        .next_continuation_token
                        .clone()
                        .filter(|_| output.is_truncated == Some(true) && want.most.is_none());
                    if output.is_truncated == Some(true) && next.is_none() && want.most.is_none() {
                        let said = "a page says that more follow and not where";
                        return Err(Fault::new(Kind::Refused, said));
                    }
                    return Ok((read_page(output), next));
                }
                Err(error) => {
                    let mut fault = Fault::of(&error);
                    // An empty prefix is no fault; that there is nothing means the bucket.
                    if fault.kind == Kind::Missing {
                        fault.kind = Kind::NoBucket;
                    }
                    tries.after(fault).await?;
                }
            }
        }
    }
}

fn read_page(output: ListObjectsV2Output) -> Page {
    let is_encoded = output.encoding_type == Some(EncodingType::Url);
    let decode = |text: String| if is_encoded { decoded(&text) } else { text.into_bytes() };
    let mut page = Page::default();
    for object in output.contents.unwrap_or_default() {
        let Some(key) = object.key else { continue };
        page.entries.push(Entry {
            key: decode(key),
            size: u64::try_from(object.size.unwrap_or(0)).unwrap_or(0),
            etag: object
                .e_tag
                .map(|tag| tag.trim_matches('"').to_owned())
                .filter(|tag| !tag.is_empty()),
        });
    }
    let prefixes = output.common_prefixes.unwrap_or_default().into_iter();
    page.prefixes = prefixes.filter_map(|common| common.prefix.map(decode)).collect();
    page
}

/// A key as listings with `encoding-type=url` write it, where a blank may be a plus and a plus never
/// is one.
fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(&text.replace('+', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_once() {
        for (text, key) in [
            ("a/b.jpg", "a/b.jpg"),
            ("a%2Bb", "a+b"),
            ("a+b", "a b"),
            ("a%20b", "a b"),
            ("%252B", "%2B"),
            ("100%25", "100%"),
            ("%01", "\u{1}"),
            ("%C3%BC", "ü"),
        ] {
            assert_eq!(decoded(text), key.as_bytes(), "{text}");
        }
    }
}
