//! `GET /`: a page for people. It is one file without a build step, and part of the binary.
//!
//! The browser is told to run and to load nothing but what is in that file: its one style sheet and
//! its one script are named by their digests, so nothing that a picture's name, a label or an
//! answer brings along is ever executed.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};

const PAGE: &str = include_str!("../page/index.html");

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    HeaderValue::try_from(policy(PAGE)).expect("the policy is no header value. This is a bug.")
});

/// What else the browser is told: the page is framed by nobody, what it loads is what it says it
/// is, nobody learns its address, and a newer server's page replaces it.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CACHE_CONTROL, "no-cache"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// `GET /`.
pub(super) async fn page() -> Response {
    let mut response = PAGE.into_response();
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    response
}

/// What the page may do: run its own script and style, show pictures that it was given, and ask
/// this server.
fn policy(page: &str) -> String {
    let digest = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let text = page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
        let (text, _) = text.expect("the page lacks its script or its style. This is a bug.");
        STANDARD.encode(Sha256::digest(text.as_bytes()))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src blob: data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest("script"),
        digest("style"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_digests_of_what_is_in_the_page() {
        // `printf 'run()' | openssl dgst -sha256 -binary | base64`, and the same of `a{}`.
        let said = policy("<style>a{}</style><script>run()</script>");
        assert!(said.contains("script-src 'sha256-AvyuiL0SD1mVY3NNxR+V2uo+lhk6RMFrytWmRt6CrJQ='"));
        assert!(said.contains("style-src 'sha256-X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk='"));
        assert!(!said.contains("unsafe"));
    }

    #[test]
    fn the_page_has_nothing_that_the_policy_forbids() {
        for tag in ["<script>", "</script>", "<style>", "</style>"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        // A digest covers neither attributes with code or style nor anything from elsewhere.
        for never in [" style=\"", " onclick=", " onload=", "javascript:", "http://", "https://"] {
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(never), "{never}");
        }
        // Texts from outside are never read as HTML.
        for never in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(never), "{never}");
        }
    }
}
