//! What a pickle is read into.

use std::rc::Rc;

use super::super::info::Dtype;
use super::globals::Meaning;

/// A value: small ones themselves, others by their place in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Ref(usize),
}

/// A value that has parts.
#[derive(Debug)]
pub(in crate::model) enum Node {
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
pub(in crate::model) struct TensorRef {
    /// `None` for integers.
    pub(in crate::model) dtype: Option<Dtype>,
    /// Name of the storage's member.
    pub(in crate::model) key: String,
    /// Elements in the storage.
    pub(in crate::model) elements: u64,
    /// Index of the first element.
    pub(in crate::model) offset: u64,
    pub(in crate::model) shape: Vec<usize>,
    pub(in crate::model) strides: Vec<u64>,
}

/// The data of a pickle.
#[derive(Debug)]
pub(in crate::model) struct Data {
    pub(super) nodes: Vec<Node>,
    pub(in crate::model) root: Value,
}

impl Data {
    pub(in crate::model) fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Ref(index) => self.nodes.get(index),
            _ => None,
        }
    }

    pub(in crate::model) fn str(&self, value: Value) -> Option<&str> {
        match self.node(value) {
            Some(Node::Str(s)) => Some(s),
            _ => None,
        }
    }

    /// Entries of a dictionary; 0 for anything else.
    pub(in crate::model) fn len(&self, dict: Value) -> usize {
        match self.node(dict) {
            Some(Node::Dict(entries)) => entries.len(),
            _ => 0,
        }
    }

    /// The value of a text key in a dictionary.
    pub(in crate::model) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let Some(Node::Dict(entries)) = self.node(dict) else { return None };
        // The last one counts, as in Python.
        entries.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, v)| *v)
    }
}
