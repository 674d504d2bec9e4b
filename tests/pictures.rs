//! Every form of picture in `testdata/forms`, whole, cut short and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use haul::picture::{
    Code, DECODERS, Letterbox, Letterboxer, Limits, Picture, PictureError, Truncated, decode, probe,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The test pictures by name.
fn forms() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(root().join("testdata/forms")).expect("testdata/forms is there");
    let files = entries.map(|e| e.expect("readable").path()).filter(|p| p.is_file());
    files
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap()))
        .collect()
}

/// What docs/pictures.md says of each: the most difference, or `None` for a refusal.
fn rows() -> BTreeMap<String, Option<u8>> {
    let page = fs::read_to_string(root().join("docs/pictures.md")).unwrap();
    let table = page.lines().filter(|l| l.starts_with('|')).skip(2);
    table
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [_, becomes, within, file] = cells[..] else { panic!("four cells: {line}") };
            assert_eq!(within == "—", becomes == "`unsupported`", "{line}");
            (file.to_owned(), within.parse().ok())
        })
        .collect()
}

fn read_with(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    probe(bytes, limits).and_then(|header| decode(bytes, &header, limits))
}

fn read(bytes: &[u8]) -> Result<Picture, PictureError> {
    read_with(bytes, &Limits::default())
}

fn code(bytes: &[u8]) -> Option<Code> {
    read(bytes).err().map(|e| e.code)
}

#[test]
fn the_page_and_the_files_name_each_other() {
    let (rows, forms) = (rows(), forms());
    assert_eq!(rows.keys().collect::<Vec<_>>(), forms.keys().collect::<Vec<_>>());
}

#[test]
fn every_form_becomes_what_cv2_makes_of_it() {
    let forms = forms();
    for (name, within) in rows() {
        let got = read(&forms[&name]);
        let Some(within) = within else {
            assert_eq!(got.expect_err(&name).code, Code::Unsupported, "{name}");
            continue;
        };
        let got = got.unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = format!("testdata/forms/expected/{}.png", name.replace('.', "-"));
        let expected = image::open(root().join(expected)).unwrap().into_rgb8();
        assert_eq!((got.width, got.height), expected.dimensions(), "{name}");
        assert!(!got.truncated, "{name}");
        let worst = got.rgb.iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(within), "{name}: differs by {worst:?}, the page says {within}");
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_complete() {
    for (name, bytes) in forms() {
        let Ok(whole) = read(&bytes) else { continue };
        let jpeg = name.ends_with(".jpg");
        let end = if name == "jpeg-trailing.jpg" { bytes.len() - 75 } else { bytes.len() };
        for cut in 0..end {
            match read(&bytes[..cut]) {
                Ok(picture) => {
                    assert!(!jpeg, "{name} cut at {cut} was accepted");
                    assert!(picture == whole, "{name} cut at {cut} has other pixels");
                }
                Err(e) => {
                    let expected = match cut {
                        0 => Code::Empty,
                        // Too short for its magic, or an EXIF offset that leads nowhere.
                        1..=12 if e.code == Code::NotAnImage => Code::NotAnImage,
                        _ => Code::Truncated,
                    };
                    assert_eq!(e.code, expected, "{name} cut at {cut} of {}: {e}", bytes.len());
                }
            }
        }
    }
}

#[test]
fn a_jpeg_cut_and_closed_again_is_an_error_or_complete() {
    let accept = Limits { truncated: Truncated::Accept, ..Limits::default() };
    let jpegs = forms().into_iter().filter(|(name, _)| name.starts_with("jpeg-"));
    for (name, bytes) in jpegs {
        let Ok(whole) = read(&bytes) else { continue };
        let (mut same, mut taken) = (0, 0);
        for cut in 2..bytes.len() {
            let closed = [&bytes[..cut], &[0xFF, 0xD9]].concat();
            if let Ok(picture) = read(&closed) {
                // A last byte may be padding, or say what ones would say. In the last bytes of
                // a progressive file the ones may pass for the last bit of a coefficient.
                let worst = picture.rgb.iter().zip(&whole.rgb).map(|(a, b)| a.abs_diff(*b)).max();
                let allowed = u8::from(name.contains("progressive"));
                assert!(worst <= Some(allowed), "{name} closed at {cut}: differs by {worst:?}");
                same += 1;
            }
            let cut = read_with(&bytes[..cut], &accept);
            if let Ok(picture) = cut {
                assert_eq!((picture.width, picture.height), (whole.width, whole.height), "{name}");
                taken += usize::from(picture.truncated);
            }
        }
        assert!(same <= 3 || name == "jpeg-trailing.jpg", "{name}: {same} cuts went unnoticed");
        assert!(taken > 10, "{name}: only {taken} cuts were accepted");
    }
}

#[test]
fn damage_is_an_error_or_a_picture_but_never_a_panic() {
    for (name, bytes) in forms() {
        for at in 0..bytes.len() {
            for change in [0x01, 0x80, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                let found = code(&damaged);
                assert_ne!(found, Some(Code::Internal), "{name}: byte {at} ^ {change:#x}");
            }
        }
    }
}

#[test]
fn what_is_no_picture_is_said_so() {
    assert_eq!(code(b""), Some(Code::Empty));
    for text in [&b"hello, world\n"[..], b"{\"a\": 1}", b"BMW is not a bitmap", b"II", b"\0\0\0"] {
        assert_eq!(code(text), Some(Code::NotAnImage), "{text:?}");
    }
    let named: [(&[u8], &str); 4] = [
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf", "AVIF is not supported"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC is not supported"),
        (b"8BPS\0\x01\0\0\0\0", "PSD is not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0", "JPEG 2000 is not supported"),
    ];
    for (bytes, message) in named {
        let error = read(bytes).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::Unsupported, message));
    }
    // A film is no picture.
    assert_eq!(code(b"\0\0\0\x18ftypisom\0\0\0\0isommp42"), Some(Code::NotAnImage));
}

#[test]
fn limits_are_checked_in_the_header() {
    let mut png = forms()["png-rgb8.png"].clone();
    png[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let error = probe(&png, &Limits::default()).unwrap_err();
    assert_eq!(error.code, Code::TooLarge);
    assert_eq!(error.message, "the picture is 60000 x 60000 pixels, the limit is 100000000 pixels");
    for (name, bytes) in forms() {
        let Ok(header) = probe(&bytes, &Limits::default()) else { continue };
        let pixels = u64::from(header.width) * u64::from(header.height);
        let memory = header.decode_bytes + bytes.len() as u64;
        let exact = Limits { max_pixels: pixels, max_memory: memory, ..Limits::default() };
        assert!(read_with(&bytes, &exact).is_ok(), "{name}");
        for less in
            [Limits { max_pixels: pixels - 1, ..exact }, Limits { max_memory: memory - 1, ..exact }]
        {
            assert_eq!(probe(&bytes, &less).unwrap_err().code, Code::TooLarge, "{name}");
            assert_eq!(decode(&bytes, &header, &less).unwrap_err().code, Code::TooLarge, "{name}");
        }
    }
}

#[test]
fn a_bitstream_larger_than_its_container_is_refused() {
    let mut webp = forms()["webp-lossy-alpha.webp"].clone();
    let vp8 = webp.windows(4).position(|w| w == b"VP8 ").unwrap();
    webp[vp8 + 14..vp8 + 18].copy_from_slice(&[0xFF, 0x3F, 0xFF, 0x3F]);
    assert_eq!(code(&webp), Some(Code::Corrupt));
    let mut tiff = forms()["tiff-rgb8-jpeg.tif"].clone();
    let frame = tiff.windows(4).position(|w| w == [0xFF, 0xC0, 0, 17]).unwrap();
    tiff[frame + 5..frame + 9].copy_from_slice(&[0x3F, 0xFF, 0x3F, 0xFF]);
    assert_eq!(code(&tiff), Some(Code::Corrupt));
}

#[test]
fn a_jpeg_of_very_many_scans_is_refused() {
    let bytes = forms()["jpeg-progressive-gray.jpg"].clone();
    // Repeat the last scan, a refinement, until nobody can mean it.
    let last = bytes.windows(2).rposition(|w| w == [0xFF, 0xDA]).unwrap();
    let (scan, rest) = (&bytes[last..bytes.len() - 2], &bytes[bytes.len() - 2..]);
    let many = [&bytes[..last], &scan.repeat(5000), rest].concat();
    assert_eq!(code(&many), Some(Code::Corrupt));
}

#[test]
fn the_fingerprint_names_the_decoders_in_use() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    // Behind the crates stands the number of our own checks.
    let (crates, checks) = DECODERS.rsplit_once(", ").unwrap();
    assert!(checks.strip_prefix("checks ").unwrap().parse::<u32>().is_ok());
    for decoder in crates.split(", ") {
        let (name, version) = decoder.split_once(' ').unwrap();
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        assert!(lock.contains(&entry), "Cargo.lock has another version of {name}");
        assert_eq!(lock.matches(&format!("name = \"{name}\"\n")).count(), 1, "two of {name}");
    }
}

/// The shared pictures, where the machine has them.
fn shared() -> Option<PathBuf> {
    let found = std::env::var_os("HAUL_PARITY_DATA").map(PathBuf::from);
    if found.is_none() {
        println!("skipped: HAUL_PARITY_DATA is not set");
    }
    found
}

#[test]
fn network_inputs_equal_ultralytics() {
    let Some(data) = shared() else { return };
    let goldens = fs::read(data.join("golden/yolov8n_raw.safetensors")).unwrap();
    let goldens = safetensors::SafeTensors::deserialize(&goldens).unwrap();
    let mut letterboxer = Letterboxer::new();
    for (name, golden) in goldens.iter().filter(|(name, _)| name.ends_with(".letterbox_u8")) {
        let id = name.trim_end_matches(".letterbox_u8");
        let file = fs::read(data.join(format!("coco/images/{id}.jpg"))).unwrap();
        let picture = read(&file).unwrap();
        let geometry = Letterbox::new(picture.width, picture.height, 640, false);
        let (w, h) = (geometry.width as usize, geometry.height as usize);
        assert_eq!(golden.shape(), [3, h, w], "{name}");
        let input = letterboxer.run(&picture, &geometry).unwrap();
        let planes = golden.data();
        let differences = (0..3 * w * h).map(|i| {
            let (channel, at) = (i / (w * h), i % (w * h));
            input[at * 3 + channel].abs_diff(planes[i])
        });
        let (mut sum, mut worst) = (0u64, 0);
        for d in differences {
            sum += u64::from(d);
            worst = worst.max(d);
        }
        let mean = sum as f64 / (3 * w * h) as f64;
        println!("{name}: mean {mean:.4}, most {worst}");
        assert!(mean < 0.1 && worst <= 4, "{name}: mean {mean}, most {worst}");
    }
}

#[test]
fn photographs_cut_short_are_noticed() {
    let Some(data) = shared() else { return };
    for entry in fs::read_dir(data.join("coco/images")).unwrap().take(12) {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let whole = read(&bytes).unwrap();
        for part in 1..16 {
            let cut = bytes.len() * part / 16;
            assert_eq!(code(&bytes[..cut]), Some(Code::Truncated));
            let closed = [&bytes[..cut], &[0xFF, 0xD9]].concat();
            assert_eq!(code(&closed), Some(Code::Truncated), "closed at {cut}");
        }
        assert!(!whole.truncated);
    }
}
