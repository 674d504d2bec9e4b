//! Requests signed as AWS's clients sign them (Signature Version 4, in the `Authorization` header).
//!
//! What a signature must be is not worked out here: AWS's own signer signs the same request again,
//! with the secret that belongs to the key, and both signatures are compared.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::{HeaderMap, Method, Uri};
use subtle::ConstantTimeEq as _;

use super::{Refusal, lines};
use crate::serve::invocation::header_text;

/// How the requests are signed.
pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What the requests are signed for, by both of SageMaker's clients.
const SERVICE: &str = "sagemaker";

/// How far clocks may be apart.
const SKEW: Duration = Duration::from_secs(300);

/// Secrets by access key.
pub(super) struct Keys(HashMap<String, String>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// A key and its secret each line.
    pub(super) fn parse(text: &str) -> Result<Keys, String> {
        let mut keys = HashMap::new();
        for (number, line) in lines(text) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [key, secret] = words[..] else {
                return Err(format!(
                    "line {number}: it has an access key and a secret, and a blank between them"
                ));
            };
            if keys.insert(key.to_owned(), secret.to_owned()).is_some() {
                return Err(format!("line {number}: the access key was there before"));
            }
        }
        match keys.is_empty() {
            true => Err("there is no access key in it".to_owned()),
            false => Ok(Keys(keys)),
        }
    }
}

/// What a request says of its signature, before that is checked.
pub(super) struct Claim {
    key: String,
    secret: String,
    region: String,
    time: SystemTime,
    signed: Vec<String>,
    signature: String,
}

impl Claim {
    /// Everything that its headers alone show to be right or wrong. `given` is what follows the
    /// algorithm.
    pub(super) fn of(
        keys: &Keys,
        given: &str,
        headers: &HeaderMap,
        region: Option<&str>,
        now: SystemTime,
    ) -> Result<Claim, Refusal> {
        let part = |name: &str| {
            let parts = given.split(',').filter_map(|part| part.trim().split_once('='));
            let mut parts =
                parts.filter(|(given, _)| *given == name).map(|(_, value)| value.trim());
            match (parts.next().filter(|value| !value.is_empty()), parts.next()) {
                (Some(value), None) => Ok(value),
                _ => Err(Refusal::Incomplete(format!(
                    "Authorization header requires '{name}' parameter."
                ))),
            }
        };
        let (credential, signed, signature) =
            (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
        let scope: Vec<&str> = credential.split('/').collect();
        let [key, date, asked, service, "aws4_request"] = scope[..] else {
            return Err(Refusal::Incomplete(
                "Credential must have 5 slash-delimited elements, and end in aws4_request.".into(),
            ));
        };
        let signed: Vec<String> = signed.split(';').map(str::to_owned).collect();
        let lacks = |name: &str| !signed.iter().any(|signed| signed == name);
        let unsigned = headers.keys().map(http::HeaderName::as_str);
        let unsigned = unsigned.filter(|name| name.starts_with("x-amz-")).chain(["host"]);
        if let Some(name) = unsigned.chain(["x-amz-date"]).find(|name| lacks(name)) {
            return Err(Refusal::Signature(format!(
                "'{name}' must be a 'SignedHeader' in the AWS Authorization."
            )));
        }
        if header_text(headers, "host").is_none() {
            return Err(Refusal::Incomplete("The request has no Host header.".into()));
        }
        let stamp = header_text(headers, "x-amz-date").unwrap_or_default();
        let Some(time) = read_stamp(stamp) else {
            return Err(Refusal::Incomplete(
                "X-Amz-Date must be a time such as 20260102T030405Z.".into(),
            ));
        };
        let secret = keys.0.get(key).ok_or(Refusal::Key)?;
        if !stamp.starts_with(date) || date.len() != 8 {
            return Err(Refusal::Signature(
                "Date in Credential scope does not match YYYYMMDD from X-Amz-Date.".into(),
            ));
        }
        if service != SERVICE {
            return Err(Refusal::Signature(format!(
                "Credential should be scoped to correct service: '{SERVICE}'."
            )));
        }
        if let Some(region) = region.filter(|region| *region != asked) {
            return Err(Refusal::Signature(format!(
                "Credential should be scoped to a valid region: '{region}'."
            )));
        }
        in_time(stamp, time, now)?;
        Ok(Claim {
            key: key.to_owned(),
            secret: secret.clone(),
            region: asked.to_owned(),
            time,
            signed,
            signature: signature.to_owned(),
        })
    }

    /// Whether the signature is that of this request, with a body of this digest.
    pub(super) fn verify(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        digest: &str,
    ) -> Result<(), Refusal> {
        let wrong = || {
            Refusal::Signature(
                "The request signature we calculated does not match the signature you provided. \
                 Check your AWS Secret Access Key and signing method. Consult the service \
                 documentation for details."
                    .into(),
            )
        };
        let mut covered = Vec::with_capacity(self.signed.len());
        for name in &self.signed {
            // A header that comes several times is signed as one.
            let values = headers.get_all(name.as_str()).iter().map(|value| value.to_str());
            let values: Vec<&str> = values.collect::<Result<_, _>>().map_err(|_| wrong())?;
            if values.is_empty() {
                return Err(wrong());
            }
            covered.push((name.as_str(), values.join(",")));
        }
        let identity = Credentials::new(&self.key, &self.secret, None, None, "haul").into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Double;
        settings.payload_checksum_kind = PayloadChecksumKind::NoHeader;
        settings.signature_location = SignatureLocation::Headers;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Enabled;
        // It covers what its sender says that it covers.
        settings.excluded_headers = None;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(self.time)
            .settings(settings)
            .build()
            .map_err(|_| wrong())?
            .into();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let covered = covered.iter().map(|(name, value)| (*name, value.as_str()));
        let body = SignableBody::Precomputed(digest.to_owned());
        let request = SignableRequest::new(method.as_str(), target, covered, body);
        let ours = request.and_then(|request| sign(request, &params)).map_err(|_| wrong())?;
        match bool::from(ours.signature().as_bytes().ct_eq(self.signature.as_bytes())) {
            true => Ok(()),
            false => Err(wrong()),
        }
    }
}

/// Whether a time is now, as far as clocks agree.
fn in_time(stamp: &str, time: SystemTime, now: SystemTime) -> Result<(), Refusal> {
    let write = |time: Option<SystemTime>| time.map(write_stamp).unwrap_or_default();
    let text = match (now.duration_since(time), time.duration_since(now)) {
        (Ok(late), _) if late > SKEW => format!(
            "Signature expired: {stamp} is now earlier than {} ({} - 5 min.)",
            write(now.checked_sub(SKEW)),
            write(Some(now))
        ),
        (_, Ok(early)) if early > SKEW => format!(
            "Signature not yet current: {stamp} is still later than {} ({} + 5 min.)",
            write(now.checked_add(SKEW)),
            write(Some(now))
        ),
        _ => return Ok(()),
    };
    Err(Refusal::Signature(text))
}

/// `20260102T030405Z`.
fn write_stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], "")
}

/// The time of `20260102T030405Z`, and of nothing else.
fn read_stamp(stamp: &str) -> Option<SystemTime> {
    if stamp.len() != 16 || !stamp.is_ascii() {
        return None;
    }
    let (year, month, day) = (&stamp[..4], &stamp[4..6], &stamp[6..8]);
    let (hour, minute, second) = (&stamp[9..11], &stamp[11..13], &stamp[13..15]);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let time = humantime::parse_rfc3339(&text).ok()?;
    (write_stamp(time) == stamp).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_as_they_are_written() {
        let time = read_stamp("20260102T030405Z").unwrap();
        assert_eq!(write_stamp(time), "20260102T030405Z");
        for wrong in [
            "",
            "20260102T030405",
            "2026-01-02T03:04:05Z",
            "20261302T030405Z",
            "2026010ü030405Z",
            "+0260102T030405Z",
        ] {
            assert_eq!(read_stamp(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn clocks_may_be_five_minutes_apart() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (other, fits) in [
            (now, true),
            (now - SKEW, true),
            (now + SKEW, true),
            (now - SKEW - Duration::from_secs(1), false),
            (now + SKEW + Duration::from_secs(1), false),
        ] {
            assert_eq!(in_time(&write_stamp(other), other, now).is_ok(), fits, "{other:?}");
        }
    }

    #[test]
    fn files_of_keys_name_the_line_that_is_wrong_and_not_its_secret() {
        for (text, why) in [
            ("", "no access key"),
            ("AKIDEXAMPLE", "line 1"),
            ("# a\nAKID secretsecret more", "line 2"),
            ("A secretsecret\nA secretsecret", "line 2"),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("secretsecret"), "{error}");
        }
        assert!(!format!("{:?}", Keys::parse("A secretsecret").unwrap()).contains("secretsecret"));
    }
}
