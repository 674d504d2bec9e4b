//! Tables as lists: a CSV file with a column of keys, whose other columns are carried to the lines.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use super::{LONGEST_ITEM, Names, has_suffix, malformed, too_long};
use crate::store::{LARGEST_META, StoreError};

/// Names of the column with keys, where nobody names one.
const KEY_COLUMNS: [&str; 5] = ["image", "key", "path", "file", "filename"];

/// Whether a file is a table with a column of keys, by its suffix.
#[must_use]
pub fn is_table(path: &Path) -> bool {
    has_suffix(path, &["csv"])
}

/// Fails where one row is too long: a quote that is never closed takes in the rest of the file.
struct Bounded<R> {
    inner: R,
    /// Bytes read since the row began, give or take a buffer.
    since: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.since += count as u64;
        if self.since > LONGEST_ITEM { Err(too_long()) } else { Ok(count) }
    }
}

/// A row of a table: its key, its number (the header is row 1), and its other columns as a JSON
/// object of texts, if there are any.
pub(super) struct Row {
    pub(super) key: Vec<u8>,
    pub(super) number: u64,
    pub(super) meta: Option<String>,
}

impl Row {
    /// As bytes that sort by key, then by number: a key holds no NUL.
    pub(super) fn pack(self) -> Vec<u8> {
        let mut bytes = self.key;
        bytes.push(0);
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.meta.unwrap_or_default().into_bytes());
        bytes
    }

    /// What [`Row::pack`] made.
    pub(super) fn unpack(bytes: &[u8]) -> Option<Row> {
        let end = memchr::memchr(0, bytes)?;
        let (number, meta) = bytes[end + 1..].split_first_chunk()?;
        let meta = String::from_utf8(meta.to_vec()).ok()?;
        Some(Row {
            key: bytes[..end].to_vec(),
            number: u64::from_be_bytes(*number),
            meta: Some(meta).filter(|meta| !meta.is_empty()),
        })
    }
}

/// Reads a table; gives each row to `take`.
///
/// # Errors
/// What is wrong with it, with the number of the row.
pub(super) fn read_table(
    text: impl Read,
    path: &Path,
    names: Names,
    key_column: Option<&str>,
    mut take: impl FnMut(Row) -> io::Result<()>,
) -> Result<(), StoreError> {
    let fault = |error| StoreError::new("read the list", path, error);
    let wrong = |row: u64, what: String| malformed(path, format!("row {row} {what}"));
    let bounded = Bounded { inner: text, since: 0 };
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(bounded);
    let mut record = csv::ByteRecord::new();
    let mut header: Option<(Vec<String>, usize)> = None;
    for number in 1.. {
        reader.get_mut().since = 0;
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                return Err(match error.into_kind() {
                    csv::ErrorKind::Io(error) if error.kind() != io::ErrorKind::InvalidData => {
                        fault(error)
                    }
                    csv::ErrorKind::Io(error) => wrong(number, format!("has {error}")),
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        wrong(number, format!("has {len} fields, the header has {expected_len}"))
                    }
                    other => wrong(number, format!("cannot be read: {other:?}")),
                });
            }
        }
        let cells: Result<Vec<&str>, usize> = record
            .iter()
            .enumerate()
            .map(|(index, cell)| std::str::from_utf8(cell).map_err(|_| index))
            .collect();
        let cells = cells.map_err(|index| {
            let column = match &header {
                Some((columns, _)) => format!("`{}`", columns[index]),
                None => format!("{}", index + 1),
            };
            wrong(number, format!("is not UTF-8 in column {column}"))
        })?;
        let Some((columns, key_index)) = &header else {
            let columns: Vec<String> = cells.iter().map(|&name| name.to_owned()).collect();
            let index = find_key(&columns, key_column).map_err(|what| malformed(path, what))?;
            header = Some((columns, index));
            continue;
        };
        let key = names
            .key(cells[*key_index].as_bytes())
            .map_err(|what| wrong(number, format!("in column `{}` {what}", columns[*key_index])))?;
        let meta = meta(columns, &cells, *key_index);
        if let Some(meta) = meta.as_ref().filter(|meta| meta.len() > LARGEST_META) {
            let length = meta.len();
            return Err(wrong(
                number,
                format!(
                    "has {length} bytes in its other columns, as JSON; at most {LARGEST_META} are \
                     carried along"
                ),
            ));
        }
        take(Row { key: key.to_vec(), number, meta }).map_err(fault)?;
    }
    match header {
        Some(_) => Ok(()),
        None => Err(malformed(path, "it is empty; the first row names the columns")),
    }
}

/// The column with the keys.
fn find_key(columns: &[String], named: Option<&str>) -> Result<usize, String> {
    let all = columns.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut seen = BTreeSet::new();
    if let Some(twice) = columns.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(format!("two columns are named `{twice}`; the columns are {all}"));
    }
    if let Some(named) = named {
        return columns
            .iter()
            .position(|name| name == named)
            .ok_or_else(|| format!("it has no column `{named}` (--key-column), only {all}"));
    }
    let likely = |name: &String| KEY_COLUMNS.iter().any(|one| name.eq_ignore_ascii_case(one));
    let mut found = columns.iter().enumerate().filter(|(_, name)| likely(name));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (first, _) => Err(format!(
            "{} of its columns {all} has a name of {}; say which one holds the pictures with \
             --key-column NAME",
            if first.is_none() { "none" } else { "more than one" },
            KEY_COLUMNS.join(", "),
        )),
    }
}

/// The columns but that of the key, as the text of a JSON object.
fn meta(columns: &[String], cells: &[&str], key_index: usize) -> Option<String> {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let fields: Vec<String> = columns
        .iter()
        .zip(cells)
        .enumerate()
        .filter(|(index, _)| *index != key_index)
        .map(|(_, (name, cell))| format!("{}:{}", text(name), text(cell)))
        .collect();
    (!fields.is_empty()).then(|| format!("{{{}}}", fields.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = Vec<(String, u64, Option<String>)>;

    fn table(text: &[u8], key_column: Option<&str>) -> Result<Rows, String> {
        let mut rows = Vec::new();
        let read = read_table(text, Path::new("t.csv"), Names::Paths, key_column, |row| {
            let row = Row::unpack(&row.pack()).unwrap();
            rows.push((String::from_utf8(row.key).unwrap(), row.number, row.meta));
            Ok(())
        });
        read.map(|()| rows).map_err(|error| {
            assert_eq!(error.class(), crate::store::Class::Malformed);
            error.to_string()
        })
    }

    #[test]
    fn other_columns_are_carried_as_texts_in_their_order() {
        let text = "\u{feff}site,Image,\"no\"\r\nA,./a.jpg,1\r\n\r\n\"B \"\"x\"\"\n\",b/é.jpg,\r\n";
        let rows = table(text.as_bytes(), None).unwrap();
        let meta = |text: &str| Some(text.to_owned());
        assert_eq!(
            rows,
            [
                ("a.jpg".to_owned(), 2, meta(r#"{"site":"A","no":"1"}"#)),
                ("b/é.jpg".to_owned(), 3, meta(r#"{"site":"B \"x\"\n","no":""}"#)),
            ]
        );
        assert_eq!(table(b"key\nx\n", None).unwrap(), [("x".to_owned(), 2, None)]);
        let named = table(b"key,Path\nx,y\n", Some("Path")).unwrap();
        assert_eq!(named, [("y".to_owned(), 2, meta(r#"{"key":"x"}"#))]);
        assert_eq!(table(b"file\n", None).unwrap(), []);
    }

    #[test]
    fn what_is_wrong_with_a_table_is_named_with_its_row() {
        let open = format!("image,a\nx,\"{}", "y".repeat(1 << 20));
        let big = format!("image,a\nx,{}", "y".repeat(LARGEST_META));
        let cases: [(&[u8], Option<&str>, &str); 15] = [
            (b"", None, "it is empty"),
            (b"a;image\n", None, "none of its columns `a;image`"),
            (b"a,b\n", None, "none of its columns `a`, `b` has a name of image, key"),
            (b"a,image,KEY\n", None, "more than one of its columns `a`, `image`, `KEY`"),
            (b"a,b\n", Some("c"), "no column `c` (--key-column), only `a`, `b`"),
            (b"image,b,b\n", None, "two columns are named `b`"),
            (b"image,b\nx,1\ny\n", None, "row 3 has 1 fields, the header has 2"),
            (b"image,b\nx,1,2\n", None, "row 2 has 3 fields"),
            (b"image,b\nx,\xff\n", None, "row 2 is not UTF-8 in column `b`"),
            (b"\xff\xfei\0m\0", None, "row 1 is not UTF-8 in column 1"),
            (b"image,b\nx,1\n,2\n", None, "row 3 in column `image` names nothing"),
            (b"image\nx\0\n", None, "row 2 in column `image` holds a NUL"),
            (b"image\ns3://b/x\n", None, "row 2 in column `image` is a whole address"),
            (open.as_bytes(), None, "row 2 has more than 262144 bytes (is a quote left open?)"),
            (big.as_bytes(), None, "row 2 has 16392 bytes in its other columns"),
        ];
        for (text, column, expected) in cases {
            let error = table(text, column).unwrap_err();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
    }

    #[test]
    fn packed_rows_sort_by_key_then_number() {
        let row = |key: &str, number, meta: &str| {
            Row { key: key.into(), number, meta: Some(meta.into()) }.pack()
        };
        let sorted = [
            row("a", 2, "z"),
            row("a", 300, "b"),
            row("a!", 1, "a"),
            row("a/b", 1, ""),
            row("ab", 0, "a"),
        ];
        assert!(sorted.is_sorted());
    }
}
