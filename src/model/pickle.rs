//! A machine that reads pickles (protocols 2 to 5) into plain data and runs nothing.
//!
//! Values live in one arena and refer to each other by index, so that a pickle's cycles are
//! harmless here and dropping is not recursive; whoever walks the result must expect them.
//! Memory is bounded by the number of instructions, each of which makes at most one node.

use std::rc::Rc;

use super::error::Fault;
use super::globals::{Meaning, meaning};
use super::info::Dtype;

/// Instructions in one pickle. The largest YOLOv8 checkpoints need some 60,000.
const MAX_STEPS: usize = 2_000_000;
/// Values on the stack at once.
const MAX_STACK: usize = 200_000;
/// Bytes of one string.
const MAX_STRING: usize = 4 << 20;
/// Names of classes and functions, and bytes of one of their two parts.
const MAX_GLOBALS: usize = 10_000;
const MAX_NAME: usize = 256;

/// A value: small ones themselves, others by their place in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Ref(usize),
}

/// A value that has parts.
#[derive(Debug)]
pub(super) enum Node {
    Str(String),
    /// Bytes and numbers of more than 64 bits: nothing here needs what they hold.
    Blob,
    /// Lists, tuples and sets.
    Seq(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Global {
        path: Rc<str>,
        meaning: Meaning,
    },
    Storage {
        dtype: Option<Dtype>,
        key: String,
        elements: u64,
    },
    Tensor(Box<TensorRef>),
    /// An instance: its class by name, and the state it would be given.
    Object {
        class: Rc<str>,
        state: Option<Value>,
    },
}

/// Where a tensor's elements lie.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    /// `None` for integers.
    pub(super) dtype: Option<Dtype>,
    /// Name of the storage's member.
    pub(super) key: String,
    /// Elements in the storage.
    pub(super) elements: u64,
    /// Index of the first element.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<u64>,
}

/// The data of a pickle.
#[derive(Debug)]
pub(super) struct Data {
    nodes: Vec<Node>,
    pub(super) root: Value,
}

impl Data {
    pub(super) fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Ref(index) => self.nodes.get(index),
            _ => None,
        }
    }

    pub(super) fn str(&self, value: Value) -> Option<&str> {
        match self.node(value) {
            Some(Node::Str(s)) => Some(s),
            _ => None,
        }
    }

    /// Entries of a dictionary; 0 for anything else.
    pub(super) fn len(&self, dict: Value) -> usize {
        match self.node(dict) {
            Some(Node::Dict(entries)) => entries.len(),
            _ => 0,
        }
    }

    /// The value of a text key in a dictionary.
    pub(super) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let Some(Node::Dict(entries)) = self.node(dict) else { return None };
        // The last one counts, as in Python.
        entries.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, v)| *v)
    }
}

/// Reads a whole pickle.
pub(super) fn parse(bytes: &[u8]) -> Result<Data, Fault> {
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

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Names seen.
    globals: usize,
    /// Entries copied from one collection into another: the only work that a single
    /// instruction can ask for without having brought the bytes.
    copied: usize,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
}

impl<'a> Machine<'a> {
    fn fault(&self, what: &str) -> Fault {
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

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn make(&mut self, node: Node) {
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
        if items.len() % 2 != 0 {
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

    // Names, instances, tensors.

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        let python = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !(module.chars().all(python) && name.chars().all(python)) {
            return Err(self.fault("a name is no Python name"));
        }
        let meaning = meaning(module, name)?;
        self.globals += 1;
        if self.globals > MAX_GLOBALS {
            return Err(self.fault("it has too many names"));
        }
        self.make(Node::Global { path: format!("{module}.{name}").into(), meaning });
        Ok(())
    }

    fn seq(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Ref(index) => match &self.nodes[index] {
                Node::Seq(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    fn reduce(&mut self, callee: Value, args: Value) -> Result<(), Fault> {
        let Value::Ref(index) = callee else {
            return Err(self.fault("something that is no class is called"));
        };
        let (path, meaning) = match &self.nodes[index] {
            Node::Global { path, meaning } => (Rc::clone(path), *meaning),
            _ => return Err(self.fault("something that is no class is called")),
        };
        let Some(args) = self.seq(args) else {
            return Err(self.fault("arguments are no tuple"));
        };
        match meaning {
            Meaning::RebuildTensor => {
                let tensor = self.tensor(args)?;
                self.make(Node::Tensor(Box::new(tensor)));
            }
            Meaning::RebuildParameter | Meaning::Size => match args.first() {
                Some(&first) => self.push(first),
                None => self.make(Node::Seq(Vec::new())),
            },
            Meaning::Dict => {
                let list = args.first().and_then(|&list| self.seq(list)).unwrap_or(&[]);
                if self.copied + list.len() > MAX_STEPS {
                    return Err(self.fault("it copies too much"));
                }
                let pair = |&pair: &Value| match self.seq(pair) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let entries = list.iter().filter_map(pair).collect();
                self.copied += list.len();
                self.make(Node::Dict(entries));
            }
            Meaning::Storage(_) => return Err(self.fault("a storage has no data")),
            Meaning::Opaque => self.make(Node::Object { class: path, state: None }),
        }
        Ok(())
    }

    fn build(&mut self, target: Value, given: Value) {
        // State of anything else (an attribute of an OrderedDict, say) means nothing to us.
        if let Value::Ref(index) = target
            && let Node::Object { state, .. } = &mut self.nodes[index]
        {
            *state = Some(given);
        }
    }

    /// ("storage", class, key, device, elements).
    fn storage(&mut self, id: Value) -> Result<(), Fault> {
        let parts = self.seq(id).unwrap_or(&[]);
        let &[kind, class, key, _, Value::Int(elements)] = parts else {
            return Err(self.fault("a storage is not described as torch does"));
        };
        let node = |value| match value {
            Value::Ref(index) => Some(&self.nodes[index]),
            _ => None,
        };
        let (Some(Node::Str(kind)), Some(Node::Str(key))) = (node(kind), node(key)) else {
            return Err(self.fault("a storage is not described as torch does"));
        };
        let Some(Node::Global { meaning: Meaning::Storage(dtype), .. }) = node(class) else {
            return Err(self.fault("a storage has no element type"));
        };
        let plain = key.len() <= 20 && key.bytes().all(|b| b.is_ascii_alphanumeric());
        let Ok(elements) = u64::try_from(elements) else {
            return Err(self.fault("a storage has a negative size"));
        };
        if kind != "storage" || key.is_empty() || !plain {
            return Err(self.fault("a storage is not named as torch does"));
        }
        let storage = Node::Storage { dtype: *dtype, key: key.clone(), elements };
        self.make(storage);
        Ok(())
    }

    /// (storage, offset, size, stride, …), checked to lie within the storage.
    fn tensor(&self, args: &[Value]) -> Result<TensorRef, Fault> {
        let &[Value::Ref(storage), offset, size, stride, ..] = args else {
            return Err(self.fault("a tensor is not described as torch does"));
        };
        let Node::Storage { dtype, key, elements } = &self.nodes[storage] else {
            return Err(self.fault("a tensor has no storage"));
        };
        let whole = |value: Value| match value {
            Value::Int(n) => u64::try_from(n).ok(),
            _ => None,
        };
        let list = |value: Value| -> Option<Vec<u64>> {
            let items = self.seq(value)?;
            if items.len() > 8 {
                return None;
            }
            items.iter().map(|&n| whole(n)).collect()
        };
        let (Some(offset), Some(shape), Some(strides)) = (whole(offset), list(size), list(stride))
        else {
            return Err(self.fault("a tensor's shape is not a few natural numbers"));
        };
        if shape.len() != strides.len() {
            return Err(self.fault("a tensor's shape and strides do not fit"));
        }
        // A broadcast tensor (stride 0) could claim any size from one element: none is needed.
        let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let last = shape.iter().zip(&strides).try_fold(offset, |at, (&d, &s)| {
            d.saturating_sub(1).checked_mul(s).and_then(|step| at.checked_add(step))
        });
        let (Some(count), Some(last)) = (count, last) else {
            return Err(self.fault("a tensor's shape overflows"));
        };
        if count > *elements || (count > 0 && last >= *elements) {
            return Err(self.fault("a tensor reaches beyond its storage"));
        }
        let shape = shape.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let Ok(shape) = shape else { return Err(self.fault("a tensor's shape overflows")) };
        Ok(TensorRef {
            dtype: *dtype,
            key: key.clone(),
            elements: *elements,
            offset,
            shape,
            strides,
        })
    }
}
