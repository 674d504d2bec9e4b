//! The zip container of a torch checkpoint, opened with distrust.

use std::cell::{Cell, RefCell};
use std::io::{Cursor, Read};

use zip::{CompressionMethod, ZipArchive};

use super::error::Fault;

/// The pickle of a large checkpoint has a few hundred kilobytes.
const MAX_PICKLE: u64 = 32 << 20;

/// A member needs some fifty bytes in the directory, and a checkpoint has some hundred members.
const MAX_MEMBERS: usize = 100_000;

/// An open checkpoint.
pub(super) struct Archive<'a> {
    zip: RefCell<ZipArchive<Cursor<&'a [u8]>>>,
    /// The folder of data.pkl, with its slash; empty where it has none.
    root: String,
    /// Bytes of the file.
    len: u64,
    /// What may still be unpacked. torch stores tensors uncompressed; someone may have packed a
    /// file again, and weights shrink little. So what is far beyond the file's size is a bomb.
    budget: Cell<u64>,
}

impl<'a> Archive<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        let zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|e| Fault::malformed(format!("its zip directory is unreadable: {e}")))?;
        if zip.len() > MAX_MEMBERS {
            return Err(Fault::malformed(format!("its zip has {} members", zip.len())));
        }
        let mut roots = Vec::new();
        let mut script = false;
        for index in 0..zip.len() {
            // A name that is no text is none of torch's.
            let Some(Ok(name)) = zip.name_for_index(index) else { continue };
            if let Some(root) = name.strip_suffix("data.pkl")
                && (root.is_empty() || (root.ends_with('/') && root.matches('/').count() == 1))
            {
                roots.push(root.to_string());
            }
            script |= name.ends_with("constants.pkl") || name.contains("/code/");
        }
        if script {
            return Err(Fault::Format(
                "a TorchScript archive (use the .pt it was exported from)".into(),
            ));
        }
        match roots.as_slice() {
            [root] => {
                let root = root.clone();
                let len = bytes.len() as u64;
                let budget = Cell::new(4 * len + (16 << 20));
                Ok(Self { zip: RefCell::new(zip), root, len, budget })
            }
            [] => Err(Fault::Format("a zip file without data.pkl (not a torch checkpoint)".into())),
            _ => Err(Fault::malformed("its zip has more than one data.pkl")),
        }
    }

    /// The pickle.
    pub(super) fn pickle(&self) -> Result<Vec<u8>, Fault> {
        self.member("data.pkl", MAX_PICKLE)
    }

    /// A storage, which must have `bytes` bytes or more.
    pub(super) fn storage(&self, key: &str, bytes: u64) -> Result<Vec<u8>, Fault> {
        let data = self.member(&format!("data/{key}"), bytes)?;
        if (data.len() as u64) < bytes {
            let found = data.len();
            return Err(Fault::malformed(format!(
                "storage {key} has {found} bytes where {bytes} are used"
            )));
        }
        Ok(data)
    }

    /// Whether numbers are stored with the low byte first, as all but old big machines do.
    pub(super) fn little_endian(&self) -> Result<bool, Fault> {
        if self.zip.borrow().index_for_name(&format!("{}byteorder", self.root)).is_none() {
            return Ok(true);
        }
        Ok(self.member("byteorder", 16)? == b"little")
    }

    /// A member, unpacked to at most `limit` bytes; the declared sizes are not believed.
    fn member(&self, name: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        let name = format!("{}{name}", self.root);
        let unreadable = |e: &dyn std::fmt::Display| {
            Fault::malformed(format!("member `{name}` of its zip is unreadable: {e}"))
        };
        let mut zip = self.zip.borrow_mut();
        let mut file = zip.by_name(&name).map_err(|e| unreadable(&e))?;
        if !matches!(file.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(unreadable(&"compressed by another method than deflate"));
        }
        let allowed = limit.min(self.budget.get());
        if file.size() > allowed && name.ends_with(".pkl") {
            return Err(unreadable(&format!("larger than {allowed} bytes")));
        }
        // Room for what it says it has, if that could be true of a member that is not compressed;
        // beyond that it grows with what really comes out, so that a false size costs nothing. One
        // byte more is asked for, since only at the end of a member its checksum is compared.
        let room = file.size().min(allowed).min(self.len);
        let mut data = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
        let got = file.by_ref().take(allowed).read_to_end(&mut data).map_err(|e| unreadable(&e))?;
        self.budget.set(self.budget.get() - got as u64);
        let mut rest = [0u8; 1];
        let more = file.read(&mut rest).map_err(|e| unreadable(&e))?;
        if more > 0 && allowed < limit {
            return Err(unreadable(&"unpacks to far more than the file's size"));
        }
        if more > 0 && name.ends_with(".pkl") {
            return Err(unreadable(&format!("larger than {allowed} bytes")));
        }
        Ok(data)
    }
}
