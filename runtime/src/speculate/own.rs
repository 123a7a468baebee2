//! Guesses of the model itself without some of its layers: a program over the same weights and the same cache.
//!
//! It has nothing of its own. It reads what the whole model put into the cache, and what it computes of guesses it puts
//! where the whole model will put the same positions when it verifies them, in every layer and before anything reads
//! them: so what it leaves there changes no bit, and needs no room. Only the pages of the positions themselves are
//! granted before it is asked, and go back afterwards.

use std::fmt;

use super::{
    Ask, Drafter, Key, Kind,
    model::{Model, Taken},
    worth,
};
use crate::{
    batcher::Load,
    device::{Device, StepToken},
    error::Result,
};

/// The drafter that leaves layers out.
pub struct OwnModel {
    model: Model,
}

impl OwnModel {
    /// A drafter that runs this program, in the memory of its target.
    pub fn new(device: Box<dyn Device>) -> OwnModel {
        let vocabulary = device.limits().vocabulary;
        OwnModel { model: Model::new(device, vocabulary, worth::OWN) }
    }

    /// One step for these asks, a token each; those that go on.
    fn round(&mut self, asks: &mut [Ask<'_>], open: &[usize]) -> Result<Vec<usize>> {
        self.model.begin();
        let (mut rows, mut load) = (Vec::new(), Load::default());
        for &index in open {
            let ask = &mut asks[index];
            let known = ask.rule.tokens.len();
            let position = known + ask.guesses.len() - 1;
            let Some(&last) = ask.guesses.last().map(|guess| &guess.token).or(ask.rule.tokens.last()) else { continue };
            let Some(place) = ask.place.as_mut().filter(|place| position < place.table.tokens()) else { continue };
            if !self.model.has_room() {
                break;
            }
            self.model.step.copies.append(&mut place.copies);
            self.model.step.push_sequence([StepToken::Known(last)], position as u32, place.table.groups());
            load = load.and(Load::of(position, 1));
            rows.push((index, self.model.push_row(ask)));
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.model.run(load)?;
        rows.retain(|&(index, row)| self.model.take(&mut asks[index], row) == Taken::More);
        Ok(rows.into_iter().map(|(index, _)| index).collect())
    }
}

impl Drafter for OwnModel {
    fn kind(&self) -> Kind {
        Kind::Own
    }

    fn draft(&mut self, asks: &mut [Ask<'_>]) -> Result<()> {
        let wanted = |index: &usize| asks[*index].most > 0 && !asks[*index].rule.tokens.is_empty();
        let mut open: Vec<usize> = (0..asks.len()).filter(wanted).collect();
        while !open.is_empty() {
            open = self.round(asks, &open)?;
        }
        Ok(())
    }

    fn forget(&mut self, _key: Key) {}

    fn seconds(&self, load: Load) -> Option<f64> {
        self.model.seconds(load)
    }
}

impl fmt::Debug for OwnModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnModel").field("model", &self.model).finish()
    }
}
