//! The module tree of a checkpoint: torch's nested `_modules`, made flat.

use std::collections::BTreeMap;

use super::error::Fault;
use super::pickle::{Data, Node, TensorRef, Value};

/// YOLOv8's tree is eight deep. A cycle in the pickle ends here, too.
const MAX_DEPTH: usize = 24;
/// Entries looked at, over all modules. YOLOv8x has some 20,000. What is reached on several ways
/// counts each time, so that little data that refers to itself often cannot make much work.
const MAX_ENTRIES: usize = 1_000_000;

/// A module: what it is and its plain attributes.
#[derive(Debug)]
pub(super) struct Module {
    /// Python's path of the class.
    pub(super) class: String,
    state: Value,
}

impl Module {
    /// The class without its package.
    pub(super) fn kind(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or(&self.class)
    }
}

/// Modules and tensors by their dotted names; the root module is "".
#[derive(Debug)]
pub(super) struct Tree<'d> {
    data: &'d Data,
    pub(super) modules: BTreeMap<String, Module>,
    pub(super) tensors: BTreeMap<String, TensorRef>,
}

impl<'d> Tree<'d> {
    /// Walks down from a pickled module.
    pub(super) fn new(data: &'d Data, root: Value) -> Result<Self, Fault> {
        let mut tree = Self { data, modules: BTreeMap::new(), tensors: BTreeMap::new() };
        // A list of what is to be visited instead of recursion: depth is then only a number.
        let mut todo = vec![(String::new(), root, 0)];
        let mut entries = 0;
        while let Some((name, value, depth)) = todo.pop() {
            let Some(Node::Object { class, state: Some(state) }) = data.node(value) else {
                return Err(Fault::malformed(format!(
                    "module `{name}` of its pickle is no module"
                )));
            };
            let dicts = ["_parameters", "_buffers", "_modules"];
            entries += 1 + data.len(*state);
            if entries <= MAX_ENTRIES {
                let inner = dicts.iter().filter_map(|name| data.get(*state, name));
                entries += inner.map(|dict| data.len(dict)).sum::<usize>();
            }
            if depth > MAX_DEPTH || entries > MAX_ENTRIES {
                return Err(Fault::malformed("its module tree is too deep or too large"));
            }
            let join = |child: &str| match name.as_str() {
                "" => child.to_string(),
                parent => format!("{parent}.{child}"),
            };
            for kind in ["_parameters", "_buffers"] {
                for (child, value) in tree.named(*state, kind) {
                    if let Some(Node::Tensor(tensor)) = data.node(value) {
                        tree.tensors.insert(join(child), TensorRef::clone(tensor));
                    }
                }
            }
            for (child, value) in tree.named(*state, "_modules") {
                // A module may be switched off by None.
                if value != Value::None {
                    todo.push((join(child), value, depth + 1));
                }
            }
            tree.modules.insert(name, Module { class: class.to_string(), state: *state });
        }
        Ok(tree)
    }

    /// The entries of one of a module's dictionaries.
    fn named(&self, state: Value, which: &str) -> Vec<(&'d str, Value)> {
        let dict = self.data.get(state, which).and_then(|dict| self.data.node(dict));
        let Some(Node::Dict(entries)) = dict else { return Vec::new() };
        // Names end up in messages and maps: what no Python module could be called is skipped,
        // and its absence noticed later.
        let plain = |name: &&str| name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic());
        let entry = |&(k, v): &(Value, Value)| Some((self.data.str(k).filter(plain)?, v));
        entries.iter().filter_map(entry).collect()
    }

    /// An attribute of a module.
    pub(super) fn attr(&self, module: &str, name: &str) -> Option<Value> {
        self.data.get(self.modules.get(module)?.state, name)
    }

    /// An attribute that is a whole number, or a sequence of one repeated: (3, 3) is 3.
    pub(super) fn number(&self, module: &str, name: &str) -> Option<i64> {
        let value = self.attr(module, name)?;
        let number = |value: Value| match value {
            Value::Int(n) => Some(n),
            Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e9 => Some(x as i64),
            _ => None,
        };
        match self.data.node(value) {
            Some(Node::Seq(items)) => {
                let first = number(*items.first()?)?;
                items.iter().all(|&item| number(item) == Some(first)).then_some(first)
            }
            _ => number(value),
        }
    }

    /// An attribute that is a number.
    pub(super) fn float(&self, module: &str, name: &str) -> Option<f64> {
        match self.attr(module, name)? {
            Value::Float(x) => Some(x),
            Value::Int(n) => Some(n as f64),
            _ => None,
        }
    }

    /// An attribute that is true or false.
    pub(super) fn flag(&self, module: &str, name: &str) -> Option<bool> {
        match self.attr(module, name)? {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// An attribute that is a text.
    pub(super) fn text(&self, module: &str, name: &str) -> Option<&'d str> {
        self.data.str(self.attr(module, name)?)
    }

    /// An attribute that is a list of whole numbers, or one alone.
    pub(super) fn numbers(&self, module: &str, name: &str) -> Option<Vec<i64>> {
        let value = self.attr(module, name)?;
        let number = |value: Value| match value {
            Value::Int(n) => Some(n),
            _ => None,
        };
        match self.data.node(value) {
            Some(Node::Seq(items)) => items.iter().map(|&item| number(item)).collect(),
            _ => Some(vec![number(value)?]),
        }
    }

    /// A tensor that hangs on a module as an attribute.
    pub(super) fn tensor(&self, module: &str, name: &str) -> Option<&'d TensorRef> {
        match self.data.node(self.attr(module, name)?) {
            Some(Node::Tensor(tensor)) => Some(tensor),
            _ => None,
        }
    }
}
