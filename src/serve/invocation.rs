//! What a request asks for, whichever door it came through.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use headers_accept::Accept;
use http::{HeaderMap, StatusCode, header};
use mediatype::{MediaType, names};
use serde::Deserialize;
use serde::de::{self, SeqAccess, Visitor};

use super::problem::Problem;
use crate::job::{BoxUnit, ModelFacts, resolve_classes};
use crate::pool::Params;
use crate::store::Key;

/// The key of a picture that nobody has named.
pub const UNNAMED: &str = "-";

/// The header in which SageMaker's clients can say more.
pub const CUSTOM_ATTRIBUTES: &str = "x-amzn-sagemaker-custom-attributes";

/// What an answer is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// One JSON line, as a batch job writes it.
    #[default]
    Json,
    /// The picture with its boxes, as JPEG.
    Jpeg,
    /// The same as PNG.
    Png,
}

/// In the order in which they are preferred where a client takes several.
static TYPES: [(MediaType<'static>, Form); 6] = [
    (MediaType::new(names::APPLICATION, names::JSON), Form::Json),
    (MediaType::new(names::APPLICATION, JSONLINES), Form::Json),
    (MediaType::new(names::APPLICATION, X_NDJSON), Form::Json),
    (MediaType::new(names::IMAGE, names::JPEG), Form::Jpeg),
    (MediaType::new(names::IMAGE, names::PNG), Form::Png),
    (MediaType::new(names::TEXT, names::JSON), Form::Json),
];

impl Form {
    /// What `Accept` asks for.
    ///
    /// # Errors
    /// [`Problem`] when it asks for nothing that there is.
    pub fn accepted(accept: Option<&str>) -> Result<Form, Problem> {
        let Some(accept) = accept.map(str::trim).filter(|accept| !accept.is_empty()) else {
            return Ok(Form::Json);
        };
        // Parameters of types, such as a charset, choose nothing here.
        let plain: Vec<String> = accept.split(',').map(without_parameters).collect();
        let wrong = || Problem::bad(format!("Accept is `{accept}`, which is no media type"));
        if plain.iter().any(|range| !range.contains('/')) {
            return Err(wrong());
        }
        let parsed = Accept::from_str(&plain.join(",")).map_err(|_| wrong())?;
        let best = parsed.negotiate(TYPES.iter().map(|(media, _)| media));
        let found = best.and_then(|best| TYPES.iter().find(|(media, _)| media == best));
        found.map(|&(_, form)| form).ok_or_else(|| {
            let message = format!(
                "Accept is `{accept}`; there are application/json, image/jpeg and image/png"
            );
            Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", message)
        })
    }

    /// The media type of an answer.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Jpeg => "image/jpeg",
            Form::Png => "image/png",
        }
    }
}

const JSONLINES: mediatype::Name<'static> = mediatype::Name::new_unchecked("jsonlines");
const X_NDJSON: mediatype::Name<'static> = mediatype::Name::new_unchecked("x-ndjson");

/// A media range with its weight, and without its other parameters.
fn without_parameters(range: &str) -> String {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    // What Java's own client sends for anything.
    let mut plain = if media == "*" { "*/*" } else { media }.to_owned();
    for weight in parts.filter(|part| part.get(..2).is_some_and(|q| q.eq_ignore_ascii_case("q="))) {
        plain.push(';');
        plain.push_str(weight);
    }
    plain
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// A picture's file.
    Picture,
    /// JSON that holds a picture or says where it is.
    Json,
}

impl Body {
    /// What a body of this content type is. What a picture is its bytes say, so every type that
    /// could be one is taken, also the one that curl sends if it is not told.
    ///
    /// # Errors
    /// [`Problem`] when it can be neither.
    pub fn of(content_type: Option<&str>) -> Result<Body, Problem> {
        let Some(given) = content_type.map(str::trim).filter(|given| !given.is_empty()) else {
            return Ok(Body::Picture);
        };
        let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" | "text/json" => Ok(Body::Json),
            "application/octet-stream"
            | "binary/octet-stream"
            | "application/x-image"
            | "application/x-www-form-urlencoded" => Ok(Body::Picture),
            other if other.starts_with("image/") => Ok(Body::Picture),
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                format!(
                    "Content-Type is `{given}`; it is image/*, application/octet-stream or \
                     application/json"
                ),
            )),
        }
    }
}

/// What may be said about a picture, each of it only if it differs from what the server was
/// started with.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The picture's name in its line.
    #[serde(deserialize_with = "name")]
    pub name: Option<String>,
    /// Least confidence.
    #[serde(deserialize_with = "number")]
    pub conf: Option<f64>,
    /// Overlap that makes two boxes one object.
    #[serde(deserialize_with = "number")]
    pub iou: Option<f64>,
    /// Most detections.
    #[serde(deserialize_with = "number")]
    pub max_det: Option<u32>,
    /// Classes to keep.
    #[serde(deserialize_with = "words")]
    pub classes: Option<Vec<String>>,
    /// `pixels` or `normalized`.
    #[serde(deserialize_with = "name")]
    pub boxes: Option<String>,
}

/// JSON that holds a picture, or says where it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    /// The file in base64.
    bytes: Option<String>,
    /// Where it is.
    #[serde(deserialize_with = "name")]
    location: Option<String>,
    // What follows is [`Options`]; serde cannot refuse unknown members of a flattened one.
    #[serde(deserialize_with = "name")]
    name: Option<String>,
    #[serde(deserialize_with = "number")]
    conf: Option<f64>,
    #[serde(deserialize_with = "number")]
    iou: Option<f64>,
    #[serde(deserialize_with = "number")]
    max_det: Option<u32>,
    #[serde(deserialize_with = "words")]
    classes: Option<Vec<String>>,
    #[serde(deserialize_with = "name")]
    boxes: Option<String>,
}

/// Where a picture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Picture {
    /// Here.
    Bytes(Vec<u8>),
    /// Under a root of the server.
    Location(String),
}

impl Options {
    /// These, and those of `below` where nothing was said here.
    #[must_use]
    pub fn over(self, below: Options) -> Options {
        Options {
            name: self.name.or(below.name),
            conf: self.conf.or(below.conf),
            iou: self.iou.or(below.iou),
            max_det: self.max_det.or(below.max_det),
            classes: self.classes.or(below.classes),
            boxes: self.boxes.or(below.boxes),
        }
    }

    /// What the query says, and below it the headers: `X-Haul-Conf` and so on, and below these
    /// pairs such as `haul-conf=0.4; haul-classes=person,car` among SageMaker's custom attributes,
    /// the only thing of these that its clients can send. Other attributes are somebody else's.
    ///
    /// # Errors
    /// [`Problem`] naming what is not understood.
    pub fn of_request(query: Option<&str>, headers: &HeaderMap) -> Result<Options, Problem> {
        let query: Options = match query {
            None => Options::default(),
            Some(text) => serde_urlencoded::from_str(text)
                .map_err(|error| Problem::bad(format!("the query `?{text}`: {error}")))?,
        };
        let mut pairs = Vec::new();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        for attribute in text(CUSTOM_ATTRIBUTES).unwrap_or_default().split(';') {
            if let Some((name, value)) = attribute.split_once('=')
                && let Some(name) = name.trim().strip_prefix("haul-")
            {
                pairs.push((name.replace('-', "_"), value.trim().to_owned()));
            }
        }
        let attributes = Options::of_pairs(&pairs, "the custom attributes")?;
        let named: Vec<(String, String)> = headers
            .iter()
            .filter_map(|(name, value)| {
                let name = name.as_str().strip_prefix("x-haul-")?.replace('-', "_");
                Some((name, value.to_str().ok()?.trim().to_owned()))
            })
            .collect();
        let named = Options::of_pairs(&named, "the headers X-Haul-*")?;
        Ok(query.over(named).over(attributes))
    }

    fn of_pairs(pairs: &[(String, String)], whose: &str) -> Result<Options, Problem> {
        let text = serde_urlencoded::to_string(pairs).unwrap_or_default();
        serde_urlencoded::from_str(&text).map_err(|error| Problem::bad(format!("{whose}: {error}")))
    }

    /// The key of the picture's line.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::from(self.name.as_deref().unwrap_or(UNNAMED))
    }

    /// What the pool is asked, and in what sides of boxes are counted, where the server was started
    /// with `params` and `unit`.
    ///
    /// # Errors
    /// [`Problem`] naming the option, its value and what it may be.
    pub fn settle(
        &self,
        params: &Params,
        unit: BoxUnit,
        facts: &ModelFacts,
    ) -> Result<(Params, BoxUnit), Problem> {
        let mut params = params.clone();
        let share = |value: Option<f64>, name: &str| match value {
            Some(value) if !(0.0..=1.0).contains(&value) => {
                Err(Problem::bad(format!("{name} is {value}; it lies between 0 and 1")))
            }
            value => Ok(value.map(|value| value as f32)),
        };
        params.nms.conf = share(self.conf, "conf")?.unwrap_or(params.nms.conf);
        params.nms.iou = share(self.iou, "iou")?.unwrap_or(params.nms.iou);
        match self.max_det {
            // More would make an answer larger than what is kept for it.
            Some(most) if !(1..=30_000).contains(&most) => {
                return Err(Problem::bad(format!(
                    "max_det is {most}; it lies between 1 and 30000"
                )));
            }
            Some(most) => params.nms.max_det = most as usize,
            None => {}
        }
        if let Some(wanted) = self.classes.as_ref().filter(|wanted| !wanted.is_empty()) {
            let classes = resolve_classes(wanted, &facts.labels)
                .map_err(|error| Problem::bad(error.to_string().replacen("--", "", 1)))?;
            params.nms.classes = Some(classes);
        }
        let unit = match self.boxes.as_deref() {
            None => unit,
            Some(name) => name.parse().map_err(|()| {
                Problem::bad(format!("boxes is `{name}`; it is pixels or normalized"))
            })?,
        };
        Ok((params, unit))
    }
}

impl Picture {
    /// What a body holds, and what it says besides.
    ///
    /// # Errors
    /// [`Problem`] when it is no JSON, or JSON that says something else.
    pub fn of_body(kind: Body, bytes: Vec<u8>) -> Result<(Picture, Options), Problem> {
        match kind {
            Body::Picture => Ok((Picture::Bytes(bytes), Options::default())),
            Body::Json => {
                // A list would be taken for the members in their order.
                if bytes.trim_ascii_start().first() != Some(&b'{') {
                    return Err(Problem::bad("the body is no JSON object"));
                }
                let document: Document = serde_json::from_slice(&bytes)
                    .map_err(|error| Problem::bad(format!("the JSON of the body: {error}")))?;
                let Document { bytes, location, name, conf, iou, max_det, classes, boxes } =
                    document;
                let picture = match (bytes, location) {
                    (Some(text), None) => {
                        let decoded = STANDARD.decode(text.trim()).map_err(|error| {
                            Problem::bad(format!("`bytes` is not base64: {error}"))
                        })?;
                        Picture::Bytes(decoded)
                    }
                    (None, Some(location)) => Picture::Location(location),
                    _ => {
                        return Err(Problem::bad(
                            "the JSON of the body has one of `bytes` (a picture in base64) and \
                             `location` (s3://BUCKET/KEY or a path)",
                        ));
                    }
                };
                let name = name.or(match &picture {
                    Picture::Bytes(_) => None,
                    Picture::Location(location) => Some(location.clone()),
                });
                Ok((picture, Options { name, conf, iou, max_det, classes, boxes }))
            }
        }
    }
}

/// A header's text, where it has one.
#[must_use]
pub fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The content type of a request.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> Option<&str> {
    header_text(headers, header::CONTENT_TYPE.as_str())
}

/// Most bytes of a name or a location, as of a key.
const LONGEST_NAME: usize = 4096;

/// Most classes that are asked for, …
const MOST_CLASSES: usize = 1000;

/// … and most bytes of what names one.
const LONGEST_CLASS: usize = 256;

/// A number, or the text of one: queries have nothing but texts.
fn number<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr,
{
    struct Number<T>(PhantomData<T>);
    impl<T: std::str::FromStr> Visitor<'_> for Number<T> {
        type Value = Option<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number")
        }
        fn visit_unit<E: de::Error>(self) -> Result<Option<T>, E> {
            Ok(None)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<T>, E> {
            let shown: String = text.chars().take(40).collect();
            let wrong = || E::custom(format!("`{shown}` is not a number it can be"));
            text.trim().parse().map(Some).map_err(|_| wrong())
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<T>, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Option<T>, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Option<T>, E> {
            self.visit_str(&number.to_string())
        }
    }
    deserializer.deserialize_any(Number(PhantomData))
}

/// Words, as a list or separated by commas; not more of them than a model could have use for.
fn words<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Option<Vec<String>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("names or numbers, as a list or separated by commas")
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(vec![number.to_string()]))
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let mut words = Vec::new();
            for word in text.split(',') {
                push(&mut words, word)?;
            }
            Ok(Some(words))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut words = Vec::new();
            while let Some(Word(word)) = list.next_element()? {
                push(&mut words, &word)?;
            }
            Ok(Some(words))
        }
    }
    fn push<E: de::Error>(words: &mut Vec<String>, word: &str) -> Result<(), E> {
        if words.len() == MOST_CLASSES || word.len() > LONGEST_CLASS {
            let what = format!("{MOST_CLASSES} classes of {LONGEST_CLASS} bytes are taken at most");
            return Err(E::custom(what));
        }
        words.push(word.trim().to_owned());
        Ok(())
    }
    deserializer.deserialize_any(Words)
}

/// A text or a number, as a text.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
        struct One;
        impl Visitor<'_> for One {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a number")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word(text.to_owned()))
            }
        }
        deserializer.deserialize_any(One)
    }
}

/// A text of at most so many bytes as a key may have.
fn name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    match text.as_ref().map(String::len) {
        Some(length) if length > LONGEST_NAME => Err(de::Error::custom(format!(
            "a name or location has {length} bytes; {LONGEST_NAME} are taken"
        ))),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yolo::NmsOptions;

    #[test]
    fn accept_is_negotiated() {
        for (accept, form) in [
            (None, Form::Json),
            (Some(""), Form::Json),
            (Some("*/*"), Form::Json),
            (Some("application/*"), Form::Json),
            (Some("application/jsonlines"), Form::Json),
            (Some("application/json; charset=utf-8"), Form::Json),
            (Some("image/*"), Form::Jpeg),
            (Some("image/png"), Form::Png),
            (Some("IMAGE/PNG"), Form::Png),
            (Some("image/webp, image/png;q=0.8, */*;q=0.1"), Form::Png),
            (Some("application/json;q=0.5, image/jpeg"), Form::Jpeg),
        ] {
            assert_eq!(Form::accepted(accept).unwrap(), form, "{accept:?}");
        }
        for accept in ["text/csv", "image/webp", "application/json;q=0"] {
            let status = Form::accepted(Some(accept)).unwrap_err().status;
            assert_eq!(status, StatusCode::NOT_ACCEPTABLE, "{accept}");
        }
        assert_eq!(Form::accepted(Some("nonsense")).unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_body_is_a_picture_unless_it_is_said_to_be_something_else() {
        for picture in [
            None,
            Some("image/jpeg"),
            Some("image/anything"),
            Some("application/x-image"),
            Some("application/octet-stream"),
            Some("application/x-www-form-urlencoded"),
        ] {
            assert_eq!(Body::of(picture).unwrap(), Body::Picture, "{picture:?}");
        }
        assert_eq!(Body::of(Some("Application/JSON; charset=utf-8")).unwrap(), Body::Json);
        for other in ["text/csv", "multipart/form-data; boundary=a", "video/mp4"] {
            let status = Body::of(Some(other)).unwrap_err().status;
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{other}");
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn facts() -> ModelFacts {
        ModelFacts {
            sha256: String::new(),
            labels: vec!["person".into(), "car".into()],
            imgsz: 640,
            classes: None,
            numeric_class: "f32".into(),
        }
    }

    fn params() -> Params {
        let nms = NmsOptions {
            conf: 0.25,
            iou: 0.7,
            max_det: 300,
            max_nms: 30_000,
            agnostic: false,
            classes: None,
        };
        let limits = crate::picture::Limits::default();
        Params { limits, imgsz: 640, square: false, nms, annotate: None }
    }

    #[test]
    fn the_query_goes_over_headers_and_these_over_attributes() {
        let headers = headers(&[
            ("x-haul-conf", "0.2"),
            ("x-haul-max-det", "7"),
            (CUSTOM_ATTRIBUTES, "trace=1; haul-conf=0.3;haul-iou=0.4;haul-classes=car,0; =;x"),
        ]);
        let options = Options::of_request(Some("conf=0.1&name=a%20b.jpg"), &headers).unwrap();
        let (params, unit) = options.settle(&params(), BoxUnit::Pixels, &facts()).unwrap();
        assert_eq!((params.nms.conf, params.nms.iou, params.nms.max_det), (0.1, 0.4, 7));
        assert_eq!((params.nms.classes, unit), (Some(vec![0, 1]), BoxUnit::Pixels));
        assert_eq!(options.key(), Key::from("a b.jpg"));
        assert_eq!(Options::default().key(), Key::from("-"));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let none = HeaderMap::new();
        for (query, said) in [
            ("config=1", "config"),
            ("conf=high", "`high`"),
            ("max_det=-1", "`-1`"),
            ("conf=0.1&conf=0.2", "duplicate"),
        ] {
            let problem = Options::of_request(Some(query), &none).unwrap_err();
            assert!(problem.message.contains(said), "{query}: {}", problem.message);
        }
        let wrong = [(CUSTOM_ATTRIBUTES, "haul-color=red")];
        assert!(Options::of_request(None, &headers(&wrong)).unwrap_err().message.contains("color"));
        for (query, said) in [
            ("conf=1.5", "conf is 1.5"),
            ("iou=NaN", "iou is NaN"),
            ("max_det=0", "max_det is 0"),
            ("max_det=30001", "max_det is 30001"),
            ("classes=person,bird", "no class `bird`; it has person, car"),
            ("boxes=inches", "boxes is `inches`"),
        ] {
            let options = Options::of_request(Some(query), &none).unwrap();
            let problem = options.settle(&params(), BoxUnit::Pixels, &facts()).unwrap_err();
            assert!(problem.message.contains(said), "{query}: {}", problem.message);
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn json_holds_a_picture_or_says_where_it_is() {
        let read = |text: &str| Picture::of_body(Body::Json, text.as_bytes().to_vec());
        let (picture, options) =
            read(r#"{"bytes":"aGF1bA==","conf":0.5,"classes":["car",1],"name":"n"}"#).unwrap();
        assert_eq!(picture, Picture::Bytes(b"haul".to_vec()));
        assert_eq!((options.conf, options.name.as_deref()), (Some(0.5), Some("n")));
        assert_eq!(options.classes, Some(vec!["car".to_owned(), "1".to_owned()]));
        let (picture, options) = read(r#"{"location":"s3://b/k.jpg"}"#).unwrap();
        assert_eq!(picture, Picture::Location("s3://b/k.jpg".to_owned()));
        assert_eq!(options.name.as_deref(), Some("s3://b/k.jpg"));
        for (wrong, said) in [
            ("", "no JSON object"),
            ("[\"aGF1bA==\"]", "no JSON object"),
            ("{\"bytes\":", "EOF"),
            ("{}", "one of"),
            (r#"{"bytes":"aGF1bA==","location":"a"}"#, "one of"),
            (r#"{"bytes":"%%%"}"#, "base64"),
            (r#"{"bytes":1}"#, "invalid type"),
            (r#"{"bytes":"","size":1}"#, "size"),
            (&r#"{"name":["#.repeat(100_000), "JSON"),
            (&format!(r#"{{"bytes":"","classes":[{}1]}}"#, "1,".repeat(1000)), "1000 classes"),
            (&format!(r#"{{"bytes":"","classes":["{}"]}}"#, "a".repeat(257)), "1000 classes"),
            (r#"{"bytes":"","classes":[[1]]}"#, "a name or a number"),
            (r#"{"bytes":"","conf":[1]}"#, "expected a number"),
            (&format!(r#"{{"location":"{}"}}"#, "a".repeat(5000)), "5000 bytes"),
            (&format!(r#"{{"{}":1}}"#, "a".repeat(100_000)), "…"),
        ] {
            let problem = read(wrong).unwrap_err();
            assert!(problem.message.contains(said), "{wrong:.40}: {}", problem.message);
        }
    }
}
