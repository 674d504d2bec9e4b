//! The instructions, one by one.

use super::super::error::Fault;
use super::data::{Data, Node, Value};

/// Instructions in one pickle. The largest YOLOv8 checkpoints need some 60,000.
pub(super) const MAX_STEPS: usize = 2_000_000;
/// Values on the stack at once.
const MAX_STACK: usize = 200_000;
/// Bytes of one string.
const MAX_STRING: usize = 4 << 20;
/// Bytes of one of the two parts of a name.
pub(super) const MAX_NAME: usize = 256;

/// Reads a whole pickle.
pub(in crate::model) fn parse(bytes: &[u8]) -> Result<Data, Fault> {
    let mut machine = Machine {
        bytes,
        at: 0,
        globals: 0,
        copied: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
    };
    for _ in 0..MAX_STEPS {
        if let Some(root) = machine.step()? {
            return Ok(Data { nodes: machine.nodes, root });
        }
        if machine.stack.len() > MAX_STACK || machine.marks.len() > MAX_STACK {
            return Err(machine.fault("its stack is too deep"));
        }
    }
    Err(machine.fault("it has too many instructions"))
}

/// The state between instructions.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Names seen.
    pub(super) globals: usize,
    /// Entries copied from one collection into another: the only work that a single
    /// instruction can ask for without having brought the bytes.
    pub(super) copied: usize,
    pub(super) nodes: Vec<Node>,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
}

impl<'a> Machine<'a> {
    pub(super) fn fault(&self, what: &str) -> Fault {
        Fault::malformed(format!("its pickle is broken before byte {}: {what}", self.at))
    }

    /// Executes one instruction; gives the result at the end.
    fn step(&mut self) -> Result<Option<Value>, Fault> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return self.pop().map(Some),
            // PROTO. Newer ones may come; an instruction that is not known is refused anyway.
            0x80 => drop(self.take(1)?),
            // FRAME only promises a length.
            0x95 => drop(self.take(8)?),

            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.number(1, |b| Value::Int(i64::from(b[0])))?,
            b'M' => self.number(2, |b| Value::Int(i64::from(b[0]) | i64::from(b[1]) << 8))?,
            b'J' => self.number(4, |b| {
                Value::Int(i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            })?,
            b'G' => self.number(8, |b| {
                let mut word = [0; 8];
                word.copy_from_slice(b);
                Value::Float(f64::from_be_bytes(word))
            })?,
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,

            0x8c => self.string(1)?,
            b'X' => self.string(4)?,
            0x8d => self.string(8)?,
            // Strings of Python 2, and bytes: with their lengths in 1, 4 or 8 bytes.
            b'U' => self.string(1)?,
            b'T' => self.string(4)?,
            b'C' => self.blob(1)?,
            b'B' => self.blob(4)?,
            0x8e | 0x96 => self.blob(8)?,

            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // Above a mark it is the mark that is popped.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top);
            }

            b']' | b')' | 0x8f => self.make(Node::Seq(Vec::new())),
            b'}' => self.make(Node::Dict(Vec::new())),
            b'l' | b't' | 0x91 => {
                let items = self.pop_mark()?;
                self.make(Node::Seq(items));
            }
            b'd' => {
                let items = self.pop_mark()?;
                let entries = self.pairs(&items)?;
                self.make(Node::Dict(entries));
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let items = self.pop_many(count)?;
                self.make(Node::Seq(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            b'q' => {
                let index = self.length(1)?;
                self.put(index)?;
            }
            b'r' => {
                let index = self.length(4)?;
                self.put(index)?;
            }
            0x94 => self.put(self.memo.len())?,
            b'h' => {
                let index = self.length(1)?;
                self.fetch(index)?;
            }
            b'j' => {
                let index = self.length(4)?;
                self.fetch(index)?;
            }

            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let text = |value: Value| match value {
                    Value::Ref(index) => match &self.nodes[index] {
                        Node::Str(s) if s.len() <= MAX_NAME => Some(s.clone()),
                        _ => None,
                    },
                    _ => None,
                };
                let (Some(module), Some(name)) = (text(names[0]), text(names[1])) else {
                    return Err(self.fault("a name is no short text"));
                };
                self.global(&module, &name)?;
            }
            // REDUCE and NEWOBJ differ in Python by how the class is called; here neither calls.
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?;
                self.reduce(parts[0], parts[1])?;
            }
            0x92 => {
                let parts = self.pop_many(3)?;
                self.reduce(parts[0], parts[1])?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                self.build(target, state);
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?;
            }
            other => return Err(self.fault(&format!("instruction {other:#04x} is not known"))),
        }
        Ok(None)
    }

    // Reading.

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return Err(self.fault("it ends too early")) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// An unsigned number of `width` bytes, the low one first.
    fn length(&mut self, width: usize) -> Result<usize, Fault> {
        let bytes = self.take(width)?;
        let number = bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(number).map_err(|_| self.fault("a length is out of range"))
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_NAME).position(|&b| b == b'\n');
        let Some(end) = end else { return Err(self.fault("a name does not end")) };
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.fault("a name is no text"))
    }

    fn number(&mut self, width: usize, read: impl Fn(&[u8]) -> Value) -> Result<(), Fault> {
        let value = read(self.take(width)?);
        self.push(value);
        Ok(())
    }

    /// A signed number of any length; beyond 64 bits its value is not kept.
    fn long(&mut self, width: usize) -> Result<(), Fault> {
        let count = self.length(width)?;
        let bytes = self.take(count)?;
        match bytes {
            [] => self.push(Value::Int(0)),
            [.., last] if count <= 8 => {
                let mut word = [if *last & 0x80 != 0 { 0xff } else { 0 }; 8];
                word[..count].copy_from_slice(bytes);
                self.push(Value::Int(i64::from_le_bytes(word)));
            }
            _ => self.make(Node::Blob),
        }
        Ok(())
    }

    fn string(&mut self, width: usize) -> Result<(), Fault> {
        let count = self.length(width)?;
        let bytes = self.take(count)?;
        if count > MAX_STRING {
            return Err(self.fault("a string is too long"));
        }
        // Lossy: a strange description is no reason to refuse a model.
        self.make(Node::Str(String::from_utf8_lossy(bytes).into_owned()));
        Ok(())
    }

    fn blob(&mut self, width: usize) -> Result<(), Fault> {
        let count = self.length(width)?;
        self.take(count)?;
        self.make(Node::Blob);
        Ok(())
    }

    // The stack. Nothing below the last mark can be popped.

    pub(super) fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    pub(super) fn make(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(Value::Ref(self.nodes.len() - 1));
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value, Fault> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(self.fault("its stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>, Fault> {
        if self.stack.len() < self.floor() + count {
            return Err(self.fault("its stack is empty"));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.fault("a mark is missing")),
        }
    }

    fn put(&mut self, index: usize) -> Result<(), Fault> {
        let top = self.top()?;
        // Memo numbers are given in order, so a number beyond the steps so far is a trap.
        if index > MAX_STEPS.min(self.at) {
            return Err(self.fault("a memo number is out of range"));
        }
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(top);
        Ok(())
    }

    fn fetch(&mut self, index: usize) -> Result<(), Fault> {
        match self.memo.get(index) {
            Some(&Some(value)) => self.push(value),
            _ => return Err(self.fault("a memo number is not set")),
        }
        Ok(())
    }

    // Collections.

    fn pairs(&self, items: &[Value]) -> Result<Vec<(Value, Value)>, Fault> {
        if !items.len().is_multiple_of(2) {
            return Err(self.fault("a key has no value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn extend(&mut self, mut items: Vec<Value>) -> Result<(), Fault> {
        match self.top()? {
            Value::Ref(index) => match &mut self.nodes[index] {
                Node::Seq(list) => list.append(&mut items),
                // Items of something opaque are dropped with it.
                Node::Object { .. } => {}
                _ => return Err(self.fault("items are added to something that is no list")),
            },
            _ => return Err(self.fault("items are added to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Value]) -> Result<(), Fault> {
        let mut entries = self.pairs(items)?;
        match self.top()? {
            Value::Ref(index) => match &mut self.nodes[index] {
                Node::Dict(dict) => dict.append(&mut entries),
                Node::Object { .. } => {}
                _ => return Err(self.fault("a key is set on something that is no dictionary")),
            },
            _ => return Err(self.fault("a key is set on something that is no dictionary")),
        }
        Ok(())
    }
}
