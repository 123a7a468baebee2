//! Modifiers of an opcode: the parts between its dots.

use super::Result;
use crate::exec::op::{Order, Scope};
use crate::ptx::tree::Ty;
use crate::ptx::{Position, PtxError};

/// Modifiers of an opcode, taken one by one; one that is left over is not known.
pub(super) struct Mods<'a> {
    pub(super) list: Vec<&'a str>,
    pub(super) at: Position,
    pub(super) opcode: &'a str,
}

/// Opcodes, with the modifiers that make them so, and the first target that has them.
const SINCE: &[(&str, &[&str], u32)] = &[
    ("nanosleep", &[], 70),
    ("match", &[], 70),
    ("mma", &[], 70),
    ("ldmatrix", &[], 75),
    ("tanh", &[], 75),
    ("cp", &["async"], 80),
    ("redux", &[], 80),
    ("cvt", &["e4m3x2", "e5m2x2"], 89),
    ("mma", &["e4m3", "e5m2"], 89),
    ("elect", &[], 90),
    ("griddepcontrol", &[], 90),
    ("setmaxnreg", &[], 90),
    ("fence", &["cluster"], 90),
    ("ld", &["cluster"], 90),
    ("st", &["cluster"], 90),
    ("atom", &["cluster"], 90),
    ("red", &["cluster"], 90),
];

impl Mods<'_> {
    /// Refuses what the module's target does not have.
    pub(super) fn check_target(&self, name: &str, target: u32) -> Result<()> {
        let is_listed = |(opcode, marks, _): &&(&str, &[&str], u32)| {
            *opcode == name && (marks.is_empty() || self.list.iter().any(|found| marks.contains(found)))
        };
        match SINCE.iter().filter(is_listed).map(|(_, _, since)| *since).max() {
            Some(since) if since > target => {
                let message = format!("`{}` needs `.target sm_{since}` or a later one, not sm_{target}", self.opcode);
                Err(PtxError::new(self.at, message))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn take(&mut self, name: &str) -> bool {
        let found = self.list.iter().position(|&known| known == name);
        found.map(|index| self.list.remove(index)).is_some()
    }

    /// The first modifier that a function understands.
    pub(super) fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let index = self.list.iter().position(|name| f(name).is_some())?;
        f(self.list.remove(index))
    }

    pub(super) fn ty(&mut self) -> Result<Ty> {
        self.find(Ty::parse).ok_or_else(|| PtxError::new(self.at, format!("`{}` has no type", self.opcode)))
    }

    pub(super) fn finish(&self) -> Result<()> {
        match self.list.first() {
            None => Ok(()),
            Some(left) => {
                Err(PtxError::new(self.at, format!("the modifier `.{left}` of `{}` is not known", self.opcode)))
            }
        }
    }

    /// The scope, where one is given.
    fn scope(&mut self) -> Option<Scope> {
        self.find(|name| match name {
            "cta" | "cluster" => Some(Scope::Cta),
            "gpu" | "sys" => Some(Scope::Device),
            _ => None,
        })
    }

    /// The strength and order of a load or store, of which `orders` may be given; relaxed and stronger ones have a scope.
    pub(super) fn order(&mut self, orders: &[&str]) -> Result<Order> {
        let Some(mut order) = self.semantics(orders) else {
            let strong = self.take("volatile");
            if !strong {
                self.take("weak");
            }
            return Ok(Order { strong, ..Order::default() });
        };
        let Some(scope) = self.scope() else {
            let message = format!("`{}` needs a scope: `.cta`, `.cluster`, `.gpu` or `.sys`", self.opcode);
            return Err(PtxError::new(self.at, message));
        };
        order.scope = scope;
        Ok(order)
    }

    /// The order of an atomic: relaxed for the device where nothing is given.
    pub(super) fn atomic_order(&mut self, orders: &[&str]) -> Order {
        let order = self.semantics(orders).unwrap_or(Order { strong: true, ..Order::default() });
        Order { scope: self.scope().unwrap_or_default(), ..order }
    }

    fn semantics(&mut self, orders: &[&str]) -> Option<Order> {
        let name = orders.iter().find(|name| self.list.contains(name))?;
        self.take(name);
        let (acquire, release) = (["acquire", "acq_rel"].contains(name), ["release", "acq_rel"].contains(name));
        Some(Order { strong: true, acquire, release, scope: Scope::default() })
    }

    /// The scope of a fence.
    pub(super) fn fence(&mut self, name: &str) -> Result<Scope> {
        let scope = if name == "membar" {
            self.find(|name| match name {
                "cta" => Some(Scope::Cta),
                "gl" | "sys" => Some(Scope::Device),
                _ => None,
            })
        } else {
            self.find(|name| ["sc", "acq_rel", "acquire", "release"].contains(&name).then_some(()));
            self.scope()
        };
        scope.ok_or_else(|| PtxError::new(self.at, format!("`{}` has no scope", self.opcode)))
    }

    /// Drops hints to caches, which change no result; of those in `policies` one may be given, to a weak access.
    pub(super) fn drop_hints(&mut self, policies: &[&str], order: Order) {
        if !order.strong {
            self.find(|name| policies.contains(&name).then_some(()));
        }
        self.list.retain(|name| !name.starts_with("L1::") && !name.starts_with("L2::"));
    }
}
