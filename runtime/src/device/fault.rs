//! A device that fails on purpose, to see what becomes of everything above it.
//!
//! It hands steps on to another device and spoils those that its faults name. [`VARIABLE`] puts it around the device that
//! a plan is loaded onto, which is how tests make a whole process fail: `panic@5,broken@9` panics in the fifth step and
//! breaks the first row of the ninth.

use std::time::Duration;

use super::{Device, Limits, Row, Step, StepOutput, Ticket, timeline::Timeline};
use crate::error::{Error, Result};

/// The environment variable that asks for faults.
pub const VARIABLE: &str = "LATHE_FAULT";

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The thread panics.
    Panic,
    /// The device is lost.
    Lost,
    /// The first row's logits are not finite.
    Broken,
    /// The process dies.
    Abort,
    /// The step never comes back.
    Hang,
    /// The step and all after it take two milliseconds longer, as those of a large model do.
    Slow,
}

/// How much longer slow steps take.
const SLOW: Duration = Duration::from_millis(2);

/// A step that goes wrong. Steps count from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How.
    pub kind: Kind,
    /// Which.
    pub step: u64,
}

/// Reads a list of faults as [`VARIABLE`] spells it.
pub fn parse(text: &str) -> Result<Vec<Fault>> {
    let kinds = [
        ("panic", Kind::Panic),
        ("lost", Kind::Lost),
        ("broken", Kind::Broken),
        ("abort", Kind::Abort),
        ("hang", Kind::Hang),
        ("slow", Kind::Slow),
    ];
    let one = |text: &str| {
        let (name, step) = text.split_once('@')?;
        let (_, kind) = kinds.iter().find(|(known, _)| *known == name)?;
        Some(Fault { kind: *kind, step: step.parse().ok()? })
    };
    let wrong =
        || format!("{VARIABLE} is `{text}`, expected a list such as panic@5,lost@9,broken@3,abort@7,hang@8,slow@1");
    text.split(',').map(|text| one(text.trim())).collect::<Option<_>>().ok_or_else(|| Error::Step(wrong()))
}

/// Puts faults around a device where the environment asks for them.
pub(super) fn inject(device: Box<dyn Device>) -> Result<Box<dyn Device>> {
    match std::env::var(VARIABLE) {
        Ok(text) => Ok(Box::new(FaultyDevice::new(device, parse(&text)?))),
        Err(_) => Ok(device),
    }
}

/// Runs another device's steps and spoils some.
pub struct FaultyDevice {
    device: Box<dyn Device>,
    faults: Vec<Fault>,
    collected: u64,
}

impl FaultyDevice {
    /// Puts faults around a device.
    pub fn new(device: Box<dyn Device>, faults: Vec<Fault>) -> FaultyDevice {
        FaultyDevice { device, faults, collected: 0 }
    }
}

impl Device for FaultyDevice {
    fn limits(&self) -> &Limits {
        self.device.limits()
    }

    fn feeds_back(&self, row: &Row) -> bool {
        self.device.feeds_back(row)
    }

    fn record(&mut self, on: bool) {
        self.device.record(on);
    }

    fn timeline(&mut self) -> Option<Timeline> {
        self.device.timeline()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        self.device.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        self.device.collect(ticket, output)?;
        self.collected += 1;
        let happens =
            |fault: &&Fault| fault.step == self.collected || fault.kind == Kind::Slow && fault.step < self.collected;
        for fault in self.faults.iter().filter(happens) {
            match fault.kind {
                Kind::Panic => panic!("a panic was asked for"),
                Kind::Lost => return Err(Error::DeviceLost("a loss was asked for".into())),
                Kind::Broken => output.rows.iter_mut().take(1).for_each(|row| row.is_broken = true),
                Kind::Abort => std::process::abort(),
                Kind::Hang => loop {
                    std::thread::park();
                },
                Kind::Slow => std::thread::sleep(SLOW),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_refused_with_what_was_expected() {
        let fault = |kind, step| Fault { kind, step };
        assert_eq!(parse("panic@5, slow@9").unwrap(), [fault(Kind::Panic, 5), fault(Kind::Slow, 9)]);
        for wrong in ["", "panic", "panic@", "panic@x", "fire@1", "panic@1,"] {
            assert!(parse(wrong).unwrap_err().to_string().contains("expected a list"), "{wrong}");
        }
    }
}
