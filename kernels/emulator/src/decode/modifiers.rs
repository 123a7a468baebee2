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

impl Mods<'_> {
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
